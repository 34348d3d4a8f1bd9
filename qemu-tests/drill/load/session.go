package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/slipwayhq/slipway/qemu-tests/drill/history"
)

// session is a connection, and whom it leads to.
type session struct {
	conn *pgx.Conn
	// server is the node that answers, by its certificate: an address may be on any.
	server string
	// warned is set when the server says something with an answer.
	warned atomic.Pointer[pgconn.Notice]
}

// errOnce keeps pgx from cancelling a statement that is given up: a commit that
// waits for its replicas would then be done without them, and others see it.
var errOnce = errors.New("no second connection, to cancel")

func open(ctx context.Context, cfg Config, node, address string) (*session, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	config, err := pgx.ParseConfig(fmt.Sprintf("postgres://%s/%s?sslmode=verify-full", address, cfg.Database))
	if err != nil {
		return nil, err
	}
	s := &session{}
	config.User, config.Password = cfg.User, cfg.Password
	config.TLSConfig = cfg.TLS.Clone()
	config.TLSConfig.ServerName = host
	config.Fallbacks = []*pgconn.FallbackConfig{}
	var dialled atomic.Bool
	config.DialFunc = func(ctx context.Context, _, address string) (net.Conn, error) {
		if dialled.Swap(true) {
			return nil, errOnce
		}
		return cfg.Dial(ctx, node, address)
	}
	config.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) { s.warned.Store(n) }
	if s.conn, err = pgx.ConnectConfig(ctx, config); err != nil {
		return nil, err
	}
	if over, ok := s.conn.PgConn().Conn().(*tls.Conn); ok {
		if chain := over.ConnectionState().PeerCertificates; len(chain) > 0 {
			s.server = chain[0].Subject.CommonName
		}
	}
	return s, nil
}

// close hangs up. A server that is away is not waited for.
func (s *session) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	s.conn.Close(ctx)
}

// timeline is that of the WAL which the server writes at this moment, the first 8
// digits of a segment's name; 0 on one that replays another's. (What
// pg_control_checkpoint says lags behind a promotion until the next checkpoint.)
const timeline = `case when pg_is_in_recovery() then 0 else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end`

// statements are single, so that each is a transaction of its own.
var statements = map[history.Kind]string{
	history.Insert: `insert into drill_set values ($1) returning ` + timeline,
	history.Read:   `select coalesce((select value from drill_register where key = $1), 0), ` + timeline,
	history.Write:  `insert into drill_register values ($1, $2) on conflict (key) do update set value = $2 returning ` + timeline,
	history.CAS:    `update drill_register set value = $3 where key = $1 and value = $2 returning ` + timeline,
	history.Add:    `insert into drill_register as r values ($1, $2) on conflict (key) do update set value = r.value + $2 returning r.value, ` + timeline,
}

// carryOut runs the operation's statement and says what came of it.
func (s *session) carryOut(ctx context.Context, o *history.Op) error {
	s.warned.Store(nil)
	var args, into []any
	switch o.Kind {
	case history.Insert:
		args, into = []any{o.Value}, []any{&o.Timeline}
	case history.Read:
		args, into = []any{o.Key}, []any{&o.Value, &o.Timeline}
	case history.Write:
		args, into = []any{o.Key, o.Value}, []any{&o.Timeline}
	case history.CAS:
		args, into = []any{o.Key, o.Expect, o.Value}, []any{&o.Timeline}
	case history.Add:
		args, into = []any{o.Key, o.Expect}, []any{&o.Value, &o.Timeline}
	}
	rows, err := s.conn.Query(ctx, statements[o.Kind], args...)
	found := false
	if err == nil {
		for rows.Next() {
			found = true
			if err = rows.Scan(into...); err != nil {
				break
			}
		}
		// The error of a commit comes after the rows.
		rows.Close()
		if err == nil {
			err = rows.Err()
		}
	}
	o.Outcome = outcome(err, s.warned.Load())
	if o.Outcome == history.Acknowledged {
		o.Server, o.Applied = s.server, o.Kind == history.CAS && found
	}
	if warning := s.warned.Load(); err == nil && warning != nil && o.Outcome == history.Unknown {
		err = errors.New(strings.TrimSpace(warning.Message + " " + warning.Detail))
	}
	return err
}
