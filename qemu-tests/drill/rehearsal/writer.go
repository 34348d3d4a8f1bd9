package rehearsal

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// row is one of the ledger.
type row struct {
	N    int
	At   time.Time
	What string
}

func (r row) same(other row) bool {
	return r.N == other.N && r.At.Equal(other.At) && r.What == other.What
}

// statementTime is how long a row may take; on a machine that has lost its power
// nobody answers.
const statementTime = 20 * time.Second

// writer is a client that inserts one row after the other.
type writer struct {
	cfg Config

	mu      sync.Mutex
	rows    []row // acknowledged
	unknown *row  // asked for last, without an answer
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.rows)
}

// run writes until ctx ends. A row that was not answered may be there: its number is
// looked for before it is used again.
func (w *writer) run(ctx context.Context) {
	var conn *pgx.Conn
	for ctx.Err() == nil {
		if conn == nil {
			var err error
			if conn, err = w.cfg.Ground.Connect(ctx); err != nil {
				conn = nil
				if pause(ctx, time.Second) != nil {
					return
				}
				continue
			}
		}
		if err := w.write(ctx, conn); err != nil {
			w.cfg.Log.Debugf("writing: %v", err)
			closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			conn.Close(closing)
			cancel()
			conn = nil
		}
		if pause(ctx, w.cfg.Every) != nil {
			break
		}
	}
	if conn != nil {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		conn.Close(closing)
	}
}

func (w *writer) write(ctx context.Context, conn *pgx.Conn) error {
	// What is under way when the writer is stopped is still answered, if it is at all.
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), statementTime)
	defer cancel()
	w.mu.Lock()
	next, unknown := row{N: len(w.rows) + 1}, w.unknown
	w.mu.Unlock()
	next.What = fmt.Sprintf("row %d", next.N)
	if unknown != nil {
		rows, err := conn.Query(bounded, "select n, at, what from rehearsal.ledger where n = $1", unknown.N)
		if err != nil {
			return err
		}
		found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
		if err != nil {
			return err
		}
		if len(found) == 1 {
			w.acknowledged(found[0])
			return nil
		}
	}
	w.mu.Lock()
	w.unknown = &next
	w.mu.Unlock()
	if err := conn.QueryRow(bounded, "insert into rehearsal.ledger (n, what) values ($1, $2) returning n, at, what", next.N, next.What).Scan(&next.N, &next.At, &next.What); err != nil {
		return err
	}
	w.acknowledged(next)
	return nil
}

func (w *writer) acknowledged(r row) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rows, w.unknown = append(w.rows, r), nil
}
