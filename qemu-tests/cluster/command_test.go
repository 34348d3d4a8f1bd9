package clustertest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

// newHollowLab is a user with images that hold nothing: their machines have
// power and never become ready, which is all that these tests need of them.
func newHollowLab(t *testing.T) *user {
	u := newUser(t)
	u.write("cluster.yaml", smallest)
	u.mkdir("images")
	top, err := topology.Load(u.path("cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, role := range lab.Roles(top) {
		if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", lab.Image(u.path("images"), role), "1M").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	u.endLabs()
	return u
}

// state is the lab as its daemon sees it.
func (u *user) state() daemon.State {
	u.Helper()
	s, err := daemon.NewClient(u.place()).State(u.Context())
	if err != nil {
		u.Fatal(err)
	}
	return s
}

// on are the nodes that have power.
func (u *user) on() []string {
	u.Helper()
	on := []string{}
	for _, n := range u.state().Nodes {
		if n.On {
			on = append(on, n.Name)
		}
	}
	return on
}

func (u *user) isOn(want ...string) {
	u.Helper()
	if got := u.on(); !slices.Equal(got, want) {
		u.Errorf("%v have power, want %v", got, want)
	}
}

func TestUpWhoseTimeIsOverNamesWhatIsNotReadyAndLeavesItRunning(t *testing.T) {
	u := newHollowLab(t)
	text := u.fails(9, "up", "cluster.yaml", "--images", "images", "--timeout", "1ms", "gw1", "gw2")
	u.says(text, "gw1: booting")
	u.says(text, "gw2: booting")
	u.isOn("gw1", "gw2")

	u.part("a second up goes on with it", func(u *user) {
		pid := u.state().PID
		var s daemon.State
		if err := json.Unmarshal([]byte(u.runs("up", "cluster.yaml", "--no-wait", "--json", "gw1", "db1")), &s); err != nil {
			u.Fatal(err)
		}
		if s.PID != pid || len(s.Forwards) != 5 || !strings.HasPrefix(s.Forwards[0].Host, "127.0.0.1:") {
			u.Errorf("%+v", s)
		}
		u.isOn("db1", "gw1", "gw2")
	})
	u.part("nodes that the topology has or lacks since are taken over, and nothing else of it", func(u *user) {
		pid := u.state().PID
		const third = "  - {name: gw3, role: gateway, nics: [{network: lan, address: 10.77.1.43}]}\n"
		u.write("cluster.yaml", smallest+third)
		u.says(u.fails(4, "up", "cluster.yaml", "--no-wait", "gw3"), "bring it into the cluster: slipway add") // it has no seed
		u.isOn("db1", "gw1", "gw2")
		var without []string
		for line := range strings.Lines(smallest) {
			if !strings.Contains(line, "name: gw2") {
				without = append(without, line)
			}
		}
		u.write("cluster.yaml", strings.Join(without, "")+"# edited\n")
		u.runs("up", "cluster.yaml", "--no-wait", "gw1")
		u.isOn("db1", "gw1")
		u.write("cluster.yaml", smallest)
		u.runs("up", "cluster.yaml", "--no-wait", "gw2")
		u.isOn("db1", "gw1", "gw2")
		if got := u.state().PID; got != pid {
			u.Errorf("daemon %d, before %d", got, pid)
		}
		u.write("cluster.yaml", strings.Replace(smallest, "domain: lab.", "domain: other.", 1))
		u.says(u.fails(9, "up", "cluster.yaml", "--no-wait"), "has changed since the lab was started: not only its nodes are others")
		u.write("cluster.yaml", strings.Replace(smallest, "10.77.1.41", "10.77.1.44", 1))
		u.says(u.fails(9, "up", "cluster.yaml", "--no-wait"), "the node gw1 is another one")
		u.write("cluster.yaml", smallest)
	})
	u.part("up starts a node whose power was cut beside those that run", func(u *user) {
		u.order(daemon.Crash, "gw2")
		u.isOn("db1", "gw1")
		u.says(u.runs("up", "cluster.yaml", "--no-wait", "gw1", "gw2"), "2 nodes powered on, 1 of them started now")
		u.isOn("db1", "gw1", "gw2")
	})
	u.part("a daemon that was killed takes its machines along and is replaced", func(u *user) {
		before := u.state()
		if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
			u.Fatal(err)
		}
		for _, n := range before.Nodes {
			for n.PID != 0 && running(n.PID) {
			}
		}
		u.runs("up", "cluster.yaml", "--images", "images", "--no-wait", "gw2")
		u.isOn("gw2")
		if after := u.state(); after.PID == before.PID || after.Forwards[0] != before.Forwards[0] {
			u.Errorf("%+v, before %+v", after, before)
		}
	})
	u.part("down without patience cuts the power", func(u *user) {
		var r struct{ Stopped []string }
		if err := json.Unmarshal([]byte(u.runs("down", "cluster.yaml", "--timeout", "0", "--json")), &r); err != nil || !slices.Equal(r.Stopped, []string{"gw2"}) {
			u.Errorf("%+v, %v", r, err)
		}
		if running, err := u.place().Runs(); running || err != nil {
			u.Errorf("the daemon runs on: %v, %v", running, err)
		}
	})
}

// running says whether a process is there and no zombie (proc_pid_stat(5)).
func running(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, rest, _ := bytes.Cut(stat, []byte(") "))
	return len(rest) > 0 && rest[0] != 'Z' && rest[0] != 'X'
}

func TestCtrlCWhileUpWaitsStopsWhatItStarted(t *testing.T) {
	u := newHollowLab(t)
	u.runs("up", "cluster.yaml", "--images", "images", "--no-wait", "gw1")
	cmd := u.command("up", "cluster.yaml", "--grace", "1ms", "gw1", "gw2")
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for len(u.on()) < 2 && running(cmd.Process.Pid) {
	}
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 130 {
		t.Errorf("exit status %d\n%s", code, said.String())
	}
	u.says(said.String(), "stopping gw2")
	u.isOn("gw1")
}
