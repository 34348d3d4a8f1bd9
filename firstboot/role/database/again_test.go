package database

import (
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

// bare is a node with a disk and nothing that runs.
func bare(t *testing.T, name string) *node.Node {
	t.Helper()
	return &node.Node{Root: t.TempDir(), Member: at(t, name)}
}

func TestANodeRefusesARestoreThatHasEnded(t *testing.T) {
	n := bare(t, "a-db1")
	want := Request{Target: "2026-11-20T12:00:00Z", Node: "a-db1"}
	if err := (Restore{Request: want, Aside: true, Back: true, Committed: true, Taken: true}).save(n); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Tidy(n); err != nil || n.Exists(restorePath) {
			t.Fatalf("%v", err)
		}
	}
	if e, err := ended(n); err != nil || e == nil || e.Request != want || time.Since(e.At) > time.Hour {
		t.Fatalf("it remembers %+v, %v", e, err)
	}
	elsewhere, rounds, set := want, want, want
	elsewhere.Node, rounds.Round, set.Set = "a-db2", 1, "20261120-013000F"
	for _, again := range []Request{want, elsewhere} {
		_, err := StepAside(t.Context(), n, again, func(string) {})
		if fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "what was written since would be lost") || !strings.Contains(fault.Mend(err), "--again") {
			t.Errorf("%+v: %v; %s", again, err, fault.Mend(err))
		}
		if n.Exists(restorePath) || n.Held(Unit) {
			t.Errorf("%+v was begun", again)
		}
	}
	for _, other := range []Request{rounds, set} {
		if err := once(n, other); err != nil {
			t.Errorf("%+v: %v", other, err)
		}
	}
}

// Once etcd has forgotten who led, any of the former data might lead.
func TestNothingIsUndoneOnceTheWayBackIsGivenUp(t *testing.T) {
	n := bare(t, "a-db2")
	want := Request{Target: Latest, Node: "a-db1"}
	refused := func(what string, err error) {
		t.Helper()
		if fault.Of(err) != fault.Failed {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("gave up a way back that there is not", Commit(n))
	if err := (Restore{Request: want, Aside: true}).save(n); err != nil {
		t.Fatal(err)
	}
	refused("etcd forgets while others may go back", Forget(t.Context(), n))
	refused("takes part while others may go back", TakePart(t.Context(), n))
	for range 2 {
		if err := Commit(n); err != nil {
			t.Fatal(err)
		}
	}
	refused("went back", StepBack(t.Context(), n))
	if r, err := restoring(n); err != nil || r == nil || !r.Committed || !r.report().Committed {
		t.Errorf("%+v, %v", r, err)
	}
	first := bare(t, "a-db1")
	if err := (Restore{Request: want, Aside: true}).save(first); err != nil {
		t.Fatal(err)
	}
	refused("no way back, and nothing restored", Commit(first))
}
