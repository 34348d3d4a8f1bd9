package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
	"github.com/slipwayhq/slipway/qemu-tests/lab/nbd"
)

// Machine is a VM of the lab, powered on or off. Its methods may be called from
// several goroutines; those that change the power are for one at a time.
type Machine struct {
	vm    VM
	accel Accel

	mu   sync.Mutex
	run  *run  // nil when the power is off
	mark int64 // where the current boot begins in the serial log

	starts    uint64       // how often it was powered on
	disk      *nbd.Disk    // of the last run, if the VM is volatile
	manner    nbd.Manner   // how the disk is to behave
	unplugged map[int]bool // NICs without a carrier

	full       []string // directories that FillDisk has filled
	clockWrong bool     // by StepClock
}

// run is one stretch between power on and power off.
type run struct {
	*process
	qmp   *monitor
	qga   *agent
	ports []*ether.Port // of the NICs on a switch
	disk  *nbd.Disk     // nil if it is not volatile
	// stop ends the process when the context of PowerOn does.
	stop func() bool
}

// New makes a machine that is powered off: it checks the host, chooses the
// accelerator and creates what is missing in the VM's directory.
func New(ctx context.Context, vm VM) (*Machine, error) {
	if err := checkTools(vm.Firmware); err != nil {
		return nil, err
	}
	vm, err := vm.complete()
	if err != nil {
		return nil, err
	}
	if err := prepare(ctx, vm); err != nil {
		return nil, fmt.Errorf("machine %s: %w", vm.Name, err)
	}
	accel, why, err := chooseAccel(ctx, vm)
	if err != nil {
		return nil, err
	}
	if vm.Patience == 0 {
		vm.Patience = accel.patience()
	}
	vm.Log.WithField("machine", vm.Name).Debugf("accelerator %s: %s", accel, why)
	return &Machine{vm: vm, accel: accel}, nil
}

// Start makes a machine and powers it on. When ctx ends, the machine is killed.
func Start(ctx context.Context, vm VM) (*Machine, error) {
	m, err := New(ctx, vm)
	if err != nil {
		return nil, err
	}
	return m, m.PowerOn(ctx)
}

// Name is the VM's name.
func (m *Machine) Name() string { return m.vm.Name }

// Dir is where the machine's disk and logs are.
func (m *Machine) Dir() string { return m.vm.Dir }

// Accel is what executes the guest's instructions.
func (m *Machine) Accel() Accel { return m.accel }

// PowerOn starts QEMU. When ctx ends, the machine is killed.
func (m *Machine) PowerOn(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run != nil && !m.run.ended() {
		return fault.New(fault.Usage, "machine %s is powered on already", m.vm.Name)
	}
	if m.run != nil {
		m.run.close() // the guest ended it
		m.run = nil
	}
	r, err := m.launch(ctx)
	if err != nil {
		return fmt.Errorf("machine %s: %w", m.vm.Name, err)
	}
	m.run, m.disk = r, r.disk
	m.starts++
	if err := m.pullCables(ctx, r); err != nil {
		m.cut()
		return err
	}
	m.vm.Log.WithField("machine", m.vm.Name).Debugf("powered on (%s, %s, pid %d)", m.vm.Firmware, m.accel, r.cmd.Process.Pid)
	return nil
}

