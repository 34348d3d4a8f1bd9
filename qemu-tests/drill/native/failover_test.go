//go:build long

package native

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
)

// powerCut takes a node away as a power cut does, but for what its disk has not
// flushed: nothing of it says goodbye.
type powerCut struct{ *cluster }

func (powerCut) Plan() schedule.Fault {
	return schedule.Fault{Name: "power-cut", Targets: []schedule.Target{schedule.Primary}, Shortest: 30 * time.Second, Longest: 40 * time.Second}
}

func (f powerCut) Inject(_ context.Context, nodes []string, _ uint64) error {
	for _, name := range nodes {
		n := f.nodes[name]
		n.Link(false)
		n.Crash()
		f.killAll(name, "postgres")
	}
	return nil
}

func (f powerCut) Heal(_ context.Context, nodes []string) error {
	for _, name := range nodes {
		f.nodes[name].Link(true)
		f.nodes[name].StartUnit(consensus.Unit)
		f.nodes[name].StartUnit(database.Unit)
	}
	return nil
}

// observe looks after every node as its agent does, who above all keeps whoever leads
// PostgreSQL from leading etcd too.
func (c *cluster) observe(ctx context.Context) {
	for _, n := range c.nodes {
		go func() {
			etcd, postgres := &consensus.Start{}, &database.Start{}
			for pause := rand.N(10 * time.Second); ; pause = 10 * time.Second {
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return
				}
				limited, stop := context.WithTimeout(ctx, 10*time.Second)
				var seen status.Cluster
				_ = etcd.Observe(limited, n.Node.Node, &seen) // what is wrong with a node that is down is no concern here
				_ = postgres.Observe(limited, n.Node.Node, &seen)
				stop()
			}
		}()
	}
}

// What a power cut of the primary costs with Patroni's times, where nothing is
// emulated; docs/database.md has the figures.
func TestFailover(t *testing.T) {
	for _, times := range []struct{ ttl, loop, retry int }{{20, 5, 5}, {15, 3, 5}, {8, 2, 3}} {
		t.Run(fmt.Sprintf("%d-%d-%d", times.ttl, times.loop, times.retry), func(t *testing.T) {
			p := roletest.Plan()
			patroni := &p.Sites[0].Patroni
			patroni.TTL, patroni.LoopWait, patroni.RetryTimeout = times.ttl, times.loop, times.retry
			c := formOf(t, p)
			c.observe(t.Context())
			r := c.drill(rounds(t, c, 10, powerCut{c}))
			tell(t, r)
			if !r.Held() || r.Skipped != 0 {
				t.Errorf("held %t, %d skipped, %s", r.Held(), r.Skipped, r.Problem)
			}
			var gaps []time.Duration
			for _, round := range r.Rounds {
				gaps = append(gaps, round.Gap.Length())
			}
			slices.Sort(gaps)
			t.Logf("gap min %.1f s, median %.1f s, max %.1f s", gaps[0].Seconds(), gaps[len(gaps)/2].Seconds(), gaps[len(gaps)-1].Seconds())
		})
	}
}
