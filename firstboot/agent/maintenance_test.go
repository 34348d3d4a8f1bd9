package agent

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/steps"
)

// act has the agent of a node do something, as an administrator.
func act(t *testing.T, c *membertest.Cluster, name, action string, args any) error {
	t.Helper()
	pair, err := c.Authority.IssueAdmin(pki.AdminWrite, "ann@desk", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS("admin")
	if err != nil {
		t.Fatal(err)
	}
	n, err := c.Plan.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	remote := peers.Remote{Node: n, Config: peers.TLS(cert, c.Authority.Pool(), c.Plan.ID, name, time.Now), Dial: (&net.Dialer{}).DialContext}
	_, err = remote.Act(t.Context(), action, args, func(actions.Event) {})
	return err
}

func TestAnAgentDoesWhatItsAdministratorAsksForAndWritesItDown(t *testing.T) {
	m := start(t)
	m.Put(t, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	m.Output(t, "ip", "link", "set", "dev", "lo", "up")
	m.set("haproxy.service", "inactive")
	c := membertest.New(t)
	m.insertBlock(t, membertest.Text(t, c.Block(t, "a-lb1")))
	m.powerOn(t)
	m.until(t, "an agent among its peers", func(r status.Report) bool { return step(r, "peers").State == status.Done })
	if err := act(t, c, "a-lb1", "dance", struct{}{}); err == nil || !strings.Contains(err.Error(), "it has: ") || !strings.Contains(err.Error(), "maintenance") || !strings.Contains(err.Error(), "switchover") {
		t.Errorf("an action that there is not: %v", err)
	}
	if err := act(t, c, "a-lb1", "maintenance", steps.MaintenanceArgs{On: true}); err != nil {
		t.Fatal(err)
	}
	r := m.until(t, "a node in maintenance", func(r status.Report) bool { return r.Maintenance != nil })
	if r.Maintenance.By != "ann@desk" || m.Node.Node.Maintenance() == nil {
		t.Errorf("maintenance: %+v", r.Maintenance)
	}
	entries, err := (&actions.Log{Path: m.Path(actions.LogPath)}).Read(10)
	if err != nil || len(entries) != 1 || entries[0].By != "ann@desk" || entries[0].Action != "maintenance" || entries[0].Outcome != "done" {
		t.Errorf("log: %+v, %v", entries, err)
	}
	if err := act(t, c, "a-lb1", "maintenance", steps.MaintenanceArgs{}); err != nil && !strings.Contains(err.Error(), "no network card") {
		t.Fatal(err)
	}
	m.until(t, "a node in no maintenance", func(r status.Report) bool { return r.Maintenance == nil })
}

func TestMaintenanceIsAStateOfItsOwnAndHidesNoTrouble(t *testing.T) {
	up := []status.Step{{Name: "role", State: status.Done}}
	for want, r := range map[status.State]status.Report{
		status.Maintenance: {Steps: up},
		status.Degraded:    {Steps: up, Cluster: &status.Cluster{Problems: []string{"something"}}},
		status.Failed:      {Steps: []status.Step{{Name: "role", State: status.Broken}}},
		status.Converging:  {Steps: append(up, status.Step{Name: "final", State: status.Running})},
	} {
		r.Maintenance = &node.Maintenance{By: "ann@desk"}
		agent := &run{node: &node.Node{Seed: &node.Seed{}}, source: &source{}, essential: []string{"role"}}
		if got := agent.judge(r).state; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	if status.Maintenance.ExitCode() != 0 || !status.Maintenance.Settled() {
		t.Error("a node in maintenance counts as not ready")
	}
}
