package squashfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestWhatIsWrittenIsReadBack(t *testing.T) {
	tr := sample(t)
	for _, block := range []int{4 << 10, DefaultBlockSize, 1 << 20} {
		t.Run(fmt.Sprint(block), func(t *testing.T) {
			same(t, tr, read(t, write(t, tr, Options{BlockSize: block, Date: 1700000000})))
		})
	}
}

func TestBytesDoNotDependOnWorkers(t *testing.T) {
	tr := sample(t)
	var first []byte
	for _, workers := range []int{1, 2, 7, 1} {
		b, err := os.ReadFile(write(t, tr, Options{Workers: workers, BlockSize: 16 << 10}))
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		}
		if !bytes.Equal(first, b) {
			t.Errorf("%d workers give other bytes than 1", workers)
		}
	}
}

// unsquashfs must list the same owners, modes, sizes, devices and times, and
// unpack the same content.
func TestUnsquashfsAgrees(t *testing.T) {
	tr := sample(t)
	p := write(t, tr, Options{})
	cmd := exec.Command(tool(t, "unsquashfs"), "-lln", "-d", "", p)
	cmd.Env = append(os.Environ(), "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("unsquashfs: %v\n%s", err, out)
	}
	got := strings.Split(strings.TrimSpace(string(out)), "\n")
	for i := range got {
		fields := strings.Fields(got[i])
		if strings.HasPrefix(got[i], "d") {
			fields[2] = "-" // the length of the listing, which is the format's own affair
		}
		got[i] = strings.Join(fields, " ")
	}
	want := listAsUnsquashfs(t, tr)
	sort.Strings(got)
	sort.Strings(want)
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			t.Fatalf("unsquashfs lists\n%s\nwant\n%s", got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Fatalf("unsquashfs lists %d files, want %d", len(got), len(want))
	}

	dir := filepath.Join(t.TempDir(), "root")
	args := []string{"-quiet", "-no-progress", "-d", dir, p}
	if os.Geteuid() != 0 { // device nodes and other owners' files cannot be made
		args = append([]string{"-ignore-errors"}, args...)
	}
	if out, err := exec.Command(tool(t, "unsquashfs"), args...).CombinedOutput(); err != nil && os.Geteuid() == 0 {
		t.Fatalf("unsquashfs: %v\n%s", err, out)
	}
	for _, e := range tr.Sorted() {
		if e.Kind != tree.Regular {
			continue
		}
		want, err := tr.ReadFile(e.Path)
		if e.LinkTo == "usr/bin/hard" {
			want, err = tr.ReadFile("usr/bin/su")
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(dir, e.Path))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: unpacked %d bytes (%v), want %d", e.Path, len(got), err, len(want))
		}
	}
	su := tr.Get("usr/bin/su")
	for name, want := range su.Xattrs {
		if os.Geteuid() != 0 && !strings.HasPrefix(name, "user.") {
			continue
		}
		value := make([]byte, 100)
		n, err := unix.Lgetxattr(filepath.Join(dir, su.Path), name, value)
		if err != nil || !bytes.Equal(value[:n], want) {
			t.Errorf("%s: unpacked as %x (%v), want %x", name, value[:max(n, 0)], err, want)
		}
	}
}

