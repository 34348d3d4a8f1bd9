package state

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/cmd/init/internal/blockdev"
	"github.com/slipwayhq/slipway/cmd/init/internal/gpt"
)

const mib = 1 << 20

// machine is a disk image beside which the "kernel" shows partition 3 as a
// file of its own.
type machine struct {
	t    *testing.T
	disk string
	ran  []string // programs
	cut  string   // the program at which the power goes
}

func tool(t *testing.T, name, pkg string) string {
	t.Helper()
	for _, p := range []string{name, "/usr/sbin/" + name} {
		if found, err := exec.LookPath(p); err == nil {
			return found
		}
	}
	t.Fatalf("%s is missing: apt-get install %s", name, pkg)
	return ""
}

func newMachine(t *testing.T, size int64) *machine {
	t.Helper()
	m := &machine{t: t, disk: filepath.Join(t.TempDir(), "vd")}
	if err := os.WriteFile(m.disk, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.resize(size)
	out, err := exec.Command(tool(t, "sgdisk", "gdisk"), "-o", "-n", "1:2048:+1M", "-t", "1:ef02", "-n", "2:4096:+16M", "-t", "2:ef00", m.disk).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return m
}

func (m *machine) resize(size int64) {
	m.t.Helper()
	if err := os.Truncate(m.disk, size); err != nil {
		m.t.Fatal(err)
	}
}

func (m *machine) table() *gpt.Table {
	m.t.Helper()
	f, err := os.Open(m.disk)
	if err != nil {
		m.t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		m.t.Fatal(err)
	}
	table, err := gpt.Read(f, st.Size())
	if err != nil {
		m.t.Fatal(err)
	}
	return table
}

type fakeKernel struct {
	m *machine
	d *blockdev.Disk
}

func (k fakeKernel) AddPartition(i int) error { return k.ResizePartition(i) }
func (k fakeKernel) ResizePartition(i int) error {
	f, err := os.OpenFile(k.d.Partition(i), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	e := k.d.Table.Entries[i]
	return f.Truncate(int64(e.Last-e.First+1) * gpt.SectorSize)
}

type powerCut struct{}

// boot runs Prepare with the host's own e2fsprogs, until the power cut if one
// is asked for.
func (m *machine) boot() (f bootfacts.State, err error) {
	m.t.Helper()
	m.ran = nil
	d := &blockdev.Disk{Name: "vd", Path: m.disk, Table: m.table()}
	run := func(program string, args ...string) ([]byte, int, error) {
		name := filepath.Base(program)
		if name == m.cut {
			panic(powerCut{})
		}
		m.ran = append(m.ran, name)
		cmd := exec.Command(tool(m.t, name, "e2fsprogs"), args...)
		out, err := cmd.CombinedOutput()
		if cmd.ProcessState != nil {
			return out, cmd.ProcessState.ExitCode(), nil
		}
		return out, -1, err
	}
	defer func() {
		if p := recover(); p != nil {
			if _, ok := p.(powerCut); !ok {
				panic(p)
			}
		}
	}()
	return Prepare(d, fakeKernel{m, d}, gpt.GUID{1}, run, m.t.Logf)
}

func (m *machine) mustBoot() bootfacts.State {
	m.t.Helper()
	f, err := m.boot()
	if err != nil {
		m.t.Fatal(err)
	}
	return f
}

func TestTheFirstBootMakesTheFileSystemAndTheSecondChecksIt(t *testing.T) {
	m := newMachine(t, 256*mib)
	f := m.mustBoot()
	if !f.Created || f.Resumed || f.Check != "new" || strings.Join(m.ran, " ") != "mkfs.ext4" {
		t.Errorf("first boot: %+v, ran %q", f, m.ran)
	}
	if e := m.table().Entries[2]; e.Name != name || e.First != 36864 {
		t.Errorf("partition: %+v", e)
	}
	f = m.mustBoot()
	if f.Created || f.Check != "clean" || strings.Join(m.ran, " ") != "e2fsck" {
		t.Errorf("second boot: %+v, ran %q", f, m.ran)
	}
}

func TestAPowerCutWhileMakingTheFileSystemIsMadeGood(t *testing.T) {
	m := newMachine(t, 256*mib)
	m.cut = "mkfs.ext4"
	if _, err := m.boot(); err != nil {
		t.Fatal(err)
	}
	if e := m.table().Entries[2]; e.Name != nameNew {
		t.Fatalf("after the cut: %+v", e)
	}
	m.cut = ""
	if f := m.mustBoot(); !f.Created || !f.Resumed {
		t.Errorf("the next boot: %+v", f)
	}
	if f := m.mustBoot(); f.Created || f.Check != "clean" {
		t.Errorf("the one after: %+v", f)
	}
}

func TestAGrownDiskGrowsThePartition(t *testing.T) {
	m := newMachine(t, 256*mib)
	before := m.mustBoot()
	m.resize(512 * mib)
	after := m.mustBoot()
	if !after.Grown || after.Size != before.Size+256*mib || after.Mended == "" {
		t.Errorf("grew from %d to %d: %+v", before.Size, after.Size, after)
	}
	if f := m.mustBoot(); f.Grown || f.Mended != "" {
		t.Errorf("the next boot grows again: %+v", f)
	}
}

func TestADamagedFileSystemStopsTheBootAndIsLeftAlone(t *testing.T) {
	m := newMachine(t, 256*mib)
	f := m.mustBoot()
	w, err := os.OpenFile(f.Device, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	for _, at := range []int64{0, 128 * mib} { // all superblocks: no repair can find one
		if _, err := w.WriteAt(make([]byte, 64*mib), at); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.boot(); err == nil || !strings.Contains(err.Error(), "data is untouched") {
		t.Errorf("got %v", err)
	}
	if strings.Join(m.ran, " ") != "e2fsck" {
		t.Errorf("ran %q on a damaged file system", m.ran)
	}
}

func TestADiskWrittenAnewKeepsAnOldState(t *testing.T) {
	m := newMachine(t, 256*mib)
	f := m.mustBoot()
	state, err := os.ReadFile(f.Device)
	if err != nil {
		t.Fatal(err)
	}
	table := m.table()
	at := int64(table.Entries[2].First) * gpt.SectorSize
	table.Entries[2] = gpt.Entry{}
	w, err := os.OpenFile(m.disk, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if _, err := w.WriteAt(state[:4*mib], at); err != nil {
		t.Fatal(err)
	}
	if err := table.Write(w); err != nil {
		t.Fatal(err)
	}
	if f := m.mustBoot(); !f.Adopted || f.Created || f.Check != "clean" {
		t.Errorf("got %+v, ran %q", f, m.ran)
	}
}

func TestADiskWithoutRoomSaysHowMuchIsWanted(t *testing.T) {
	m := newMachine(t, 64*mib)
	if _, err := m.boot(); err == nil || !strings.Contains(err.Error(), "128 MiB") {
		t.Errorf("got %v", err)
	}
}

func TestTheSizeOfAFileSystemIsRead(t *testing.T) {
	m := newMachine(t, 256*mib)
	f := m.mustBoot()
	blocks, size, err := fsBlocks(f.Device)
	if err != nil || int64(blocks*size) != f.Size {
		t.Errorf("%d blocks of %d bytes, %v; the partition has %d bytes", blocks, size, err, f.Size)
	}
}
