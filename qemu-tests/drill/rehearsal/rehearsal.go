// Package rehearsal rehearses the loss of all databases: clients write, a backup is
// made, they write on, everything but the backups is lost, and the database is brought
// back in machines that have never held anything.
//
// In goes a cluster that has formed (a Ground), out comes a Result: whether all rows
// that are back are those that were written, how many of the last ones are not, and
// how long it took. Only tables of the rehearsal's own are compared, those in the schema
// rehearsal: nobody else writes there.
package rehearsal

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Ground is a cluster whose databases are lost and brought back.
type Ground interface {
	// Connect opens the database where it takes writes, as a user who may make tables.
	Connect(ctx context.Context) (*pgx.Conn, error)
	// Backup makes a backup of all of the database.
	Backup(ctx context.Context) error
	// Lose takes all machines but those that keep backups away, with all that is on
	// their disks.
	Lose(ctx context.Context) error
	// Renew puts new machines in their places, and returns when they are a cluster.
	Renew(ctx context.Context) error
	// Restore brings the database back to the end of the archive.
	Restore(ctx context.Context) error
}

// Config is a rehearsal.
type Config struct {
	Cluster string
	Version string
	Ground  Ground
	// Rows is how many rows there are before the first backup; default 2000.
	Rows int
	// After is for how long clients write after the backup; default 150 s, more than twice
	// the time after which WAL is archived that has been begun.
	After time.Duration
	// Every is the pause between two rows; default 100 ms.
	Every time.Duration
	// Patience bounds the wait for a connection, and for a first write; default 10 minutes.
	Patience time.Duration
	Log      logrus.FieldLogger
}

// Format is the version of a result's layout; fields are only ever added.
const Format = 1

// Result is what came of a rehearsal.
type Result struct {
	Format  int       `json:"format"`
	Cluster string    `json:"cluster"`
	Version string    `json:"version"` // of slipway
	Began   time.Time `json:"began"`
	// Tables are those that nobody wrote to after the backup.
	Tables []Table `json:"tables"`
	// Written are the rows that were acknowledged one after the other until the loss,
	// Restored those of them that are back; Lost are the others.
	Written  int `json:"written"`
	Restored int `json:"restored"`
	Lost     int `json:"lost"`
	// LostSeconds is the time between the last row that is back and the last that was
	// acknowledged.
	LostSeconds float64 `json:"lost_seconds"`
	// Sooner is how many of the restored rows are younger than the backup.
	Sooner int `json:"younger_than_backup"`

	BackupSeconds  float64 `json:"backup_seconds"`
	RenewSeconds   float64 `json:"renew_seconds"`   // until the new machines were a cluster
	RestoreSeconds float64 `json:"restore_seconds"` // of slipway restore
	// RecoverySeconds is the time from the loss to the first write that was acknowledged.
	RecoverySeconds float64 `json:"recovery_seconds"`
	// Problems are what did not hold.
	Problems []string `json:"problems"`
	// Outcome is "held" or "failed", for programs.
	Outcome string `json:"outcome"`
}

// Table is one that was compared.
type Table struct {
	Name     string `json:"name"`
	Rows     int    `json:"rows"`
	Checksum string `json:"checksum"` // of all rows, before
	Restored string `json:"restored"` // and after
}

// Held says whether all that is back is what was written.
func (r *Result) Held() bool { return len(r.Problems) == 0 }