// listAsUnsquashfs prints a tree as unsquashfs -lln does, blanks squeezed.
func listAsUnsquashfs(t *testing.T, tr *tree.Tree) []string {
	letters := map[tree.Kind]string{tree.Dir: "d", tree.Regular: "-", tree.Symlink: "l", tree.Char: "c", tree.Block: "b", tree.Fifo: "p", tree.Socket: "s"}
	var out []string
	for _, e := range tr.Sorted() {
		to := e
		for to.LinkTo != "" {
			to = tr.Get(to.LinkTo)
		}
		mode := []byte("rwxrwxrwx")
		for i := range mode {
			if to.Perm>>(8-i)&1 == 0 {
				mode[i] = '-'
			}
		}
		for _, special := range []struct {
			bit      uint32
			at       int
			on, with byte
		}{{0o4000, 2, 'S', 's'}, {0o2000, 5, 'S', 's'}, {0o1000, 8, 'T', 't'}} {
			if to.Perm&special.bit != 0 {
				if mode[special.at] == 'x' {
					mode[special.at] = special.with
				} else {
					mode[special.at] = special.on
				}
			}
		}
		size := fmt.Sprint(to.Size)
		switch to.Kind {
		case tree.Char, tree.Block:
			size = fmt.Sprintf("%d,%3d", to.Major, to.Minor)
		case tree.Symlink:
			size = fmt.Sprint(len(to.Target))
		case tree.Dir:
			size = "-"
		}
		path := "/" + e.Path
		if e.Path == "." {
			path = ""
		}
		line := fmt.Sprintf("%s%s %d/%d %s %s %s", letters[to.Kind], mode, to.UID, to.GID, size, time.Unix(to.MTime, 0).UTC().Format("2006-01-02 15:04"), path)
		if to.Kind == tree.Symlink {
			line += " -> " + to.Target
		}
		out = append(out, strings.Join(strings.Fields(line), " "))
	}
	return out
}

// What mksquashfs makes of a directory, with either compression, is read as the
// directory is.
func TestReadsWhatMksquashfsWrites(t *testing.T) {
	dir := t.TempDir()
	rng := rand.New(rand.NewPCG(3, 4))
	want := map[string]string{}
	for i := range 300 {
		name := fmt.Sprintf("d%d/f%d", i%7, i)
		content := make([]byte, rng.IntN(40_000))
		if i%3 == 0 {
			for j := range content {
				content[j] = byte(rng.Uint32())
			}
		}
		want[name] = string(content)
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o640); err != nil {
			t.Fatal(err)
		}
	}
	long := bytes.Repeat([]byte("x"), 900)
	for _, x := range []struct{ file, name, value string }{
		{"d0/f0", "user.a", "1"}, {"d0/f0", "user.b", "2"}, {"d0/f0", "user.c", "3"},
		{"d1/f1", "user.long", string(long)}, {"d2/f2", "user.long", string(long)},
	} {
		if err := unix.Setxattr(filepath.Join(dir, x.file), x.name, []byte(x.value), 0); err != nil {
			t.Fatalf("this test needs a TMPDIR with extended attributes: %v", err)
		}
	}
	if err := os.Link(filepath.Join(dir, "d3/f3"), filepath.Join(dir, "linked")); err != nil {
		t.Fatal(err)
	}
	want["linked"] = want["d3/f3"]
	for _, compression := range []string{"gzip", "zstd"} {
		p := filepath.Join(t.TempDir(), "m.sqfs")
		out, err := exec.Command(tool(t, "mksquashfs"), dir, p, "-comp", compression, "-b", "8K", "-all-root", "-no-progress", "-quiet").CombinedOutput()
		if err != nil {
			t.Fatalf("mksquashfs: %v\n%s", err, out)
		}
		tr := read(t, p)
		for name, content := range want {
			if got, err := tr.ReadFile(name); err != nil || string(got) != content {
				t.Errorf("%s: %s has %d bytes (%v), want %d", compression, name, len(got), err, len(content))
			}
		}
		if e := tr.Get("d0/f0"); len(e.Xattrs) != 3 || string(e.Xattrs["user.c"]) != "3" || e.Perm != 0o640 {
			t.Errorf("%s: d0/f0 is read as %+v", compression, e)
		}
		if e := tr.Get("d2/f2"); !bytes.Equal(e.Xattrs["user.long"], long) {
			t.Errorf("%s: the long attribute is read as %d bytes", compression, len(e.Xattrs["user.long"]))
		}
		if a, b := tr.Get("linked"), tr.Get("d3/f3"); (a.LinkTo == "") == (b.LinkTo == "") {
			t.Errorf("%s: the hard link is lost: %q %q", compression, a.LinkTo, b.LinkTo)
		}
	}
}

