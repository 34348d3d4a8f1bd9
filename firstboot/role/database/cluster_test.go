package database

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// patronictl is where profiles/database.bu has it.
const patronictl = "/usr/local/bin/patronictl"

// running is a node with its steps, as its agent has them.
type running struct {
	*roletest.Node
	start *Start
}

// boot makes a node with the image's Patroni configuration, and configures it.
func boot(t *testing.T, m *member.Member) *running {
	t.Helper()
	n := &running{Node: roletest.Start(t, m), start: &Start{}}
	n.Overlay("database")
	n.Output(t, "ln", "-s", "/usr/lib/slipway/patroni", patronictl)
	// There is no watchdog in a namespace.
	n.Put(t, "/etc/patroni/conf.d/90-test.yml", "watchdog: {mode: \"off\"}\n")
	n.Output(t, "chown", "-R", "root:postgres", "/etc/patroni")
	if err := n.Hold(Unit); err != nil {
		t.Fatal(err)
	}
	if err := (consensus.Configure{}).Apply(t.Context(), n.Node.Node.Node); err != nil {
		t.Fatal(err)
	}
	if err := (Configure{}).Apply(t.Context(), n.Node.Node.Node); err != nil {
		t.Fatal(err)
	}
	return n
}

// two are the first nodes of the tests' plan, whose third one stays away.
func two(t *testing.T) (first, second *running) {
	t.Helper()
	members := roletest.Members(t, roletest.Plan())
	return boot(t, members["a-db1"]), boot(t, members["a-db2"])
}

// part has a node take its part in the cluster.
func (n *running) part(ctx context.Context) error {
	if err := (&consensus.Start{}).Apply(ctx, n.Node.Node.Node); err != nil {
		return err
	}
	return n.start.Apply(ctx, n.Node.Node.Node)
}

// patience bounds every wait: machines that test are busy.
const patience = 7 * time.Minute

