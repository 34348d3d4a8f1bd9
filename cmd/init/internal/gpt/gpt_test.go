package gpt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const mib = 1 << 20

// sgdisk runs the tool that judges our tables.
func sgdisk(t *testing.T, args ...string) string {
	t.Helper()
	tool, err := exec.LookPath("sgdisk")
	if err != nil {
		if tool, err = exec.LookPath("/usr/sbin/sgdisk"); err != nil {
			t.Fatal("sgdisk is missing: apt-get install gdisk")
		}
	}
	out, err := exec.Command(tool, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("sgdisk %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// newDisk makes an image with a BIOS boot partition and an ESP, as a builder
// leaves it.
func newDisk(t *testing.T, size int64) *os.File {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, size); err != nil {
		t.Fatal(err)
	}
	sgdisk(t, "-o", "-n", "1:2048:+1M", "-t", "1:ef02", "-n", "2:4096:+16M", "-t", "2:ef00", "-c", "2:ESP", file)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func read(t *testing.T, f *os.File) *Table {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	table, err := Read(f, st.Size())
	if err != nil {
		t.Fatal(err)
	}
	return table
}

// addState puts a third partition into all the free room.
func addState(t *testing.T, table *Table) {
	t.Helper()
	first := table.AfterLast()
	last, ok := table.Room(first, -1)
	if !ok {
		t.Fatal("no room")
	}
	table.Entries[2] = Entry{Type: LinuxData, ID: GUID{1, 2, 3}, First: first, Last: last, Name: "slipway-new"}
}

func wantSound(t *testing.T, f *os.File) {
	t.Helper()
	if out := sgdisk(t, "-v", f.Name()); !strings.Contains(out, "No problems found") {
		t.Fatalf("sgdisk is not content:\n%s", out)
	}
}

func TestAnAddedPartitionIsOneForSgdiskToo(t *testing.T) {
	f := newDisk(t, 64*mib)
	table := read(t, f)
	if table.Stale() != "" {
		t.Fatalf("a fresh table counts as stale: %s", table.Stale())
	}
	addState(t, table)
	if err := table.Write(f); err != nil {
		t.Fatal(err)
	}
	wantSound(t, f)
	info := sgdisk(t, "-i", "3", f.Name())
	for _, want := range []string{"'slipway-new'", "Linux filesystem", "First sector: 36864", "Last sector: 129023"} {
		if !strings.Contains(info, want) {
			t.Errorf("sgdisk -i 3 lacks %q:\n%s", want, info)
		}
	}
	if got := read(t, f); got.Stale() != "" || got.Entries[2] != table.Entries[2] {
		t.Errorf("read back: %+v, stale %q", got.Entries[2], got.Stale())
	}
}

func TestAGrownDiskGetsItsBackupAtTheNewEnd(t *testing.T) {
	f := newDisk(t, 64*mib)
	table := read(t, f)
	addState(t, table)
	if err := table.Write(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(200 * mib); err != nil {
		t.Fatal(err)
	}
	table = read(t, f)
	if table.Stale() == "" {
		t.Fatal("the table of a grown disk does not count as stale")
	}
	last, ok := table.Room(table.Entries[2].First, 2)
	if !ok || last != 407551 {
		t.Fatalf("room up to %d, %v", last, ok)
	}
	table.Entries[2].Last = last
	if err := table.Write(f); err != nil {
		t.Fatal(err)
	}
	wantSound(t, f)
}

// cutter stops the disk's power after a number of sectors were written.
type cutter struct {
	f    *os.File
	left int
}

var errPower = errors.New("power cut")

func (c *cutter) Sync() error { return nil }
func (c *cutter) WriteAt(p []byte, off int64) (int, error) {
	for i := 0; i < len(p); i += SectorSize {
		if c.left == 0 {
			return i, errPower
		}
		c.left--
		if _, err := c.f.WriteAt(p[i:min(i+SectorSize, len(p))], off+int64(i)); err != nil {
			return i, err
		}
	}
	return len(p), nil
}

func TestAPowerCutAtAnySectorLeavesTheOldOrTheNewTable(t *testing.T) {
	f := newDisk(t, 20*mib)
	before, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{20 * mib, 32 * mib} {
		for cut := 0; ; cut++ {
			if err := f.Truncate(0); err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt(before, 0); err != nil {
				t.Fatal(err)
			}
			if err := f.Truncate(size); err != nil {
				t.Fatal(err)
			}
			table := read(t, f)
			addState(t, table)
			err := table.Write(&cutter{f, cut})
			if err != nil && !errors.Is(err, errPower) {
				t.Fatal(err)
			}
			got := read(t, f)
			if got.Entries[1] != table.Entries[1] {
				t.Fatalf("cut after %d sectors: the boot partition is lost", cut)
			}
			if e := got.Entries[2]; e.Used() && e != table.Entries[2] {
				t.Fatalf("cut after %d sectors: a partition that nobody made: %+v", cut, e)
			}
			if err == nil {
				break
			}
		}
	}
}

func TestADamagedPrimaryIsReadFromTheBackup(t *testing.T) {
	f := newDisk(t, 64*mib)
	want := read(t, f)
	if _, err := f.WriteAt(make([]byte, SectorSize), SectorSize); err != nil {
		t.Fatal(err)
	}
	got := read(t, f)
	if got.Stale() == "" || got.Entries[1] != want.Entries[1] || got.DiskID != want.DiskID {
		t.Fatalf("stale %q, %+v", got.Stale(), got.Entries[1])
	}
	if err := got.Write(f); err != nil {
		t.Fatal(err)
	}
	wantSound(t, f)
}

func TestRoomEndsAtTheNextPartition(t *testing.T) {
	f := newDisk(t, 64*mib)
	table := read(t, f)
	table.Entries[3] = Entry{Type: LinuxData, ID: GUID{9}, First: 81920, Last: 90000}
	if last, ok := table.Room(36864, -1); !ok || last != 81919 {
		t.Errorf("room up to %d, %v; want 81919", last, ok)
	}
	if _, ok := table.Room(81920, -1); ok {
		t.Error("there is room inside another partition")
	}
}

func TestGUIDsReadAsTheyAreWritten(t *testing.T) {
	const s = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
	g, err := ParseGUID(strings.ToUpper(s))
	if err != nil || g.String() != s {
		t.Errorf("%s, %v", g, err)
	}
	for _, bad := range []string{"", "x", s + "0", "c12a7328f81f-11d2-ba4b-00a0c93ec93b-"} {
		if _, err := ParseGUID(bad); err == nil {
			t.Errorf("%q passes for a GUID", bad)
		}
	}
}

func FuzzRead(f *testing.F) {
	disk := make([]byte, 4*mib)
	t := &Table{sectors: uint64(len(disk) / SectorSize), Entries: make([]Entry, 4)}
	t.Entries[0] = Entry{Type: LinuxData, ID: GUID{7}, First: 2048, Last: 4095, Name: "x"}
	file := filepath.Join(f.TempDir(), "disk")
	w, err := os.Create(file)
	if err != nil {
		f.Fatal(err)
	}
	if err := t.Write(w); err != nil {
		f.Fatal(err)
	}
	w.Close()
	b, err := os.ReadFile(file)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b[:4*SectorSize])
	f.Fuzz(func(t *testing.T, head []byte) {
		whole := make([]byte, 4*mib)
		copy(whole, head)
		table, err := Read(bytes.NewReader(whole), int64(len(whole)))
		if err != nil {
			return
		}
		for _, e := range table.Entries {
			if e.Used() && e.Last < e.First {
				t.Fatal(fmt.Sprint("inverted partition ", e))
			}
		}
		table.Room(table.AfterLast(), -1)
	})
}
