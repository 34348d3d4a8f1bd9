package lab

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

// What can be done to one machine: its processes are killed, its power is cut
// (Crash), its processors stand still (Pause), its cables are pulled, its disk is
// full, slow or broken (faults_disk.go), its clock is wrong. Each can be done
// again without harm, and undone; Heal undoes all.

// programSyntax is what may be killed by name.
var programSyntax = regexp.MustCompile(`^[A-Za-z0-9._+-]+$`)

// Kill ends all of the guest's processes of a program with SIGKILL, and says how
// many. The program is the file that runs, without its directory ("postgres"
// means its workers as well), or the script that Python or a shell runs ("patroni"). Whoever
// looks after the program starts it again: nothing is to be undone.
func (m *Machine) Kill(ctx context.Context, program string) (killed int, err error) {
	pattern, err := commandLineOf(program)
	if err != nil {
		return 0, err
	}
	// Status 1 says that nothing matched (pkill(1), EXIT STATUS).
	out, err := m.Succeed(ctx, "pkill --signal KILL --echo --full -- "+quote(pattern)+" || test $? -eq 1")
	return strings.Count(out, "\n"), err
}

// commandLineOf is an extended regular expression that matches the command lines
// of a program, and not those that only name it among their arguments.
func commandLineOf(program string) (string, error) {
	if !programSyntax.MatchString(program) {
		return "", fault.New(fault.Usage, "%q is not the name of a program", program)
	}
	return `^([^ ]*/)?((python3?[^ ]*|(ba|da)?sh) ([^ ]*/)?)?` + regexp.QuoteMeta(program) + `([: ]|$)`, nil
}

// Pause freezes the machine's processors, as a hypervisor under pressure would.
// The guest's clock stands still meanwhile, and QEMU flushes its disks.
func (m *Machine) Pause(ctx context.Context) error { return m.QMP(ctx, "stop", nil, nil) }

// Resume lets a paused machine go on.
func (m *Machine) Resume(ctx context.Context) error { return m.QMP(ctx, "cont", nil, nil) }

// Unplug pulls the cables out of the NICs with these numbers, or of all: unlike
// with Cluster.Block, the guest sees its carrier go. They stay out while the
// power is off, and when it comes again.
func (m *Machine) Unplug(ctx context.Context, nics ...int) error { return m.setCables(ctx, nics, true) }

// Plug puts the cables in again.
func (m *Machine) Plug(ctx context.Context, nics ...int) error { return m.setCables(ctx, nics, false) }

func (m *Machine) setCables(ctx context.Context, nics []int, out bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(nics) == 0 {
		for i := range m.vm.NICs {
			nics = append(nics, i)
		}
	}
	for _, i := range nics {
		if i < 0 || i >= len(m.vm.NICs) {
			return fault.New(fault.Usage, "machine %s has no NIC %d", m.vm.Name, i)
		}
		if m.run != nil && !m.run.ended() {
			if err := m.setLink(ctx, m.run, i, !out); err != nil {
				return err
			}
		}
		if m.unplugged == nil {
			m.unplugged = map[int]bool{}
		}
		m.unplugged[i] = out
	}
	return nil
}

// pullCables pulls those out of a machine that was just powered on which are to
// be out.
func (m *Machine) pullCables(ctx context.Context, r *run) error {
	for i, out := range m.unplugged {
		if !out {
			continue
		}
		if err := m.setLink(ctx, r, i, false); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) setLink(ctx context.Context, r *run, nic int, up bool) error {
	ctx, cancel := context.WithTimeout(ctx, m.vm.Patience)
	defer cancel()
	return r.qmp.execute(ctx, "set_link", map[string]any{"name": fmt.Sprintf("net%d", nic), "up": up}, nil)
}

// StepClock sets the guest's clock forward, or back, at one stroke. Its time
// daemon runs on, and pulls the clock back when it next asks for the time.
func (m *Machine) StepClock(ctx context.Context, by time.Duration) error {
	m.note(func() { m.clockWrong = true })
	_, err := m.Succeed(ctx, fmt.Sprintf(
		`now=$(( $(date +%%s%%N) + (%d) )) && date --utc --set "@$((now / 1000000000)).$(printf %%09d $((now %% 1000000000)))"`, by.Nanoseconds()))
	return err
}

// MendClock sets the guest's clock to the host's time, and has the time daemon
// ask at once for what that lacks in precision. The daemon notes on disk how far
// time has come, and would begin from there (systemd-timesyncd.service(8)).
func (m *Machine) MendClock(ctx context.Context) error {
	now := time.Now()
	_, err := m.Succeed(ctx, fmt.Sprintf(`unit=systemd-timesyncd.service; runs=$(systemctl is-active $unit)
		systemctl stop $unit && date --utc --set @%d.%09d && touch --no-create /var/lib/systemd/timesync/clock &&
		{ test "$runs" != active || systemctl start $unit; }`, now.Unix(), now.Nanosecond()))
	if err == nil {
		m.note(func() { m.clockWrong = false })
	}
	return err
}

func (m *Machine) note(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// Heal undoes all that the methods above have done to the machine. What needs the
// guest is left for the next time if it has no power.
func (m *Machine) Heal(ctx context.Context) error {
	var errs []error
	if m.Running() {
		errs = append(errs, m.Resume(ctx))
	}
	errs = append(errs, m.Plug(ctx))
	if m.vm.Volatile {
		errs = append(errs, m.MendDisk())
	}
	if !m.Running() {
		return errors.Join(errs...)
	}
	m.mu.Lock()
	full, wrong := slices.Clone(m.full), m.clockWrong
	m.mu.Unlock()
	for _, dir := range full {
		errs = append(errs, m.FreeDisk(ctx, dir))
	}
	if wrong {
		errs = append(errs, m.MendClock(ctx))
	}
	return errors.Join(errs...)
}