// all waits until all nodes have taken their parts.
func all(t *testing.T, nodes ...*running) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	var wg sync.WaitGroup
	for _, n := range nodes {
		wg.Go(func() {
			begun := time.Now()
			if err := n.part(ctx); err != nil {
				t.Errorf("%s: %v\nwaited for %q\n%s", n.Member.Self.Name, err, n.Said.Waits[max(0, len(n.Said.Waits)-1):], n.Log(Unit))
			}
			t.Logf("%s: %.1f s", n.Member.Self.Name, time.Since(begun).Seconds())
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
}

// healthy waits until a node's report tells of no problem.
func (n *running) healthy(t *testing.T) status.Database {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		var c status.Cluster
		err := n.start.Observe(t.Context(), n.Node.Node.Node, &c)
		if err == nil {
			return *c.Database
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v\n%s", n.Member.Self.Name, err, n.Log(Unit))
		}
	}
}

func (n *running) sql(t *testing.T, query string) string {
	t.Helper()
	out, err := psql(t.Context(), n.Node.Node.Node, query)
	if err != nil {
		t.Fatalf("%s: %s: %v", n.Member.Self.Name, query, err)
	}
	return strings.TrimSpace(out)
}

// over connects from this node to another as a client does.
func (n *running) over(t *testing.T, to *running, user, password, options string) (string, error) {
	t.Helper()
	return n.On("env", "PGPASSWORD="+password, "PGCONNECT_TIMEOUT=5", binDir+"/psql", "-XAtc", "SELECT ssl AND version = 'TLSv1.3' FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
		"host="+to.Member.Self.Address.String()+" user="+user+" sslrootcert="+pkiDir+"/ca.pem "+options)
}

func roles(d status.Database) map[string]int {
	count := map[string]int{}
	for _, v := range d.Members {
		count[v.Role]++
	}
	return count
}

func TestNodesFormAClusterAndAStandbyOfIt(t *testing.T) {
	p := roletest.Plan()
	members := roletest.Members(t, p)
	var nodes []*running
	for _, n := range p.Nodes {
		nodes = append(nodes, boot(t, members[n.Name]))
	}
	first, second, third, far := nodes[0], nodes[1], nodes[2], nodes[3]
	// While one of etcd's members has never been there, etcd does not say yet which
	// version its cluster has.
	all(t, first, second)
	all(t, third, far)

	near, away := first.healthy(t), far.healthy(t)
	if got := roles(near); got[leader] != 1 || len(near.Members) != 3 || near.Standby {
		t.Errorf("site a is %+v", near)
	}
	if !away.Standby || len(away.Members) != 1 || away.SystemID != near.SystemID || away.Scope == near.Scope {
		t.Errorf("site b is %+v, and a %+v", away, near)
	}
	for setting, want := range map[string]string{
		"data_checksums": "on", "ssl": "on", "max_connections": "50", "max_slot_wal_keep_size": "1GB", "password_encryption": "scram-sha-256",
		"recovery_init_sync_method": "syncfs",
	} {
		if got := first.sql(t, "SHOW "+setting); got != want {
			t.Errorf("%s is %s, want %s", setting, got, want)
		}
	}
	if got := first.sql(t, "SELECT count(*), bool_and(ssl) FROM pg_stat_replication JOIN pg_stat_ssl USING (pid)"); got != "3|t" {
		t.Errorf("replicas and whether all use TLS: %s", got)
	}
	if got := first.sql(t, "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'standby%' AND active"); got != "standby_b" {
		t.Errorf("the other site's slot is %q", got)
	}

	whoGetsIn(t, first, second)
	whatTheAgentWrote(t, first)
	clientsThatGoAwayDoNoHarm(t, first, second)
	rolesAreMadeWhole(t, first)
	parametersFollowThePlan(t, nodes)
	aCrashIsNoticedAtOnce(t, first)
	switchedOver(t, first, second, far)
	inMaintenance(t, second, first)
	if _, err := second.switchover(t, second, first); err != nil {
		t.Fatalf("back again: %v", err)
	}
	second.role(t, "quorum_standby")
	foreignDataIsRefused(t, third)
	anotherLeads(t, first, second, third)
	nothingLogsASecret(t, nodes)
}

func whoGetsIn(t *testing.T, server, client *running) {
	secrets := server.Member.Secrets
	if got, err := client.over(t, server, "app", secrets["database-app"], "dbname=app sslmode=verify-full"); err != nil || got != "t\n" {
		t.Errorf("the owner of a database gets %q, %v", got, err)
	}
	for why, c := range map[string]struct{ user, password, options string }{
		"no encryption":      {"app", secrets["database-app"], "dbname=app sslmode=disable"},
		"the wrong password": {"app", "guessed", "dbname=app"},
		"the superuser":      {superuser, secrets[plan.SuperuserPassword], "dbname=postgres"},
		"replication's role": {replicator, secrets[plan.ReplicationPassword], "dbname=app"},
	} {
		if got, err := client.over(t, server, c.user, c.password, c.options); err == nil {
			t.Errorf("%s got in over the network: %q", why, got)
		}
	}
}

func whatTheAgentWrote(t *testing.T, n *running) {
	for path, want := range map[string]string{
		pkiDir + "/service.pem": "postgres 600\n", configPath: "postgres 600\n", secretsPath: "root 600\n", recordPath: "root 600\n",
	} {
		if got := n.Output(t, "stat", "-c", "%U %a", path); got != want {
			t.Errorf("%s is %s", path, got)
		}
	}
	n.Said.Reset()
	if err := (Configure{}).Apply(t.Context(), n.Node.Node.Node); err != nil || len(n.Said.Changes) > 0 {
		t.Errorf("a second time changed %q, %v", n.Said.Changes, err)
	}
	if err := n.start.Apply(t.Context(), n.Node.Node.Node); err != nil || len(n.Said.Changes) > 0 {
		t.Errorf("a second start changed %q, %v", n.Said.Changes, err)
	}
	if list := n.Output(t, patronictl, "list"); strings.Count(list, "streaming") != 2 {
		t.Errorf("patronictl list, as root:\n%s", list)
	}
}

// clientsThatGoAwayDoNoHarm has a node open connections to another's Patroni and
// reset them, before and within the handshake.
func clientsThatGoAwayDoNoHarm(t *testing.T, server, client *running) {
	client.Output(t, "python3", "-c", `
import socket, ssl, struct, sys
context = ssl.create_default_context(cafile=sys.argv[2])
for i in range(200):
    s = socket.create_connection((sys.argv[1], 8008))
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if i % 2:
        hello = ssl.MemoryBIO()
        try:
            context.wrap_bio(ssl.MemoryBIO(), hello, server_hostname="anybody").do_handshake()
        except ssl.SSLWantReadError:
            s.sendall(hello.read())
    s.close()
`, server.Member.Self.Address.String(), pkiDir+"/ca.pem")
	server.healthy(t)
	log := server.Log(Unit)
	if strings.Contains(log, "Traceback") || !strings.Contains(log, "request from") {
		t.Errorf("Patroni's word on clients that went away:\n%s", log)
	}
}

// rolesAreMadeWhole is about a power cut right after initdb: Patroni never again
// makes what it had not made by then.
func rolesAreMadeWhole(t *testing.T, primary *running) {
	replicates := "SELECT rolreplication FROM pg_roles WHERE rolname = 'replicator'"
	rewindsToo := "SELECT has_function_privilege('rewind', 'pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)', 'execute')"
	primary.sql(t, "ALTER ROLE replicator NOREPLICATION; REVOKE EXECUTE ON FUNCTION pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean) FROM rewind;")
	if primary.sql(t, replicates) != "f" || primary.sql(t, rewindsToo) != "f" {
		t.Fatal("the roles are whole already")
	}
	for _, want := range []string{"let the role replicator replicate", ""} {
		made, err := furnish(t.Context(), primary.Node.Node.Node, primary.Member)
		if err != nil || strings.Join(made, ", ") != want {
			t.Errorf("changed %q, %v; want %q", made, err, want)
		}
		if primary.sql(t, replicates) != "t" || primary.sql(t, rewindsToo) != "t" {
			t.Error("the role of replication or that of pg_rewind lacks a right")
		}
	}
}

// parametersFollowThePlan gives all nodes a newer plan; what an operator has set by
// hand and the plan does not change stays.
func parametersFollowThePlan(t *testing.T, nodes []*running) {
	edit := func(n *running, words ...string) {
		n.Output(t, append([]string{patronictl, "edit-config", "--force", "--quiet"}, words...)...)
	}
	edit(nodes[0], "--set", "loop_wait=3", "--pg", "work_mem=5MB")
	newer := *nodes[0].Member.Plan
	newer.Generation++
	newer.Sites = append([]plan.Site(nil), newer.Sites...)
	newer.Sites[0].Postgres.MaxSlotWALKeep = 2048
	newer.Sites[0].Postgres.Parameters = map[string]string{"idle_in_transaction_session_timeout": "1min"}
	for _, n := range nodes {
		m := *n.Member
		m.Plan, m.Secrets = &newer, map[string]string{}
		for name, secret := range n.Member.Secrets {
			m.Secrets[name] = secret
		}
		m.Secrets["database-app"] = "another secret of app"
		m.Site, _ = newer.Site(m.Self.Site)
		n.Member = &m
		if err := (Configure{}).Apply(t.Context(), n.Node.Node.Node); err != nil {
			t.Fatal(err)
		}
	}
	all(t, nodes...)
	for setting, want := range map[string]string{"max_slot_wal_keep_size": "2GB", "idle_in_transaction_session_timeout": "1min"} {
		got := ""
		for deadline := time.Now().Add(patience); got != want && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
			got = nodes[0].sql(t, "SHOW "+setting)
		}
		if got != want {
			t.Errorf("%s is %s, want %s", setting, got, want)
		}
	}
	config := nodes[0].Output(t, patronictl, "show-config")
	if !strings.Contains(config, "loop_wait: 3\n") || !strings.Contains(config, "work_mem: 5MB\n") {
		t.Errorf("an operator's settings are gone:\n%s", config)
	}
	if _, err := nodes[1].over(t, nodes[0], "app", "another secret of app", "dbname=app"); err != nil {
		t.Errorf("a newer seed's password is not in effect: %v", err)
	}
}

