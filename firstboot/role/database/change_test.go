//go:build long

package database

import (
	"context"
	"encoding/json"
	"maps"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/actions/actionstest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// three boots the nodes of site a and waits until they are a cluster.
func three(t *testing.T) (members map[string]*member.Member, nodes []*running) {
	t.Helper()
	p := roletest.Plan()
	p.Nodes, p.Sites = p.Nodes[:3], p.Sites[:1]
	members = roletest.Members(t, p)
	for _, n := range p.Nodes {
		nodes = append(nodes, boot(t, members[n.Name]))
	}
	all(t, nodes...)
	return members, nodes
}

// act has a node do something, as its agent does.
func (n *running) act(t *testing.T, a actions.Action, args any) (json.RawMessage, error) {
	t.Helper()
	return actionstest.Run(t.Context(), a, n.Node.Node.Node, args)
}

// says waits for something that a query of a node answers.
func (n *running) says(t *testing.T, query, want string) {
	t.Helper()
	got := ""
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if got = n.sql(t, query); got == want {
			return
		}
	}
	t.Fatalf("%s: %s: %q, want %q\n%s", n.Member.Self.Name, query, got, want, n.Log(Unit))
}

// votes are the etcd members as a node knows them.
func (n *running) votes(t *testing.T) status.Consensus {
	t.Helper()
	var c status.Cluster
	(&consensus.Start{}).Observe(t.Context(), n.Node.Node.Node, &c)
	if c.Consensus == nil {
		t.Fatalf("%s says nothing of etcd", n.Member.Self.Name)
	}
	return *c.Consensus
}

const slotOfThird = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'a_db3'"

// leaves has a replica be gone: for good if its disk is.
func (n *running) leaves() {
	n.StopUnit(Unit)
	n.StopUnit(consensus.Unit)
}

func TestAReplicaThatIsGoneLeavesNothingBehindAndAFreshMachineTakesItsNameAndVote(t *testing.T) {
	members, nodes := three(t)
	first, second, third := nodes[0], nodes[1], nodes[2]
	first.sql(t, "CREATE TABLE kept (n int); INSERT INTO kept SELECT generate_series(1, 1000)")
	first.says(t, slotOfThird, "1")

	_, err := second.act(t, consensus.Expel, consensus.ExpelArgs{Node: "a-db3"})
	if err == nil || !strings.Contains(err.Error(), "it is not dead") {
		t.Errorf("a member that answers was taken out: %v", err)
	}
	if _, err := first.act(t, ForgetMember, ForgetArgs{Node: "a-db3"}); err == nil || !strings.Contains(err.Error(), "it is not gone") {
		t.Errorf("a replica that streams was forgotten: %v", err)
	}
	third.leaves()
	for _, want := range []string{`{"changed":true}`, `{"changed":false}`} {
		if got, err := second.act(t, consensus.Expel, consensus.ExpelArgs{Node: "a-db3"}); err != nil || string(got) != want {
			t.Fatalf("taken out of etcd: %s, %v; want %s", got, err, want)
		}
	}
	// Two are left, and both are needed.
	second.StopUnit(consensus.Unit)
	if _, err := first.act(t, consensus.Expel, consensus.ExpelArgs{Node: "a-db2"}); err == nil {
		t.Error("the last but one member of etcd was taken out without a quorum")
	}
	second.StartUnit(consensus.Unit)
	for deadline := time.Now().Add(time.Minute); !second.votes(t).Quorum; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("no quorum of two: %+v", second.votes(t))
		}
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		// Until the second replica streams again, its slot may be needed too.
		got, err := first.act(t, ForgetMember, ForgetArgs{Node: "a-db3"})
		if err == nil && !strings.Contains(string(got), "later") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s, %v", got, err)
		}
	}
	if got := first.sql(t, slotOfThird); got != "0" {
		t.Errorf("slots of the replica that is gone: %s", got)
	}
	if list := first.Output(t, patronictl, "list"); strings.Contains(list, "a-db3") {
		t.Errorf("Patroni still knows it:\n%s", list)
	}
	if config := first.Output(t, patronictl, "show-config"); strings.Contains(config, "member_slots_ttl") {
		t.Errorf("a setting was left behind:\n%s", config)
	}

	// A fresh machine with the same name and address, and certificates of its own.
	third.Vanish()
	fresh := boot(t, members["a-db3"])
	all(t, fresh)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
		c := first.votes(t)
		well := 0
		for _, v := range c.Members {
			if v.Healthy {
				well++
			}
		}
		if well == 3 && len(c.Strangers) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("etcd is not whole: %+v", c)
		}
	}
	fresh.says(t, "SELECT pg_is_in_recovery(), count(*) FROM kept", "t|1000")
	first.says(t, slotOfThird, "1")
	first.healthy(t)
	// It votes: with it and another one alone there is a quorum.
	second.leaves()
	for deadline := time.Now().Add(time.Minute); !fresh.votes(t).Quorum; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the fresh member does not vote: %+v", fresh.votes(t))
		}
	}
}

