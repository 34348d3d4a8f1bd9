//go:build long

package native

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/drill/faults"
	"github.com/slipwayhq/slipway/qemu-tests/drill/report"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
)

// What a power cut of the primary costs with Patroni's times, and the rest with the
// default ones, where nothing is emulated; docs/database.md has the figures.
func TestFailover(t *testing.T) {
	for _, times := range []struct{ ttl, loop, retry int }{{20, 5, 5}, {15, 3, 5}, {8, 2, 3}} {
		t.Run(fmt.Sprintf("%d-%d-%d", times.ttl, times.loop, times.retry), func(t *testing.T) {
			p := behindBalancer(roletest.Plan())
			patroni := &p.Sites[0].Patroni
			patroni.TTL, patroni.LoopWait, patroni.RetryTimeout = times.ttl, times.loop, times.retry
			c := formOf(t, p)
			c.observe(t.Context())
			// It does not come back before another leads.
			cut := c.fault("power-cut", schedule.Primary)
			cut.Shortest, cut.Longest = 30*time.Second, 40*time.Second
			drilled := []drill.Fault{cut}
			if times.loop == 5 {
				drilled = append(drilled, c.fault("switchover"), c.fault("kill-postgres", schedule.Primary))
			}
			holds(t, c.drill(rounds(t, c, 10, drilled...)))
		})
	}
}

// Every fault that needs no machine, ten times, on what is to be in the machines of
// examples/postgres-ha; docs/drill.md has the figures.
func TestFaults(t *testing.T) {
	p := example(t)
	for _, f := range faults.All() {
		if slices.Contains(machinesOnly, f.Name) {
			continue
		}
		t.Run(f.Name, func(t *testing.T) {
			c := formOf(t, p)
			c.observe(t.Context())
			holds(t, c.drill(rounds(t, c, 10, c.fault(f.Name))))
		})
	}
}

func holds(t *testing.T, r *drill.Result) {
	t.Helper()
	t.Log("\n" + report.Text(r))
	if !r.Held() || r.Skipped != 0 {
		t.Errorf("held %t, %d skipped, %s", r.Held(), r.Skipped, r.Problem)
	}
}

// example is the plan of examples/postgres-ha with Patroni's default times: those that it
// names are for emulated machines.
func example(t *testing.T) *plan.Plan {
	t.Helper()
	text, err := os.ReadFile("../../../examples/postgres-ha/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(text), "\n")
	kept := slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return strings.HasPrefix(strings.TrimSpace(l), "patroni: {") })
	if len(kept) != len(lines)-1 {
		t.Fatal("the example names Patroni's times no more: take them from there")
	}
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(file, []byte(strings.Join(kept, "\n")), 0o600); err != nil {
		t.Fatal(err)
	}
	top, err := topology.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	return top.Plan()
}
