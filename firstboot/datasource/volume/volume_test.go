package volume

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// need fails the test if a tool of this machine is missing.
func need(t testing.TB, tool, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(tool); err != nil {
		t.Fatalf("%s is missing: apt-get install -y %s", tool, pkg)
	}
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "MTOOLS_SKIP_CHECK=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

var content = map[string]string{
	"meta-data":                       "instance-id: i-1\nlocal-hostname: db1\n",
	"user-data":                       "#cloud-config\n" + strings.Repeat("# padding over more than one cluster\n", 400),
	"network-config":                  "version: 2\n",
	"vendor-data":                     "",
	"openstack/latest/meta_data.json": `{"uuid": "u-1"}`,
}

// tree writes the content below a directory and returns it.
func tree(t testing.TB) string {
	dir := t.TempDir()
	for name, text := range content {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// images makes the seed with every tool that people make seeds with.
func images(t testing.TB) map[string][]byte {
	need(t, "genisoimage", "genisoimage")
	need(t, "xorriso", "xorriso")
	need(t, "mkfs.vfat", "dosfstools")
	need(t, "mcopy", "mtools")
	src, out := tree(t), t.TempDir()
	iso := func(name string, args ...string) string {
		path := filepath.Join(out, name)
		run(t, args[0], append(append(args[1:], "-o", path), src)...)
		return path
	}
	vfat := func(name string, kib string, args ...string) string {
		path := filepath.Join(out, name)
		run(t, "mkfs.vfat", append(append([]string{"-C", "-n", "CIDATA"}, args...), path, kib)...)
		for _, f := range []string{"meta-data", "user-data", "network-config", "vendor-data", "openstack"} {
			run(t, "mcopy", "-s", "-i", path, filepath.Join(src, f), "::")
		}
		return path
	}
	paths := map[string]string{
		"genisoimage, Joliet and Rock Ridge, as Proxmox does": iso("a", "genisoimage", "-quiet", "-joliet", "-rock", "-V", "cidata"),
		"genisoimage, Rock Ridge":                             iso("b", "genisoimage", "-quiet", "-rock", "-V", "cidata"),
		"genisoimage, Joliet":                                 iso("c", "genisoimage", "-quiet", "-joliet", "-V", "cidata"),
		"genisoimage, plain level 1":                          iso("d", "genisoimage", "-quiet", "-V", "cidata"),
		"genisoimage, level 4":                                iso("e", "genisoimage", "-quiet", "-iso-level", "4", "-V", "cidata"),
		"xorriso as mkisofs, Joliet and Rock Ridge":           iso("f", "xorriso", "-as", "mkisofs", "-J", "-r", "-V", "cidata"),
		"xorriso as mkisofs, its defaults":                    iso("g", "xorriso", "-as", "mkisofs", "-V", "cidata"),
		"FAT12":                                               vfat("h", "1440"),
		"FAT16":                                               vfat("i", "20480", "-F", "16"),
		"FAT32":                                               vfat("j", "66000", "-F", "32"),
		"FAT12 with 2 KiB sectors":                            vfat("l", "8192", "-S", "2048", "-F", "12"),
		"FAT12 with clusters of 16 KiB":                       vfat("m", "8192", "-s", "32", "-F", "12"),
	}
	result := map[string][]byte{}
	for name, path := range paths {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		result[name] = data
	}
	return result
}

func TestReadsTheSeedsOfAllTools(t *testing.T) {
	for name, image := range images(t) {
		t.Run(name, func(t *testing.T) {
			v, err := Open(bytes.NewReader(image))
			if err != nil {
				t.Fatal(err)
			}
			if !strings.EqualFold(v.Label, "cidata") {
				t.Errorf("label %q", v.Label)
			}
			for file, want := range content {
				got, err := v.ReadFile(file)
				if err != nil {
					names, _ := v.Names("")
					t.Errorf("%v; the root holds %q", err, names)
				} else if string(got) != want {
					t.Errorf("%s: got %d bytes, want %d", file, len(got), len(want))
				}
			}
			for _, missing := range []string{"nothing", "openstack/nothing", "meta-data/below", "openstack/latest/user_data"} {
				if _, err := v.ReadFile(missing); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: want not there, got %v", missing, err)
				}
			}
			if _, err := v.ReadFile("openstack"); err == nil {
				t.Error("a directory was read as a file")
			}
		})
	}
}

func TestTheLabelThatAToolChangedLaterCounts(t *testing.T) {
	need(t, "mlabel", "mtools")
	path := filepath.Join(t.TempDir(), "disk")
	run(t, "mkfs.vfat", "-C", "-n", "OLD", path, "1440")
	run(t, "mlabel", "-i", path, "::cidata")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v, err := Open(bytes.NewReader(data))
	if err != nil || !strings.EqualFold(v.Label, "cidata") {
		t.Fatalf("label %v, %v", v, err)
	}
}

// A medium that ends early must say so; at no length may it yield a file with
// wrong content.
func TestATruncatedMediumIsAnErrorNeverWrongContent(t *testing.T) {
	for name, image := range images(t) {
		t.Run(name, func(t *testing.T) {
			short := 0
			for cut := 0; cut < len(image); cut += max(512, len(image)/400) {
				v, err := Open(bytes.NewReader(image[:cut]))
				if err != nil {
					short++
					continue
				}
				for file, want := range content {
					switch got, err := v.ReadFile(file); {
					case err != nil:
						if errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(err.Error(), "truncated") {
							t.Errorf("cut at %d: unclear: %v", cut, err)
						}
						short++
					case string(got) != want:
						t.Fatalf("cut at %d: %s has wrong content", cut, file)
					}
				}
			}
			if short == 0 {
				t.Error("no cut was noticed")
			}
		})
	}
}

func TestOtherDisksAreToldFromSeeds(t *testing.T) {
	mbr := make([]byte, 1<<20)
	mbr[510], mbr[511] = 0x55, 0xaa
	for name, data := range map[string][]byte{
		"empty": nil, "one byte": {0}, "zeros": make([]byte, 1<<20), "MBR": mbr, "noise": bytes.Repeat([]byte{0xeb, 0x3c, 0x90, 7}, 1<<16),
	} {
		if _, err := Open(bytes.NewReader(data)); !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: want ErrUnknown, got %v", name, err)
		}
	}
}

// A cyclic chain of clusters makes go-diskfs loop for ever; here it is bounded
// by the size that the file claims.
func TestACyclicClusterChainEnds(t *testing.T) {
	need(t, "mkfs.vfat", "dosfstools")
	path := filepath.Join(t.TempDir(), "disk")
	run(t, "mkfs.vfat", "-C", "-F", "16", "-n", "CIDATA", path, "20480")
	src := filepath.Join(t.TempDir(), "user-data")
	if err := os.WriteFile(src, bytes.Repeat([]byte("x"), 100_000), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "mcopy", "-i", path, src, "::")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	v, err := Open(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	f := v.fsys.(*fat)
	entries, err := f.list(f.root())
	if err != nil || len(entries) != 1 {
		t.Fatal(entries, err)
	}
	first := entries[0].start
	for i := range int64(2) { // the first cluster is its own successor, in FAT 16
		data[f.table+int64(first)*2+i] = byte(first >> (8 * i))
	}
	if got, err := v.ReadFile("user-data"); err == nil && len(got) != 100_000 {
		t.Errorf("%d bytes", len(got))
	}
}

func FuzzOpen(f *testing.F) {
	need(f, "genisoimage", "genisoimage")
	need(f, "mkfs.vfat", "dosfstools")
	src, out := f.TempDir(), f.TempDir()
	if err := os.WriteFile(filepath.Join(src, "meta-data"), []byte(content["meta-data"]), 0o644); err != nil {
		f.Fatal(err)
	}
	add := func(path string) {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	// Small ones: the fuzzer changes them at random, and most of a seed is padding.
	for i, args := range [][]string{{"-rock"}, {"-joliet"}, {"-rock", "-joliet"}, {}} {
		path := filepath.Join(out, string(rune('a'+i)))
		run(f, "genisoimage", append(args, "-quiet", "-no-pad", "-V", "cidata", "-o", path, src)...)
		add(path)
	}
	fat := filepath.Join(out, "fat")
	run(f, "mkfs.vfat", "-C", "-n", "CIDATA", fat, "64")
	run(f, "mcopy", "-i", fat, filepath.Join(src, "meta-data"), "::")
	add(fat)
	f.Fuzz(func(t *testing.T, image []byte) {
		v, err := Open(bytes.NewReader(image))
		if err != nil {
			return
		}
		for file := range content {
			if data, err := v.ReadFile(file); err == nil && len(data) > len(image) {
				t.Errorf("%s: %d bytes out of %d", file, len(data), len(image))
			}
		}
	})
}
