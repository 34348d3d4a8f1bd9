package inspect

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/disk"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestEveryFormatTellsTheSame(t *testing.T) {
	for _, format := range []string{FormatQCOW2, FormatRaw, FormatVMDK, FormatOVA} {
		t.Run(format, func(t *testing.T) {
			im := mustOpen(t, sample().write(t, format))
			if im.Format != format || im.DiskSize != testDisk {
				t.Errorf("it is %s of %d bytes", im.Format, im.DiskSize)
			}
			if len(im.Partitions) == 0 || im.Partitions[len(im.Partitions)-1].Size != testESP {
				t.Errorf("partitions: %+v", im.Partitions)
			}
			v := im.Current()
			if v.Version != "20261120-abc" || im.Boot.Good != v.Version || len(v.Packages) != 3 || len(v.Layers) != 2 {
				t.Errorf("version %+v, boot %+v", v, im.Boot)
			}
			base, err := im.Layer(v.Layers[0])
			if err != nil {
				t.Fatal(err)
			}
			if data, err := base.ReadFile("usr/bin/tool"); err != nil || string(data) != "tool 1\n" {
				t.Errorf("a file of a layer holds %q, %v", data, err)
			}
			if err := im.Verify(context.Background()); err != nil || !im.Versions[0].Verified {
				t.Errorf("Verify: %v", err)
			}
		})
	}
}

func TestACompressedQCOW2OfQEMUIsRead(t *testing.T) {
	qemu := need(t, "qemu-img", "qemu-utils")
	raw := sample().write(t, FormatRaw)
	out := filepath.Join(t.TempDir(), "c.qcow2")
	run(t, qemu, "convert", "-c", "-f", "raw", "-O", "qcow2", raw, out)
	im := mustOpen(t, out)
	if err := im.Verify(context.Background()); err != nil {
		t.Error(err)
	}
}

func TestTheReportIsForPeopleAndPrograms(t *testing.T) {
	im := mustOpen(t, sample().write(t, FormatQCOW2))
	var text bytes.Buffer
	if err := im.Text(&text, true); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"qcow2", "a disk of 1.00 GiB", "version 20261120-abc: web (A web server)", "6.12.1-amd64", "layer base", "3 packages", "1:2.0~rc1-1"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, text.String())
		}
	}
	data, err := json.Marshal(im)
	if err != nil {
		t.Fatal(err)
	}
	var back struct {
		Boot     Boot
		Versions []struct {
			Version string
			Role    struct{ Name string }
		}
	}
	if err := json.Unmarshal(data, &back); err != nil || back.Boot.Good != "20261120-abc" || back.Versions[0].Role.Name != "web" {
		t.Errorf("JSON reads back as %+v, %v\n%s", back, err, data)
	}
}

func TestADamagedLayerIsFoundAndNamed(t *testing.T) {
	a := sample()
	a.damage = func(files []disk.File) []disk.File {
		content := readAll(t, files[0].Src, files[0].Size)
		content[len(content)/2] ^= 1
		files[0].Src = bytes.NewReader(content)
		return files
	}
	im := mustOpen(t, a.write(t, FormatQCOW2))
	err := im.Verify(context.Background())
	if fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), "layer base") || strings.Contains(err.Error(), "layer config") {
		t.Errorf("got %v", err)
	}
	if im.Versions[0].Verified {
		t.Error("the version counts as verified")
	}
}

func TestAMissingLayerIsNamed(t *testing.T) {
	a := sample()
	a.damage = func(files []disk.File) []disk.File { return files[1:] }
	im := mustOpen(t, a.write(t, FormatRaw))
	if err := im.Verify(context.Background()); fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), "missing") {
		t.Errorf("got %v", err)
	}
}

func TestACutOffImageIsAnError(t *testing.T) {
	for _, format := range []string{FormatQCOW2, FormatVMDK, FormatOVA} {
		whole := sample().write(t, format)
		info, err := os.Stat(whole)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range []int64{2, 3, 10, 100} {
			if err := os.Truncate(whole, info.Size()-info.Size()/part); err != nil {
				t.Fatal(err)
			}
			err := func() error {
				im, err := Open(whole)
				if err != nil {
					return err
				}
				defer im.Close()
				return im.Verify(context.Background())
			}()
			if err == nil {
				t.Errorf("%s cut by 1/%d passes for whole", format, part)
			} else if c := fault.Of(err); c != fault.Integrity && c != fault.Input || fault.Mend(err) == "" || !strings.Contains(err.Error(), whole) {
				t.Errorf("%s cut by 1/%d: class %v, %v (%s)", format, part, c, err, fault.Mend(err))
			}
		}
	}
}

