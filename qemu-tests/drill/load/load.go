// Package load is the clients of a drill: they write and read through a virtual
// address while faults happen, and put down what they saw (package history).
//
// In go the way to the cluster, an application's role and how fast to be, out come
// operations with their outcomes, which are never better than what the server has
// said: outcome.go tells when an operation counts as acknowledged, failed or
// unknown. Some clients insert numbers, each once; some read, write, compare and
// add to a few registers; and one for each database node goes round the virtual
// address and tries to insert there, which only the primary may accept.
package load

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
)

// Config is what the clients are given. What has no default must be there.
type Config struct {
	// Dial connects to the virtual address, with node "", or to a database node.
	Dial     func(ctx context.Context, node, address string) (net.Conn, error)
	TLS      *tls.Config // the cluster's authority; the server must be whom the address names
	Database string
	User     string
	Password string
	Address  string            // the virtual one, with the port that leads to the primary
	Direct   map[string]string // each database node's own address and port, as its certificate has it

	Inserters int           // default 3
	Registrar int           // clients of registers; default 3
	Every     time.Duration // pause of a client between two operations; default 250 ms
	// DirectEvery is the pause of a client that goes round the virtual address; default 2 s.
	DirectEvery time.Duration
	Deadline    time.Duration // of a statement; default 4 s
	Connect     time.Duration // of a connection; default 4 s, and five times that to a node itself
	Seed        uint64        // of what the clients choose
	History     *history.Writer
}

func (c Config) complete() Config {
	number := func(n *int, or int) {
		if *n == 0 {
			*n = or
		}
	}
	length := func(d *time.Duration, or time.Duration) {
		if *d == 0 {
			*d = or
		}
	}
	number(&c.Inserters, 3)
	number(&c.Registrar, 3)
	length(&c.Every, 250*time.Millisecond)
	length(&c.DirectEvery, 2*time.Second)
	length(&c.Deadline, 4*time.Second)
	length(&c.Connect, 4*time.Second)
	return c
}

// Registers live for so many operations, so many at once: whether an order of
// operations exists takes longer to find the more of unknown outcome there are.
const (
	registerOps     = 80
	registersAtOnce = 2
)

// Load is the clients at work.
type Load struct {
	cfg       Config
	stop      context.CancelFunc
	group     sync.WaitGroup
	processes atomic.Int64
	values    atomic.Int64 // each is written once
	registers atomic.Int64 // operations on them
}

const tables = `create table if not exists drill_set (value bigint primary key);
create table if not exists drill_register (key text primary key, value bigint not null)`

// Prepare makes the clients' tables and opens the way to each database node once, one
// after the other: a login by SSH takes an emulated machine seconds, and all of them at
// once, just when the clients begin, have kept a primary from renewing its key. It tries
// until ctx ends.
func Prepare(ctx context.Context, cfg Config) error {
	cfg = cfg.complete()
	err := insist(ctx, cfg, "", cfg.Address, func(ctx context.Context, s *session) error {
		_, err := s.conn.PgConn().Exec(ctx, tables).ReadAll()
		return err
	})
	if err != nil {
		return fault.New(fault.Failed, "the clients' tables could not be made: %w", err)
	}
	for _, node := range slices.Sorted(maps.Keys(cfg.Direct)) {
		if err := insist(ctx, cfg, node, cfg.Direct[node], func(context.Context, *session) error { return nil }); err != nil {
			return fault.New(fault.Failed, "the database of %s itself could not be reached: %w", node, err)
		}
	}
	return nil
}

// insist opens a session for work, and tries until that has succeeded or ctx ends.
func insist(ctx context.Context, cfg Config, node, address string, work func(context.Context, *session) error) error {
	once := func() error {
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		s, err := open(ctx, cfg, node, address)
		if err != nil {
			return err
		}
		defer s.close()
		return work(ctx, s)
	}
	for {
		err := once()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second):
		}
	}
}

// Start sets the clients to work. They end with Stop, or with ctx.
func Start(ctx context.Context, cfg Config) *Load {
	l := &Load{cfg: cfg.complete()}
	ctx, l.stop = context.WithCancel(ctx)
	for i := range l.cfg.Inserters {
		l.client(ctx, i, l.cfg.Address, "", l.cfg.Every, (*client).insert)
	}
	for i := range l.cfg.Registrar {
		l.client(ctx, l.cfg.Inserters+i, l.cfg.Address, "", l.cfg.Every, (*client).register)
	}
	for i, node := range slices.Sorted(maps.Keys(l.cfg.Direct)) {
		l.client(ctx, l.cfg.Inserters+l.cfg.Registrar+i, l.cfg.Direct[node], node, l.cfg.DirectEvery, (*client).insert)
	}
	return l
}