// aCrashIsNoticedAtOnce kills PostgreSQL. Patroni must look because of that, not when
// it would have looked anyway: then it says first that all is well.
func aCrashIsNoticedAtOnce(t *testing.T, primary *running) {
	file := primary.Path("/" + Unit + ".log")
	before, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	pid, _, _ := strings.Cut(primary.Output(t, "cat", dataDir+"/postmaster.pid"), "\n")
	primary.Output(t, "kill", "-9", pid)
	noticed, started := -1, -1
	for deadline := time.Now().Add(patience); started < 0; time.Sleep(200 * time.Millisecond) {
		log, err := os.ReadFile(file)
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("PostgreSQL is not started again: %v\n%s", err, primary.Log(Unit))
		}
		noticed = strings.Index(string(log[before.Size():]), "PostgreSQL has ended (process "+pid+")")
		started = strings.Index(string(log[before.Size():]), "starting primary after failure")
	}
	if noticed < 0 || noticed > started {
		t.Errorf("nobody noticed before Patroni looked by itself:\n%s", primary.Log(Unit))
	}
	primary.healthy(t)
	if got := primary.sql(t, "SELECT pg_is_in_recovery()"); got != "f" {
		t.Errorf("after its crash the primary's pg_is_in_recovery() is %s", got)
	}
}

