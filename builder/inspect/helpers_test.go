package inspect

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/builder/disk"
	"github.com/slipwayhq/slipway/builder/export"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/squashfs"
	"github.com/slipwayhq/slipway/builder/tree"
)

const (
	testDisk = 1 << 30
	testESP  = 512 << 20
)

var created = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

// appliance is what a test image is made of.
type appliance struct {
	version  string
	layers   []layerContent
	packages []manifest.Package
	damage   func(files []disk.File) []disk.File // what goes wrong, if anything
}

type layerContent struct {
	name  string
	files map[string]string
	// whiteouts are paths that the layer takes away.
	whiteouts []string
}

// sample is a small appliance of two layers.
func sample() appliance {
	return appliance{
		version: "20261120-abc",
		layers: []layerContent{
			{name: "base", files: map[string]string{
				"etc/os-release": "ID=debian\n", "etc/removed": "x", "usr/bin/tool": "tool 1\n",
				"usr/share/doc/libfoo++/copyright": "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\nFiles: *\nCopyright: someone\nLicense: GPL-2+\n\nFiles: x\nCopyright: another\nLicense: Expat\n",
			}},
			{name: "config", files: map[string]string{"etc/motd": "hello\n"}, whiteouts: []string{"etc/removed"}},
		},
		packages: []manifest.Package{
			{Name: "base-files", Version: "13.8+deb13u1", Arch: "amd64", Layer: "base", Size: 70000, InstalledSize: 350000, SHA256: hash("a")},
			{Name: "libfoo++", Version: "1:2.0~rc1-1", Arch: "amd64", Source: "foo", Layer: "base", Size: 1000, InstalledSize: 4000, SHA256: hash("b")},
			{Name: "tool", Version: "1.0-1", Arch: "all", Layer: "base", Size: 1000, InstalledSize: 2000, SHA256: hash("c")},
		},
	}
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

// disk lays the appliance out as the builder does.
func (a appliance) disk(t *testing.T) *disk.Image {
	t.Helper()
	m := manifest.Manifest{
		Format: manifest.Format, Version: a.version, Created: created, Kernel: "6.12.1-amd64", Lock: hash("lock"), Builder: "0.1",
		Role: manifest.Role{
			Format: manifest.Format, Name: "web", Summary: "A web server", State: []string{"/var/log"}, Services: []string{"nginx.service"},
			Ports: []manifest.Port{{Port: "80", Proto: "tcp", From: "any", Why: "the site"}},
		},
		Packages: a.packages,
	}
	var files []disk.File
	add := func(path string, content []byte) {
		files = append(files, disk.File{Path: path, Size: int64(len(content)), Src: bytes.NewReader(content)})
	}
	for _, l := range a.layers {
		content := l.squashfs(t)
		sum := sha256.Sum256(content)
		layer := manifest.Layer{Name: l.name, Digest: hex.EncodeToString(sum[:]), Size: int64(len(content))}
		m.Layers = append(m.Layers, layer)
		add(layer.File(), content)
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	add("images/"+a.version+"/manifest.json", raw)
	add("images/"+a.version+"/vmlinuz", []byte("MZ"))
	env, err := grubenv.Env{Good: a.version}.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	add("grub/grubenv", env)
	if a.damage != nil {
		files = a.damage(files)
	}
	im, err := disk.Layout(disk.LayoutInput{Size: testDisk, ESPSize: testESP, Files: files, Date: created})
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func (l layerContent) squashfs(t *testing.T) []byte {
	t.Helper()
	tr := tree.New()
	for name, content := range l.files {
		if err := tr.PutFile(name, 0o644, created.Unix(), []byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range l.whiteouts {
		if err := tr.Put(&tree.Entry{Path: name, Kind: tree.Char, MTime: created.Unix()}); err != nil {
			t.Fatal(err)
		}
	}
	var w writerAt
	n, err := squashfs.Write(context.Background(), &w, tr, squashfs.Options{Date: created.Unix()})
	if err != nil {
		t.Fatal(err)
	}
	return w.b[:n]
}

type writerAt struct{ b []byte }

func (w *writerAt) WriteAt(p []byte, off int64) (int, error) {
	if need := int(off) + len(p); need > len(w.b) {
		w.b = append(w.b, make([]byte, need-len(w.b))...)
	}
	return copy(w.b[off:], p), nil
}

// write exports the appliance in a format to a file.
func (a appliance) write(t *testing.T, format string) string {
	t.Helper()
	im := a.disk(t)
	name := filepath.Join(t.TempDir(), "web."+format)
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx := context.Background()
	switch format {
	case FormatQCOW2:
		err = export.QCOW2(ctx, f, im)
	case FormatRaw:
		err = export.Raw(ctx, f, im)
	case FormatVMDK:
		err = export.VMDK(ctx, f, im, export.VMDKOptions{Name: "web.vmdk"})
	case FormatOVA:
		err = export.OVA(ctx, f, export.OVAInput{
			Name: "web", Product: "web appliance", Summary: "A web server", Version: a.version, Image: im, Date: created,
			VM: manifest.VM{CPUs: 2, Memory: 4 << 30, Disk: testDisk},
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// need finds an outside tool. A test without its judge must not pass.
func need(t *testing.T, tool, pkg string) string {
	t.Helper()
	p, err := exec.LookPath(tool)
	if err != nil {
		t.Fatalf("%s is missing; run: apt-get install %s", tool, pkg)
	}
	return p
}

func run(t *testing.T, tool string, args ...string) {
	t.Helper()
	if out, err := exec.Command(tool, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", tool, args, err, out)
	}
}

func mustOpen(t *testing.T, name string) *Image {
	t.Helper()
	im, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { im.Close() })
	return im
}

func readAll(t *testing.T, r io.ReaderAt, size int64) []byte {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(r, 0, size))
	if err != nil {
		t.Fatal(err)
	}
	return b
}