// Stop ends the clients and waits until each has its last answer, or has given up.
func (l *Load) Stop() {
	l.stop()
	l.group.Wait()
}

// client is one client, with the connection that it has at the moment.
type client struct {
	*Load
	random  *rand.Rand
	address string
	direct  string
	process int
	session *session
	seen    map[string]int64 // what it last saw in registers
	refused int              // how often in a row it was not let in
}

func (l *Load) client(ctx context.Context, number int, address, direct string, every time.Duration, work func(*client, context.Context)) {
	c := &client{Load: l, random: rand.New(rand.NewPCG(l.cfg.Seed, uint64(number))), address: address, direct: direct, seen: map[string]int64{}}
	c.renew()
	longest := max(every, time.Second)
	if direct != "" {
		longest = 4 * every // nobody is served there
	}
	l.group.Go(func() {
		defer func() {
			if c.session != nil {
				c.session.close()
			}
		}()
		for {
			// Between half and one and a half of the pause, so that clients do not go in step.
			// Who is not let in knocks less often, up to once a second, as pools of
			// applications do: handshakes must not keep a database from its recovery.
			pause := min(every<<min(c.refused, 10), longest)
			pause = pause/2 + time.Duration(c.random.Int64N(int64(pause)))
			select {
			case <-ctx.Done():
				return
			case <-time.After(pause):
			}
			// An operation that was begun is not broken off: its outcome would be unknown for no reason.
			work(c, context.WithoutCancel(ctx))
		}
	})
}

// renew makes the client another process: of one whose operation has an unknown
// outcome, that operation may be under way still.
func (c *client) renew() { c.process = int(c.processes.Add(1)) }

func (c *client) insert(ctx context.Context) {
	c.do(ctx, history.Op{Kind: history.Insert, Value: c.values.Add(1)})
}

// register chooses an operation on one of the registers of the moment.
func (c *client) register(ctx context.Context) {
	o := history.Op{Key: fmt.Sprintf("r%d-%d", c.registers.Load()/(registerOps*registersAtOnce), c.random.IntN(registersAtOnce))}
	seen := c.seen[o.Key]
	switch choice := c.random.IntN(10); {
	case choice < 4:
		o.Kind = history.Read
	// A register that holds 0 may have no row yet, with which nothing compares.
	case choice < 6, choice < 8 && seen == 0:
		o.Kind, o.Value = history.Write, c.values.Add(1)
	case choice < 8:
		o.Kind, o.Value, o.Expect = history.CAS, c.values.Add(1), seen
	default:
		// What writes leave in a register is small, so that a sum tells how often something was added.
		o.Kind, o.Expect = history.Add, 1_000_000_000
	}
	// What has failed does not count: after a fault the clients go on with the registers that they had.
	if o = c.do(ctx, o); o.Outcome != history.Failed {
		c.registers.Add(1)
	}
	if o.Outcome == history.Acknowledged && (o.Kind != history.CAS || o.Applied) {
		c.seen = map[string]int64{o.Key: o.Value}
	}
}

// do carries an operation out and puts it down.
func (c *client) do(ctx context.Context, o history.Op) history.Op {
	o.Process, o.Direct, o.Invoked = c.process, c.direct, c.cfg.History.Now()
	err := c.try(ctx, &o)
	o.Completed = c.cfg.History.Now()
	if err != nil {
		o.Error = err.Error()
	}
	if o.Outcome == history.Unknown {
		c.renew()
	}
	if o.Outcome != history.Acknowledged && c.session != nil && c.session.conn.IsClosed() {
		c.session.close()
		c.session = nil
	}
	c.cfg.History.Add(o)
	return o
}

func (c *client) try(ctx context.Context, o *history.Op) error {
	if c.session == nil {
		limit := c.cfg.Connect
		if c.direct != "" {
			limit *= 5
		}
		connect, cancel := context.WithTimeout(ctx, limit)
		defer cancel()
		s, err := open(connect, c.cfg, c.direct, c.address)
		if err != nil {
			o.Outcome = history.Failed // nothing was asked for
			c.refused++
			return err
		}
		c.session, c.refused = s, 0
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.Deadline)
	defer cancel()
	return c.session.carryOut(ctx, o)
}