func (m *Machine) launch(ctx context.Context) (*run, error) {
	a, err := args(m.vm, m.accel)
	if err != nil {
		return nil, err
	}
	if st, err := os.Stat(m.path(serialLog)); err == nil {
		m.mark = st.Size()
	}
	if err := os.Remove(m.path(serialSocket)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	output, err := os.Create(m.path(qemuLog))
	if err != nil {
		return nil, err
	}
	defer output.Close()
	w, err := m.wire()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(qemuSystem, a...)
	cmd.Dir = m.vm.Dir
	cmd.Stdout, cmd.Stderr = output, output
	cmd.ExtraFiles = w.theirs
	p, err := startTied(cmd)
	w.closeTheirs() // so that reading ends when QEMU does
	if err != nil {
		w.closeOurs()
		return nil, err
	}
	qmp, err := newMonitor(ctx, w.qmp)
	if err != nil {
		p.kill()
		w.closeOurs()
		said, _ := os.ReadFile(m.path(qemuLog))
		return nil, fault.New(fault.Failed, "QEMU did not start: %w: %s", err, strings.TrimSpace(string(said)))
	}
	return &run{process: p, qmp: qmp, qga: newAgent(w.qga), ports: w.ports, disk: w.disk, stop: context.AfterFunc(ctx, func() { p.cmd.Process.Kill() })}, nil
}

func (r *run) ended() bool {
	select {
	case <-r.done:
		return true
	default:
		return false
	}
}

func (r *run) close() {
	r.stop()
	r.qmp.conn.Close()
	r.qga.conn.Close()
	for _, p := range r.ports {
		p.Close()
	}
	if r.disk != nil {
		r.disk.Wait() // Machine.DiskStats tells the error
	}
}

// current is the run of a machine that is powered on.
func (m *Machine) current() (*run, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run == nil {
		return nil, fault.New(fault.Failed, "machine %s is powered off", m.vm.Name)
	}
	if m.run.ended() {
		return nil, m.failed("%w", errMachineEnded)
	}
	return m.run, nil
}

// Running says whether the machine has power.
func (m *Machine) Running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.run != nil && !m.run.ended()
}

// PID is QEMU's process id, or 0 if the power is off.
func (m *Machine) PID() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.run == nil || m.run.ended() {
		return 0
	}
	return m.run.cmd.Process.Pid
}

// Crash cuts the power: the guest has no chance to write anything more, and a
// volatile disk none to write its cache. The package comment says what that
// loses. The disk stays, PowerOn boots it again.
func (m *Machine) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cut()
}

func (m *Machine) cut() {
	if m.run == nil {
		return
	}
	self := m.run.ended() // and then the disk is switched off in good order
	m.run.kill()
	if m.run.disk != nil && !self {
		m.run.disk.Cut()
	}
	m.run.close()
	m.run = nil
}

// Shutdown asks the guest's agent to power off, and waits until it has.
func (m *Machine) Shutdown(ctx context.Context) error {
	if err := m.systemctl(ctx, "poweroff"); err != nil {
		return err
	}
	return m.WaitForPowerOff(ctx)
}

// PressPower pushes the power button (ACPI), which the guest's operating system
// should obey. It does not wait.
func (m *Machine) PressPower(ctx context.Context) error {
	return m.QMP(ctx, "system_powerdown", nil, nil)
}

// systemctl hands over a verb that takes the agent with it, so that no answer
// about its end can be expected.
func (m *Machine) systemctl(ctx context.Context, verb string) error {
	r, err := m.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.vm.Patience)
	defer cancel()
	if err := r.qga.call(ctx, "guest-exec", map[string]any{"path": "systemctl", "arg": []string{verb}}, nil); err != nil {
		return m.failed("%s: %w", verb, err)
	}
	return nil
}

// WaitForPowerOff waits until the guest has ended the machine.
func (m *Machine) WaitForPowerOff(ctx context.Context) error {
	r, err := m.current()
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, m.vm.Patience)
	defer cancel()
	select {
	case <-r.done:
	case <-ctx.Done():
		return m.failed("the guest did not power off: %w", ctx.Err())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r.close()
	m.run = nil
	if r.err != nil {
		return m.failed("QEMU ended: %w", r.err)
	}
	return nil
}

// Reboot has the guest restart itself and waits until its agent answers from
// the new boot.
func (m *Machine) Reboot(ctx context.Context) error {
	before, err := m.bootID(ctx)
	if err != nil {
		return err
	}
	mark := m.logSize()
	if err := m.systemctl(ctx, "reboot"); err != nil {
		return err
	}
	m.setMark(mark)
	return m.waitForBootOtherThan(ctx, before)
}

// Reset pushes the reset button: the guest restarts with no warning, QEMU and
// what it holds in memory live on. It does not wait.
func (m *Machine) Reset(ctx context.Context) error {
	m.setMark(m.logSize())
	return m.QMP(ctx, "system_reset", nil, nil)
}

