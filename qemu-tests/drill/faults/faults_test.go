package faults

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
)

func TestEveryFaultSaysWhatItIsAndWhomItMayHit(t *testing.T) {
	var names []string
	for _, f := range All() {
		names = append(names, f.Name)
		if !regexp.MustCompile(`^[a-z]+(-[a-z]+)*$`).MatchString(f.Name) || f.About == "" || f.inject == nil || len(f.Targets) == 0 {
			t.Errorf("%+v", f.Fault)
		}
		for _, target := range f.Targets {
			if !slices.Contains(schedule.Targets, target) {
				t.Errorf("%s: target %q", f.Name, target)
			}
		}
		// What is not undone is over when it has happened, and the other way round.
		if (f.heal == nil) != (f.Longest == 0) || f.Shortest > f.Longest {
			t.Errorf("%s: held from %v to %v, healed: %t", f.Name, f.Shortest, f.Longest, f.heal != nil)
		}
	}
	if len(slices.Compact(slices.Sorted(slices.Values(names)))) != len(names) {
		t.Errorf("a name twice: %q", names)
	}
}

func TestFaultsAreChosenByName(t *testing.T) {
	chosen, err := Named([]string{"pause", "shutdown"})
	if err != nil || len(chosen) != 2 || chosen[0].Name != "shutdown" {
		t.Errorf("%v, %v", chosen, err)
	}
	if every, err := Named(nil); err != nil || len(every) != len(All()) {
		t.Errorf("%d, %v", len(every), err)
	}
	_, err = Named([]string{"flood"})
	if fault.Of(err) != fault.Usage || !strings.Contains(fault.Mend(err), "power-cut") {
		t.Errorf("%v; %s", err, fault.Mend(err))
	}
}

// A switchover looks for ten minutes whether all is well: it must not be cut short, and what is asked of a
// guest must be.
func TestAnOperationHasMoreTimeThanWhatIsAskedOfAGuest(t *testing.T) {
	for name, bounds := range map[string][2]time.Duration{"switchover": {10 * time.Minute, operationLimit}, "kill-etcd": {limit / 2, limit}} {
		chosen, err := Named([]string{name})
		if err != nil {
			t.Fatal(err)
		}
		var left time.Duration
		chosen[0].inject = func(ctx context.Context, _ strike) error {
			deadline, _ := ctx.Deadline()
			left = time.Until(deadline)
			return nil
		}
		if err := chosen[0].Inject(t.Context(), nil, nil, 1); err != nil || left < bounds[0] || left > bounds[1] {
			t.Errorf("%s: %v left, %v", name, left, err)
		}
	}
}

// Each of the shipped clusters with a database can be drilled with all faults.
func TestEveryFaultHasATargetInTheExamples(t *testing.T) {
	for _, name := range []string{"postgres-ha", "postgres-pair"} {
		top, err := topology.Load("../../../examples/" + name + "/cluster.yaml")
		if err != nil {
			t.Fatal(err)
		}
		rounds, err := schedule.New(top.Plan(), Schedule(All()), 10, 1)
		if err != nil || len(rounds) != 10*len(All()) {
			t.Errorf("%s: %d rounds, %v", name, len(rounds), err)
		}
	}
}
