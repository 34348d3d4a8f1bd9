package vip

import (
	"context"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// tended answers for systemctl with the machine's real keepalived.
type tended struct {
	node.Runner
	machine *machine
}

func (r tended) Run(ctx context.Context, c node.Command) (string, error) {
	m := r.machine
	switch {
	case c.Argv[0] != "systemctl":
		return r.Runner.Run(ctx, c)
	case slices.Contains(c.Argv, "is-active") && m.keepalived != nil:
		return "active\n", nil
	case slices.Contains(c.Argv, "stop") && m.keepalived != nil:
		m.must(m.keepalived.Process.Signal(syscall.SIGTERM))
		m.keepalived.Wait()
		m.keepalived = nil
		_, err := r.Runner.Run(ctx, node.Command{Argv: strings.Fields(m.setting("ExecStopPost"))})
		return "", err
	}
	return "", nil
}

func TestANodeInMaintenanceGivesItsAddressUpAndTakesNone(t *testing.T) {
	p, authority := cluster(t, nil)
	first, second := boot(t, p, authority, "a-lb1"), boot(t, p, authority, "a-lb2")
	join(t, first, second)
	watch(t, first, second)
	first.Put(t, "/run/systemd/system/.keep", "")
	first.serve(true)
	first.start()
	first.until("the address is there", first.holds)
	second.serve(true)
	second.start()
	second.until("the other one is ready", func() bool { return second.states("BACKUP") > 0 })

	own := *first.Node.Node
	own.Run, own.Report = tended{own.Run, first}, &nodetest.Said{}
	first.must(own.BeginMaintenance(node.Maintenance{Since: time.Now(), By: "ann@desk"}))
	first.must(Yield(t.Context(), &own))
	if first.holds() || !own.Held(Unit) {
		t.Error("it has the address still, or keepalived may start again")
	}
	second.until("the other one takes the address", second.holds)
	first.must(Yield(t.Context(), &own)) // again
}

func TestMaintenanceLastsThroughBootsAndIsNoProblem(t *testing.T) {
	loopback(t)
	n := nodetest.Start(t)
	p, authority := cluster(t, nil)
	n.Member = belong(t, p, authority, "a-lb1")
	keepalived := &manager{active: "inactive"}
	n.Units, n.Run = keepalived, played{n.Run, keepalived}
	if err := n.BeginMaintenance(node.Maintenance{By: "ann@desk"}); err != nil {
		t.Fatal(err)
	}
	if err := n.Hold(Unit); err != nil { // as at every boot
		t.Fatal(err)
	}
	if err := (Start{}).Apply(t.Context(), n.Node); err != nil || keepalived.active == "active" || !n.Held(Unit) {
		t.Errorf("at a boot: %v, keepalived is %s", err, keepalived.active)
	}
	c := &status.Cluster{}
	if err := (Start{}).Observe(t.Context(), n.Node, c); err != nil || len(c.VIPs) != 1 || c.VIPs[0].Problem != "this node is in maintenance" {
		t.Errorf("observed %+v, %v", c.VIPs, err)
	}
	if err := n.EndMaintenance(); err != nil {
		t.Fatal(err)
	}
	n.Output(t, "useradd", "--system", "--uid", "850", "--user-group", "keepalived_script")
	n.Output(t, "install", "-D", "-m", "755", "/bin/true", "/usr/lib/slipway/vip-check")
	n.Output(t, "ip", "link", "add", "card", "type", "veth", "peer", "name", "far")
	t.Cleanup(func() { exec.Command("ip", "link", "delete", "card").Run() })
	n.Output(t, "ip", "address", "add", n.Member.Self.Addresses[0].String(), "dev", "card")
	n.Output(t, "ip", "link", "set", "card", "up")
	if err := Resume(t.Context(), n.Node); err != nil || keepalived.active != "active" || n.Held(Unit) {
		t.Errorf("afterwards: %v, keepalived is %s", err, keepalived.active)
	}
}
