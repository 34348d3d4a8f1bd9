package product

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

// The row says who sets the product of a role up. Its lease lets another node go on
// when that one is gone: the one that works renews it, and stops its own work well
// before another may begin.
const (
	leaseRenew = 5 * time.Second
	leaseStop  = 25 * time.Second // without a renewal that came back
	leaseTaken = 60               // seconds, by the database's clock

	// ledger makes the table. Two nodes may come at once: the lock makes them take turns.
	ledger = `SELECT pg_advisory_xact_lock(7420, 1);
CREATE SCHEMA IF NOT EXISTS slipway;
CREATE TABLE IF NOT EXISTS slipway.setup (role text PRIMARY KEY, node text NOT NULL, turn text NOT NULL, renewed timestamptz NOT NULL, done timestamptz)`
	claim = `INSERT INTO slipway.setup AS s (role, node, turn, renewed) VALUES ($1, $2, $3, now())
ON CONFLICT (role) DO UPDATE SET node = excluded.node, turn = excluded.turn, renewed = now()
WHERE s.done IS NULL AND (s.node = excluded.node OR s.renewed < now() - make_interval(secs => $4))`
	renew  = `UPDATE slipway.setup SET renewed = now() WHERE role = $1 AND turn = $2 AND done IS NULL`
	finish = `UPDATE slipway.setup SET done = now() WHERE role = $1 AND turn = $2 AND done IS NULL`
	look   = `SELECT node, done IS NOT NULL FROM slipway.setup WHERE role = $1`
)

// guard keeps what was set up from being set up again.
type guard interface {
	// begin says that the work is done, or that this node may do it now, or who does.
	begin(ctx context.Context) (done bool, by string, err error)
	// keep renews this node's claim until ctx ends, and calls lost when it cannot.
	keep(ctx context.Context, lost func(error))
	// end says that the work is done; the claim must still be this node's.
	end(ctx context.Context) error
}

// row is the guard in the product's database.
type row struct {
	config *pgx.ConnConfig
	role   string
	node   string
	turn   string
}

// dial makes the guard of a cluster's node.
func dial(n *node.Node) (*row, error) {
	m := n.Member
	if _, ok := m.Plan.DatabaseFor(m.Self.Role); !ok {
		return nil, fault.New(fault.Input, "the product of %s is set up once, which its database remembers, and the topology has none for it", m.Self.Role).
			WithMend("write \"used_by: [%s]\" at one of the topology's databases, then slipway seed", m.Self.Role)
	}
	env, err := Environment(m)
	if err != nil {
		return nil, err
	}
	words := map[string]string{
		"PGHOST": "host", "PGPORT": "port", "PGDATABASE": "dbname", "PGUSER": "user", "PGSSLMODE": "sslmode",
		"PGCONNECT_TIMEOUT": "connect_timeout",
	}
	var dsn []string
	for _, v := range env {
		if word := words[v.Name]; word != "" {
			dsn = append(dsn, word+"="+v.Value)
		}
	}
	d, _ := m.Plan.DatabaseFor(m.Self.Role)
	dsn = append(dsn, "sslrootcert='"+n.Path(caPath)+"'")
	config, err := pgx.ParseConfig(strings.Join(dsn, " "))
	if err != nil {
		return nil, err
	}
	config.Password = m.Secrets[d.PasswordKey()]
	config.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	return &row{config: config, role: m.Self.Role, node: m.Self.Name, turn: fmt.Sprintf("%s %d", m.Self.Name, time.Now().UnixNano())}, nil
}

// do asks the database something, over a connection of its own: what was before may
// lead to a server that is the primary no more.
func (r *row) do(ctx context.Context, what func(*pgx.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, r.config)
	if err != nil {
		return words(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return words(what(conn))
}

// words says what is wrong with the database without the connection's parameters.
func words(err error) error {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return fmt.Errorf("the database says: %s", refused.Message)
	}
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		if inner := errors.Unwrap(connect); inner != nil {
			text := inner.Error()
			return fmt.Errorf("the database does not answer: %s", text[strings.LastIndex(text, "\n")+1:])
		}
	}
	return err
}

