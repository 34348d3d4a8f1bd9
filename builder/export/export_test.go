package export

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/disk"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestQemuAcceptsEveryFormatAndReadsOneDisk(t *testing.T) {
	im := sample(t)
	raw, qcow2, vmdk := rawFile(t, im), qcow2File(t, im), vmdkFile(t, im, 2)
	for _, p := range []string{qcow2, vmdk} {
		if out := run(t, "", "qemu-img", "check", p); !strings.Contains(out, "No errors were found") {
			t.Errorf("qemu-img check: %s", out)
		}
		if out := run(t, "", "qemu-img", "compare", "-f", "raw", raw, p); !strings.Contains(out, "identical") {
			t.Errorf("qemu-img compare: %s", out)
		}
	}
	if out := run(t, "", "qemu-img", "info", vmdk); !strings.Contains(out, "streamOptimized") {
		t.Errorf("qemu-img info: %s", out)
	}
}

func TestRawHasHoles(t *testing.T) {
	p := rawFile(t, sample(t))
	st, err := os.Stat(p)
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() != 6<<30 {
		t.Errorf("the raw disk has %d bytes", st.Size())
	}
	out := run(t, "", "qemu-img", "info", "--output=json", p)
	if !strings.Contains(out, `"actual-size": 1`) { // 10 to 20 million bytes
		t.Errorf("qemu-img info says of the raw disk: %s", out)
	}
}

// Whatever extents a disk has, qemu reads from each format what the disk reads as.
func TestAnyExtentsSurviveEveryFormat(t *testing.T) {
	for seed := range uint64(15) {
		im := randomImage(t, seed)
		raw := rawFile(t, im)
		for _, p := range []string{qcow2File(t, im), vmdkFile(t, im, 3)} {
			run(t, "", "qemu-img", "check", p)
			run(t, "", "qemu-img", "compare", "-f", "raw", raw, p)
		}
		// The raw file itself, which the formats were compared with, against the image.
		f, err := os.Open(raw)
		if err != nil {
			t.Fatal(err)
		}
		sameContent(t, im, f, im.Size())
		f.Close()
		if t.Failed() {
			t.Fatalf("with seed %d", seed)
		}
	}
}

// sameContent compares two disks where either has data.
func sameContent(t testing.TB, im *disk.Image, r io.ReaderAt, size int64) {
	t.Helper()
	if size != im.Size() {
		t.Fatalf("%d bytes, want %d", size, im.Size())
	}
	for _, e := range append(append([]disk.Extent(nil), im.Extents()...), disk.Extent{Offset: max(size-5000, 0), Length: min(5000, size)}) {
		from, to := max(e.Offset-100, 0), min(e.Offset+e.Length+100, size)
		want, got := make([]byte, to-from), make([]byte, to-from)
		if _, err := im.ReadAt(want, from); err != nil && err != io.EOF {
			t.Fatal(err)
		}
		if n, err := r.ReadAt(got, from); err != nil && err != io.EOF || n != len(got) {
			t.Fatalf("reading %d bytes at %d: %d, %v", len(got), from, n, err)
		}
		if !bytes.Equal(want, got) {
			t.Fatalf("bytes %d to %d differ", from, to)
		}
	}
}

func TestBytesDoNotDependOnWorkersOrKindOfWriter(t *testing.T) {
	im := sample(t)
	if a, b := fileSum(t, vmdkFile(t, im, 1)), fileSum(t, vmdkFile(t, im, 5)); a != b {
		t.Error("1 and 5 workers give different VMDKs")
	}
	one, many := ovaInput(im), ovaInput(im)
	one.Workers, many.Workers = 1, 4
	if a, b := fileSum(t, ovaFile(t, one)), fileSum(t, ovaFile(t, many)); a != b {
		t.Error("1 and 4 workers give different OVAs")
	}
	// A file takes the kernel's copy, anything else goes through a buffer.
	var buf bytes.Buffer
	if err := QCOW2(context.Background(), &buf, im); err != nil {
		t.Fatal(err)
	}
	file, err := os.ReadFile(qcow2File(t, im))
	if err != nil || !bytes.Equal(file, buf.Bytes()) {
		t.Errorf("a file and a buffer get different qcow2 images (%v)", err)
	}
}

// Refcounts of more than one block, with the data left out: qemu-img checks only the tables.
func TestQCOW2TablesOfALargeDisk(t *testing.T) {
	for name, runs := range map[string][]unitRun{
		"empty":             nil,
		"5 GiB in a row":    {{100, 5 << 14}},
		"far apart":         {{0, 1}, {8191, 2}, {200_000, 40_000}, {491_519, 1}},
		"just one refblock": {{0, 32768 - 1 - 1 - 4 - 1 - 1}},
		"one more":          {{0, 32768 - 1 - 1 - 4 - 1}},
	} {
		t.Run(name, func(t *testing.T) {
			p := create(t, "tables.qcow2", func(f *os.File) error {
				tables := qcowTables(30<<30, runs)
				size := int64(len(tables))
				for _, r := range runs {
					size += r.count * qcowCluster
				}
				if _, err := f.Write(tables); err != nil {
					return err
				}
				return f.Truncate(size)
			})
			run(t, "", "qemu-img", "check", p)
		})
	}
}