// randomTree makes any tree: sizes around the bounds of blocks, zeros, repeats.
func randomTree(t testing.TB, rng *rand.Rand, block int) *tree.Tree {
	tr := tree.New()
	dirs := []string{"."}
	var files []string
	pool := [][]byte{nil}
	for i := range 200 {
		dir := dirs[rng.IntN(len(dirs))]
		p := fmt.Sprintf("%s/n%d%s", dir, i, strings.Repeat("x", rng.IntN(240)))
		e := &tree.Entry{Path: p, Perm: rng.Uint32() & 0o7777, UID: rng.Uint32() >> rng.IntN(32), GID: rng.Uint32() >> rng.IntN(32), MTime: int64(rng.Uint32())}
		for range rng.IntN(4) {
			if e.Xattrs == nil {
				e.Xattrs = map[string][]byte{}
			}
			name := xattrPrefixes[rng.IntN(3)] + strings.Repeat("n", 1+rng.IntN(200))
			e.Xattrs[name] = bytes.Repeat([]byte{byte(i)}, rng.IntN(3000))
		}
		switch rng.IntN(10) {
		case 0, 1:
			if len(p) < 2000 {
				e.Kind = tree.Dir
				dirs = append(dirs, p)
				break
			}
			fallthrough
		case 2:
			e.Kind, e.Target = tree.Symlink, strings.Repeat("t", 1+rng.IntN(3000))
		case 3:
			e.Kind, e.Major, e.Minor = tree.Char, rng.Uint32()&0xfff, rng.Uint32()&0xfffff
		case 4:
			if len(files) > 0 {
				e = &tree.Entry{Path: p, Kind: tree.Regular, LinkTo: files[rng.IntN(len(files))]}
				break
			}
			fallthrough
		default:
			content := pool[rng.IntN(len(pool))]
			if rng.IntN(3) > 0 {
				content = make([]byte, max(0, block*rng.IntN(4)+rng.IntN(5)-2))
				for j := 0; j < len(content) && i%4 > 0; j += 1 + rng.IntN(block) {
					for k := j; k < min(j+rng.IntN(block), len(content)); k++ {
						content[k] = byte(rng.Uint32())
					}
				}
				pool = append(pool, content)
			}
			f := file(p, content)
			e.Kind, e.Size, e.Open = tree.Regular, f.Size, f.Open
			files = append(files, p)
		}
		put(t, tr, e)
	}
	return tr
}

func TestAnyTreeComesBack(t *testing.T) {
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 0))
		tr := randomTree(t, rng, 4096)
		p := write(t, tr, Options{BlockSize: 4096, Workers: 1 + rng.IntN(4)})
		same(t, tr, read(t, p))
		if out, err := exec.Command(tool(t, "unsquashfs"), "-lln", p).CombinedOutput(); err != nil {
			t.Errorf("unsquashfs: %v\n%s", err, out)
		}
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

