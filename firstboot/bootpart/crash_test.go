package bootpart

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/disk"
)

// errPower is what a device says whose power was cut.
var errPower = errors.New("the power was cut")

// device is a disk with a volatile cache: what was not flushed reaches the platter
// only in part, sector by sector, when the power goes.
type device struct {
	under  io.ReaderAt
	size   int64
	kept   map[int64][]byte // sectors on the platter that differ from under
	cached map[int64][]byte // newest content of sectors not flushed
	left   int              // operations until the power goes; negative: never
	ops    int
	random *rand.Rand
}

const sampleESP = 40 << 20

var sampleFiles = map[string]string{
	"grub/grubenv": "# GRUB Environment Block\n", "grub/grub.cfg": "menu\n", "images/v1/boot.cfg": "set title=v1\n",
	// With this one, the next long name goes over the end of a sector.
	"layers/README": "a pool", "upload/README": "unfinished", "upload/" + long("c") + ".part": "c", "images/v1/manifest.json": "{}", "layers/" + long("a") + ".sqfs": string(bytes.Repeat([]byte("base layer "), 9000)),
}

func long(s string) string { return string(bytes.Repeat([]byte(s), 64)) }

// newDevice is a partition as the builder lays it out.
func newDevice(t testing.TB) *device {
	t.Helper()
	var files []disk.File
	for name, content := range sampleFiles {
		files = append(files, disk.File{Path: name, Size: int64(len(content)), Src: bytes.NewReader([]byte(content))})
	}
	sort.Slice(files, func(i, j int) bool { return files[i].Path < files[j].Path })
	im, err := disk.Layout(disk.LayoutInput{Size: 64 << 20, ESPSize: sampleESP, Files: files, Date: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	return &device{
		under: io.NewSectionReader(im, 2<<20, sampleESP), size: sampleESP, left: -1,
		kept: map[int64][]byte{}, cached: map[int64][]byte{}, random: rand.New(rand.NewPCG(1, 2)),
	}
}

func (d *device) sector(n int64) []byte {
	if b := d.cached[n]; b != nil {
		return b
	}
	if b := d.kept[n]; b != nil {
		return b
	}
	b := make([]byte, sector)
	if _, err := d.under.ReadAt(b, n*sector); err != nil && err != io.EOF {
		panic(err)
	}
	return b
}

func (d *device) ReadAt(p []byte, off int64) (n int, err error) {
	n, err = d.under.ReadAt(p, off)
	for at := off - off%sector; at < off+int64(n); at += sector {
		b := d.cached[at/sector]
		if b == nil {
			b = d.kept[at/sector]
		}
		switch {
		case b == nil:
		case at < off:
			copy(p[:n], b[off-at:])
		default:
			copy(p[at-off:n], b)
		}
	}
	return n, err
}

// step counts an operation; the power goes when enough were done.
func (d *device) step() error {
	if d.left == 0 {
		return errPower
	}
	d.left--
	d.ops++
	return nil
}

func (d *device) WriteAt(p []byte, off int64) (n int, err error) {
	if err := d.step(); err != nil {
		return 0, err
	}
	if off+int64(len(p)) > d.size {
		return 0, io.ErrShortWrite
	}
	for n < len(p) {
		b := bytes.Clone(d.sector(off / sector))
		got := copy(b[off%sector:], p[n:])
		d.cached[off/sector] = b
		n, off = n+got, off+int64(got)
	}
	return n, nil
}

func (d *device) Sync() error {
	if err := d.step(); err != nil {
		return err
	}
	for n, b := range d.cached {
		d.kept[n] = b
	}
	clear(d.cached)
	return nil
}

// powerOn is the device after a power cut: each sector in the cache reached the
// platter or not.
func (d *device) powerOn() *device {
	kept := map[int64][]byte{}
	for n, b := range d.kept {
		kept[n] = b
	}
	var cached []int64
	for n := range d.cached {
		cached = append(cached, n)
	}
	sort.Slice(cached, func(i, j int) bool { return cached[i] < cached[j] })
	for _, n := range cached {
		if d.random.IntN(2) == 0 {
			kept[n] = d.cached[n]
		}
	}
	return &device{under: d.under, size: d.size, kept: kept, cached: map[int64][]byte{}, left: -1, random: d.random}
}

func open(t testing.TB, d *device) *Volume {
	t.Helper()
	v, err := Open(d, d.size)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// sound has fsck.vfat judge the partition.
func sound(t *testing.T, d *device) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "esp")
	f, err := os.Create(file)
	if err == nil {
		err = f.Truncate(d.size)
	}
	b := make([]byte, 64<<10)
	for at := int64(0); at < d.size && err == nil; at += int64(len(b)) {
		if _, err = d.ReadAt(b, at); err == nil && bytes.Trim(b, "\x00") != nil {
			_, err = f.WriteAt(b, at)
		}
	}
	if err = errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("/usr/sbin/fsck.vfat", "-n", "-v", file).CombinedOutput(); err != nil {
		t.Fatalf("fsck.vfat (dosfstools): %v\n%s", err, out)
	}
	os.Remove(file)
}

func content1() []byte {
	b := make([]byte, 40_000)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// story is an upgrade in small: a file arrives in pieces, is taken into use, a version
// is made beside it, an old file goes.
func story(v *Volume) error {
	part, layer := Staging+"/"+long("b")+".part", "layers/"+long("b")+".sqfs"
	b := content1()
	for _, n := range []int{13_331, 100, len(b) - 13_431} { // the second needs no new cluster
		if err := v.Append(part, b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	for _, step := range []func() error{
		func() error { return v.Rename(part, layer) },
		func() error { return v.MakeDir("images/20261121-next") },
		func() error { return v.Append("images/20261121-next/manifest.json", []byte("{next}")) },
		func() error { return v.Append("images/20261121-next/boot.cfg", []byte("set title=next\n")) },
		func() error { return v.Remove("images/v1/boot.cfg") },
		func() error { return v.Remove("images/v1/manifest.json") },
		func() error { return v.Remove("images/v1") },
		func() error { return v.Remove(layer) },
		func() error { return v.Append("layers/"+long("d")+".sqfs", []byte("in another's slots")) },
		v.Close,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// check says what is wrong with the partition after a part of the story.
func check(v *Volume) error {
	is := func(name string, want []byte, whole bool) error {
		if _, there := v.Stat(name); !there {
			return nil
		}
		got, err := v.ReadFile(name, 1<<20)
		switch {
		case err != nil:
			return err
		case !bytes.HasPrefix(want, got), whole && len(got) != len(want):
			return fmt.Errorf("/%s has %d bytes that are not those it was given (%d)", name, len(got), len(want))
		}
		return nil
	}
	for name, content := range sampleFiles {
		if _, there := v.Stat(name); !there && parent(name) != "images/v1" {
			return fmt.Errorf("/%s is gone", name)
		}
		if err := is(name, []byte(content), true); err != nil {
			return err
		}
	}
	known := map[string]bool{Staging + "/" + long("b") + ".part": true, "layers/" + long("b") + ".sqfs": true, "layers/" + long("d") + ".sqfs": true,
		"images/20261121-next/manifest.json": true, "images/20261121-next/boot.cfg": true}
	for _, e := range v.sorted() {
		if _, old := sampleFiles[e.Path]; !old && !e.Dir && !known[e.Path] {
			return fmt.Errorf("nobody made /%s", e.Path)
		}
	}
	return errors.Join(
		is(Staging+"/"+long("b")+".part", content1(), false), is("layers/"+long("b")+".sqfs", content1(), true),
		is("images/20261121-next/manifest.json", []byte("{next}"), false), is("images/20261121-next/boot.cfg", []byte("set title=next\n"), false),
	)
}

func TestAPowerCutAtAnyMomentLeavesTheOldWholeAndTheNewWholeOrUnfinished(t *testing.T) {
	whole := newDevice(t)
	if err := story(open(t, whole)); err != nil {
		t.Fatal(err)
	}
	sound(t, whole)
	if v := open(t, whole); check(v) != nil || len(v.List("images")) != 1 || len(v.List("layers")) != 3 || len(v.List(Staging)) != 2 {
		t.Fatalf("after the whole story: %v, %+v", check(v), v.List("layers"))
	}
	const chances = 3 // what reaches the disk of what was not flushed is drawn anew
	for i := range whole.ops * chances {
		at := i / chances
		d := newDevice(t)
		d.random = rand.New(rand.NewPCG(uint64(i), 7))
		d.left = at
		if err := story(open(t, d)); !errors.Is(err, errPower) {
			t.Fatalf("cut at %d: %v", at, err)
		}
		d = d.powerOn()
		v := open(t, d)
		if err := check(v); err != nil {
			t.Fatalf("cut at %d of %d: %v", at, whole.ops, err)
		}
		// A second cut, while the traces of the first are taken away.
		d.left = d.random.IntN(6)
		if err := v.Tidy(); err != nil && !errors.Is(err, errPower) {
			t.Fatal(err)
		}
		d = d.powerOn()
		v = open(t, d)
		if err := errors.Join(v.Tidy(), check(v)); err != nil {
			t.Fatalf("cut at %d of %d, then tidied: %v", at, whole.ops, err)
		}
		if i%chances == 0 {
			sound(t, d)
		}
		free := v.Free()
		if again := open(t, d); again.Free() != free || again.leftover.orphan || len(again.leftover.slots)+len(again.leftover.twins) > 0 {
			t.Fatalf("cut at %d: tidying leaves something: %+v", at, again.leftover)
		}
	}
	t.Logf("%d moments", whole.ops)
}

func TestDirectoriesGrowAndAFullPartitionIsSaidToBe(t *testing.T) {
	d := newDevice(t)
	v := open(t, d)
	for i := range 60 {
		if err := v.Append(fmt.Sprintf("layers/a name that needs several slots %d", i), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Append("layers/big", make([]byte, v.Free()+1)); err == nil {
		t.Fatal("more fits than there is room for")
	}
	for i := range 60 {
		if b, err := v.ReadFile(fmt.Sprintf("LAYERS/a name that needs several slots %d", i), 1); err != nil || b[0] != byte(i) {
			t.Fatal(b, err)
		}
	}
	if err := v.Append("layers/big", make([]byte, v.Free())); err != nil || v.Free() != 0 {
		t.Fatal(err, v.Free())
	}
	if err := v.Remove("layers/big"); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	sound(t, d)
	for _, wrong := range []error{v.Remove("layers"), v.Rename("none", "x"), v.Append("images/a:b", nil), v.MakeDir("grub/grubenv")} {
		if wrong == nil {
			t.Error("what makes no sense is done")
		}
	}
}

func FuzzOpen(f *testing.F) {
	d := newDevice(f)
	head := make([]byte, 2<<20)
	if _, err := d.ReadAt(head, 0); err != nil {
		f.Fatal(err)
	}
	v := open(f, d)
	root := make([]byte, 2048)
	if _, err := d.ReadAt(root, v.at(2)); err != nil {
		f.Fatal(err)
	}
	f.Add(head[:512], head[v.tables[0]:v.tables[0]+256], root)
	f.Fuzz(func(t *testing.T, boot, table, root []byte) {
		d := newDevice(t)
		for at, b := range map[int64][]byte{0: boot, v.tables[0]: table, v.at(2): root} {
			if _, err := d.WriteAt(b[:min(len(b), 64<<10)], at); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Open(d, d.size)
		if err != nil {
			return
		}
		for _, e := range got.sorted() {
			if e.Dir {
				continue
			}
			if r, err := got.Reader(e.Path); err == nil {
				if n, err := io.Copy(io.Discard, r); err != nil || n != e.Size {
					t.Fatalf("/%s: %d of %d bytes: %v", e.Path, n, e.Size, err)
				}
			}
		}
		if err := got.Append("upload/x", []byte("content")); err != nil {
			return
		}
		again, err := Open(d, d.size)
		if err != nil {
			t.Fatalf("our own change: %v", err)
		}
		if b, err := again.ReadFile("upload/x", 1<<20); err != nil || !bytes.HasSuffix(b, []byte("content")) {
			t.Fatalf("%q, %v", b, err)
		}
	})
}
