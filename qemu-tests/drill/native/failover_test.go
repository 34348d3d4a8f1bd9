//go:build long

package native

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/drill/report"
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

// handover has another node lead, as slipway switchover has the leader's agent do it.
type handover struct{ *cluster }

func (handover) Plan() schedule.Fault {
	return schedule.Fault{Name: "switchover", Targets: []schedule.Target{schedule.Primary}}
}

func (f handover) Inject(ctx context.Context, nodes []string, _ uint64) error {
	leader, err := f.nodes[nodes[0]], error(nil)
	for _, candidate := range f.Nodes() {
		if candidate == nodes[0] {
			continue
		}
		var args []byte
		if args, err = json.Marshal(database.SwitchoverArgs{Leader: nodes[0], Candidate: candidate}); err != nil {
			return err
		}
		e := actions.NewEnv(*leader.Node.Node, actions.Caller{Name: "test"}, nil, func(string) {})
		if _, err = database.Switchover.Run(ctx, e, args); err == nil {
			return nil
		}
	}
	return err // no replica is fit to
}

func (handover) Heal(context.Context, []string) error { return nil }

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

// What a power cut of the primary costs with Patroni's times, and the rest with the
// default ones, where nothing is emulated; docs/database.md has the figures.
func TestFailover(t *testing.T) {
	for _, times := range []struct{ ttl, loop, retry int }{{20, 5, 5}, {15, 3, 5}, {8, 2, 3}} {
		t.Run(fmt.Sprintf("%d-%d-%d", times.ttl, times.loop, times.retry), func(t *testing.T) {
			p := roletest.Plan()
			patroni := &p.Sites[0].Patroni
			patroni.TTL, patroni.LoopWait, patroni.RetryTimeout = times.ttl, times.loop, times.retry
			c := formOf(t, p)
			c.observe(t.Context())
			faults := []drill.Fault{powerCut{c}}
			if times.loop == 5 {
				faults = append(faults, handover{c}, crash{c})
			}
			r := c.drill(rounds(t, c, 10, faults...))
			t.Log("\n" + report.Text(r))
			if !r.Held() || r.Skipped != 0 {
				t.Errorf("held %t, %d skipped, %s", r.Held(), r.Skipped, r.Problem)
			}
		})
	}
}
