package export

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/disk"
	"github.com/slipwayhq/slipway/builder/manifest"
)

var packages = map[string]string{
	"qemu-img": "qemu-utils", "xmllint": "libxml2-utils", "tar": "tar", "sha256sum": "coreutils", "virt-v2v": "virt-v2v",
}

// run runs an outside judge in dir and returns what it says; without it the test fails.
func run(t testing.TB, dir, name string, args ...string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is missing: apt-get install %s", name, packages[name])
	}
	cmd := exec.Command(p, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func random(seed string, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8(sha256.Sum256([]byte(seed))).Read(b)
	return b
}

// sample is an appliance's disk in small: layers in files, tables in memory, and
// something that compresses.
func sample(t testing.TB) *disk.Image {
	t.Helper()
	layer := filepath.Join(t.TempDir(), "layer")
	if err := os.WriteFile(layer, random("layer", 7_000_001), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(layer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	text := bytes.Repeat([]byte("Debian GNU/Linux "), 200_000)
	im, err := disk.Layout(disk.LayoutInput{
		Size: 6 << 30, Seed: sha256.Sum256([]byte("v1")), ESPSize: 300 << 20, Date: time.Unix(1784300000, 0),
		BootImg: random("boot", 512), CoreImg: random("core", 40_000),
		Files: []disk.File{
			{Path: "layers/base.sqfs", Size: 7_000_001, Src: f},
			{Path: "layers/part.sqfs", Size: 3_000_000, Src: io.NewSectionReader(f, 12345, 3_000_000)},
			{Path: "images/v1/initrd", Size: int64(len(text)), Src: bytes.NewReader(text)},
			{Path: "grub/grubenv", Size: 1024, Src: bytes.NewReader(random("env", 1024))},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// randomImage has extents of any kind anywhere.
func randomImage(t testing.TB, seed uint64) *disk.Image {
	t.Helper()
	rng := rand.New(rand.NewPCG(seed, 0))
	size := int64(1+rng.IntN(1<<15)) * 512
	if rng.IntN(3) == 0 {
		size += int64(rng.IntN(4)) << 30
	}
	var extents []disk.Extent
	for at := int64(rng.IntN(200_000)); at < size; at += int64(rng.IntN(1 << (10 + rng.IntN(18)))) {
		n := min(int64(1+rng.IntN(1<<(1+rng.IntN(19)))), size-at)
		src := make([]byte, n)
		if rng.IntN(4) > 0 {
			copy(src[rng.Int64N(n):], random(fmt.Sprint(seed, at), int(n)))
		}
		if len(extents) < 60 {
			extents = append(extents, disk.Extent{Offset: at, Length: n, Src: bytes.NewReader(src)})
		}
		at += n
	}
	im, err := disk.NewImage(size, extents)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

// create writes a file with fill and returns its path.
func create(t testing.TB, name string, fill func(*os.File) error) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	f, err := os.Create(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := fill(f); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return p
}

func rawFile(t testing.TB, im *disk.Image) string {
	return create(t, "disk.raw", func(f *os.File) error { return Raw(context.Background(), f, im) })
}

func qcow2File(t testing.TB, im *disk.Image) string {
	return create(t, "disk.qcow2", func(f *os.File) error { return QCOW2(context.Background(), f, im) })
}

func vmdkFile(t testing.TB, im *disk.Image, workers int) string {
	return create(t, "disk.vmdk", func(f *os.File) error {
		return VMDK(context.Background(), f, im, VMDKOptions{Name: "disk.vmdk", Workers: workers})
	})
}

func ovaInput(im *disk.Image) OVAInput {
	return OVAInput{
		Name: "db-master-2026.07.17", Product: "slipway db-master", Summary: `PostgreSQL under Patroni, "first" of <two>`,
		Version: "2026.07.17", Image: im, VM: manifest.VM{CPUs: 2, Memory: 4 << 30, Disk: im.Size()},
		Seed: sha256.Sum256([]byte("v1")), Date: time.Unix(1784300000, 0),
	}
}

func ovaFile(t testing.TB, in OVAInput) string {
	return create(t, in.Name+".ova", func(f *os.File) error { return OVA(context.Background(), f, in) })
}

func fileSum(t testing.TB, p string) string {
	t.Helper()
	f, err := os.Open(p)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}
