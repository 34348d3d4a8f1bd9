// Package labtest tells a test's story with machines of the lab: its methods
// are lab.Machine's, but instead of returning an error they end the test.
//
// What a failed test leaves behind for a person to look at (serial log,
// screenshot) is kept in the directory that OutEnv names, or in out/ of the
// test's artifact directory, and its paths are part of the test's output.
package labtest

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/lab"
)

// OutEnv names the environment variable with the directory for what failed tests leave behind.
const OutEnv = "SLIPWAY_TEST_OUT"

// keepTime bounds the taking of evidence from a machine that may hang.
const keepTime = 40 * time.Second

// Machine is a lab.Machine bound to a test, which it ends when a claim does not
// hold. It is that test too (m.Errorf, m.Fatal), so that helpers that tell a part
// of the story need only the machine.
type Machine struct {
	testing.TB
	*life
}

// life is what the views of one machine (In) share.
type life struct {
	lab  *lab.Machine
	ctx  context.Context // ends after the test's cleanups, unlike testing.TB's own
	out  string
	kept bool
}

// Start powers on a machine that ends with the test. Its directory is a
// temporary one unless vm names another.
func Start(t testing.TB, vm lab.VM) *Machine {
	t.Helper()
	if vm.Dir == "" {
		vm.Dir = t.TempDir()
	}
	ctx, cancel := context.WithCancel(context.Background())
	m := &Machine{TB: t, life: &life{ctx: ctx, out: OutDir(t)}}
	machine, err := lab.Start(ctx, vm)
	m.lab = machine
	t.Cleanup(func() {
		defer cancel()
		if machine == nil {
			return
		}
		if t.Failed() {
			m.keep(t)
		}
		machine.Close()
	})
	m.must(err)
	return m
}

// In is the same machine, bound to a subtest.
func (m *Machine) In(t testing.TB) *Machine { return &Machine{TB: t, life: m.life} }

// Lab is the machine itself, for what must return an error.
func (m *Machine) Lab() *lab.Machine { return m.lab }

// OutDir is where what a failed test leaves behind is kept.
func OutDir(t testing.TB) string {
	name := strings.NewReplacer("/", "_", " ", "_").Replace(t.Name())
	if dir := os.Getenv(OutEnv); dir != "" {
		return filepath.Join(dir, name)
	}
	return filepath.Join(t.ArtifactDir(), "out")
}

func (m *Machine) must(err error) {
	m.Helper()
	if err == nil {
		return
	}
	m.keep(m.TB)
	m.Fatal(err)
}

// keep saves the evidence once, at the first failure, while it is fresh.
func (m *Machine) keep(t testing.TB) {
	t.Helper()
	if m.lab == nil || m.kept {
		return
	}
	m.kept = true
	ctx, cancel := context.WithTimeout(context.Background(), keepTime)
	defer cancel()
	paths, err := m.lab.Keep(ctx, m.out)
	if err != nil {
		t.Logf("keeping evidence of machine %s: %v", m.lab.Name(), err)
	}
	for _, p := range paths {
		t.Logf("kept %s", p)
	}
}

// WaitForGuest waits until the guest agent answers.
func (m *Machine) WaitForGuest() { m.Helper(); m.must(m.lab.WaitForGuest(m.ctx)) }

// WaitForUnit waits until a systemd unit is active; a unit that has failed ends the test at once.
func (m *Machine) WaitForUnit(unit string) { m.Helper(); m.must(m.lab.WaitForUnit(m.ctx, unit)) }

// WaitForConsole waits until a line of this boot's serial log matches.
func (m *Machine) WaitForConsole(pattern string) {
	m.Helper()
	m.must(m.lab.WaitForConsole(m.ctx, pattern))
}

// WaitUntilSucceeds repeats a guest command until it ends with status 0.
func (m *Machine) WaitUntilSucceeds(command string) string {
	m.Helper()
	out, err := m.lab.WaitUntilSucceeds(m.ctx, command)
	m.must(err)
	return out
}

// Succeed runs a guest command that must end with status 0.
func (m *Machine) Succeed(command string) string {
	m.Helper()
	out, err := m.lab.Succeed(m.ctx, command)
	m.must(err)
	return out
}

// MustFail runs a guest command that must not end with status 0.
func (m *Machine) MustFail(command string) string {
	m.Helper()
	out, err := m.lab.Fail(m.ctx, command)
	m.must(err)
	return out
}

// ReadFile reads a file of the guest.
func (m *Machine) ReadFile(path string) string {
	m.Helper()
	content, err := m.lab.ReadFile(m.ctx, path)
	m.must(err)
	return string(content)
}

// WriteFile replaces a file of the guest.
func (m *Machine) WriteFile(path, content string) {
	m.Helper()
	m.must(m.lab.WriteFile(m.ctx, path, []byte(content)))
}

// PowerOn starts a machine that is off.
func (m *Machine) PowerOn() { m.Helper(); m.must(m.lab.PowerOn(m.ctx)) }

// Crash cuts the power.
func (m *Machine) Crash() { m.lab.Crash() }

// Shutdown has the guest power itself off.
func (m *Machine) Shutdown() { m.Helper(); m.must(m.lab.Shutdown(m.ctx)) }

// PressPower pushes the power button and waits until the guest has obeyed.
func (m *Machine) PressPower() {
	m.Helper()
	m.must(m.lab.PressPower(m.ctx))
	m.must(m.lab.WaitForPowerOff(m.ctx))
}

// Reboot has the guest restart itself and waits until it is up again.
func (m *Machine) Reboot() { m.Helper(); m.must(m.lab.Reboot(m.ctx)) }

// ResizeDisk grows the system disk to size bytes.
func (m *Machine) ResizeDisk(size int64) { m.Helper(); m.must(m.lab.ResizeDisk(m.ctx, size)) }

// InsertCD puts a medium into the CD drive.
func (m *Machine) InsertCD(iso string) { m.Helper(); m.must(m.lab.InsertCD(m.ctx, iso)) }

// EjectCD empties the CD drive.
func (m *Machine) EjectCD() { m.Helper(); m.must(m.lab.EjectCD(m.ctx)) }

// WaitForScreen waits until a virtual terminal shows a text.
func (m *Machine) WaitForScreen(tty int, text string) {
	m.Helper()
	m.must(m.lab.WaitForScreen(m.ctx, tty, text))
}

// Screenshot keeps a picture of the screen beside what failed tests leave
// behind and returns its path.
func (m *Machine) Screenshot(name string) string {
	m.Helper()
	if err := os.MkdirAll(m.out, 0o755); err != nil {
		m.Fatal(err)
	}
	path := filepath.Join(m.out, name+".png")
	m.must(m.lab.Screenshot(m.ctx, path))
	return path
}