// Run rehearses. An error is one of the rehearsal itself, or of an operation that
// failed; what came back wrong is in the result.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	for d, or := range map[*time.Duration]time.Duration{&cfg.After: 150 * time.Second, &cfg.Every: 100 * time.Millisecond, &cfg.Patience: 10 * time.Minute} {
		if *d == 0 {
			*d = or
		}
	}
	if cfg.Rows == 0 {
		cfg.Rows = 2000
	}
	r := &Result{Format: Format, Cluster: cfg.Cluster, Version: cfg.Version, Began: time.Now().UTC(), Problems: []string{}}
	conn, err := cfg.connect(ctx)
	if err != nil {
		return nil, err
	}
	r.Tables, err = fill(ctx, conn, cfg.Rows)
	conn.Close(ctx)
	if err != nil {
		return nil, fmt.Errorf("making the tables: %w", err)
	}
	w := &writer{cfg: cfg}
	writing, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan struct{})
	go func() { defer close(ended); w.run(writing) }()

	cfg.Log.Infof("clients write; making a backup of %d rows", cfg.Rows)
	began := time.Now()
	if err := cfg.Ground.Backup(ctx); err != nil {
		return nil, fmt.Errorf("the backup: %w", err)
	}
	r.BackupSeconds = time.Since(began).Seconds()
	made := w.count()
	cfg.Log.Infof("the backup was made in %.0f s; clients write on for %v", r.BackupSeconds, cfg.After)
	if err := pause(ctx, cfg.After); err != nil {
		return nil, err
	}
	began = time.Now()
	if err := cfg.Ground.Lose(ctx); err != nil {
		return nil, err
	}
	stop()
	<-ended
	cfg.Log.Infof("all databases are lost, after %d rows; starting new machines", w.count())
	if err := cfg.Ground.Renew(ctx); err != nil {
		return nil, fmt.Errorf("the new machines: %w", err)
	}
	r.RenewSeconds = time.Since(began).Seconds()
	restoring := time.Now()
	if err := cfg.Ground.Restore(ctx); err != nil {
		return nil, fmt.Errorf("the restore: %w", err)
	}
	r.RestoreSeconds = time.Since(restoring).Seconds()
	if conn, err = cfg.writable(ctx); err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	r.RecoverySeconds = time.Since(began).Seconds()
	return r, r.compare(ctx, conn, w, made)
}

// tables are made in the beginning.
const tables = `drop schema if exists rehearsal cascade; create schema rehearsal;
create table rehearsal.ledger (n int primary key, at timestamptz not null default clock_timestamp(), what text not null);
create table rehearsal.kinds (n int, text text, bytes bytea, json jsonb, at timestamptz, primary key (n)) with (fillfactor = 50);
create index on rehearsal.kinds (at);
create table rehearsal.empty (n int);`

// fill makes the tables, with so many rows of kinds; out come those that nobody is to write to.
func fill(ctx context.Context, conn *pgx.Conn, rows int) ([]Table, error) {
	if _, err := conn.Exec(ctx, tables, pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "insert into rehearsal.kinds (n, text, bytes, json, at) select n, repeat(chr(32 + n % 90), n % 3000), sha256(n::text::bytea), jsonb_build_object('n', n), clock_timestamp() from generate_series(1, $1::int) n", rows); err != nil {
		return nil, err
	}
	all, err := sums(ctx, conn)
	if err == nil && !slices.ContainsFunc(all, func(t Table) bool { return t.Name == "rehearsal.kinds" && t.Rows == rows }) {
		err = fmt.Errorf("rehearsal.kinds does not have the %d rows that were inserted", rows)
	}
	return all, err
}