func (m *Machine) bootID(ctx context.Context) (string, error) {
	id, err := m.Succeed(ctx, "cat /proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(id), err
}

func (m *Machine) waitForBootOtherThan(ctx context.Context, before string) error {
	return m.poll(ctx, "the guest to come up again", func(ctx context.Context) (bool, string) {
		// An agent that is being stopped may take the command with it: ask with a short deadline.
		ctx, cancel := context.WithTimeout(ctx, 4*knockTime)
		defer cancel()
		res, err := m.Exec(ctx, "cat /proc/sys/kernel/random/boot_id")
		if err != nil {
			return false, err.Error()
		}
		return strings.TrimSpace(res.Stdout) != before, "still the old boot"
	})
}

// Close cuts the power if it is on. The directory stays.
func (m *Machine) Close() { m.Crash() }

// QMP runs a command of QEMU's machine protocol and stores what it returns in
// out, unless out is nil.
func (m *Machine) QMP(ctx context.Context, command string, args, out any) error {
	r, err := m.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.vm.Patience)
	defer cancel()
	return r.qmp.execute(ctx, command, args, out)
}

// ResizeDisk grows the system disk, whether the machine runs or not.
func (m *Machine) ResizeDisk(ctx context.Context, size int64) error {
	if m.Running() {
		if err := m.hasRoom(size); err != nil {
			return err
		}
		return m.QMP(ctx, "block_resize", map[string]any{"node-name": "system", "size": size}, nil)
	}
	if err := runImg(ctx, "resize", "-q", "-f", "qcow2", m.path(systemDisk), fmt.Sprint(size)); err != nil || !m.vm.Volatile {
		return err
	}
	return makeRoom(ctx, m.path(systemDisk))
}

// InsertCD puts a medium into the first CD drive, in place of what is in it.
func (m *Machine) InsertCD(ctx context.Context, iso string) error {
	abs, err := filepath.Abs(iso)
	if err != nil {
		return err
	}
	return m.QMP(ctx, "blockdev-change-medium", map[string]any{
		"id": "cd0", "filename": abs, "format": "raw", "read-only-mode": "read-only", "force": true,
	}, nil)
}

// EjectCD takes the medium out of the first CD drive.
func (m *Machine) EjectCD(ctx context.Context) error {
	return m.QMP(ctx, "eject", map[string]any{"id": "cd0", "force": true}, nil)
}

// AttachDisk plugs in a read-only disk, such as a vfat seed, while the machine runs.
func (m *Machine) AttachDisk(ctx context.Context, file, id string) error {
	abs, err := filepath.Abs(file)
	if err != nil {
		return err
	}
	err = m.QMP(ctx, "blockdev-add", map[string]any{
		"node-name": id, "driver": "raw", "read-only": true,
		"file": map[string]any{"driver": "file", "filename": abs},
	}, nil)
	if err != nil {
		return err
	}
	return m.QMP(ctx, "device_add", map[string]any{
		"driver": "scsi-hd", "bus": scsiBus, "drive": id, "id": "dev-" + id, "serial": clip(id),
	}, nil)
}

func (m *Machine) path(name string) string { return filepath.Join(m.vm.Dir, name) }

// poll asks until the answer is yes, with growing pauses, for at most the VM's
// patience. what completes the sentence "waited for …"; the last answer's
// explanation is part of the error.
func (m *Machine) poll(ctx context.Context, what string, ask func(context.Context) (ok bool, why string)) error {
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, m.vm.Patience)
	defer cancel()
	pause := 50 * time.Millisecond
	var why string
	for {
		ok, now := ask(ctx)
		if ok {
			return nil
		}
		if now != "" && ctx.Err() == nil || why == "" {
			why = now
		}
		if !m.Running() {
			return m.failed("waited for %s: %w", what, errMachineEnded)
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return m.failed("waited %v for %s: %w; last: %s", time.Since(began).Round(time.Second), what, ctx.Err(), why)
		}
		pause = min(pause*3/2, time.Second)
	}
}

// failed makes an error that shows the end of the serial log.
func (m *Machine) failed(format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	return fault.New(fault.Failed, "machine %s: %w\n%s", m.vm.Name, err, m.tail(15))
}
