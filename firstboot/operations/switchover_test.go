package operations

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestASwitchoverGoesToTheHealthiestSynchronousStandby(t *testing.T) {
	far := int64(2000)
	for want, change := range map[string]func(*world){
		"have a-db2 lead site a": func(*world) {},
		"have a-db3 lead site a": func(w *world) { w.every("a-db2", func(m *status.DatabaseMember) { m.Lag = &far }) },
	} {
		w := build()
		change(w)
		op, err := w.prepare(t, Switchover(w.cluster(), "", ""))
		if err != nil || op.Title != want || len(op.Steps) != 1 || op.Steps[0].Done {
			t.Errorf("want %q: %+v, %v", want, op, err)
		}
	}
	w := build()
	w.nodes["a-db2"].State = status.Degraded // a node that is well comes first, whatever it lags
	if op, err := w.prepare(t, Switchover(w.cluster(), "a", "")); err != nil || op.Title != "have a-db3 lead site a" {
		t.Errorf("past a degraded node: %+v, %v", op, err)
	}
}

func TestASwitchoverIsRefusedWithItsReason(t *testing.T) {
	far := int64(5 << 20)
	for want, c := range map[string]struct {
		site, to string
		change   func(*world)
	}{
		"a-db2 lags behind by 5120 KiB":       {"", "a-db2", func(w *world) { w.every("a-db2", func(m *status.DatabaseMember) { m.Lag = &far }) }},
		"a-db2 does not stream (starting)":    {"", "a-db2", func(w *world) { w.every("a-db2", func(m *status.DatabaseMember) { m.State = "starting" }) }},
		"a-db2 is no synchronous standby":     {"", "a-db2", func(w *world) { w.every("a-db2", func(m *status.DatabaseMember) { m.Role = "replica" }) }},
		"a-db2 must not lead: it is in maint": {"", "a-db2", func(w *world) { w.maintain("a-db2") }},
		"a-db2 has an agent that does not":    {"", "a-db2", func(w *world) { w.off("a-db2") }},
		"Patroni of site a is paused":         {"", "", func(w *world) { w.nodes["a-db1"].Cluster.Database.Paused = true }},
		"no node of site a can take over: a-db2 must not lead: it is in maintenance; a-db3 must not": {"", "", func(w *world) { w.maintain("a-db2"); w.maintain("a-db3") }},
		"no node of site b can take over: there is no other database node":                           {"b", "", func(*world) {}},
		"nobody leads site a":            {"", "", func(w *world) { w.leads("nobody") }},
		"a-lb1 is no database node":      {"", "a-lb1", func(*world) {}},
		"is a node of site a, not of b":  {"b", "a-db2", func(*world) {}},
		"not clear which site is meant":  {"", "", func(w *world) { w.nodes["b-db1"].Cluster.Database.Standby = false }},
		"no database node of site a tel": {"a", "", func(w *world) { w.off("a-db1"); w.off("a-db2"); w.off("a-db3") }},
	} {
		w := build()
		c.change(w)
		_, err := w.prepare(t, Switchover(w.cluster(), c.site, c.to))
		if err == nil || !strings.Contains(err.Error(), want) || fault.Of(err) == fault.Internal {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

func TestASwitchoverIsDoneOnceAllSeeItAndTheAddressFollows(t *testing.T) {
	w := build()
	op, err := w.prepare(t, Switchover(w.cluster(), "", "a-db2"))
	if err != nil {
		t.Fatal(err)
	}
	says := func(want string) {
		t.Helper()
		now, _ := w.look(t.Context())
		if got := strings.Join(op.Check(now), "; "); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("want %q, got %q", want, got)
		}
	}
	says("a-db1 takes a-db1 for the leader")
	w.leads("a-db2")
	says("")
	w.every("a-db1", func(m *status.DatabaseMember) { m.State = "stopped" })
	says("a-db1 does not stream yet (stopped)")
	w.leads("a-db2")
	for _, name := range []string{"a-db1", "a-db3"} { // a moment after the promotion
		w.every(name, func(m *status.DatabaseMember) { m.Role = "replica" })
	}
	says("no standby of a-db2 is synchronous yet")
	w.leads("a-db2")
	w.nodes["a-lb1"].Cluster.Backends = nil
	says("the virtual address db is on a-lb1, which does not send writes to a-db2 yet")
	w.holds("a-lb2")
	says("")
	w.holds("nobody")
	says("the virtual address db is on no node")

	w.plan.VIPs = []plan.VIP{{Name: "db", Site: "a", On: plan.OnDatabases}}
	for name, held := range map[string]bool{"a-db1": true, "a-db2": false} {
		w.nodes[name].Cluster.VIPs = []status.VIP{{Name: "db", Held: held}}
	}
	says("the virtual address db is on a-db1")
	w.nodes["a-db1"].Cluster.VIPs, w.nodes["a-db2"].Cluster.VIPs = nil, []status.VIP{{Name: "db", Held: true}}
	says("")
}

func TestANodeThatLeadsAlreadyHasNothingToTakeOver(t *testing.T) {
	w, said := build(), []string{}
	result, err := w.runner(&said).Run(t.Context(), Switchover(w.cluster(), "", "a-db1"))
	if err != nil || !result.Verified || result.Steps[0].Outcome != Already || strings.Join(said, "") != "Nothing to do, done already: have a-db1 lead site a." {
		t.Errorf("%+v, %v, %q", result, err, said)
	}
}

func TestASwitchoverEndsWhenAnotherNodeHasTakenTheLead(t *testing.T) {
	for _, c := range []struct {
		seen []string // who leads, look by look; "" is nobody
		lost string
	}{
		{[]string{"a-db1", "", "a-db3"}, "a-db2 has lost the lead again: since then a-db3 leads"},
		{[]string{"a-db1", "a-db2", "", "a-db1"}, "a-db2 has lost the lead again: since then a-db1 leads"},
		{[]string{"a-db1", "a-db1", "a-db2", "a-db2"}, ""},
	} {
		w := build()
		op, err := w.prepare(t, Switchover(w.cluster(), "", "a-db2"))
		if err != nil {
			t.Fatal(err)
		}
		op.Steps[0].Do = func(context.Context, func(string)) error { return nil }
		op.Check = func(overview.Overview) []string { return []string{"something"} }
		var said []string
		r, looks := w.runner(&said), 0
		r.Look = func(ctx context.Context) (overview.Overview, error) {
			if looks == len(c.seen) {
				return overview.Overview{}, errors.New("the story ends")
			}
			w.leads(c.seen[looks])
			looks++
			return w.look(ctx)
		}
		_, err = r.Run(t.Context(), func(context.Context, overview.Overview) (*Operation, error) { return op, nil })
		if want := cmp.Or(c.lost, "the story ends"); err == nil || err.Error() != want || c.lost != "" && looks != len(c.seen) {
			t.Errorf("%q: after %d looks: %v", c.seen, looks, err)
		}
	}
}
