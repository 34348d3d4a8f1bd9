package clustertest

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/drill/faults"
	"github.com/slipwayhq/slipway/qemu-tests/drill/report"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// isAsDocumented asks the programs themselves, not the agent.
func isAsDocumented(t *testing.T, s *site) {
	leader := primary(s.Overview(s.plan, s.admin))
	db := s.Node(leader)
	list := db.Succeed("patronictl list")
	for _, want := range []string{leader, "Leader", "Quorum Standby", "streaming"} {
		if !strings.Contains(list, want) {
			t.Errorf("patronictl list lacks %q:\n%s", want, list)
		}
	}
	for setting, want := range map[string]string{
		"data_checksums": "on", "password_encryption": "scram-sha-256", "ssl": "on", "wal_log_hints": "on", "max_slot_wal_keep_size": "1GB",
	} {
		if got := s.query(s.readWrite(), "show "+setting); got != want {
			t.Errorf("%s is %q, want %q", setting, got, want)
		}
	}
	if got := s.query(s.readWrite(), "select ssl from pg_stat_ssl where pid = pg_backend_pid()"); got != "true" {
		t.Errorf("a client's connection has ssl = %s", got)
	}
	db.Succeed("ls -l /proc/$(systemctl show --value --property MainPID patroni)/fd | grep /dev/watchdog")
	for _, dir := range []string{"/var/lib/postgresql", "/var/lib/etcd"} {
		if got := db.Succeed("findmnt --noheadings --output SOURCE --target " + dir); !strings.Contains(got, "[") {
			t.Errorf("%s is not on the state partition: %s", dir, got)
		}
	}
	if report := db.Succeed("firstboot status"); !strings.Contains(report, leader+" leader TL") {
		t.Errorf("firstboot status says nothing of timelines:\n%s", report)
	}
}

// keepsSecrets looks from outside of the nodes and from inside.
func keepsSecrets(t *testing.T, s *site) {
	open := func(node plan.Node, port string) bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		conn, err := s.Lab().Dial(ctx, net.JoinHostPort(node.Address.String(), port))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}
	var looks sync.WaitGroup
	defer looks.Wait()
	for _, n := range s.plan.Nodes {
		closed := []string{"2379", "2380", "8008", "8404", "80", "443"}
		if plan.DatabaseRole(n.Role) && len(s.plan.HeldBy(n.Name)) == 0 {
			closed = append(closed, "5432") // balancers are the way to it
		}
		for _, port := range closed { // each takes as long as open waits
			looks.Go(func() {
				if open(n, port) {
					t.Errorf("port %s of %s is open to a computer outside of the cluster", port, n.Name)
				}
			})
		}
		conn := s.Dial(net.JoinHostPort(n.Address.String(), "7420"))
		stranger := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
		err := stranger.HandshakeContext(t.Context())
		if err == nil { // TLS 1.3: the server's refusal comes with the first read
			_, err = stranger.Read(make([]byte, 1))
		}
		if err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("the agent of %s answers without a certificate: %v", n.Name, err)
		}
	}
	for _, password := range []string{"", "postgres", "app", "slipway"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		conn, err := s.connect(ctx, s.readWrite(), s.top.Databases[0].Owner, password)
		cancel()
		if err == nil {
			conn.Close(t.Context())
			t.Errorf("the database lets the password %q in", password)
		}
	}
	for _, n := range s.plan.Nodes {
		m := s.Node(n.Name) // fails here, not in a goroutine, if there is none
		looks.Go(func() {
			if err := looksForSecrets(t.Context(), m.Lab(), s.allSecrets()); err != nil {
				t.Errorf("%s: %v", n.Name, err)
			}
		})
	}
}

// looksForSecrets looks in a node wherever somebody without rights might find a
// password: in files that are younger than the machine's id, which is made before
// the agent starts. The list that it looks with is there for everybody to read, and
// has to be found as well.
func looksForSecrets(ctx context.Context, m *lab.Machine, secrets []string) error {
	const list = "/run/secrets-looked-for"
	if err := m.WriteFile(ctx, list, []byte(strings.Join(secrets, "\n")+"\n")); err != nil {
		return err
	}
	found, err := m.Succeed(ctx, `
		chmod 644 `+list+`
		find /etc /var /run /tmp /root /home /opt /srv -type f -perm /o+r -cnewer /etc/machine-id ! -path '/var/log/journal/*' >/run/readable
		grep -E '((key|server|service|rest-[0-9]+|etcd-client|backup)\.pem|\.env|/seed\.json|/member\.json)$' /run/readable | sed 's/$/: everybody may read it/'
		tr '\n' '\0' </run/readable | xargs -0 grep -alFf `+list+` | sed 's/$/: holds a password/'
		holds() { grep -aqFf `+list+` && echo "$1: holds a password"; }
		journalctl --boot --no-pager --output cat | holds 'the journal'
		cat /proc/[0-9]*/cmdline | tr '\0' ' ' | holds 'the list of processes'
		firstboot status --json | holds 'what the agent tells on its socket'
		cat `+list+` | holds 'the list itself'
		rm `+list+` /run/readable`)
	if err != nil {
		return err
	}
	var leaks []string
	planted := map[string]bool{list + ": holds a password": false, "the list itself: holds a password": false}
	for line := range strings.Lines(found) {
		line = strings.TrimSpace(line)
		if _, ours := planted[line]; ours {
			planted[line] = true
		} else {
			leaks = append(leaks, line)
		}
	}
	for line, seen := range planted {
		if !seen {
			leaks = append(leaks, "the look is blind: it does not say "+line)
		}
	}
	if len(leaks) > 0 {
		err = errors.New(strings.Join(leaks, "\n"))
	}
	return err
}

