//go:build long

package database

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestMain(m *testing.M) { roletest.MainWithStorage(m) }

// storedPlan is a cluster of two databases that keep their backups on storage.
func storedPlan(s *roletest.Storage, path string) *plan.Plan {
	p := keptPlan()
	p.Nodes = p.Nodes[:2]
	own := s.S3
	own.Path = path
	p.Backup.Repository, p.Backup.S3 = "", &own
	return p
}

// form boots the databases of a plan with secrets beside the usual ones.
func form(t *testing.T, p *plan.Plan, secrets map[string]string) *kept {
	t.Helper()
	k := &kept{plan: p}
	members := roletest.Members(t, p)
	for _, m := range members {
		maps.Copy(m.Secrets, secrets)
	}
	k.first, k.second = boot(t, members["a-db1"]), boot(t, members["a-db2"])
	for _, n := range k.databases() {
		n.Overlay("backup")
	}
	k.configure(t)
	all(t, k.first, k.second)
	return k
}

func (k *kept) configure(t *testing.T) {
	t.Helper()
	for _, n := range k.databases() {
		if err := (backup.Configure{}).Apply(t.Context(), n.Node.Node.Node); err != nil {
			t.Fatal(err)
		}
	}
}

// vanish has all databases burn down, with etcd.
func (k *kept) vanish() {
	for _, n := range k.databases() {
		n.Vanish()
	}
}

// watchProcesses looks at the command lines of all processes until the test has
// ended, since a secret may stand in one for a moment alone.
func watchProcesses(t *testing.T, secrets ...string) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		for seen := 0; ; time.Sleep(50 * time.Millisecond) {
			files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
			for _, file := range files {
				line, _ := os.ReadFile(file)
				if strings.Contains(string(line), "pgbackrest") {
					seen++
				}
				for _, secret := range secrets {
					if strings.Contains(string(line), secret) {
						t.Errorf("a secret stands in the list of processes: %q", line)
						return
					}
				}
			}
			if ctx.Err() != nil {
				if seen == 0 {
					t.Error("no pgbackrest was seen among the processes")
				}
				return
			}
		}
	})
	t.Cleanup(func() { stop(); done.Wait() })
}

// kept on storage: the keys of one cluster, and those of another.
var (
	firstSecrets = map[string]string{plan.BackupCipher: "secret-of-the-first-backups"}
	otherSecrets = map[string]string{
		plan.BackupCipher: "secret-of-the-other-backups", plan.SourceCipher: "secret-of-the-first-backups",
		plan.SuperuserPassword: "secret-of-other-postgres", plan.ReplicationPassword: "secret-of-other-replicator", plan.RewindPassword: "secret-of-other-rewind",
		plan.Database{Owner: "app"}.PasswordKey(): "secret-of-other-app",
	}
)

// with has secrets beside others.
func with(secrets map[string]string, more ...string) map[string]string {
	out := maps.Clone(secrets)
	for i := 0; i < len(more); i += 2 {
		out[more[i]] = more[i+1]
	}
	return out
}

// backedUp makes a backup, by a database or, without one, by the repository.
func (k *kept) backedUp(t *testing.T, n *running, kind string) {
	t.Helper()
	by := k.keeper
	if n != nil {
		by = n.Node
	}
	if _, err := backup.Make(t.Context(), by.Node.Node, kind); err != nil {
		t.Fatalf("a %s backup: %v\n%s", kind, err, k.first.Log(Unit))
	}
}