func (r *row) begin(ctx context.Context) (done bool, by string, err error) {
	err = r.do(ctx, func(conn *pgx.Conn) error {
		// On most starts it is done, and nothing is written.
		var exists bool
		if err := conn.QueryRow(ctx, "SELECT to_regclass('slipway.setup') IS NOT NULL").Scan(&exists); err != nil {
			return err
		}
		if exists {
			if err := conn.QueryRow(ctx, look, r.role).Scan(&by, &done); err != nil && !errors.Is(err, pgx.ErrNoRows) {
				return err
			}
			if done {
				return nil
			}
		} else if err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for text := range strings.SplitSeq(ledger, ";\n") {
				if _, err := tx.Exec(ctx, text); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
		tag, err := conn.Exec(ctx, claim, r.role, r.node, r.turn, leaseTaken)
		if err != nil {
			return err
		}
		if tag.RowsAffected() == 1 {
			by = r.node
			return nil
		}
		return conn.QueryRow(ctx, look, r.role).Scan(&by, &done)
	})
	return done, by, err
}

func (r *row) keep(ctx context.Context, lost func(error)) {
	last := time.Now()
	for node.Sleep(ctx, leaseRenew) {
		sent := time.Now()
		err := r.do(ctx, func(conn *pgx.Conn) error {
			tag, err := conn.Exec(ctx, renew, r.role, r.turn)
			if err == nil && tag.RowsAffected() != 1 {
				lost(errors.New("another node has taken the set-up over"))
			}
			return err
		})
		switch {
		case err == nil:
			last = sent
		case time.Since(last) > leaseStop:
			lost(fmt.Errorf("stopped, since another node may take it over: %w", err))
			return
		}
	}
}

func (r *row) end(ctx context.Context) error {
	return r.do(ctx, func(conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, finish, r.role, r.turn)
		if err == nil && tag.RowsAffected() != 1 {
			err = errors.New("another node has taken the set-up over")
		}
		return err
	})
}

// donePath says on a node that stands alone that its product is set up.
const donePath = "/var/lib/slipway/product-set-up"

// alone is the guard of a node that belongs to no cluster.
type alone struct{ n *node.Node }

func (a alone) begin(context.Context) (done bool, by string, err error) {
	return a.n.Exists(donePath), "", nil
}
func (alone) keep(context.Context, func(error)) {}
func (a alone) end(context.Context) error {
	_, err := a.n.Write(donePath, 0o600, []byte(time.Now().UTC().Format(time.RFC3339)+"\n"))
	return err
}

// setupPause is how often the database, or the node that sets up, is asked.
const setupPause = 3 * time.Second

// setUp returns once the product is set up, here or elsewhere. here tells whether
// this call has done it.
func setUp(ctx context.Context, n *node.Node, g guard) (here bool, err error) {
	for {
		done, by, err := g.begin(ctx)
		switch {
		case ctx.Err() != nil:
			return false, ctx.Err()
		case err != nil:
			n.Waiting("whether the product is set up, its database has to tell: %v", err)
		case done:
			return false, nil
		case by == "" || by == self(n.Member):
			return true, run(ctx, n, g)
		default:
			n.Waiting("%s sets the product up", by)
		}
		if !node.Sleep(ctx, setupPause) {
			return false, ctx.Err()
		}
	}
}

func self(m *member.Member) string {
	if m == nil {
		return ""
	}
	return m.Self.Name
}

// run has the command set the product up, and says so once all that it was to make
// is there.
func run(ctx context.Context, n *node.Node, g guard) error {
	p := of(n)
	env, err := Environment(n.Member)
	if err != nil {
		return err
	}
	n.Waiting("setting the product up: %s", p.Setup.Command[0])
	seconds := p.Setup.Timeout
	if seconds == 0 {
		seconds = setupSeconds
	}
	working, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go g.keep(working, func(why error) { stop(why) })
	_, err = n.Execute(working, node.Command{Argv: setupArgv(p, env), Timeout: time.Duration(seconds) * time.Second})
	if cause := context.Cause(working); cause != nil && ctx.Err() == nil {
		err = cause
	}
	if err != nil {
		return fmt.Errorf("the product is not set up: %w", err)
	}
	if err := made(n); err != nil {
		return err
	}
	if err := g.end(ctx); err != nil {
		return fmt.Errorf("the product was set up, but its database does not know it: %w", err)
	}
	n.Changed("set the product up")
	return nil
}

// setupArgv is the command of the set-up as the product's own user runs it, with that
// user's home: libpq looks there for a client's certificate, and gives up where it may not look.
func setupArgv(p manifest.Product, env []Variable) []string {
	argv := []string{"setpriv", "--reuid=" + user(p), "--regid=" + user(p), "--init-groups", "--reset-env", "--", "env"}
	for _, v := range env {
		argv = append(argv, v.Name+"="+v.Value)
	}
	return append(argv, p.Setup.Command...)
}

// made takes the shared files as set-up has left them for their first version.
func made(n *node.Node) error {
	p := of(n)
	r, err := readRecord(n)
	if err != nil {
		return err
	}
	for _, f := range p.Shared {
		content, err := readShared(n, f.Path)
		if errors.Is(err, os.ErrNotExist) {
			return fault.New(fault.Failed, "the set-up ended well, and has not made %s, which the profile lists under product.shared", f.Path).
				WithMend("have %s make it, or take it out of the profile", p.Setup.Command[0])
		}
		if err != nil {
			return err
		}
		r.Files[f.Path] = next(n, r.Files[f.Path], content)
	}
	return r.save(n)
}