func (s *site) allSecrets() []string {
	var all []string
	for _, secret := range s.secrets {
		all = append(all, secret)
	}
	return all
}

// TestPostgresPair tells the story of examples/postgres-pair: two database nodes
// with the virtual address on them, and a third vote elsewhere. The replica is
// powered on first. In the end the cluster is drilled, as slipway drill does it.
func TestPostgresPair(t *testing.T) {
	s := newSite(t, example(t, "postgres-pair"))

	s.part(t, "the replica comes first and waits with a reason", func(t *testing.T, s *site) {
		s.Start("db2")
		s.waits("say what it waits for", func(o overview.Overview) bool {
			return strings.Contains(waitsOf(o, "db2"), "of 3 members of etcd")
		})
	})
	s.part(t, "the others come and the cluster forms", func(t *testing.T, s *site) {
		s.Start("witness1")
		s.Start("db1")
		o := s.becomesWhole()
		if h, p := holder(o), primary(o); h == "" || h != p {
			t.Errorf("the virtual address is on %q, the primary is %q", h, p)
		}
		s.remembers("written to the pair")
	})
	s.part(t, "the cluster is as its documentation says", isAsDocumented)
	s.part(t, "nobody gets in who must not, and no secret is where it must not be", keepsSecrets)
	s.part(t, "a drill loses nothing, and whoever was hit comes back", func(t *testing.T, s *site) {
		before := primary(s.Overview(s.plan, s.admin))
		hurt, err := faults.Named([]string{"kill-postgres", "power-cut"})
		if err != nil {
			t.Fatal(err)
		}
		result := s.drilled(t, 7, faults.On(s.ground(), hurt))
		if after := primary(s.Overview(s.plan, s.admin)); after == before {
			t.Errorf("%s is the primary again after its power was cut", after)
		}
		if len(result.Picture.Holders) < 2 {
			t.Errorf("the switch has not seen the virtual address move: %v", result.Picture.Holders)
		}
		s.stillKnows("written to the pair")
		s.remembers("written when both were there again")
	})
}

// drilled drills a cluster that is whole: each fault once, and every claim holds.
// The report is kept.
func (s *site) drilled(t *testing.T, seed uint64, hurt []drill.Fault) *drill.Result {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var plans []schedule.Fault
	for _, f := range hurt {
		plans = append(plans, f.Plan())
	}
	rounds, err := schedule.New(s.plan, plans, 1, seed)
	must(err)
	log := logrus.New()
	log.SetOutput(t.Output())
	ground := s.ground()
	clients, done, err := ground.Clients(s.authority, s.password)
	must(err)
	defer done()
	out := labtest.OutDir(t)
	must(os.MkdirAll(out, 0o755))
	history, err := os.Create(filepath.Join(out, "history.jsonl"))
	must(err)
	defer history.Close()
	// Machines have their power for as long as the cluster's context lives, which
	// outlives the part.
	result, err := drill.Run(s.Life(), drill.Config{
		Cluster: s.top.Name, Version: builder.Version, Seed: seed, Schedule: rounds, Faults: hurt,
		Ground: ground, Load: clients, History: history, Recover: formTime, Log: log,
	})
	must(err)
	must(atomicfile.Write(filepath.Join(out, "drill.html"), 0o644, func(f *os.File) error { return report.HTML(f, result) }))
	text := report.Text(result)
	t.Log("\n" + text)
	if !result.Held() || len(result.Rounds) != len(rounds) {
		t.Errorf("the drill found something that did not hold; see %s", out)
	}
	return result
}

// waitsOf are all reasons that a node gives for waiting.
func waitsOf(o overview.Overview, name string) string {
	var reasons []string
	for _, n := range o.Nodes {
		if n.Name != name || n.Report == nil {
			continue
		}
		for _, step := range n.Report.Steps {
			reasons = append(reasons, step.WaitingFor)
		}
	}
	return strings.Join(reasons, "\n")
}