// writer inserts a row every few milliseconds over one connection as an application
// does, and over a new one with the password of the moment once that has ended.
func writer(ctx context.Context, n, to *running, password func() string) (written func() int, wait func() []string) {
	var mu sync.Mutex
	var count int
	var wrong []string
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			words := n.Inside("chroot", n.Root, "env", "PGPASSWORD="+password(), "PGCONNECT_TIMEOUT=5", binDir+"/psql", "-XqAt", "-v", "ON_ERROR_STOP=1",
				"host="+to.Member.Self.Address.String()+" user=app dbname=app sslmode=verify-full sslrootcert="+pkiDir+"/ca.pem",
				"-c", "INSERT INTO lines DEFAULT VALUES RETURNING 1")
			out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput()
			mu.Lock()
			switch {
			case err == nil:
				count++
			case ctx.Err() == nil:
				wrong = append(wrong, strings.TrimSpace(string(out)))
			}
			mu.Unlock()
		}
	}()
	return func() int { mu.Lock(); defer mu.Unlock(); return count }, func() []string { <-done; return wrong }
}

func TestPasswordsAndCertificatesAreExchangedWhileAWriterRuns(t *testing.T) {
	_, nodes := three(t)
	first, second, third := nodes[0], nodes[1], nodes[2]
	first.says(t, "SELECT count(*) FROM pg_stat_replication", "2")
	if _, err := first.over(t, first, "app", first.Member.Secrets["database-app"], "dbname=app sslmode=verify-full"); err != nil {
		t.Fatal(err)
	}
	app := func(query string) {
		t.Helper()
		if out, err := first.On("env", "PGPASSWORD="+first.Member.Secrets["database-app"], binDir+"/psql", "-XAtc", query,
			"host="+first.Member.Self.Address.String()+" user=app dbname=app sslrootcert="+pkiDir+"/ca.pem"); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
	}
	app("CREATE TABLE lines (n bigserial)")
	started := first.sql(t, "SELECT pg_postmaster_start_time()")
	serial := func(n *running) string {
		t.Helper()
		out, err := n.On("sh", "-c", "openssl s_client -connect "+n.Member.Self.Address.String()+":8008 </dev/null 2>/dev/null | openssl x509 -noout -serial")
		if err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		return strings.ToLower(strings.TrimPrefix(strings.TrimSpace(out), "serial="))
	}

	var mu sync.Mutex
	current := first.Member.Secrets["database-app"]
	ctx, stop := context.WithCancel(t.Context())
	written, wait := writer(ctx, second, first, func() string { mu.Lock(); defer mu.Unlock(); return current })

	changed := maps.Clone(first.Member.Secrets)
	for name := range changed {
		changed[name] = "new " + name
	}
	for i, n := range nodes {
		m := *n.Member
		m.Issue, m.Secrets = 1, changed
		m.Certificates = roletest.Renewed(t, &m)
		n.Member = &m
		if i == 0 { // applications learn the new one when it counts
			mu.Lock()
			current = changed["database-app"]
			mu.Unlock()
		}
		if err := (consensus.Configure{}).Apply(t.Context(), n.Node.Node.Node); err != nil {
			t.Fatal(err)
		}
		if err := (Configure{}).Apply(t.Context(), n.Node.Node.Node); err != nil {
			t.Fatal(err)
		}
		all(t, n)
	}
	// A replica that connects anew gets in with the new password.
	first.sql(t, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication")
	first.says(t, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND backend_start > now() - interval '1 minute'", "2")
	for _, n := range nodes {
		n.healthy(t)
		want := certificate(t, n.Member.Certificates[member.ServiceCert])
		for deadline := time.Now().Add(time.Minute); serial(n) != want; time.Sleep(200 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Errorf("Patroni of %s shows the certificate %s, want %s", n.Member.Self.Name, serial(n), want)
				break
			}
		}
	}
	before := written()
	for deadline := time.Now().Add(30 * time.Second); written() < before+5 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
	}
	stop()
	wrong := wait()
	if written() < before+5 {
		t.Errorf("the writer has stopped: %d lines, then %d", before, written())
	}
	for _, why := range wrong {
		// In the moment of the change, the one who asks may have either password.
		if !strings.Contains(why, "password authentication failed") {
			t.Errorf("the writer: %s", why)
		}
	}
	t.Logf("%d lines written, %d times in with a password of the other moment", written(), len(wrong))
	if got := first.sql(t, "SELECT pg_postmaster_start_time()"); got != started {
		t.Errorf("PostgreSQL was started anew: %s, before %s", got, started)
	}
	if got := third.sql(t, "SELECT status FROM pg_stat_wal_receiver"); got != "streaming" {
		t.Errorf("the third node does not stream in the end: %s", got)
	}
	nothingLogsASecret(t, nodes)
}