func TestWhatIsNoApplianceIsRefusedClearly(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		full := filepath.Join(dir, name)
		if err := os.WriteFile(full, content, 0o644); err != nil {
			t.Fatal(err)
		}
		return full
	}
	for name, file := range map[string]string{
		"no such file": filepath.Join(dir, "nope"),
		"a directory":  dir,
		"empty":        write("empty", nil),
		"text":         write("text", []byte("hello\n")),
		"zeros":        write("zeros", make([]byte, 4096)),
	} {
		if _, err := Open(file); fault.Of(err) != fault.Input {
			t.Errorf("%s: class %v, %v", name, fault.Of(err), err)
		}
	}
}

func TestAQCOW2MayNotNameAnotherFile(t *testing.T) {
	qemu := need(t, "qemu-img", "qemu-utils")
	dir := t.TempDir()
	overlay := filepath.Join(dir, "over.qcow2")
	run(t, qemu, "create", "-f", "qcow2", "-F", "raw", "-b", sample().write(t, FormatRaw), overlay)
	_, err := Open(overlay)
	if fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "backing file") || fault.Mend(err) == "" {
		t.Errorf("got %v (%s)", err, fault.Mend(err))
	}
}

// TestAForeignFATIsRead lets dosfstools and mtools make the file system: long and
// short names, directories, and a file in many pieces.
func TestAForeignFATIsRead(t *testing.T) {
	mkfs, mcopy, mmd, mdel := need(t, "mkfs.vfat", "dosfstools"), need(t, "mcopy", "mtools"), need(t, "mmd", "mtools"), need(t, "mdel", "mtools")
	dir := t.TempDir()
	esp := filepath.Join(dir, "esp")
	if err := os.WriteFile(esp, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	const size = 300 << 20
	if err := os.Truncate(esp, size); err != nil {
		t.Fatal(err)
	}
	run(t, mkfs, "-F", "32", "-n", "SLIPWAY", esp)
	run(t, mmd, "-i", esp, "::/Long Directory", "::/EFI", "::/EFI/BOOT")
	content := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	source := filepath.Join(dir, "content")
	if err := os.WriteFile(source, content, 0o644); err != nil {
		t.Fatal(err)
	}
	// Two small files with a hole between them break the large one in pieces.
	for _, name := range []string{"a", "b", "c", "d"} {
		if err := os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte(name), 9000), 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, mcopy, "-i", esp, filepath.Join(dir, name), "::/"+name)
	}
	run(t, mdel, "-i", esp, "::/a", "::/c")
	run(t, mcopy, "-i", esp, source, "::/Long Directory/A file with a long name.json")
	run(t, mcopy, "-i", esp, source, "::/EFI/BOOT/BOOTX64.EFI")
	f, err := os.Open(esp)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fs, err := openFAT(f, size)
	if err != nil {
		t.Fatal(err)
	}
	files, err := fs.files()
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range files {
		names = append(names, e.path)
		r, err := fs.open(e)
		if err != nil {
			t.Fatal(err)
		}
		if got := readAll(t, r, e.size); len(got) == len(content) && !bytes.Equal(got, content) {
			t.Errorf("%s reads wrong", e.path)
		}
	}
	want := []string{"EFI/BOOT/BOOTX64.EFI", "Long Directory/A file with a long name.json", "b", "d"}
	if strings.Join(names, "|") != strings.Join(want, "|") {
		t.Errorf("files are %q, want %q", names, want)
	}
}

// TestEntangledDirectoriesEnd: a few directory entries that lead back to their own
// directory would unfold into 16^depth names.
func TestEntangledDirectoriesEnd(t *testing.T) {
	image := bootSector()
	for i := range 16 {
		entry := image[3*512+32*i:]
		copy(entry, []byte{'D', byte('A' + i), ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', ' ', 0x10})
		entry[26], entry[28] = 2, 0
	}
	fs, err := openFAT(bytes.NewReader(image), int64(len(image)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fs.files(); fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), "entangled") {
		t.Errorf("got %v", err)
	}
}
