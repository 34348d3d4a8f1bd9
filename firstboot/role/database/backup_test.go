package database

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// keptPlan is a cluster of two databases and a repository. One vote is enough: the
// repository is what is tested here.
func keptPlan() *plan.Plan {
	p := roletest.Plan()
	p.Sites = p.Sites[:1]
	p.Sites[0].Consensus = []string{"a-db1"}
	p.Nodes = p.Nodes[:2]
	address := netip.MustParseAddr("10.77.1.31")
	p.Nodes = append(p.Nodes, plan.Node{Name: "a-keep", Role: plan.RepositoryRole, Site: "a", Address: address, Addresses: []netip.Prefix{netip.PrefixFrom(address, 24)}})
	p.Backup = &plan.Backup{Repository: "a-keep", Full: "sun 01:30", Diff: "01:30", KeepFull: 2, KeepDiff: 4, ArchiveTimeout: 60, WALQueue: 128}
	return p
}

// kept is a cluster with its repository.
type kept struct {
	first, second *running
	keeper        *roletest.Node
	plan          *plan.Plan
}

func (k *kept) databases() []*running { return []*running{k.first, k.second} }

// raise makes the nodes; the repository is one that there is already, or nil.
func raise(t *testing.T, k *kept) {
	t.Helper()
	raiseWith(t, k, roletest.Members(t, k.plan))
}

func raiseWith(t *testing.T, k *kept, members map[string]*member.Member) {
	t.Helper()
	if k.keeper == nil {
		k.keeper = roletest.Start(t, members["a-keep"])
		k.keeper.Overlay("backup")
	}
	// New seeds hold new certificates.
	k.keeper.Member = members["a-keep"]
	if err := (backup.Configure{}).Apply(t.Context(), k.keeper.Node.Node); err != nil {
		t.Fatal(err)
	}
	k.keeper.StopUnit(backup.Unit)
	k.first, k.second = boot(t, members["a-db1"]), boot(t, members["a-db2"])
	for _, n := range k.databases() {
		n.Overlay("backup")
		if err := (backup.Configure{}).Apply(t.Context(), n.Node.Node.Node); err != nil {
			t.Fatal(err)
		}
		if err := (&backup.Start{}).Apply(t.Context(), n.Node.Node.Node); err != nil {
			t.Fatal(err)
		}
	}
	if err := (&backup.Start{}).Apply(t.Context(), k.keeper.Node.Node); err != nil {
		t.Fatal(err)
	}
	all(t, k.first, k.second)
}

// observed waits until the repository's report is as wanted.
func (k *kept) observed(t *testing.T, s *backup.Start, want func(*status.Backup) bool) status.Backup {
	t.Helper()
	told := ""
	for deadline := time.Now().Add(patience); ; time.Sleep(300 * time.Millisecond) {
		c := status.Cluster{Node: "a-keep"}
		err := s.Observe(t.Context(), k.keeper.Node.Node, &c)
		if err == nil && c.Backup != nil && want(c.Backup) {
			return *c.Backup
		}
		if err != nil && err.Error() != told {
			told = err.Error()
			t.Logf("the repository: %s", told)
		}
		if time.Now().After(deadline) {
			t.Fatalf("the repository: %v, %+v\n%s", err, c.Backup, k.first.Log(Unit))
		}
	}
}

// sum is a checksum of all rows in their order.
func (n *running) sum(t *testing.T) string {
	t.Helper()
	return n.sql(t, "SELECT count(*) || ' ' || md5(coalesce(string_agg(n || ' ' || at, ',' ORDER BY n), '')) FROM ledger")
}

// write adds rows, each with its time, and returns the checksum of all.
func (n *running) write(t *testing.T, rows int) string {
	t.Helper()
	n.sql(t, fmt.Sprintf("INSERT INTO ledger (at) SELECT clock_timestamp() FROM generate_series(1, %d)", rows))
	return n.sum(t)
}

