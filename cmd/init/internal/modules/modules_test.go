package modules

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func put(t *testing.T, content string, parts ...string) {
	t.Helper()
	file := filepath.Join(parts...)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func loader(t *testing.T) (*Loader, string, *[]string) {
	t.Helper()
	dir, sys := t.TempDir(), t.TempDir()
	put(t, "kernel/vblk.ko:\nkernel/sd_mod.ko: kernel/scsi_mod.ko\nkernel/scsi_mod.ko:\nkernel/bad.ko:\n", dir, "6.1", "modules.dep")
	put(t, "alias virtio:d2* vblk\nalias scsi:t-0x00* sd_mod\nalias pci:bad* bad\n", dir, "6.1", "modules.alias")
	put(t, "", dir, "6.1", "modules.softdep")
	l, err := New(dir, sys)
	if err != nil {
		t.Fatal(err)
	}
	var loaded []string
	l.load = func(file string) error {
		if strings.HasSuffix(file, "bad.ko") {
			return errors.New("no such device")
		}
		loaded = append(loaded, filepath.Base(file))
		return nil
	}
	return l, sys, &loaded
}

func TestDevicesGetTheirDriversOnce(t *testing.T) {
	l, sys, loaded := loader(t)
	var said []string
	say := func(f string, a ...any) { said = append(said, f) }
	put(t, "virtio:d2v1\n", sys, "devices/pci0/virtio0/modalias")
	put(t, "pci:bad0\n", sys, "devices/pci0/modalias")
	put(t, "virtio:d9\n", sys, "devices/pci1/modalias")
	l.LoadForDevices(say)
	if got := strings.Join(*loaded, " "); got != "vblk.ko" || len(said) != 1 {
		t.Errorf("loaded %q, said %q", got, said)
	}
	put(t, "scsi:t-0x00\n", sys, "devices/pci0/host0/target0/modalias")
	l.LoadForDevices(say)
	l.LoadForDevices(say)
	if got := strings.Join(*loaded, " "); got != "vblk.ko scsi_mod.ko sd_mod.ko" || len(said) != 1 {
		t.Errorf("loaded %q, said %q", got, said)
	}
}

func TestTwoKernelsInTheInitramfsAreRefused(t *testing.T) {
	dir := t.TempDir()
	put(t, "", dir, "6.1", "modules.dep")
	put(t, "", dir, "6.2", "modules.dep")
	if _, err := New(dir, t.TempDir()); err == nil {
		t.Error("two kernels are accepted")
	}
}