// The index of a large directory is what the kernel looks a name up with: every
// entry must point to a header, and to the name that it gives.
func TestDirectoryIndexPointsToNames(t *testing.T) {
	p := write(t, sample(t), Options{})
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, _ := f.Stat()
	s, err := Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	root, inodes, err := plan(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	var many *inode
	for _, c := range root.children {
		if c.name == "many" {
			many = c.to
		}
	}
	refs, err := s.indexed(s.sb.ExportTable, int64(8*len(inodes)))
	if err != nil {
		t.Fatal(err)
	}
	ref := le.Uint64(refs[8*(many.number-1):])
	c := s.at(s.sb.InodeTable, ref>>16, uint16(ref))
	c.bytes(16 + 4 + 4)
	start := c.u32()
	c.u32()
	count, offset := c.u16(), c.u16()
	c.u32()
	if count < 10 || c.err != nil {
		t.Fatalf("%d index entries for 3000 files (%v)", count, c.err)
	}
	last := ""
	for range count {
		at, block := c.u32(), c.u32()
		name := string(c.bytes(int(c.u32()) + 1))
		d := s.at(s.sb.DirTable, uint64(block), uint16((at+uint32(offset))%metadataSize))
		d.bytes(12 + 6)
		if got := string(d.bytes(int(d.u16()) + 1)); got != name || d.err != nil || name <= last || block < start {
			t.Errorf("the index leads to %q instead of %q (%v)", got, name, d.err)
		}
		last = name
	}
}

func TestWriteRefuses(t *testing.T) {
	cases := map[string]struct {
		entry *tree.Entry
		class fault.Class
		says  string
	}{
		"a file that shrank":       {&tree.Entry{Path: "a", Kind: tree.Regular, Size: 10, Open: file("", []byte("short")).Open}, fault.Integrity, "a: ends before the 10 bytes"},
		"a file that grew":         {&tree.Entry{Path: "a", Kind: tree.Regular, Size: 3, Open: file("", []byte("longer")).Open}, fault.Integrity, "a: holds more than the 3 bytes"},
		"a large file that shrank": {&tree.Entry{Path: "a", Kind: tree.Regular, Size: 1 << 20, Open: file("", make([]byte, 1000)).Open}, fault.Integrity, "a: ends before"},
		"a POSIX ACL":              {&tree.Entry{Path: "a", Kind: tree.Dir, Xattrs: map[string][]byte{"system.posix_acl_access": {1}}}, fault.Input, "system.posix_acl_access"},
		"a name of 257 bytes":      {&tree.Entry{Path: strings.Repeat("n", 257), Kind: tree.Dir}, fault.Input, "257 bytes"},
		"a link to nothing":        {&tree.Entry{Path: "a", Kind: tree.Regular, LinkTo: "b"}, fault.Input, "hard link to b"},
		"a link to itself":         {&tree.Entry{Path: "a", Kind: tree.Regular, LinkTo: "a"}, fault.Input, "circle"},
		"no kind":                  {&tree.Entry{Path: "a"}, fault.Internal, "unknown kind"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			tr := tree.New()
			put(t, tr, c.entry)
			f, err := os.Create(filepath.Join(t.TempDir(), "x"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			_, err = Write(context.Background(), f, tr, Options{})
			if err == nil || !strings.Contains(err.Error(), c.says) || fault.Of(err) != c.class {
				t.Errorf("error %q of class %v, want one that says %q of class %v", err, fault.Of(err), c.says, c.class)
			}
		})
	}
}

type failingWriter struct{ after int64 }

var errFull = errors.New("no space left")

func (f failingWriter) WriteAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > f.after {
		return 0, errFull
	}
	return len(p), nil
}

func TestAFullDiskAndACancelledBuildEndTheWrite(t *testing.T) {
	tr := tree.New()
	for i := range 100 {
		content := make([]byte, 200_000)
		rand.NewChaCha8([32]byte{byte(i)}).Read(content)
		put(t, tr, file(fmt.Sprint(i), content))
	}
	if _, err := Write(context.Background(), failingWriter{3 << 20}, tr, Options{Workers: 2}); !errors.Is(err, errFull) {
		t.Errorf("a full disk gives %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	put(t, tr, &tree.Entry{Path: "5", Kind: tree.Regular, Size: 200_000, Open: func() (io.ReadCloser, error) {
		cancel()
		return io.NopCloser(bytes.NewReader(make([]byte, 200_000))), nil
	}})
	if _, err := Write(ctx, failingWriter{1 << 40}, tr, Options{Workers: 2}); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled build gives %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	small := tree.New()
	put(f, small, file("a/b", []byte("hello")))
	put(f, small, file("c", bytes.Repeat([]byte("data"), 3000)))
	put(f, small, &tree.Entry{Path: "d", Kind: tree.Char, Xattrs: map[string][]byte{"user.x": []byte("y")}})
	put(f, small, &tree.Entry{Path: "s", Kind: tree.Symlink, Target: "c"})
	b, err := os.ReadFile(write(f, small, Options{BlockSize: 4096}))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Open(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		tr, err := s.Tree()
		if err != nil {
			return
		}
		budget := int64(1 << 24) // sparse files can claim any size
		for _, e := range tr.Sorted() {
			if e.Open == nil || budget < 0 {
				continue
			}
			r, err := e.Open()
			if err != nil {
				continue
			}
			n, _ := io.Copy(io.Discard, io.LimitReader(r, budget))
			if n > e.Size {
				t.Errorf("%s yields %d bytes, more than its %d", e.Path, n, e.Size)
			}
			budget -= n
			r.Close()
		}
	})
}
