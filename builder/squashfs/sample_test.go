package squashfs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/tree"
)

// tool returns the path of an outside judge; without it the test fails.
func tool(t *testing.T, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: apt-get install squashfs-tools", name)
	}
	return p
}

func put(t testing.TB, tr *tree.Tree, e *tree.Entry) {
	t.Helper()
	if err := tr.Put(e); err != nil {
		t.Fatal(err)
	}
}

func file(path string, content []byte) *tree.Entry {
	return &tree.Entry{
		Path: path, Kind: tree.Regular, Perm: 0o644, MTime: 1700000000, Size: int64(len(content)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil },
	}
}

// sample has one of everything.
func sample(t testing.TB) *tree.Tree {
	tr := tree.New()
	rng := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	put(t, tr, &tree.Entry{Path: "etc", Kind: tree.Dir, Perm: 0o2755, GID: 42, MTime: 1600000000})
	put(t, tr, file("etc/empty", nil))
	put(t, tr, file("etc/small", []byte("one line\n")))
	put(t, tr, file("etc/same", []byte("one line\n")))
	put(t, tr, file("usr/random", random(300_000)))
	put(t, tr, file("usr/text", bytes.Repeat([]byte("slipway "), 100_000)))
	put(t, tr, file("usr/zeros", make([]byte, 1<<20)))
	put(t, tr, file("usr/holes", append(append(random(4096), make([]byte, 200_000)...), random(5000)...)))
	large := random(200_000)
	put(t, tr, file("usr/large", large))
	put(t, tr, file("usr/large-again", large))
	su := file("usr/bin/su", []byte("#!"))
	su.Perm, su.UID, su.GID = 0o4755, 70000, 4_000_000_000
	su.Xattrs = map[string][]byte{"security.capability": {1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, "user.note": []byte("kept"), "trusted.overlay.origin": {}}
	put(t, tr, su)
	put(t, tr, &tree.Entry{Path: "usr/bin/hard", Kind: tree.Regular, LinkTo: "usr/bin/su"})
	put(t, tr, &tree.Entry{Path: "usr/bin/harder", Kind: tree.Regular, LinkTo: "usr/bin/hard"})
	put(t, tr, &tree.Entry{Path: "usr/bin/soft", Kind: tree.Symlink, Perm: 0o777, Target: "../bin/su"})
	put(t, tr, &tree.Entry{Path: "dev/null", Kind: tree.Char, Perm: 0o666, Major: 1, Minor: 3})
	put(t, tr, &tree.Entry{Path: "dev/disk", Kind: tree.Block, Perm: 0o660, Major: 259, Minor: 71, GID: 6})
	put(t, tr, &tree.Entry{Path: "dev/gone", Kind: tree.Char})
	put(t, tr, &tree.Entry{Path: "run/fifo", Kind: tree.Fifo, Perm: 0o600})
	put(t, tr, &tree.Entry{Path: "run/socket", Kind: tree.Socket, Perm: 0o755, UID: 7})
	put(t, tr, &tree.Entry{Path: "opaque", Kind: tree.Dir, Perm: 0o755, Xattrs: map[string][]byte{"trusted.overlay.opaque": []byte("y")}})
	put(t, tr, &tree.Entry{Path: "tmp", Kind: tree.Dir, Perm: 0o1777})
	for i := range 3000 {
		put(t, tr, file(fmt.Sprintf("many/file-with-a-rather-long-name-%04d", i), fmt.Append(nil, i)))
	}
	return tr
}

func write(t testing.TB, tr *tree.Tree, o Options) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "image.sqfs")
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	n, err := Write(context.Background(), f, tr, o)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := f.Stat(); err != nil || st.Size() != n || n%4096 != 0 {
		t.Fatalf("Write says %d bytes, the file has %v (%v)", n, st.Size(), err)
	}
	return p
}

func read(t testing.TB, p string) *tree.Tree {
	t.Helper()
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	r, err := Open(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	tr, err := r.Tree()
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

// flat is a tree in a form that can be compared: hard links resolved to the
// path of the first of their group, content read.
func flat(t testing.TB, tr *tree.Tree) map[string]string {
	t.Helper()
	group := map[string]string{}
	out := map[string]string{}
	for _, e := range tr.Sorted() {
		name := e.Path
		target := e
		for target.LinkTo != "" {
			target = tr.Get(target.LinkTo)
		}
		if _, ok := group[target.Path]; !ok {
			group[target.Path] = e.Path
		}
		var content []byte
		if target.Open != nil {
			var err error
			if content, err = tr.ReadFile(target.Path); err != nil {
				t.Fatalf("%s: %v", e.Path, err)
			}
		}
		if int64(len(content)) != target.Size {
			t.Fatalf("%s: %d bytes, not %d", e.Path, len(content), target.Size)
		}
		out[name] = fmt.Sprintf("group %s kind %d perm %o owner %d:%d time %d target %q dev %d:%d xattrs %d size %d",
			group[target.Path], target.Kind, target.Perm, target.UID, target.GID, target.MTime, target.Target,
			target.Major, target.Minor, len(target.Xattrs), target.Size)
		for k, v := range target.Xattrs {
			out[name+" xattr "+k] = fmt.Sprintf("%x", v)
		}
		out[name+" content"] = string(content)
	}
	return out
}

// same fails unless both trees say the same.
func same(t testing.TB, want, got *tree.Tree) {
	t.Helper()
	w, g := flat(t, want), flat(t, got)
	for k, v := range w {
		if g[k] != v {
			if strings.HasSuffix(k, " content") {
				t.Errorf("%s differs: %d bytes, want %d", k, len(g[k]), len(v))
				continue
			}
			t.Errorf("%s:\n got %s\nwant %s", k, g[k], v)
		}
	}
	for k := range g {
		if _, ok := w[k]; !ok {
			t.Errorf("%s should not be there", k)
		}
	}
}
