package agent

import (
	"testing"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/status"
)

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