type failingWriter struct{ left int }

var errFull = errors.New("no space left")

func (f *failingWriter) Write(p []byte) (int, error) {
	if f.left -= len(p); f.left < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func (f *failingWriter) WriteAt(p []byte, _ int64) (int, error) { return f.Write(p) }

func TestAFullDiskACancelledBuildAndACutLayerEndTheExport(t *testing.T) {
	good := sample(t)
	cut, err := disk.NewImage(64<<20, []disk.Extent{{Offset: 1 << 20, Length: 9 << 20, Src: bytes.NewReader(random("x", 6<<20))}})
	if err != nil {
		t.Fatal(err)
	}
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	formats := map[string]func(context.Context, *failingWriter, *disk.Image) error{
		"qcow2": func(ctx context.Context, w *failingWriter, im *disk.Image) error { return QCOW2(ctx, w, im) },
		"vmdk": func(ctx context.Context, w *failingWriter, im *disk.Image) error {
			return VMDK(ctx, w, im, VMDKOptions{Workers: 2})
		},
		"ova": func(ctx context.Context, w *failingWriter, im *disk.Image) error { return OVA(ctx, w, ovaInput(im)) },
	}
	for name, export := range formats {
		if err := export(context.Background(), &failingWriter{3 << 20}, good); !errors.Is(err, errFull) {
			t.Errorf("%s: a full disk gives %v", name, err)
		}
		if err := export(cancelled, &failingWriter{1 << 40}, good); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: a cancelled build gives %v", name, err)
		}
		if err := export(context.Background(), &failingWriter{1 << 40}, cut); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: a layer that is shorter than it should be gives %v", name, err)
		}
	}
}

func TestVMDKIsReadBack(t *testing.T) {
	images := []*disk.Image{sample(t)}
	for seed := range uint64(8) {
		images = append(images, randomImage(t, 100+seed))
	}
	for _, im := range images {
		b, err := os.ReadFile(vmdkFile(t, im, 2))
		if err != nil {
			t.Fatal(err)
		}
		r, size, err := OpenVMDK(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		sameContent(t, im, r, size)
	}
}

// What qemu writes as streamOptimized is read as well.
func TestReadsQemusVMDK(t *testing.T) {
	im := sample(t)
	p := create(t, "q.vmdk", func(*os.File) error { return nil })
	run(t, "", "qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", qcow2File(t, im), p)
	b, err := os.ReadFile(p)
	if err != nil {
		t.Fatal(err)
	}
	r, size, err := OpenVMDK(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	sameContent(t, im, r, size)
}

func TestADamagedVMDKIsRefused(t *testing.T) {
	im := sample(t)
	good, err := os.ReadFile(vmdkFile(t, im, 2))
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"cut off":              func(b []byte) []byte { return b[:len(b)/2] },
		"another kind of file": func(b []byte) []byte { return random("no", 10_000) },
		"monolithicSparse":     func(b []byte) []byte { b[len(b)-1024+10], b[10] = 0, 0; return b },
		"a damaged grain":      func(b []byte) []byte { copy(b[len(b)/2:], make([]byte, 100_000)); return b },
		"empty":                func(b []byte) []byte { return nil },
	} {
		b := damage(bytes.Clone(good))
		r, size, err := OpenVMDK(bytes.NewReader(b), int64(len(b)))
		if err == nil {
			_, err = io.Copy(io.Discard, io.NewSectionReader(r, 0, min(size, 310<<20)))
		}
		if err == nil || fault.Of(err) != fault.Integrity {
			t.Errorf("%s: error %v of class %v", name, err, fault.Of(err))
		}
	}
}

func FuzzOpenVMDK(f *testing.F) {
	im, err := disk.NewImage(300_000/512*512, []disk.Extent{{Offset: 70_000, Length: 5000, Src: bytes.NewReader(make([]byte, 5000))}, {Offset: 200_000, Length: 3, Src: strings.NewReader("abc")}})
	if err != nil {
		f.Fatal(err)
	}
	b, err := os.ReadFile(vmdkFile(f, im, 1))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, size, err := OpenVMDK(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			return
		}
		io.Copy(io.Discard, io.NewSectionReader(r, 0, min(size, 1<<22)))
		r.ReadAt(make([]byte, 10), size-5)
	})
}
