package inspect

import (
	"bytes"
	"io"
	"os"
	"testing"

	"github.com/slipwayhq/slipway/internal/fault"
)

// FuzzFAT changes bytes of a file system's first sectors and directories: whatever
// they then say, reading ends, and ends with an error of a known class.
func FuzzFAT(f *testing.F) {
	f.Add(bootSector(), []byte("FILE    TXT "))
	f.Fuzz(func(t *testing.T, boot, rest []byte) {
		image := append(bytes.Clone(boot), rest...)
		if len(image) > 1<<20 {
			return
		}
		fs, err := openFAT(bytes.NewReader(image), int64(len(image)))
		if err != nil {
			checkClass(t, err)
			return
		}
		files, err := fs.files()
		if err != nil {
			checkClass(t, err)
			return
		}
		for _, e := range files {
			r, err := fs.open(e)
			if err != nil {
				checkClass(t, err)
				continue
			}
			_, _ = io.Copy(io.Discard, io.NewSectionReader(r, 0, min(e.size, 1<<20)))
		}
	})
}

// bootSector is that of a tiny FAT32 with a root directory in cluster 2.
func bootSector() []byte {
	const clusters = 8
	b := make([]byte, (2+1+clusters)*512)
	b[11], b[12], b[13], b[14], b[16] = 0, 2, 1, 2, 1
	b[32], b[36], b[44] = 2+1+clusters, 1, 2
	b[510], b[511] = 0x55, 0xaa
	table := b[2*512:]
	copy(table[8:], []byte{0xff, 0xff, 0xff, 0x0f})  // the root directory
	copy(table[12:], []byte{0xff, 0xff, 0xff, 0x0f}) // a file
	dir := b[3*512:]
	copy(dir, "FILE    TXT\x20")
	dir[26], dir[28] = 3, 5
	return b
}

// FuzzOpen feeds whole image files.
func FuzzOpen(f *testing.F) {
	for _, head := range []string{"QFI\xfb\x00\x00\x00\x03", "KDMV\x03\x00\x00\x00", "", "name"} {
		f.Add([]byte(head))
	}
	q := make([]byte, 1024)
	copy(q, "QFI\xfb\x00\x00\x00\x03")
	q[23], q[29], q[39], q[46], q[103] = 9, 16, 1, 2, 104
	f.Add(q)
	g := make([]byte, 34*512)
	copy(g[512:], "EFI PART")
	f.Add(g)
	tar := make([]byte, 2048)
	copy(tar, "web.vmdk")
	copy(tar[257:], "ustar")
	f.Add(tar)
	f.Fuzz(func(t *testing.T, data []byte) {
		if _, err := read(bytes.NewReader(data), int64(len(data))); err != nil {
			checkClass(t, err)
		}
	})
}

// FuzzLicence reads copyright files.
func FuzzLicence(f *testing.F) {
	data, err := os.ReadFile("/usr/share/doc/base-files/copyright")
	if err == nil {
		f.Add(string(data))
	}
	f.Add("Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nLicense: GPL-2+ or Artistic\n")
	f.Fuzz(func(t *testing.T, text string) {
		if licenceOf(text) == "" {
			t.Error("an empty licence")
		}
	})
}

func checkClass(t *testing.T, err error) {
	t.Helper()
	if c := fault.Of(err); c != fault.Integrity && c != fault.Input {
		t.Errorf("class %v: %v", c, err)
	}
}
