package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	sessionAge = 24 * time.Hour // since the last visit
	visitTime  = 20 * time.Second
	healthTime = 4 * time.Second
	tryTime    = 5 * time.Second // one try of a question to the database
	sweepAgain = time.Hour
	maxDB      = 8 // connections to the database
)

// Several replicas may come at once: the lock makes them take turns.
const schema = `SELECT pg_advisory_xact_lock(7420, 2);
CREATE TABLE IF NOT EXISTS dispatcher_session (
	token bytea PRIMARY KEY, -- SHA-256: who reads the table can open no session
	visits bigint NOT NULL DEFAULT 1,
	begun timestamptz NOT NULL DEFAULT now(),
	seen timestamptz NOT NULL DEFAULT now())`

// session is what a visitor has.
type session struct {
	Visits int64     `json:"visits"`
	Begun  time.Time `json:"begun"`
}

// sessions are the rows in the database. A nil pool is none at all.
type sessions struct{ pool *pgxpool.Pool }

// openSessions prepares connections to the database that the agent's variables lead
// to, if any; whether it answers shows when it is asked.
func openSessions(ctx context.Context, env map[string]string) (*sessions, error) {
	if env["PGHOST"] == "" {
		return &sessions{}, nil
	}
	for name, value := range env { // pgx reads what libpq would
		if len(name) > 2 && name[:2] == "PG" {
			if err := os.Setenv(name, value); err != nil {
				return nil, err
			}
		}
	}
	config, err := pgxpool.ParseConfig("")
	if err != nil {
		return nil, err
	}
	config.MaxConns, config.HealthCheckPeriod, config.MaxConnIdleTime = maxDB, 10*time.Second, 5*time.Minute
	config.BeforeConnect = func(_ context.Context, c *pgx.ConnConfig) error {
		now, err := pgx.ParseConfig("") // the agent may have exchanged the password
		if err == nil {
			c.Password = now.Password
		}
		return err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	s := &sessions{pool}
	go s.sweep(ctx)
	return s, nil
}

func (s *sessions) close() {
	if s.pool != nil {
		s.pool.Close()
	}
}

// ping reports whether sessions can be had.
func (s *sessions) ping(ctx context.Context) error {
	if s.pool == nil {
		return nil
	}
	return s.pool.Ping(ctx)
}

// visit goes on with the session of a token, or begins one and returns its token.
func (s *sessions) visit(ctx context.Context, token string) (*session, string, error) {
	if s.pool == nil {
		return nil, "", nil
	}
	if raw, err := base64.RawURLEncoding.DecodeString(token); err == nil && len(raw) == sha256.Size {
		found, err := s.do(ctx, `UPDATE dispatcher_session SET visits = visits + 1, seen = now() WHERE token = $1 AND seen > now() - make_interval(secs => $2)
RETURNING visits, begun`, digest(raw), sessionAge.Seconds())
		if !errors.Is(err, pgx.ErrNoRows) {
			return found, "", err
		}
	}
	raw := make([]byte, sha256.Size)
	rand.Read(raw)
	made, err := s.do(ctx, `INSERT INTO dispatcher_session (token) VALUES ($1) ON CONFLICT (token) DO UPDATE SET seen = now() RETURNING visits, begun`, digest(raw))
	return made, base64.RawURLEncoding.EncodeToString(raw), err
}

func digest(raw []byte) []byte {
	sum := sha256.Sum256(raw)
	return sum[:]
}

// do asks the database, again and again until ctx ends, since while another server
// takes over a connection may lead to one that does not answer. A visit that was
// counted twice does no harm.
func (s *sessions) do(ctx context.Context, sql string, args ...any) (*session, error) {
	for {
		found, err := s.once(ctx, sql, args...)
		if err == nil || errors.Is(err, pgx.ErrNoRows) {
			return found, err
		}
		timer := time.NewTimer(200 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, err
		case <-timer.C:
		}
	}
}

// undefinedTable is PostgreSQL's word for a database that is still empty.
const undefinedTable = "42P01"

func (s *sessions) once(ctx context.Context, sql string, args ...any) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTime)
	defer cancel()
	var found session
	err := s.pool.QueryRow(ctx, sql, args...).Scan(&found.Visits, &found.Begun)
	var refused interface{ SQLState() string }
	if errors.As(err, &refused) && refused.SQLState() == undefinedTable {
		if err := s.prepare(ctx); err != nil {
			return nil, err
		}
		err = s.pool.QueryRow(ctx, sql, args...).Scan(&found.Visits, &found.Begun)
	}
	return &found, err
}

// prepare makes the table.
func (s *sessions) prepare(ctx context.Context) error {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	_, err = conn.Conn().PgConn().Exec(ctx, schema).ReadAll() // one transaction, as one simple query is
	return err
}

// sweep removes sessions that have ended.
func (s *sessions) sweep(ctx context.Context) {
	for {
		s.pool.Exec(ctx, `DELETE FROM dispatcher_session WHERE seen < now() - make_interval(secs => $1)`, sessionAge.Seconds())
		timer := time.NewTimer(sweepAgain)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}