// sums are the tables but the ledger, each with a checksum of all rows.
func sums(ctx context.Context, conn *pgx.Conn) (all []Table, err error) {
	rows, err := conn.Query(ctx, "select relname::text from pg_class where relnamespace = 'rehearsal'::regnamespace and relkind = 'r' and relname not in ('ledger', 'afterwards') order by 1")
	if err != nil {
		return nil, err
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		t := Table{Name: "rehearsal." + name}
		err := conn.QueryRow(ctx, "select count(*), md5(coalesce(string_agg(h, '' order by h), '')) from (select md5(t::text) h from "+pgx.Identifier{"rehearsal", name}.Sanitize()+" t)").Scan(&t.Rows, &t.Checksum)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// compare looks at what is back, row by row.
func (r *Result) compare(ctx context.Context, conn *pgx.Conn, w *writer, made int) error {
	now, err := sums(ctx, conn)
	if err != nil {
		return err
	}
	r.sameTables(now)
	rows, err := conn.Query(ctx, "select n, at, what from rehearsal.ledger order by n")
	if err != nil {
		return err
	}
	back, err := pgx.CollectRows(rows, pgx.RowToStructByPos[row])
	if err != nil {
		return err
	}
	r.ledger(w.rows, w.unknown, back, made)
	if r.Outcome = "failed"; r.Held() {
		r.Outcome = "held"
	}
	return nil
}

func (r *Result) wrong(format string, args ...any) {
	r.Problems = append(r.Problems, fmt.Sprintf(format, args...))
}

// sameTables compares the tables that nobody wrote to.
func (r *Result) sameTables(now []Table) {
	for i, t := range r.Tables {
		j := slices.IndexFunc(now, func(n Table) bool { return n.Name == t.Name })
		if j < 0 {
			r.wrong("the table %s is not back", t.Name)
			continue
		}
		if r.Tables[i].Restored = now[j].Checksum; now[j].Checksum != t.Checksum || now[j].Rows != t.Rows {
			r.wrong("the table %s is not what it was: %d rows, and %d before", t.Name, now[j].Rows, t.Rows)
		}
	}
	for _, n := range now {
		if !slices.ContainsFunc(r.Tables, func(t Table) bool { return t.Name == n.Name }) {
			r.wrong("nobody has made the table %s", n.Name)
		}
	}
}

// enough is how many rows have to be written before and after the backup, for the
// comparison to say anything.
const enough = 20

// ledger compares the rows that were acknowledged with those that are back. What is
// back must be all rows up to one of them: WAL is replayed in its order. unknown is the
// row that was asked for and not answered, or nil.
func (r *Result) ledger(written []row, unknown *row, back []row, made int) {
	r.Written = len(written)
	if made < enough || len(written)-made < enough {
		r.wrong("too few rows were acknowledged: %d before the end of the backup, %d after it", made, len(written)-made)
	}
	for i, b := range back {
		switch {
		case i < len(written) && b.same(written[i]):
			r.Restored++
		case i == len(written) && unknown != nil && b.N == unknown.N && b.What == unknown.What:
		default:
			r.wrong("row %d of what is back is %d of %s, which is not what was acknowledged there", i+1, b.N, b.At.Format(time.RFC3339Nano))
			return
		}
	}
	r.Lost, r.Sooner = r.Written-r.Restored, max(r.Restored-made, 0)
	switch {
	case r.Restored < made:
		r.wrong("%d rows that were acknowledged before the backup had ended are lost", made-r.Restored)
	case r.Sooner == 0:
		r.wrong("no row that is younger than the backup is back: the archive was of no use")
	}
	if r.Lost > 0 && r.Restored > 0 {
		r.LostSeconds = written[len(written)-1].At.Sub(written[r.Restored-1].At).Seconds()
	}
}

// Text is the result for a person.
func (r *Result) Text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Restore of %s into new machines, begun %s\n\n", r.Cluster, r.Began.Format("2006-01-02 15:04:05 UTC"))
	fmt.Fprintf(&b, "backup       %6.0f s\nnew machines %6.0f s  from the loss until they were a cluster\nrestore      %6.0f s\nrecovery     %6.0f s  from the loss to the first write\n\n",
		r.BackupSeconds, r.RenewSeconds, r.RestoreSeconds, r.RecoverySeconds)
	fmt.Fprintf(&b, "rows acknowledged until the loss  %d\nof these back                     %d, %d of them younger than the backup\nlost                              %d, the last %.1f s\n\n",
		r.Written, r.Restored, r.Sooner, r.Lost, r.LostSeconds)
	for _, t := range r.Tables {
		same := "the same"
		if t.Checksum != t.Restored {
			same = "NOT THE SAME"
		}
		fmt.Fprintf(&b, "%-20s %6d rows  %s\n", t.Name, t.Rows, same)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "\nDID NOT HOLD: %s", p)
	}
	if r.Held() {
		b.WriteString("\nAll that is back is what was written.")
	}
	b.WriteString("\n")
	return b.String()
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// connect tries until the database answers.
func (c Config) connect(ctx context.Context) (*pgx.Conn, error) {
	return c.connected(ctx, "the database does not answer", func(context.Context, *pgx.Conn) error { return nil })
}

// writable tries until the database takes a write, and returns the connection that it took it from:
// through a balancer the first ones may still end at a node that does not lead.
func (c Config) writable(ctx context.Context) (*pgx.Conn, error) {
	return c.connected(ctx, "the database is back, and takes no writes", func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "create table if not exists rehearsal.afterwards (n int)") // an answer may have been lost
		return err
	})
}

// connected makes one connection after the other until something can be done with it.
func (c Config) connected(ctx context.Context, failed string, do func(context.Context, *pgx.Conn) error) (*pgx.Conn, error) {
	bounded, cancel := context.WithTimeout(ctx, c.Patience)
	defer cancel()
	for {
		conn, err := c.Ground.Connect(bounded)
		if err == nil {
			once, stop := context.WithTimeout(bounded, statementTime)
			err = do(once, conn)
			stop()
			if err == nil {
				return conn, nil
			}
			closing, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			conn.Close(closing)
			stop()
		}
		if ctx.Err() != nil {
			return nil, err
		}
		if pause(bounded, time.Second) != nil {
			return nil, fault.New(fault.Network, "%s: %w", failed, err)
		}
	}
}
