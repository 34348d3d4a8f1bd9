package clustertest

import (
	"context"
	"crypto/tls"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
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
	for _, n := range s.plan.Nodes {
		for _, port := range []string{"2379", "2380", "8008", "8404", "80", "443"} {
			if open(n, port) {
				t.Errorf("port %s of %s is open to a computer outside of the cluster", port, n.Name)
			}
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
		name, m := n.Name, s.Node(n.Name)
		if got := strings.TrimSpace(m.Succeed(`find / -xdev \( -path /proc -o -path /sys -o -path /run/slipway-init \) -prune -o -type f -perm /o+r \( -name '*key.pem' -o -name '*.env' -o -name 'seed.json' -o -name 'member.json' \) -print`)); got != "" {
			t.Errorf("%s: everybody may read %s", name, got)
		}
		m.WriteFile("/run/secrets-looked-for", strings.Join(s.allSecrets(), "\n")+"\n")
		m.Succeed("chmod 600 /run/secrets-looked-for")
		for what, command := range map[string]string{
			"the journal":                        "journalctl --boot --no-pager --output cat",
			"the list of processes":              "cat /proc/[0-9]*/cmdline | tr '\\0' ' '",
			"a file that everybody may read":     "find /etc /run /var /tmp /usr/lib/slipway -xdev -type f -perm /o+r ! -name '*.xz' -size -4M -exec cat {} +",
			"what the agent tells on its socket": "firstboot status --json",
		} {
			if got := m.Succeed(command + " | grep -acFf /run/secrets-looked-for || true"); strings.TrimSpace(got) != "0" {
				t.Errorf("%s: %s holds a password (%s lines)", name, what, strings.TrimSpace(got))
			}
		}
		m.Succeed("rm /run/secrets-looked-for")
	}
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
// powered on first.
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
	s.part(t, "the virtual address follows the primary", func(t *testing.T, s *site) {
		before := primary(s.Overview(s.plan, s.admin))
		s.Crash(before)
		o := s.waits("have another primary that holds the virtual address", func(o overview.Overview) bool {
			p := primary(o)
			return p != "" && p != before && holder(o) == p
		})
		s.stillKnows("written to the pair")
		s.remembers("written after " + before + " was lost to " + primary(o))
	})
	s.part(t, "the one that was lost comes back as a replica", func(t *testing.T, s *site) {
		s.StartAll()
		s.becomesWhole()
		s.remembers("written when both were there again")
	})
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
