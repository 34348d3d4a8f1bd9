//go:build long

package native

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/database"
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
		for left := f.processes(name, "postgres"); len(left) > 0; left = f.processes(name, "postgres") {
			for _, pid := range left {
				end(pid)
			}
		}
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

// balance asks every node whether it is the primary, as a balancer does: again and again,
// each at a moment of its own. Clients are led to the last that said so.
func (c *cluster) balance(ctx context.Context, every time.Duration) (dial func(ctx context.Context, node, to string) (net.Conn, error)) {
	var leads [3]atomic.Bool
	for i, n := range c.plan.Nodes {
		go func() {
			for pause := rand.N(every); ; pause = every {
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return
				}
				answer, err := c.client.Get(fmt.Sprintf("https://%s:%d/primary", n.Address, plan.PatroniPort))
				if err == nil {
					answer.Body.Close()
				}
				leads[i].Store(err == nil && answer.StatusCode == http.StatusOK)
			}
		}()
	}
	return func(ctx context.Context, node, to string) (net.Conn, error) {
		if node == "" {
			to = ""
			for i, n := range c.plan.Nodes {
				if leads[i].Load() {
					to = netip.AddrPortFrom(n.Address, 5432).String()
				}
			}
			if to == "" {
				return nil, syscall.ECONNREFUSED
			}
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", to)
	}
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
	for _, times := range []plan.Patroni{
		{TTL: 20, LoopWait: 5, RetryTimeout: 5, PrimaryStartTimeout: 15, MaximumLag: 1 << 20},
		{TTL: 15, LoopWait: 3, RetryTimeout: 5, PrimaryStartTimeout: 15, MaximumLag: 1 << 20},
		{TTL: 8, LoopWait: 2, RetryTimeout: 3, PrimaryStartTimeout: 15, MaximumLag: 1 << 20},
	} {
		t.Run(fmt.Sprintf("%d-%d-%d", times.TTL, times.LoopWait, times.RetryTimeout), func(t *testing.T) {
			c := formWith(t, times)
			c.route = c.balance(t.Context(), time.Duration(max(1, times.LoopWait*3/5))*time.Second)
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
