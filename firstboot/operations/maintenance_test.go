package operations

import (
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

func plannedSteps(op *Operation) string {
	var all []string
	for _, s := range op.Steps {
		what := s.What
		if s.Done {
			what += " (done)"
		}
		all = append(all, what)
	}
	return strings.Join(all, "; ")
}

func TestMaintenanceGivesUpInOrder(t *testing.T) {
	const rest = "lead nothing, be read from by nobody and hold no virtual address"
	for name, want := range map[string]string{
		"a-db1": "hand over from a-db1 to a-db2; have a-db1 " + rest,
		"a-db2": "have a-db2 " + rest,
		"a-lb1": "have a-lb1 " + rest,
	} {
		w := build()
		op, err := w.prepare(t, MaintenanceOn(w.cluster(), name, false))
		if err != nil || plannedSteps(op) != want {
			t.Errorf("%s: %+v, %v", name, op, err)
		}
	}
}

func TestMaintenanceIsRefusedWhereTheOthersDoNotCarryTheServiceUnlessForced(t *testing.T) {
	for name, c := range map[string]struct {
		node, want string
		change     func(*world)
	}{
		"one database left":                {"a-db1", "of the other database nodes 1 are healthy", func(w *world) { w.maintain("a-db3") }},
		"one does not stream":              {"a-db3", "of the other database nodes 1 are healthy", func(w *world) { w.every("a-db2", func(m *status.DatabaseMember) { m.State = "starting" }) }},
		"the last balancer":                {"a-lb1", "no other balancer of site a serves", func(w *world) { w.off("a-lb2") }},
		"the other is in maintenance too":  {"a-lb1", "no other balancer of site a serves", func(w *world) { w.maintain("a-lb2") }},
		"the other one reaches no servers": {"a-lb1", "no other balancer of site a serves", func(w *world) { w.nodes["a-lb2"].Cluster.Backends = nil }},
		"no majority of etcd": {"a-db3", "1 of 3 members of etcd are left", func(w *world) {
			for _, n := range []string{"a-db1", "a-db2", "a-db3"} {
				w.nodes[n].Cluster.Consensus.Members[1].Healthy = false
			}
		}},
	} {
		w := build()
		c.change(w)
		_, err := w.prepare(t, MaintenanceOn(w.cluster(), c.node, false))
		if fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), c.want) || !strings.Contains(fault.Mend(err), "--force") {
			t.Errorf("%s: %v", name, err)
		}
		op, err := w.prepare(t, MaintenanceOn(w.cluster(), c.node, true))
		if err != nil || !strings.Contains(strings.Join(op.Warnings, "; "), c.want) {
			t.Errorf("%s, forced: %+v, %v", name, op, err)
		}
	}
	w := build()
	w.off("a-db2")
	if _, err := w.prepare(t, MaintenanceOn(w.cluster(), "a-db2", true)); fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "a-db2 does not answer") {
		t.Errorf("a node that is off: %v", err)
	}
}

func TestMaintenanceIsThereOnceNothingOfTheNodeIsNeeded(t *testing.T) {
	w := build()
	says := func(op *Operation, want string) {
		t.Helper()
		now, _ := w.look(t.Context())
		if got := strings.Join(op.Check(now), "; "); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("want %q, got %q", want, got)
		}
	}
	op, err := w.prepare(t, MaintenanceOn(w.cluster(), "a-db1", false))
	if err != nil {
		t.Fatal(err)
	}
	says(op, "a-db1 still leads")
	w.leads("a-db2")
	says(op, "a-db1 might still be made the leader")
	says(op, "a-lb1 still sends readers to a-db1")
	w.maintain("a-db1")
	says(op, "")

	balancer, err := w.prepare(t, MaintenanceOn(w.cluster(), "a-lb1", false))
	if err != nil {
		t.Fatal(err)
	}
	w.nodes["a-lb1"].Maintenance = w.nodes["a-db1"].Maintenance
	says(balancer, "the virtual address db is still on a-lb1")
	w.holds("nobody")
	says(balancer, "the virtual address db is on no node")
	w.holds("a-lb2")
	says(balancer, "")

	// An interrupted command goes on, also when the cluster would refuse it by now.
	w.off("a-db3")
	if op, err = w.prepare(t, MaintenanceOn(w.cluster(), "a-db1", false)); err != nil || !strings.HasSuffix(plannedSteps(op), "(done)") {
		t.Errorf("again: %+v, %v", op, err)
	}
}

func TestMaintenanceEndsWithANodeThatTakesPart(t *testing.T) {
	w := build()
	w.leads("a-db2")
	w.maintain("a-db1")
	op, err := w.prepare(t, MaintenanceOff(w.cluster(), "a-db1"))
	if err != nil || plannedSteps(op) != "have a-db1 take part again" {
		t.Fatalf("%+v, %v", op, err)
	}
	says := func(want string) {
		t.Helper()
		now, _ := w.look(t.Context())
		if got := strings.Join(op.Check(now), "; "); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("want %q, got %q", want, got)
		}
	}
	says("a-db1 is in maintenance")
	w.nodes["a-db1"].Maintenance, w.nodes["a-db1"].State = nil, status.Ready
	says("a-db1 cannot be made the leader yet")
	w.every("a-db1", func(m *status.DatabaseMember) { m.NoFailover, m.Role = false, "quorum_standby" })
	says("a-lb1 does not send readers to a-db1 yet")
	w.leads("a-db2")
	says("")
	if op, err = w.prepare(t, MaintenanceOff(w.cluster(), "a-db1")); err != nil || !op.Steps[0].Done {
		t.Errorf("again: %+v, %v", op, err)
	}
	w.nodes["a-lb2"].Cluster.VIPs[0].Problem = "keepalived.service does not run"
	if op, err = w.prepare(t, MaintenanceOff(w.cluster(), "a-lb2")); err != nil {
		t.Fatal(err)
	}
	says("a-lb2 could not hold the virtual address db")
}
