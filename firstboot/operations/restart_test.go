package operations

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// A replica that has just started anew is ready before the primary counts on it.
func TestAHandoverWaitsForASynchronousStandby(t *testing.T) {
	w := build()
	role := func(to string) {
		for _, name := range []string{"a-db2", "a-db3"} {
			w.every(name, func(m *status.DatabaseMember) { m.Role = to })
		}
	}
	role("replica")
	looks := 0
	r := &restarter{c: w.cluster(), patience: time.Minute, pause: time.Millisecond, look: func(ctx context.Context) (overview.Overview, error) {
		if looks++; looks == 3 {
			role("quorum_standby")
		}
		return w.look(ctx)
	}}
	now, err := w.look(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var said []string
	_, to, err := r.successor(t.Context(), now, w.plan.Sites[0], func(line string) { said = append(said, line) })
	if err != nil || to != "a-db2" || looks != 3 || len(said) != 1 || !strings.Contains(said[0], "waiting: no node of site a can take over: a-db2 is no synchronous standby") {
		t.Errorf("%q after %d looks, %v; %q", to, looks, err, said)
	}

	role("replica")
	looks, r.patience = 3, 0
	if now, err = w.look(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, to, err := r.successor(t.Context(), now, w.plan.Sites[0], func(string) {}); fault.Of(err) != fault.Failed || to != "" {
		t.Errorf("nobody ever can: %q, %v", to, err)
	}
}

// An emulated node takes minutes to bring its services up to date, also where that is a part of
// an upgrade.
func TestAPartOfAnOperationHasAsLongAsTheWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // time passes by itself
		w := build()
		w.maintain("a-db2")
		end := time.Now().Add(roundLimit - time.Minute)
		r := &restarter{c: w.cluster(), pause: time.Second, look: func(ctx context.Context) (overview.Overview, error) {
			if time.Now().After(end) {
				w.nodes["a-db2"].Maintenance, w.nodes["a-db2"].State = nil, status.Ready
				w.leads("a-db1")
			}
			return w.look(ctx)
		}}
		prepare := func(ctx context.Context, now overview.Overview) (*Operation, error) {
			op, err := MaintenanceOff(r.c, "a-db2")(ctx, now)
			if err == nil {
				op.Steps = nil // it was asked to already
			}
			return op, err
		}
		if err := r.nested(t.Context(), prepare, func(string) {}); err != nil {
			t.Error(err)
		}
	})
}