func foreignDataIsRefused(t *testing.T, n *running) {
	n.StopUnit(Unit)
	if err := n.Hold(Unit); err != nil {
		t.Fatal(err)
	}
	mine := n.Path(dataDir) + ".mine"
	if err := os.Rename(n.Path(dataDir), mine); err != nil {
		t.Fatal(err)
	}
	n.Output(t, "runuser", "-u", user, "--", binDir+"/initdb", "-D", dataDir, "--no-sync")
	before := n.Output(t, "sh", "-c", "find "+dataDir+" -type f -exec md5sum {} + | sort")
	err := n.start.Apply(t.Context(), n.Node.Node.Node)
	if fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), "another database") || !strings.Contains(fault.Mend(err), dataDir) {
		t.Errorf("a foreign database: %v; %s", err, fault.Mend(err))
	}
	if n.Running(Unit) || n.Output(t, "sh", "-c", "find "+dataDir+" -type f -exec md5sum {} + | sort") != before {
		t.Error("Patroni was started, or the data touched")
	}
	// Of an older PostgreSQL.
	n.Put(t, dataDir+"/PG_VERSION", "15\n")
	if err := n.start.Apply(t.Context(), n.Node.Node.Node); fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), "PostgreSQL 15") {
		t.Errorf("data of another version: %v", err)
	}
	// Moved away as advised, the node clones anew by itself.
	if err := os.Rename(n.Path(dataDir), n.Path(dataDir)+".foreign"); err != nil {
		t.Fatal(err)
	}
	all(t, n)
	if got := n.sql(t, "SELECT pg_is_in_recovery()"); got != "t" {
		t.Errorf("cloned anew, pg_is_in_recovery() is %s", got)
	}
}

// anotherLeads stops the leader, and has it come back.
func anotherLeads(t *testing.T, old *running, others ...*running) {
	others[0].healthy(t)
	for _, n := range others {
		n.role(t, "quorum_standby") // else nobody may be promoted
	}
	old.sql(t, "CREATE TABLE acknowledged (n int); INSERT INTO acknowledged VALUES (1)")
	old.StopUnit(Unit)
	begun := time.Now()
	for {
		var c status.Cluster
		err := others[0].start.Observe(t.Context(), others[0].Node.Node.Node, &c)
		if err != nil && c.Database != nil && roles(*c.Database)[leader] == 1 && strings.Contains(err.Error(), old.Member.Self.Name) {
			break
		}
		if time.Since(begun) > patience {
			t.Fatalf("nobody leads: %v, %+v\n%s\n%s\n%s", err, c.Database, old.Log(Unit), others[0].Log(Unit), others[1].Log(Unit))
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Logf("another leads after %.1f s", time.Since(begun).Seconds())
	all(t, old)
	old.healthy(t)
	if got := old.sql(t, "SELECT pg_is_in_recovery(), count(*) FROM acknowledged"); got != "t|1" {
		t.Errorf("the former leader: %s", got)
	}
}

func nothingLogsASecret(t *testing.T, nodes []*running) {
	for _, n := range nodes {
		var forms []string
		for _, secret := range append([]string{restPassword(n.Member), "SCRAM-SHA-256"}, n.Member.Secrets["database-app"], n.Member.Secrets[plan.SuperuserPassword], n.Member.Secrets[plan.RewindPassword], n.Member.Secrets[plan.ReplicationPassword]) {
			forms = append(forms, regexp.QuoteMeta(secret))
		}
		found := regexp.MustCompile(strings.Join(forms, "|"))
		logs, err := filepath.Glob(n.Path("/*.log"))
		if err != nil || len(logs) == 0 {
			t.Fatal("no logs")
		}
		for _, file := range logs {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				if found.MatchString(line) {
					t.Errorf("%s: a secret stands in %s: %s", n.Member.Self.Name, filepath.Base(file), line)
				}
			}
		}
	}
}
