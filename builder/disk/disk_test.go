package disk

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

var packages = map[string]string{
	"fsck.vfat": "dosfstools", "mdir": "mtools", "mcopy": "mtools", "sgdisk": "gdisk", "sfdisk": "fdisk",
}

// run runs an outside judge and returns what it says; without it the test fails.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		for _, dir := range []string{"/usr/sbin/", "/sbin/"} {
			if _, e := os.Stat(dir + name); e == nil {
				p, err = dir+name, nil
			}
		}
	}
	if err != nil {
		t.Fatalf("%s is missing: apt-get install %s", name, packages[name])
	}
	cmd := exec.Command(p, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=0", "LC_ALL=C.UTF-8", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func content(path string, n int) File {
	b := make([]byte, n)
	rand.NewChaCha8(sha256.Sum256([]byte(path))).Read(b)
	return File{Path: path, Size: int64(n), Src: bytes.NewReader(b)}
}

func input() LayoutInput {
	in := LayoutInput{
		Size: 2 << 30, Seed: sha256.Sum256([]byte("a version")), ESPSize: 512 << 20,
		BootImg: make([]byte, 512), CoreImg: bytes.Repeat([]byte{7}, 30_000),
		Date: time.Date(2026, 7, 17, 17, 5, 30, 0, time.UTC),
		Files: []File{
			content("EFI/BOOT/BOOTX64.EFI", 900_001),
			content("EFI/debian/grub.cfg", 120),
			content("grub/grub.cfg", 4000),
			content("grub/grubenv", 1024),
			content("layers/"+strings.Repeat("ab", 32)+".sqfs", 5_000_000),
			content("layers/"+strings.Repeat("ab", 31)+"ff.sqfs", 65536),
			content("images/db-master-2026.07.17/manifest.json", 70_000),
			content("images/db-master-2026.07.17/vmlinuz", 3_000_000),
			content("empty", 0),
			content("Ünïcode and spaces.tar.gz", 10),
		},
	}
	return in
}

func layout(t testing.TB, in LayoutInput) *Image {
	t.Helper()
	im, err := Layout(in)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// materialize writes part of the image to a sparse file.
func materialize(t testing.TB, im *Image, from, size int64) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "part.img")
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for e := range im.Segments(from, size) {
		if e.Src == nil {
			continue
		}
		if _, err := io.Copy(io.NewOffsetWriter(f, e.Offset-from), io.NewSectionReader(e.Src, e.SrcOff, e.Length)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestPartitionToolsAcceptTheTable(t *testing.T) {
	in := input()
	p := materialize(t, layout(t, in), 0, in.Size)
	if out := run(t, "sgdisk", "-v", p); !strings.Contains(out, "No problems found") {
		t.Errorf("sgdisk -v: %s", out)
	}
	run(t, "sfdisk", "--verify", p)
	dump := strings.ToLower(run(t, "sfdisk", "--dump", p))
	for _, want := range []string{
		"label-id: " + DiskGUID(in.Seed), "uuid=" + ESPGUID(in.Seed), "uuid=" + BIOSGUID(in.Seed),
		"start=        2048, size=        2048, type=21686148-6449-6e6f-744e-656564454649",
		"start=        4096, size=     1048576, type=c12a7328-f81f-11d2-ba4b-00a0c93ec93b",
	} {
		if !strings.Contains(dump, want) {
			t.Errorf("sfdisk --dump has no %q:\n%s", want, dump)
		}
	}
}

func TestGRUBFindsItsPieces(t *testing.T) {
	im := layout(t, input())
	b := make([]byte, 512)
	if _, err := im.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	if binary.LittleEndian.Uint64(b[0x5c:]) != 2048 || b[0x66] != 0x90 || b[0x67] != 0x90 || b[450] != 0xee || b[510] != 0x55 {
		t.Errorf("the boot sector is % x", b)
	}
	if _, err := im.ReadAt(b, 1<<20); err != nil {
		t.Fatal(err)
	}
	if binary.LittleEndian.Uint64(b[0x1f4:]) != 2049 || b[0] != 7 {
		t.Errorf("the first sector of core.img is % x", b)
	}
}

func TestFATToolsReadEveryFile(t *testing.T) {
	for _, mib := range []int64{64, 300, 512, 3 << 10} {
		t.Run(fmt.Sprint(mib), func(t *testing.T) {
			in := input()
			in.Size, in.ESPSize = 4<<30, mib<<20
			p := materialize(t, layout(t, in), espStart, in.ESPSize)
			checkFAT(t, p, in.Files)
			if out := run(t, "mdir", "-i", p, "::"); !strings.Contains(out, "SLIPWAY") || !strings.Contains(out, "2026-07-17  17:05") {
				t.Errorf("label or date is wrong: %s", out)
			}
		})
	}
}

func checkFAT(t *testing.T, p string, files []File) {
	t.Helper()
	out := run(t, "fsck.vfat", "-n", "-v", p)
	for _, complaint := range []string{"differ", "wrong", "nconsisten", "eclaim", "rong", "Dirty", "ot a regular"} {
		if strings.Contains(out, complaint) {
			t.Errorf("fsck.vfat -n: %s", out)
			break
		}
	}
	dir := t.TempDir()
	run(t, "mcopy", "-s", "-n", "-i", p, "::", dir)
	count := 0
	filepath.Walk(dir, func(_ string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			count++
		}
		return err
	})
	if count != len(files) {
		t.Errorf("%d files on the volume, want %d", count, len(files))
	}
	for _, f := range files {
		want := make([]byte, f.Size)
		if f.Size > 0 {
			f.Src.ReadAt(want, 0)
		}
		got, err := os.ReadFile(filepath.Join(dir, f.Path))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: read %d bytes (%v), want %d", f.Path, len(got), err, len(want))
		}
	}
}

