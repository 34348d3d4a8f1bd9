package blockdev

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/cmd/init/internal/gpt"
)

const esp = "6a1f0c11-2222-4333-8444-555566667777"

// plug shows a disk in sysfs and in /dev.
func plug(t *testing.T, sys, dev, name string, args ...string) {
	t.Helper()
	const size = 32 << 20
	file := filepath.Join(dev, name)
	if err := os.MkdirAll(filepath.Join(sys, "block", name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sys, "block", name, "size"), fmt.Appendln(nil, size/512), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	if len(args) == 0 {
		return
	}
	tool, err := exec.LookPath("/usr/sbin/sgdisk")
	if err != nil {
		t.Fatal("sgdisk is missing: apt-get install gdisk")
	}
	if out, err := exec.Command(tool, append(args, file)...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}

func TestTheBootPartitionIsFoundAmongOtherDisks(t *testing.T) {
	sys, dev := t.TempDir(), t.TempDir()
	id, err := gpt.ParseGUID(esp)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, found, skipped := FindPartition(sys, dev, id); found || skipped != nil {
		t.Errorf("without disks: %v, %q", found, skipped)
	}
	plug(t, sys, dev, "loop0")
	plug(t, sys, dev, "sda")
	plug(t, sys, dev, "sdb", "-o", "-n", "1:2048:+1M")
	if _, _, found, skipped := FindPartition(sys, dev, id); found || len(skipped) != 2 || skipped[1] != "sdb: another disk" {
		t.Errorf("with other disks: %v, %q", found, skipped)
	}
	plug(t, sys, dev, "nvme0n1", "-o", "-n", "1:2048:+1M", "-n", "2:4096:+1M", "-u", "2:"+esp)
	_, _, found, skipped := FindPartition(sys, dev, id)
	if found || !strings.Contains(strings.Join(skipped, " "), "no device file yet") {
		t.Errorf("before udev: %v, %q", found, skipped)
	}
	if err := os.WriteFile(filepath.Join(dev, "nvme0n1p2"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d, i, found, _ := FindPartition(sys, dev, id)
	if !found || d.Name != "nvme0n1" || d.Partition(i) != filepath.Join(dev, "nvme0n1p2") {
		t.Errorf("%v, %+v, %d", found, d, i)
	}
}
