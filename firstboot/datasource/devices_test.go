package datasource

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestCDDrivesComeFirstAndWhatHoldsNoSeedIsLeftOut(t *testing.T) {
	root := t.TempDir()
	for name, size := range map[string]string{"vda": "9", "vda1": "5", "sr1": "4", "sr0": "4", "loop0": "8", "dm-0": "8", "fd0": "2", "sdb": "0"} {
		put(t, filepath.Join(root, "sys/class/block", name, "size"), size+"\n")
	}
	devices, err := listDevices(root)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"/dev/sr0", "/dev/sr1", "/dev/vda", "/dev/vda1"}
	for i, d := range devices {
		if i >= len(want) || d.Path != want[i] {
			t.Errorf("device %d is %s, want %q", i, d.Path, want)
		}
	}
	if len(devices) != len(want) {
		t.Errorf("%d devices, want %q", len(devices), want)
	}
	if devices, err := listDevices(t.TempDir()); err != nil || devices != nil {
		t.Errorf("without sysfs: %v, %v", devices, err)
	}
}

func TestTracesChangeWhenADeviceAMediumOrALabelDoes(t *testing.T) {
	root := t.TempDir()
	labels := filepath.Join(root, "dev/disk/by-label")
	before := traces(root)
	for _, step := range []struct {
		what string
		do   func()
	}{
		{"a drive appears", func() { put(t, filepath.Join(root, "sys/class/block/sr0/size"), "2097151\n") }},
		{"a medium is put in", func() { put(t, filepath.Join(root, "sys/class/block/sr0/size"), "744\n") }},
		{"another one of its size", func() { put(t, filepath.Join(root, "sys/class/block/sr0/diskseq"), "12\n") }},
		{"udev has read its label", func() {
			put(t, filepath.Join(labels, "cidata"), "")
			at := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
			if err := os.Chtimes(labels, at, at); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		step.do()
		after := traces(root)
		if after == before {
			t.Errorf("%s, and the traces stay %q", step.what, after)
		}
		if again := traces(root); again != after {
			t.Errorf("%s: nothing changed, but the traces did: %q, %q", step.what, after, again)
		}
		before = after
	}
	put(t, filepath.Join(root, "sys/class/block/loop3/size"), "8\n")
	if traces(root) != before {
		t.Error("a loop device is taken for a change")
	}
}