// exchanges hands a node passwords, as its agent does.
func (n *running) exchanges(t *testing.T, secrets map[string]string) {
	t.Helper()
	m := *n.Member
	m.Issue, m.Secrets = m.Issue+1, secrets
	n.Member = &m
	if err := (Configure{}).Apply(t.Context(), n.Node.Node.Node); err != nil {
		t.Fatal(err)
	}
}

// furnished waits until a node, as the primary, has seen to the passwords that it has.
func (n *running) furnished(t *testing.T) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(200 * time.Millisecond) {
		var c status.Cluster
		err := n.start.Observe(t.Context(), n.Node.Node.Node, &c)
		if c.Database != nil && c.Database.Furnished != nil && *c.Database.Furnished == n.Member.Issue {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s has not set the passwords of issue %d: %+v, %v\n%s", n.Member.Self.Name, n.Member.Issue, c.Database, err, n.Log(Unit))
		}
	}
}

func TestAFailoverWithinAnExchangeOfPasswordsIsMended(t *testing.T) {
	_, nodes := three(t)
	first := nodes[0]
	first.says(t, "SELECT count(*) FROM pg_stat_replication", "2")
	former := first.Member.Secrets
	changed := maps.Clone(former)
	for name := range changed {
		changed[name] = "new " + name
	}
	in := func(to *running, secrets map[string]string) bool {
		_, err := to.over(t, to, "app", secrets["database-app"], "dbname=app sslmode=verify-full")
		return err == nil
	}
	first.exchanges(t, changed)
	all(t, first)
	first.furnished(t)
	if !in(first, changed) || in(first, former) {
		t.Fatal("the primary has not set the new passwords")
	}

	// It goes before the others have them: who leads now sets its own, the former ones.
	first.StopUnit(Unit)
	var lead, other *running
	for deadline := time.Now().Add(patience); lead == nil; time.Sleep(200 * time.Millisecond) {
		for i, n := range nodes[1:] {
			if out, err := psql(t.Context(), n.Node.Node.Node, "SELECT pg_is_in_recovery()"); err == nil && strings.TrimSpace(out) == "f" {
				lead, other = n, nodes[2-i]
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("nobody leads")
		}
	}
	lead.furnished(t)
	if in(lead, changed) || !in(lead, former) {
		t.Error("the new primary has other passwords than its own")
	}

	// To go on ends it: the one that went streams with the new ones, and so does the last.
	lead.exchanges(t, changed)
	all(t, lead, first)
	lead.furnished(t)
	other.exchanges(t, changed)
	all(t, other)
	lead.sql(t, "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_replication")
	lead.says(t, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND backend_start > now() - interval '1 minute'", "2")

	// Back to the first, which has seen to its passwords once: between its two reigns they
	// were others, and it sees to them again.
	lead.sql(t, "ALTER ROLE app PASSWORD 'of another reign'")
	first.role(t, "quorum_standby")
	if _, err := lead.switchover(t, lead, first); err != nil {
		t.Fatal(err)
	}
	first.furnished(t)
	if !in(first, changed) {
		t.Error("the application does not get in with the new password")
	}
	nothingLogsASecret(t, nodes)
}

func certificate(t *testing.T, p member.Pair) string {
	t.Helper()
	cert, err := pki.ParseCertificate("test", p.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	text := pki.Serial(cert)
	if len(text)%2 == 1 {
		text = "0" + text
	}
	return text
}