// A node writes to its ESP: upgrades add files, the agent rewrites grubenv.
func TestTheVolumeCanBeWrittenTo(t *testing.T) {
	in := input()
	p := materialize(t, layout(t, in), espStart, in.ESPSize)
	more := content("layers/"+strings.Repeat("cd", 32)+".sqfs", 9_000_000)
	local := filepath.Join(t.TempDir(), "new")
	b := make([]byte, more.Size)
	more.Src.ReadAt(b, 0)
	if err := os.WriteFile(local, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", "-i", p, local, "::"+more.Path)
	env := content("grub/grubenv.new", 1024)
	env.Path = "grub/grubenv"
	b = b[:1024]
	env.Src.ReadAt(b, 0)
	if err := os.WriteFile(local, b, 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", "-o", "-i", p, local, "::"+env.Path)
	files := append([]File(nil), in.Files...)
	for i := range files {
		if files[i].Path == env.Path {
			files[i] = env
		}
	}
	checkFAT(t, p, append(files, more))
}

func TestLargeFilesAreAligned(t *testing.T) {
	in := input()
	large := map[io.ReaderAt]bool{}
	for _, f := range in.Files {
		large[f.Src] = f.Size >= alignment
	}
	for _, e := range layout(t, in).Extents() {
		if large[e.Src] && e.Offset%alignment != 0 {
			t.Errorf("a file of %d bytes is at %d, not on a multiple of %d", e.Length, e.Offset, alignment)
		}
	}
}

func TestAnySetOfFilesGivesAGoodVolume(t *testing.T) {
	for seed := range uint64(12) {
		rng := rand.New(rand.NewPCG(seed, 1))
		in := LayoutInput{Size: 1 << 30, ESPSize: int64(40+rng.IntN(200)) << 20, Date: time.Unix(int64(rng.Uint32()), 0)}
		dirs := []string{""}
		used := map[string]bool{}
		letters := []string{"a", "B", "long name ", "ä", "~1", "x.y", ".", "sqfs", "7"}
		for range 1 + rng.IntN(150) {
			name := ""
			for range 1 + rng.IntN(12) {
				name += letters[rng.IntN(len(letters))]
			}
			name = strings.TrimRight("f"+name, ". ")
			p := dirs[rng.IntN(len(dirs))] + name
			if used[strings.ToUpper(p)] {
				continue
			}
			used[strings.ToUpper(p)] = true
			if rng.IntN(4) == 0 && len(p) < 200 {
				dirs = append(dirs, p+"/")
				in.Files = append(in.Files, content(p+"/file", 1))
				used[strings.ToUpper(p+"/file")] = true
				continue
			}
			in.Files = append(in.Files, content(p, rng.IntN(1<<rng.IntN(18))))
		}
		p := materialize(t, layout(t, in), espStart, in.ESPSize)
		checkFAT(t, p, in.Files)
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

func TestSameInputSameBytes(t *testing.T) {
	sum := func(in LayoutInput) string {
		h := sha256.New()
		for _, e := range layout(t, in).Extents() {
			fmt.Fprintln(h, e.Offset, e.Length)
			io.Copy(h, io.NewSectionReader(e.Src, e.SrcOff, e.Length))
		}
		return fmt.Sprintf("%x", h.Sum(nil))
	}
	a, b := input(), input()
	rand.Shuffle(len(b.Files), func(i, j int) { b.Files[i], b.Files[j] = b.Files[j], b.Files[i] })
	b.Date = b.Date.In(time.FixedZone("elsewhere", 7200))
	if sum(a) != sum(b) {
		t.Error("the order of the files, or the time zone, changes the disk")
	}
	b.Seed[0]++
	if sum(a) == sum(b) {
		t.Error("another seed gives the same disk")
	}
}

func TestLayoutRefuses(t *testing.T) {
	cases := map[string]struct {
		change func(*LayoutInput)
		says   string
	}{
		"a file over 4 GiB":          {func(in *LayoutInput) { in.Files[0].Size = 1 << 32 }, "EFI/BOOT/BOOTX64.EFI has 4294967296 bytes"},
		"more than fits":             {func(in *LayoutInput) { in.Files[0].Size = 513 << 20 }, "the files need more than its 512 MiB"},
		"a disk too small":           {func(in *LayoutInput) { in.Size = 514 << 20 }, "does not fit on a disk of 514 MiB"},
		"a tiny boot partition":      {func(in *LayoutInput) { in.ESPSize = 16 << 20 }, "too small for FAT32"},
		"two names, one on FAT":      {func(in *LayoutInput) { in.Files[0].Path = "GRUB/x" }, "one name on FAT"},
		"a file that is a directory": {func(in *LayoutInput) { in.Files[0].Path = "grub" }, "one name on FAT"},
		"a character FAT has not":    {func(in *LayoutInput) { in.Files[0].Path = "a:b" }, "does not allow"},
		"a name that ends in a dot":  {func(in *LayoutInput) { in.Files[0].Path = "a." }, "end in a dot"},
		"a name too long":            {func(in *LayoutInput) { in.Files[0].Path = strings.Repeat("x", 256) }, "longer than 255"},
		"a strange boot.img":         {func(in *LayoutInput) { in.BootImg = in.BootImg[:100] }, "boot.img has 100 bytes"},
		"a core.img too large":       {func(in *LayoutInput) { in.CoreImg = make([]byte, 2<<20) }, "core.img has 2097152 bytes"},
		"a lower-case label":         {func(in *LayoutInput) { in.Label = "slipway" }, "label"},
		"half a sector":              {func(in *LayoutInput) { in.Size++ }, "multiple of 512"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			in := input()
			c.change(&in)
			if _, err := Layout(in); err == nil || !strings.Contains(err.Error(), c.says) || fault.Of(err) == fault.Internal {
				t.Errorf("error %v of class %v, want one that says %q", err, fault.Of(err), c.says)
			}
		})
	}
}
