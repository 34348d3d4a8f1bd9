package seeding

import (
	"strings"
	"testing"
)

// A promotion is in the store and not in the topology, which goes on to be edited.
func TestSeedingDoesNotUndoAPromotion(t *testing.T) {
	b := newBench(t)
	first := b.write(shop, Options{Formats: []Format{NoCloud}})
	v := b.open()
	p, err := v.Plan()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Promote("b", p.Generation+1); err != nil {
		t.Fatal(err)
	}
	if err := v.AddPlan(p); err != nil {
		t.Fatal(err)
	}
	for _, name := range v.Nodes() {
		if err := v.UseNewestPlan(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.Save(); err != nil {
		t.Fatal(err)
	}
	if err := v.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		why, topology string
		generation    int64
		written       int
	}{
		{"the plan is in all seeds", shop, first.Generation + 1, 5},
		{"nothing has changed", shop, first.Generation + 1, 0},
		{"a node was added", shop + another, first.Generation + 2, 1},
		{"the topology was brought to what is so", strings.NewReplacer("a: {}", "a: {standby_of: b}", "b: {standby_of: a}", "b: {}").Replace(shop + another), first.Generation + 2, 0},
	} {
		r := b.write(c.topology, Options{Formats: []Format{NoCloud}})
		if r.Generation != c.generation || r.Count(Written) != c.written {
			t.Errorf("%s: plan %d, want %d; %d seeds written, want %d", c.why, r.Generation, c.generation, r.Count(Written), c.written)
		}
		v := b.open()
		p, err := v.Plan()
		if err != nil || p.WritableSite() != "b" || p.Turn != first.Generation+1 {
			t.Errorf("%s: %v: site %s takes the writes, turn %d", c.why, err, p.WritableSite(), p.Turn)
		}
		if err := v.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