// now is the database's own time.
func (n *running) now(t *testing.T) string {
	t.Helper()
	return n.sql(t, "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
}

// archivedAll waits until all WAL so far is in the archive.
func (n *running) archivedAll(t *testing.T) {
	t.Helper()
	// A file in which nothing stands is not switched.
	n.sql(t, "SELECT pg_logical_emit_message(true, 'test', 'x')")
	file := n.sql(t, "SELECT pg_walfile_name(pg_switch_wal())")
	for deadline := time.Now().Add(patience); ; time.Sleep(300 * time.Millisecond) {
		a, err := archiver(t.Context(), n.Node.Node.Node)
		if err == nil && a.LastWAL >= file {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %s is not archived: %+v, %v\n%s", n.Member.Self.Name, file, a, err, n.Log(Unit))
		}
	}
}

// restore brings the database back on the first node, doing each deed twice, as
// somebody does who goes on after an interruption.
func (k *kept) restore(t *testing.T, target string) *Restore {
	t.Helper()
	return k.restoreFrom(t, Request{Target: target, Node: "a-db1"})
}

func (k *kept) restoreFrom(t *testing.T, want Request) *Restore {
	t.Helper()
	say := func(text string) { t.Log(text) }
	for _, n := range []*running{k.second, k.first} {
		begun := n.Exists(restorePath) // and then cut off, with part of the data there
		for range 2 {
			if r, err := StepAside(t.Context(), n.Node.Node.Node, want, say); err != nil || !r.Aside {
				t.Fatalf("%s: %+v, %v", n.Member.Self.Name, r, err)
			}
		}
		if n.Running(Unit) || !begun && n.Exists(dataDir) {
			t.Fatalf("%s: Patroni runs, or its data are there", n.Member.Self.Name)
		}
		if _, err := StepAside(t.Context(), n.Node.Node.Node, Request{Target: Latest, Node: "a-db2"}, say); fault.Of(err) != fault.Failed {
			t.Errorf("another restore in the middle of one: %v", err)
		}
	}
	if _, err := BringBack(t.Context(), k.second.Node.Node.Node, want, say); fault.Of(err) != fault.Usage {
		t.Errorf("a node that is not to restore: %v", err)
	}
	if err := TakePart(t.Context(), k.first.Node.Node.Node); fault.Of(err) != fault.Failed {
		t.Errorf("took part with nothing there: %v", err)
	}
	// An attempt ended before it had written down what it restores.
	k.first.Output(t, "install", "-d", "-o", user, "-g", user, "-m", "700", dataDir+"/base/1")
	// Others end while the server starts, the earliest before it has said that it does.
	for _, after := range []time.Duration{5, 10, 15, 20, 25, 30, 400} {
		short, cancel := context.WithCancel(t.Context())
		_, err := BringBack(short, k.first.Node.Node.Node, want, func(text string) {
			if strings.HasPrefix(text, "recovering") {
				time.AfterFunc(after*time.Millisecond, cancel)
			}
		})
		cancel()
		if err == nil {
			t.Logf("was done within %d ms", after)
		} else if !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted %d ms after the recovery began: %v", after, err)
		}
	}
	var r *Restore
	for range 2 {
		var err error
		if r, err = BringBack(t.Context(), k.first.Node.Node.Node, want, say); err != nil {
			log, _ := k.first.Read(restoreLog)
			t.Fatalf("%v\n%s", err, log)
		}
	}
	for _, n := range k.databases() {
		for range 2 {
			if err := Commit(n.Node.Node.Node); err != nil {
				t.Fatal(err)
			}
		}
		if err := StepBack(t.Context(), n.Node.Node.Node); fault.Of(err) != fault.Failed {
			t.Errorf("%s went back: %v", n.Member.Self.Name, err)
		}
	}
	for range 2 {
		if err := Forget(t.Context(), k.first.Node.Node.Node); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range k.databases() {
		for range 2 {
			limited, cancel := context.WithTimeout(t.Context(), patience)
			err := TakePart(limited, n.Node.Node.Node)
			cancel()
			if err != nil {
				t.Fatalf("%s: %v\n%s", n.Member.Self.Name, err, n.Log(Unit))
			}
		}
		if !n.Exists(aside) {
			t.Errorf("%s: the former data are gone before anybody has looked", n.Member.Self.Name)
		}
	}
	for _, n := range k.databases() {
		n.healthy(t)
		if err := Tidy(n.Node.Node.Node); err != nil || n.Exists(aside) {
			t.Errorf("%s: %v", n.Member.Self.Name, err)
		}
		if _, err := StepAside(t.Context(), n.Node.Node.Node, want, say); fault.Of(err) != fault.Failed || !n.Running(Unit) {
			t.Errorf("%s does it all once more: %v", n.Member.Self.Name, err)
		}
	}
	return r
}

func TestADatabaseIsBroughtBackToATime(t *testing.T) {
	k := &kept{plan: keptPlan()}
	raise(t, k)
	var keeper backup.Start
	// The first backup is made by itself.
	made := k.observed(t, &keeper, func(b *status.Backup) bool { return len(b.Sets) == 1 && b.Running == "" })
	if s := made.Sets[0]; s.Type != "full" || s.Size < 1<<20 || s.Stop.Before(s.Start) || s.FirstWAL == "" || s.Damaged {
		t.Errorf("the first backup is %+v", s)
	}
	k.first.sql(t, "CREATE TABLE ledger (n bigserial PRIMARY KEY, at timestamptz NOT NULL)")
	before := k.first.write(t, 1000)
	if set, err := backup.Make(t.Context(), k.keeper.Node.Node, "diff"); err != nil || set.Type != "diff" {
		t.Fatalf("a differential backup: %+v, %v", set, err)
	}
	then := k.first.write(t, 500)
	at := k.first.now(t)
	time.Sleep(50 * time.Millisecond)
	k.first.write(t, 700)
	k.first.archivedAll(t)

	r := k.restore(t, at)
	if got := k.first.sum(t); got != then || got == before {
		t.Errorf("restored to %s the rows are %s, want %s", at, got, then)
	}
	limit, err := time.Parse(time.RFC3339Nano, at)
	if err != nil || r.Reached == nil || r.Reached.After(limit) || r.Timeline < 2 || r.Tables == 0 {
		t.Errorf("what is back is %+v, %v", r, err)
	}
	whatStaysAfterARestore(t, k)

	// Life goes on, and so does the archive, on a new timeline.
	k.first.write(t, 300)
	k.first.archivedAll(t)
	if set, err := backup.Make(t.Context(), k.keeper.Node.Node, "incr"); err != nil || set.Type != "incr" || !strings.HasPrefix(set.LastWAL, "0000000") || strings.HasPrefix(set.LastWAL, "00000001") {
		t.Errorf("a backup after the restore: %+v, %v", set, err)
	}
	nothingLogsASecret(t, k.databases())
}

// whatStaysAfterARestore looks for what would make a later standby stop.
func whatStaysAfterARestore(t *testing.T, k *kept) {
	t.Helper()
	for _, n := range k.databases() {
		text, err := os.ReadFile(n.Path(autoConf))
		if err != nil || strings.Contains(string(text), "recovery_target") || strings.Contains(string(text), "listen_addresses") {
			t.Errorf("%s: %s, %v", n.Member.Self.Name, text, err)
		}
	}
	if got := k.second.sql(t, "SELECT pg_is_in_recovery(), (SELECT setting FROM pg_settings WHERE name = 'restore_command') LIKE '%archive-get%'"); got != "t|t" {
		t.Errorf("the replica: %s", got)
	}
	if got := k.first.sql(t, "SHOW archive_mode"); got != "on" {
		t.Errorf("archive_mode is %s", got)
	}
	if mode := k.keeper.Output(t, "stat", "-c", "%U %a", "/etc/pgbackrest/pgbackrest.conf"); mode != "postgres 600\n" {
		t.Errorf("the configuration with the passphrase is %s", mode)
	}
	if _, err := k.keeper.On("grep", "-rlq", "ledger", "/var/lib/pgbackrest"); err == nil {
		t.Error("the repository can be read without its passphrase")
	}
}
