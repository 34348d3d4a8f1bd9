package labtest

import (
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/lab/nbd"
)

// Kill ends all processes of a program in the guest with SIGKILL; one at least
// must run.
func (m *Machine) Kill(program string) {
	m.Helper()
	killed, err := m.lab.Kill(m.ctx, program)
	m.must(err)
	if killed == 0 {
		m.keep(m.TB)
		m.Fatalf("no %s runs on %s", program, m.lab.Name())
	}
}

// Reset pushes the reset button. It does not wait.
func (m *Machine) Reset() { m.Helper(); m.must(m.lab.Reset(m.ctx)) }

// Pause freezes the machine's processors, Resume lets them go on.
func (m *Machine) Pause()  { m.Helper(); m.must(m.lab.Pause(m.ctx)) }
func (m *Machine) Resume() { m.Helper(); m.must(m.lab.Resume(m.ctx)) }

// Unplug pulls the cables out of NICs, of all without numbers; Plug puts them in.
func (m *Machine) Unplug(nics ...int) { m.Helper(); m.must(m.lab.Unplug(m.ctx, nics...)) }
func (m *Machine) Plug(nics ...int)   { m.Helper(); m.must(m.lab.Plug(m.ctx, nics...)) }

// FillDisk fills the file system of a directory, FreeDisk gives the room back.
func (m *Machine) FillDisk(dir string) { m.Helper(); m.must(m.lab.FillDisk(m.ctx, dir)) }
func (m *Machine) FreeDisk(dir string) { m.Helper(); m.must(m.lab.FreeDisk(m.ctx, dir)) }

// SlowDisk and BreakDisk make the system disk a bad one, MendDisk a good one.
func (m *Machine) SlowDisk(latency time.Duration, bandwidth int64) {
	m.Helper()
	m.must(m.lab.SlowDisk(latency, bandwidth))
}
func (m *Machine) BreakDisk() { m.Helper(); m.must(m.lab.BreakDisk()) }
func (m *Machine) MendDisk()  { m.Helper(); m.must(m.lab.MendDisk()) }

// DiskStats says what the system disk has written, flushed and lost.
func (m *Machine) DiskStats() nbd.Stats {
	m.Helper()
	s, err := m.lab.DiskStats()
	m.must(err)
	return s
}

// StepClock sets the guest's clock forward or back, MendClock to the host's time.
func (m *Machine) StepClock(by time.Duration) { m.Helper(); m.must(m.lab.StepClock(m.ctx, by)) }
func (m *Machine) MendClock()                 { m.Helper(); m.must(m.lab.MendClock(m.ctx)) }

// Heal undoes all of this.
func (m *Machine) Heal() { m.Helper(); m.must(m.lab.Heal(m.ctx)) }