// TestBackupsOnStorageAndTheWayBackAfterAFire keeps backups on S3-like storage, gives up a
// restore, and brings the database back in a cluster of another name.
func TestBackupsOnStorageAndTheWayBackAfterAFire(t *testing.T) {
	s := roletest.StartStorage(t)
	watchProcesses(t, s.KeySecret, firstSecrets[plan.BackupCipher], otherSecrets[plan.BackupCipher])
	k := form(t, storedPlan(s, "/first"), with(firstSecrets, plan.S3Key, s.Key, plan.S3KeySecret, s.KeySecret))
	noSecretInThePlan(t, k.plan, s.KeySecret)

	k.first.sql(t, "CREATE TABLE ledger (n bigserial PRIMARY KEY, at timestamptz NOT NULL)")
	k.first.write(t, 1000)
	k.backedUp(t, k.first, "full")
	time.Sleep(2 * time.Second) // when a backup has ended is known to the second
	then := k.first.write(t, 500)
	at := k.first.now(t)
	time.Sleep(50 * time.Millisecond)
	k.first.write(t, 700)
	k.first.archivedAll(t)
	k.backedUp(t, k.first, "diff")
	whatIsStored(t, s, "first")
	wrongKeysAreToldWithoutThem(t, k, s)

	undone(t, k, at)
	last := interrupted(t, k, at, then)

	// The site burns down. What is left is the bucket, and the store's secrets.
	k.vanish()
	before := listed(t, s, "first")
	p := storedPlan(s, "/other")
	p.Cluster = "other"
	own := s.S3
	own.Path = "/first"
	p.Backup.From = &plan.Source{Cluster: "test", S3: &own}
	other := form(t, p, with(otherSecrets, plan.S3Key, s.Key, plan.S3KeySecret, s.KeySecret, plan.SourceS3Key, s.Key, plan.SourceS3KeySecret, s.KeySecret))
	other.takenOver(t, other.first, last)
	if got := listed(t, s, "first"); got != before {
		t.Errorf("what the other cluster had stored was changed:\n%s\nwas\n%s", got, before)
	}
	whatIsStored(t, s, "other")
	nothingLogsASecret(t, append(k.databases(), other.databases()...))
}

