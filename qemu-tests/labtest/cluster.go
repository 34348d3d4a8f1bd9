package labtest

import (
	"context"
	"crypto/tls"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

// Cluster is a lab.Cluster bound to a test, which it ends when a claim does not
// hold.
type Cluster struct {
	testing.TB
	lab   *lab.Cluster
	ctx   context.Context // ends after the test's cleanups
	lives *lives
}

// lives are what the views of a cluster (In) share, by machine: nodes come and go.
type lives struct {
	mu  sync.Mutex
	of  map[*lab.Machine]*life
	ctx context.Context
	out string
}

func (l *lives) machine(t testing.TB, m *lab.Machine) *Machine {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of[m] == nil {
		l.of[m] = &life{lab: m, ctx: l.ctx, out: l.out}
	}
	return &Machine{TB: t, life: l.of[m]}
}

// NewCluster makes the machines of a topology, powered off, that end with the
// test. Their directories are in a temporary one unless cfg names another.
func NewCluster(t testing.TB, cfg lab.ClusterConfig) *Cluster {
	t.Helper()
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cluster, err := lab.NewCluster(ctx, cfg)
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	c := &Cluster{TB: t, lab: cluster, ctx: ctx, lives: &lives{of: map[*lab.Machine]*life{}, ctx: ctx, out: OutDir(t)}}
	t.Cleanup(func() {
		defer cancel()
		if t.Failed() {
			c.keep(t)
		}
		cluster.Close()
	})
	return c
}

// In is the same cluster, bound to a subtest.
func (c *Cluster) In(t testing.TB) *Cluster {
	return &Cluster{TB: t, lab: c.lab, ctx: c.ctx, lives: c.lives}
}

// Lab is the cluster itself, for what must return an error.
func (c *Cluster) Lab() *lab.Cluster { return c.lab }

// Life is how long the machines have the power that the cluster gives them.
func (c *Cluster) Life() context.Context { return c.ctx }

// Node is the machine of a node.
func (c *Cluster) Node(name string) *Machine {
	c.Helper()
	m, err := c.lab.Node(name)
	if err != nil {
		c.Fatal(err)
	}
	return c.lives.machine(c.TB, m)
}

// keep saves the evidence of all machines that ever had power.
func (c *Cluster) keep(t testing.TB) {
	t.Helper()
	for _, n := range c.lab.Nodes() {
		if m, err := c.lab.Node(n.Name); err == nil && !n.Since.IsZero() {
			c.lives.machine(t, m).keep(t)
		}
	}
}

func (c *Cluster) must(err error) {
	c.Helper()
	if err == nil {
		return
	}
	c.keep(c.TB)
	c.Fatal(err)
}

// StartAll powers on all nodes at the same time.
func (c *Cluster) StartAll() { c.Helper(); c.must(c.lab.StartAll(c.ctx)) }

// Start powers on nodes that are off.
func (c *Cluster) Start(names ...string) {
	c.Helper()
	_, err := c.lab.Start(c.ctx, names...)
	c.must(err)
}

// Crash cuts the power of nodes; of all without names.
func (c *Cluster) Crash(names ...string) {
	c.Helper()
	_, err := c.lab.Crash(names...)
	c.must(err)
}

// Shutdown has guests power off, all without names. One that has not within the
// limit ends the test.
func (c *Cluster) Shutdown(limit time.Duration, names ...string) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, limit)
	defer cancel()
	_, forced, err := c.lab.Shutdown(ctx, names...)
	c.must(err)
	if len(forced) > 0 {
		c.keep(c.TB)
		c.Fatalf("%v did not shut down within %v", forced, limit)
	}
}

// Block cuts a node off the network, Unblock ends that.
func (c *Cluster) Block(name string)   { c.Helper(); c.must(c.lab.Block(name)) }
func (c *Cluster) Unblock(name string) { c.Helper(); c.must(c.lab.Unblock(name)) }

// Partition parts groups of nodes from each other, Sever makes the one deaf to
// the other, Rejoin ends both.
func (c *Cluster) Partition(groups ...[]string) { c.Helper(); c.must(c.lab.Partition(groups...)) }
func (c *Cluster) Sever(from, to []string)      { c.Helper(); c.must(c.lab.Sever(from, to)) }
func (c *Cluster) Rejoin()                      { c.lab.Rejoin() }

// Impair delays or loses what a node sends and is sent, Mend ends that.
func (c *Cluster) Impair(name string, p ether.Path) { c.Helper(); c.must(c.lab.Impair(name, p)) }
func (c *Cluster) Mend(name string)                 { c.Helper(); c.must(c.lab.Mend(name)) }

// Heal ends all faults.
func (c *Cluster) Heal() { c.Helper(); c.must(c.lab.Heal(c.ctx)) }

// WaitUntilReady waits until nodes say that they are ready; all without names.
func (c *Cluster) WaitUntilReady(limit time.Duration, names ...string) {
	c.Helper()
	c.WaitUntil(status.Ready, limit, names...)
}

// WaitUntil waits until nodes are in a state; all without names.
func (c *Cluster) WaitUntil(want status.State, limit time.Duration, names ...string) {
	c.Helper()
	ctx, cancel := context.WithTimeout(c.ctx, limit)
	defer cancel()
	c.must(c.lab.WaitUntil(ctx, want, names...))
}

// Overview asks all agents, as an administrator outside of the cluster would.
func (c *Cluster) Overview(p *plan.Plan, config *tls.Config) overview.Overview {
	return c.lab.Overview(c.ctx, p, config)
}

// Report is a node's own account of itself.
func (c *Cluster) Report(name string) *status.Report {
	c.Helper()
	r, err := c.lab.Report(c.ctx, name)
	c.must(err)
	return r
}

// Dial connects to an address in the cluster's network, as a computer outside of
// the cluster would. The connection ends with the test.
func (c *Cluster) Dial(address string) net.Conn {
	c.Helper()
	conn, err := c.lab.Dial(c.ctx, address)
	c.must(err)
	c.Cleanup(func() { conn.Close() })
	return conn
}

// SetClock sets what a node's hardware clock says at the next power-on.
func (c *Cluster) SetClock(name string, clock time.Time) {
	c.Helper()
	c.must(c.lab.SetClock(name, clock))
}

// InsertSeed puts another seed into a node's drive.
func (c *Cluster) InsertSeed(name, iso string) {
	c.Helper()
	abs, err := filepath.Abs(iso)
	c.must(err)
	c.must(c.lab.InsertSeed(c.ctx, name, abs))
}
