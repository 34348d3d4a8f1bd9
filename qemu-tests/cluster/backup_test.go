//go:build long

package clustertest

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// withRepository is examples/postgres-pair with a node that keeps backups, as an
// administrator adds it.
func withRepository(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(example(t, "postgres-pair"))
	if err != nil {
		t.Fatal(err)
	}
	const more = `  - name: backup1
    role: repository
    nics: [{network: lan, address: 10.77.3.31}]
    size: {cpus: 1, memory: 768MiB}

backup:
  repository: backup1
  schedule: {full: never, diff: never}
`
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(file, append(text, more...), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// does does an operation as the command does, and returns what it said.
func (s *site) does(prepare operations.Prepare) string {
	s.Helper()
	var lines []string
	runner := operations.Runner{
		Cluster: s.cluster, Agree: func(context.Context, string) error { return nil },
		Say: func(line string) { s.Log(line); lines = append(lines, line) },
	}
	if _, err := runner.Run(s.Context(), prepare); err != nil {
		s.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// rows is a checksum of all rows in their order.
const rows = "select count(*) || ' ' || md5(coalesce(string_agg(n || ' ' || at, ',' order by n), '')) from ledger"

// writes adds rows, each with its time, and returns the checksum of all.
func (s *site) writes(count int) string {
	s.Helper()
	s.query(s.readWrite(), "insert into ledger (at) select clock_timestamp() from generate_series(1, $1::int)", count)
	return s.query(s.readWrite(), rows)
}

// TestBackup tells the story of a table that is damaged, and brought back to what it was.
func TestBackup(t *testing.T) {
	s := newSite(t, withRepository(t))
	var then, at string

	s.part(t, "the nodes form a cluster, and its WAL gets into the archive", func(t *testing.T, s *site) {
		s.StartAll()
		s.becomesWhole()
		s.query(s.readWrite(), "create table ledger (n bigserial primary key, at timestamptz not null)")
		s.writes(1000)
	})
	s.part(t, "a backup is made when it is asked for", func(t *testing.T, s *site) {
		s.does(operations.Backup(s.cluster, "full"))
		o := s.waits("tell of the backup", func(o overview.Overview) bool {
			kept, err := operations.Backups(s.plan, o)
			return err == nil && len(kept.Sets) == 1
		})
		if kept, err := operations.Backups(s.plan, o); err != nil || kept.Sets[0].Type != "full" || kept.Sets[0].Damaged || kept.From == nil {
			t.Errorf("%+v, %v", kept, err)
		}
	})
	s.part(t, "somebody deletes rows, and others are written", func(t *testing.T, s *site) {
		then = s.writes(500)
		at = s.query(s.readWrite(), `select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')`)
		s.query(s.readWrite(), "delete from ledger where n % 3 = 0")
		if s.writes(200) == then {
			t.Fatal("nothing was deleted")
		}
	})
	s.part(t, "the database is brought back to the time before", func(t *testing.T, s *site) {
		began := time.Now()
		said := s.does(operations.Restore(s.cluster, database.Request{Target: at}, false))
		t.Logf("restored in %.0f s", time.Since(began).Seconds())
		if !strings.Contains(said, "tables were read; the last transaction is of ") {
			t.Error("it does not tell what is back")
		}
		s.becomesWhole()
		if got := s.query(s.readWrite(), rows); got != then {
			t.Errorf("the rows are %s, want %s", got, then)
		}
	})
	s.part(t, "both nodes hold the same, and nothing of the restore is left", func(t *testing.T, s *site) {
		for _, n := range s.plan.AllDatabases() {
			m := s.Node(n.Name)
			m.WaitUntilSucceeds(`runuser -u postgres -- psql -XqtA -d app -c "` + rows + `" | grep -qxF '` + then + `'`)
			m.MustFail("ls -d /var/lib/postgresql/17/main.before-restore /var/lib/slipway/restore.json")
			m.Succeed("firstboot audit | grep restore-aside")
		}
		s.remembers("written after the restore")
	})
	s.part(t, "no secret is where it must not be", keepsSecrets)
	s.part(t, "the archive goes on after a failover", func(t *testing.T, s *site) {
		before := s.becomesWhole()
		s.Crash(primary(before))
		o := s.waits("have another primary that archives", func(o overview.Overview) bool {
			p := primary(o)
			return p != "" && p != primary(before) && slices.ContainsFunc(o.Nodes, func(n overview.Node) bool {
				c := o.Word(n.Name)
				return n.Name == p && c != nil && c.Database != nil && c.Database.Archiver != nil && !c.Database.Archiver.Last.IsZero()
			})
		})
		s.Start(primary(before))
		s.becomesWhole()
		if text := o.Text(time.Now(), status.Plain); strings.Contains(text, "GAP") {
			t.Errorf("a failover is no gap:\n%s", text)
		}
		s.does(operations.Backup(s.cluster, "incr"))
	})
}