// TestTheRepositoryHoldsAnotherClustersBackups carries the directories of one cluster's
// repository into another's.
func TestTheRepositoryHoldsAnotherClustersBackups(t *testing.T) {
	k := &kept{plan: keptPlan()}
	raise(t, k)
	k.first.sql(t, "CREATE TABLE ledger (n bigserial PRIMARY KEY, at timestamptz NOT NULL)")
	k.first.write(t, 1000)
	if _, err := backup.Make(t.Context(), k.keeper.Node.Node, "full"); err != nil {
		t.Fatal(err)
	}
	last := k.first.write(t, 500)
	k.first.archivedAll(t)
	k.vanish()
	k.keeper.Vanish()

	p := keptPlan()
	p.Cluster = "other"
	p.Backup.From = &plan.Source{Cluster: "test"}
	members := roletest.Members(t, p)
	for _, m := range members {
		for name, value := range otherSecrets {
			if _, has := m.Secrets[name]; has {
				m.Secrets[name] = value
			}
		}
	}
	members["a-keep"].Secrets[plan.SourceCipher] = members["a-keep"].Secrets[plan.BackupCipher]
	members["a-keep"].Secrets[plan.BackupCipher] = otherSecrets[plan.BackupCipher]
	members["a-keep"].Secrets[plan.SourceCipher] = "secret-of-backups"
	other := &kept{plan: p, keeper: roletest.Start(t, members["a-keep"])}
	other.keeper.Overlay("backup")
	for _, dir := range []string{"archive", "backup"} {
		from, to := k.keeper.Path("/var/lib/pgbackrest/"+dir+"/test"), other.keeper.Path("/var/lib/pgbackrest/"+dir)
		if out, err := exec.Command("sh", "-c", `mkdir -p "$2" && cp -a "$1" "$2" && chown --reference="$1" "$2"`, "sh", from, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	raiseWith(t, other, members)
	other.takenOver(t, nil, last)
	if _, err := other.keeper.On("test", "-e", "/var/lib/pgbackrest/backup/other/backup.info"); err != nil {
		t.Error("the repository holds no backups of its own cluster")
	}
}

// takenOver brings the other cluster's database back, and sees that it is this
// cluster's from then on. maker makes the backups; nil is the repository.
func (k *kept) takenOver(t *testing.T, maker *running, rows string) {
	t.Helper()
	by := k.first.Node.Node.Node
	if maker == nil {
		by = k.keeper.Node.Node
	}
	// The fresh cluster has written, and made a backup, by the time somebody restores.
	k.first.sql(t, "CREATE TABLE fresh (n int)")
	if _, err := backup.Make(t.Context(), by, "full"); err != nil {
		t.Fatal(err)
	}
	if _, err := backup.Look(t.Context(), k.first.Node.Node.Node, "third"); fault.Of(err) != fault.Usage {
		t.Errorf("a cluster that nobody knows: %v", err)
	}
	info, err := backup.Look(t.Context(), k.first.Node.Node.Node, "test")
	if err != nil || len(info.Sets) == 0 {
		t.Fatalf("of the other cluster's backups is known: %+v, %v", info, err)
	}
	r := k.restoreFrom(t, Request{Target: Latest, Node: "a-db1", From: "test"})
	if r.System != info.System {
		t.Errorf("what is back is the database %s, not %s", r.System, info.System)
	}
	for _, n := range k.databases() {
		if got := n.sum(t); got != rows {
			t.Errorf("%s has the rows %s, want %s", n.Member.Self.Name, got, rows)
		}
	}
	if got := k.first.sql(t, "SELECT to_regclass('fresh') IS NULL"); got != "t" {
		t.Error("the database of the fresh cluster was not replaced")
	}
	secrets := k.first.Member.Secrets
	if got, err := k.second.over(t, k.first, "app", secrets[plan.Database{Owner: "app"}.PasswordKey()], "dbname=app sslmode=verify-full"); err != nil || got != "t\n" {
		t.Errorf("the owner gets in with %q, %v", got, err)
	}
	if err := backupRefused(t.Context(), k, by.Member.Plan); maker == nil && fault.Of(err) != fault.Integrity {
		t.Errorf("a backup before the repository has taken the database: %v", err)
	}
	for range 2 {
		info, err = backup.Take(t.Context(), by)
		if err != nil || len(info.Sets) != 1 || info.Sets[0].Type != "full" || info.System != r.System {
			t.Fatalf("the cluster's own backups: %+v, %v\n%s", info, err, k.first.Log(Unit))
		}
	}
	time.Sleep(2 * time.Second)
	then := k.first.write(t, 100)
	at := k.first.now(t)
	time.Sleep(50 * time.Millisecond)
	k.first.write(t, 100)
	k.first.archivedAll(t)
	k.restore(t, at)
	if got := k.first.sum(t); got != then {
		t.Errorf("restored from its own archive the rows are %s, want %s", got, then)
	}
}

func backupRefused(ctx context.Context, k *kept, _ *plan.Plan) error {
	if k.keeper == nil {
		return nil
	}
	_, err := backup.Make(ctx, k.keeper.Node.Node, "full")
	return err
}

// undone gives a restore up in each state that it can be in.
func undone(t *testing.T, k *kept, at string) {
	t.Helper()
	rows := k.second.sum(t)
	say := func(text string) { t.Log(text) }
	for _, c := range []struct {
		why  string
		want Request
		far  func(want Request)
	}{
		{"all have stepped aside", Request{Target: at, Node: "a-db1"}, func(Request) {}},
		{"it was cut off while files came", Request{Target: at, Node: "a-db1"}, func(want Request) {
			ctx, cancel := context.WithCancel(t.Context())
			go until(ctx, cancel, func() bool { return k.first.Exists(dataDir+"/backup.manifest") || k.first.Exists(dataDir+"/base") })
			if _, err := BringBack(ctx, k.first.Node.Node.Node, want, say); err == nil {
				t.Log("was not interrupted in time")
			}
		}},
		{"the archive does not reach the time", Request{Target: time.Now().UTC().Add(time.Hour).Format(time.RFC3339), Node: "a-db1"}, func(want Request) {
			_, err := BringBack(t.Context(), k.first.Node.Node.Node, want, say)
			if err == nil || !strings.Contains(err.Error(), "recovery target") || !strings.Contains(fault.Mend(err), "--undo") {
				t.Errorf("a time that the archive does not reach: %v; %s", err, fault.Mend(err))
			}
		}},
		{"the database is back", Request{Target: at, Node: "a-db1"}, func(want Request) {
			if _, err := BringBack(t.Context(), k.first.Node.Node.Node, want, say); err != nil {
				t.Error(err)
			}
		}},
	} {
		t.Log("undone when " + c.why)
		for _, n := range []*running{k.second, k.first} {
			if _, err := StepAside(t.Context(), n.Node.Node.Node, c.want, say); err != nil {
				t.Fatal(err)
			}
		}
		c.far(c.want)
		for range 2 {
			for _, n := range k.databases() {
				if err := StepBack(t.Context(), n.Node.Node.Node); err != nil {
					t.Fatalf("%s: %v", c.why, err)
				}
			}
		}
		all(t, k.first, k.second)
		for _, n := range k.databases() {
			n.healthy(t)
			if n.Exists(aside) || n.Exists(restorePath) {
				t.Errorf("%s: %s still remembers the restore", c.why, n.Member.Self.Name)
			}
			if got := n.sum(t); got != rows {
				t.Errorf("%s: %s has the rows %s, want %s", c.why, n.Member.Self.Name, got, rows)
			}
		}
		lead := k.leader(t)
		rows = lead.write(t, 10)
		lead.archivedAll(t)
	}
}

func until(ctx context.Context, do func(), so func() bool) {
	for ctx.Err() == nil && !so() {
		time.Sleep(5 * time.Millisecond)
	}
	do()
}

// leader is the node that leads.
func (k *kept) leader(t *testing.T) *running {
	t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(300 * time.Millisecond) {
		for _, n := range k.databases() {
			if out, err := psql(t.Context(), n.Node.Node.Node, "SELECT pg_is_in_recovery();"); err == nil && strings.TrimSpace(out) == "f" {
				return n
			}
		}
	}
	t.Fatal("nobody leads")
	return nil
}

// interrupted restores with the machine that restores losing its processes in the
// middle, again and again, and returns the rows in the end.
func interrupted(t *testing.T, k *kept, at, then string) string {
	t.Helper()
	want := Request{Target: at, Node: "a-db1"}
	say := func(text string) { t.Log(text) }
	for _, n := range []*running{k.second, k.first} {
		if _, err := StepAside(t.Context(), n.Node.Node.Node, want, say); err != nil {
			t.Fatal(err)
		}
	}
	server := func() string {
		text, _ := os.ReadFile(k.first.Path(dataDir + "/postmaster.pid"))
		pid, _, _ := strings.Cut(string(text), "\n")
		return pid
	}
	for what, so := range map[string]func() bool{
		"files come":            func() bool { return k.first.Exists(dataDir + "/base") },
		"the database recovers": func() bool { return server() != "" },
	} {
		ctx, cancel := context.WithCancel(t.Context())
		go until(ctx, cancel, so)
		_, err := BringBack(ctx, k.first.Node.Node.Node, want, say)
		t.Logf("interrupted when %s: %v", what, err)
		if pid := server(); pid != "" {
			// The power goes: what ran is gone without a word.
			k.first.On("kill", "-9", pid)
		}
		cancel()
	}
	r := k.restoreFrom(t, want)
	if r.Tables == 0 {
		t.Errorf("what is back is %+v", r)
	}
	for _, n := range k.databases() {
		if got := n.sum(t); got != then {
			t.Errorf("%s has the rows %s, want %s", n.Member.Self.Name, got, then)
		}
	}
	rows := k.first.write(t, 300)
	k.first.archivedAll(t)
	k.backedUp(t, k.first, "incr")
	return rows
}

func noSecretInThePlan(t *testing.T, p *plan.Plan, secrets ...string) {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range append(secrets, "secret-of") {
		if strings.Contains(string(text), secret) {
			t.Errorf("the plan holds a secret: %s", text)
		}
	}
}

// wrongKeysAreToldWithoutThem has the storage refuse, and be somebody else.
func wrongKeysAreToldWithoutThem(t *testing.T, k *kept, s *roletest.Storage) {
	t.Helper()
	m := k.first.Member
	right, ca := m.Secrets[plan.S3KeySecret], m.Plan.Backup.S3.CA
	defer func() {
		m.Secrets[plan.S3KeySecret], m.Plan.Backup.S3.CA = right, ca
		k.configure(t)
	}()
	for what, c := range map[string]struct {
		want  string
		spoil func()
	}{
		"another key":     {"403 (Forbidden)", func() { m.Secrets[plan.S3KeySecret] = "not-the-secret" }},
		"nobody's server": {"certificate", func() { m.Secrets[plan.S3KeySecret], m.Plan.Backup.S3.CA = right, "" }},
	} {
		c.spoil()
		k.configure(t)
		_, err := backup.Look(t.Context(), k.first.Node.Node.Node, "")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
		t.Logf("%s: %v", what, err)
		for _, secret := range []string{"not-the-secret", right, firstSecrets[plan.BackupCipher]} {
			if strings.Contains(fmt.Sprintf("%v %s", err, fault.Mend(err)), secret) {
				t.Errorf("%s: the error holds a secret: %v", what, err)
			}
		}
		m.Plan.Backup.S3.CA = ca
	}
}

// whatIsStored is what the bucket holds of a cluster: nothing that can be read.
func whatIsStored(t *testing.T, s *roletest.Storage, path string) {
	t.Helper()
	if lines := strings.Count(listed(t, s, path), "\n"); lines < 10 {
		t.Errorf("the bucket holds %d files below %s", lines, path)
	}
	if out, err := exec.Command("grep", "-rlF", "ledger", s.Dir).CombinedOutput(); err == nil {
		t.Errorf("what is stored can be read without its passphrase: %s", out)
	}
}

// listed are the objects below a path, with their sizes and times.
func listed(t *testing.T, s *roletest.Storage, path string) string {
	t.Helper()
	out, err := exec.Command("find", filepath.Join(s.Dir, s.Bucket, path), "-type", "f", "-printf", "%P %s %T@\n").Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestAFreshClusterTakesTheDatabaseOfALostOne loses all databases, with etcd; the
// repository is left.
func TestAFreshClusterTakesTheDatabaseOfALostOne(t *testing.T) {
	k := &kept{plan: keptPlan()}
	raise(t, k)
	k.first.sql(t, "CREATE TABLE ledger (n bigserial PRIMARY KEY, at timestamptz NOT NULL)")
	k.backedUp(t, nil, "full")
	k.first.write(t, 500)
	k.dropWAL(t)
	k.backAgain(t)
	if a, err := archiver(t.Context(), k.first.Node.Node.Node); err != nil || len(a.Dropped) > 0 {
		t.Errorf("after a new backup: %+v, %v", a, err)
	}
	last := k.first.write(t, 200)
	k.first.archivedAll(t)
	k.vanish()
	raise(t, k)
	if _, err := backup.Make(t.Context(), k.keeper.Node.Node, "full"); fault.Of(err) != fault.Integrity || !strings.Contains(fault.Mend(err), "slipway restore") {
		t.Errorf("a backup of an empty database over those of a lost one: %v; %s", err, fault.Mend(err))
	}
	k.restore(t, Latest)
	for _, n := range k.databases() {
		if got := n.sum(t); got != last {
			t.Errorf("%s of the fresh cluster has the rows %s, want %s", n.Member.Self.Name, got, last)
		}
	}
	k.first.write(t, 1)
	k.first.archivedAll(t)
	nothingLogsASecret(t, k.databases())
}

// TestAGapIsToldByThePrimaryAfterAFailover loses the node that has dropped WAL.
func TestAGapIsToldByThePrimaryAfterAFailover(t *testing.T) {
	k := &kept{plan: keptPlan()}
	raise(t, k)
	k.first.sql(t, "CREATE TABLE ledger (n bigserial PRIMARY KEY, at timestamptz NOT NULL)")
	if _, err := backup.Make(t.Context(), k.keeper.Node.Node, "full"); err != nil {
		t.Fatal(err)
	}
	dropped := k.dropWAL(t)
	k.first.StopUnit(Unit) // etcd, which is on this node alone here, goes on
	var told status.Database
	for deadline := time.Now().Add(patience); told.Archiver == nil || len(told.Archiver.Dropped) == 0; time.Sleep(300 * time.Millisecond) {
		var c status.Cluster
		err := k.second.start.Observe(t.Context(), k.second.Node.Node.Node, &c)
		if c.Database != nil {
			told = *c.Database
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s tells of no gap: %+v, %v\n%s", k.second.Member.Self.Name, told, err, k.second.Log(Unit))
		}
	}
	if told.Archiver.Dropped[0] != dropped[0] || told.Leader() != "a-db2" {
		t.Errorf("the new primary tells of %+v, and the one before dropped %v", told, dropped)
	}
	// The former primary is back, and tells of it too, as what it knows by itself.
	k.first.StartUnit(Unit)
	all(t, k.first)
	for deadline := time.Now().Add(patience); ; time.Sleep(300 * time.Millisecond) {
		var c status.Cluster
		err := k.first.start.Observe(t.Context(), k.first.Node.Node.Node, &c)
		if err != nil && strings.Contains(err.Error(), "the archive has a gap") {
			if c.Database.Archiver != nil {
				t.Errorf("a replica tells how the archive does: %+v", c.Database.Archiver)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the former primary says %v", err)
		}
	}
	k.backAgain(t)
	if files, err := gap(t.Context(), k.second.Node.Node.Node); err != nil || len(files) > 0 {
		t.Errorf("after a backup the primary tells of %v, %v", files, err)
	}
	if files, err := gap(t.Context(), k.first.Node.Node.Node); err != nil || len(files) > 0 || k.first.Exists(droppedPath) {
		t.Errorf("after a backup the former primary tells of %v, %v", files, err)
	}
}

// dropWAL has the repository go away, and the primary write until WAL is dropped. It
// returns what is told of.
func (k *kept) dropWAL(t *testing.T) []string {
	t.Helper()
	k.keeper.StopUnit(backup.Unit)
	var a status.Archiver
	for deadline := time.Now().Add(patience); len(a.Dropped) == 0; time.Sleep(200 * time.Millisecond) {
		k.first.write(t, 10)
		k.first.sql(t, "SELECT pg_switch_wal()")
		var err error
		if a, err = archiver(t.Context(), k.first.Node.Node.Node); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing was dropped: %+v\n%s", a, k.first.Log(Unit))
		}
	}
	if wrong := strings.Join(complaints(a, 128), "; "); !strings.Contains(wrong, "the archive has a gap: WAL was dropped from "+a.Dropped[0]) {
		t.Errorf("of the gap is told: %s", wrong)
	}
	return a.Dropped
}

// backAgain has the repository answer, and make a backup.
func (k *kept) backAgain(t *testing.T) {
	t.Helper()
	if err := (&backup.Start{}).Apply(t.Context(), k.keeper.Node.Node); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(300 * time.Millisecond) {
		if _, err := backup.Make(t.Context(), k.keeper.Node.Node, "full"); err == nil {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("no backup after the repository is back: %v", err)
		}
	}
}
