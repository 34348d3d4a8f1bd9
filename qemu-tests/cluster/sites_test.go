//go:build long

package clustertest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// twoSites is examples/postgres-ha with as few machines as its rules need, an
// address of the database at site b as well, and one on a network that reaches over both.
const twoSites = `slipway: 1
name: two-sites
domain: example.internal
networks:
  site-a: {subnet: 10.77.1.0/24, gateway: 10.77.1.1}
  site-b: {subnet: 10.77.2.0/24, gateway: 10.77.2.1}
  both: {subnet: 10.77.3.0/24}
sites:
  a: {}
  b: {standby_of: a}
dns: {servers: [10.77.1.1, 10.77.2.1], search: [example.internal]}
ntp: [10.77.1.1, 10.77.2.1]
clients: [10.77.0.0/16]
users:
  - {name: ops, keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED ops@example.org]}
vips:
  - {name: database-a, site: a, address: 10.77.1.10, on: balancers, router_id: 51}
  - {name: database-b, site: b, address: 10.77.2.10, on: databases, router_id: 52}
  - {name: database, sites: [a, b], address: 10.77.3.10, on: databases, router_id: 53}
databases:
  - {name: app, owner: app}
roles: {database: {patroni: ` + emulated + `}}
nodes:
  - {name: a-db1, role: db-master, site: a, nics: [{network: site-a, address: 10.77.1.11, mac: "52:54:00:77:01:11"}, {network: both, address: 10.77.3.11, mac: "52:54:00:77:03:11"}], size: {cpus: 1, memory: 1GiB}}
  - {name: a-lb1, role: balancer, site: a, nics: [{network: site-a, address: 10.77.1.21}], size: {cpus: 1, memory: 768MiB}}
  - {name: b-db1, role: db-master, site: b, nics: [{network: site-b, address: 10.77.2.11, mac: "52:54:00:77:02:11"}, {network: both, address: 10.77.3.12, mac: "52:54:00:77:03:12"}], size: {cpus: 1, memory: 1GiB}}
`

// sites is a user with a cluster of two sites.
type sites struct {
	*user
	secret string // of the application's role
}

func (s sites) part(name string, tell func(s sites)) {
	s.Helper()
	begun := time.Now()
	if !s.Run(name, func(t *testing.T) { tell(sites{&user{T: t, dir: s.dir, program: s.program}, s.secret}) }) {
		s.keepJournals()
		s.FailNow()
	}
	s.Logf("%s: %.0f s", name, time.Since(begun).Seconds())
}

// keepTime bounds the taking of evidence from a cluster that may hang.
const keepTime = 2 * time.Minute

// keepJournals keeps what the cluster and its nodes tell of themselves.
func (s sites) keepJournals() {
	s.Helper()
	s.prints("status.txt", "status", "cluster.yaml")
	for _, n := range s.on() {
		s.prints(n+".journal", "ssh", "cluster.yaml", n, "--", "sudo journalctl --no-pager --lines 3000 --unit patroni --unit etcd --unit slipway-firstboot --unit keepalived --unit haproxy")
	}
}

// prints keeps what a command prints.
func (s sites) prints(name string, args ...string) {
	s.Helper()
	dir := labtest.OutDir(s)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Error(err)
		return
	}
	file, err := os.Create(filepath.Join(dir, name))
	if err != nil {
		s.Error(err)
		return
	}
	defer file.Close()
	cmd := s.command(args...)
	cmd.Stdout, cmd.Stderr = file, file
	if err := cmd.Start(); err != nil {
		s.Error(err)
		return
	}
	defer time.AfterFunc(keepTime, func() { cmd.Process.Kill() }).Stop()
	err = cmd.Wait()
	s.Logf("kept %s (%v)", file.Name(), err)
}

// onceTime bounds one question of a client.
const onceTime = time.Minute

// once asks the database at a virtual address, as a client on this computer does.
func (s sites) once(address, query string) (string, error) {
	s.Helper()
	for _, f := range s.state().Forwards {
		if f.Name != address || f.Service != daemon.ReadWrite {
			continue
		}
		host, port, _ := strings.Cut(f.Host, ":")
		limited, cancel := context.WithTimeout(s.Context(), onceTime)
		defer cancel()
		cmd := exec.CommandContext(limited, "psql", "-XqtA", "-v", "ON_ERROR_STOP=1", "-c", query,
			fmt.Sprintf("host=%s port=%s sslmode=verify-ca sslrootcert=%s user=app dbname=app connect_timeout=20", host, port, s.place().Authority()))
		cmd.Env = append(os.Environ(), "PGPASSWORD="+s.secret)
		out, err := cmd.CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	s.Fatalf("the lab has no port for %s", address)
	return "", nil
}

// sql asks until it is answered. An answer may be lost: what it asks has to come out the
// same a second time.
func (s sites) sql(address, query string) string {
	s.Helper()
	for deadline := time.Now().Add(readyTime); ; time.Sleep(askAgain) {
		out, err := s.once(address, query)
		if err == nil {
			return out
		}
		if time.Now().After(deadline) {
			_, text, _ := s.call("status", "cluster.yaml")
			s.Fatalf("%s at %s: %s\n%s", query, address, out, text)
		}
	}
}

// adds has the database at an address take a line.
func (s sites) adds(address, line string) {
	s.Helper()
	s.sql(address, fmt.Sprintf("insert into lines values ('%s') on conflict do nothing", line))
}

const allLines = "select string_agg(line, ', ' order by line) from lines"

// recovers has a node's own database be a standby, by its first answer.
func (s sites) recovers(node string) {
	s.Helper()
	for deadline := time.Now().Add(readyTime); ; time.Sleep(askAgain) {
		code, out, said := s.call("ssh", "cluster.yaml", node, "--", `sudo runuser -u postgres -- psql -XqtA -d app -c "select pg_is_in_recovery()"`)
		if code == 0 {
			if got := strings.TrimSpace(out); got != "t" {
				s.Errorf("%s is in recovery: %q", node, got)
			}
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("the database of %s does not answer: %s%s", node, out, said)
		}
	}
}

// replicates waits until a node's database holds these lines.
func (s sites) replicates(node, want string) {
	s.Helper()
	s.becomes(want, node, fmt.Sprintf(`sudo runuser -u postgres -- psql -XqtA -d app -c "%s"`, allLines))
}

// becomes waits until a command on a node prints this.
func (s sites) becomes(want, node, command string) {
	s.Helper()
	got, said := "", ""
	for deadline := time.Now().Add(readyTime); time.Now().Before(deadline); time.Sleep(askAgain) {
		var out string
		_, out, said = s.call("ssh", "cluster.yaml", node, "--", command)
		if got = strings.TrimSpace(out); got == want {
			return
		}
	}
	s.Fatalf("%s says %q, want %q: %s", node, got, want, said)
}

// order has something happen to the power of nodes.
func (s sites) order(action daemon.Action, nodes ...string) {
	s.Helper()
	if _, err := daemon.NewClient(s.place()).Order(s.Context(), daemon.Order{Action: action, Nodes: nodes}); err != nil {
		s.Fatal(err)
	}
}

// waits looks at the cluster until it is as wanted. At no look do two sites take writes.
func (s sites) waits(what string, want func(o overview.Overview, code int) bool) overview.Overview {
	s.Helper()
	for deadline := time.Now().Add(formTime); ; time.Sleep(askAgain) {
		code, out, said := s.call("status", "cluster.yaml", "--json")
		var o overview.Overview
		if err := json.Unmarshal([]byte(out), &o); err != nil {
			s.Fatalf("status: %v\n%s%s", err, out, said)
		}
		if len(o.Writable) > 1 {
			s.Fatalf("sites %v both take writes: %q", o.Writable, o.Contradictions)
		}
		if want(o, code) {
			return o
		}
		if time.Now().After(deadline) {
			_, text, _ := s.call("status", "cluster.yaml")
			s.Fatalf("the cluster did not %s within %v:\n%s", what, formTime, text)
		}
	}
}

// tells waits until the status has all of these words.
func (s sites) tells(words ...string) {
	s.Helper()
	for deadline := time.Now().Add(readyTime); ; time.Sleep(askAgain) {
		_, text, _ := s.call("status", "cluster.yaml")
		lacks := func(word string) bool { return !strings.Contains(text, word) }
		if !slices.ContainsFunc(words, lacks) {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("the status lacks one of %q:\n%s", words, text)
		}
	}
}

// becomesWhole waits until all is well and a site takes the writes.
func (s sites) becomesWhole(writable string) {
	s.Helper()
	s.waits("be whole", func(o overview.Overview, code int) bool {
		return code == 0 && len(o.Contradictions) == 0 && len(o.Writable) == 1 && o.Writable[0] == writable
	})
}

// standsBy reports whether a node leads a site that is a standby.
func standsBy(o overview.Overview, node string) bool {
	w := o.Word(node)
	return w != nil && w.Database != nil && w.Database.Standby && w.Database.Leader() == node
}

// neverPrimary makes sure that a node has taken no writes since it got its power, not for
// a moment: by Patroni's words (ha.py), and by the agent's for a start on its own.
func (s sites) neverPrimary(node string) {
	s.Helper()
	got := s.ssh(node, `sudo journalctl --boot --no-pager --output cat --unit patroni --unit slipway-firstboot | { grep -E "promoted self to leader|acquired session lock as a leader|the leader with the lock|started without a word from another site" || true; }`)
	if got != "" {
		s.Errorf("%s took writes:\n%s", node, got)
	}
	// What finds nothing has something to look through.
	s.says(s.ssh(node, "sudo journalctl --boot --no-pager --output cat --unit patroni"), "standby leader")
	s.says(s.ssh(node, "sudo journalctl --boot --no-pager --output cat --unit slipway-firstboot"), "kept data aside that site b may lack")
}

// refuses has a site's address take no writes, whatever it answers.
func (s sites) refuses(address string) {
	s.Helper()
	if out, err := s.once(address, "insert into lines values ('nobody may write this')"); err == nil {
		s.Errorf("%s took a write: %s", address, out)
	}
}

// TestSitesSwitchOver tells the story of a site that is lost, through the command.
func TestSitesSwitchOver(t *testing.T) {
	s := sites{user: newUser(t)}
	s.write("cluster.yaml", twoSites)
	s.shareImages(images.Path(t, "balancer", "qcow2"))
	s.endLabs()
	s.runs("up", "cluster.yaml", "--images", "images", "--timeout", formTime.String())
	s.secret = strings.TrimSpace(s.runs("secret", "show", "cluster.yaml", "database-app", "--store", string(s.place().Store())))

	s.part("both sites are well, and site a takes the writes", func(s sites) {
		s.becomesWhole("a")
		s.sql("database-a", "create table if not exists lines (line text primary key)")
		s.adds("database", "1 at both")
		s.replicates("b-db1", "1 at both")
		s.refuses("database-b")
		s.recovers("b-db1")
	})
	s.part("a site that is alive is not given up by a yes", func(s sites) {
		said := s.fails(9, "promote-site", "b", "cluster.yaml", "--yes")
		s.says(said, "site a is not known to be lost")
		s.says(said, "the agent of a-db1 answers here")
		s.says(said, "--planned")
		s.says(s.fails(2, "promote-site", "b", "cluster.yaml", "--yes", "--force-site", "b"), "nothing was done")
		s.becomesWhole("a")
	})
	s.part("site a loses its power with a line that site b has not got", func(s sites) {
		if _, err := daemon.NewClient(s.place()).Inject(s.Context(), "isolation", []string{"b-db1"}); err != nil {
			s.Fatal(err)
		}
		s.adds("database-a", "2 at site a alone")
		s.order(daemon.Crash, "a-db1", "a-lb1")
		if _, err := daemon.NewClient(s.place()).Heal(s.Context()); err != nil {
			s.Fatal(err)
		}
		s.waits("tell of site b", func(o overview.Overview, _ int) bool { return standsBy(o, "b-db1") && len(o.Writable) == 0 })
		s.refuses("database-b") // nobody has decided anything yet
		s.refuses("database")
		s.recovers("b-db1")
	})
	s.part("site b is promoted, and clients find the database there", func(s sites) {
		begun := time.Now()
		said := s.runs("promote-site", "b", "cluster.yaml", "--yes")
		s.says(said, "What it acknowledged and had not sent yet is missing afterwards")
		s.adds("database", "3 at site b") // where site a was found before
		s.Logf("from the decision to the first line: %.0f s", time.Since(begun).Seconds())
		if got := s.sql("database-b", allLines); got != "1 at both, 3 at site b" {
			t.Errorf("site b has %q", got)
		}
		// A client that knows both addresses needs no hand.
		s.becomes("10.77.2.10", "b-db1", "PGPASSWORD="+s.secret+` psql -XqtA "host=10.77.1.10,10.77.2.10 port=5432 user=app dbname=app sslmode=require connect_timeout=60 target_session_attrs=read-write" -c 'select inet_server_addr()'`)
	})
	s.part("site a comes back, takes no writes and follows without a hand", func(s sites) {
		s.order(daemon.Start, "a-db1", "a-lb1")
		s.waits("have site a follow", func(o overview.Overview, _ int) bool {
			s.refuses("database-a")
			if got, err := s.once("database", allLines); err == nil && got != "1 at both, 3 at site b" {
				s.Fatalf("the address over both sites leads to %q", got)
			}
			return standsBy(o, "a-db1")
		})
		s.replicates("a-db1", "1 at both, 3 at site b")
		s.recovers("a-db1")
		s.neverPrimary("a-db1")
		aside := strings.Fields(s.ssh("a-db1", "sudo sh -c 'ls -d /var/lib/postgresql/17/main.diverged-*'"))
		if len(aside) != 1 {
			s.Fatalf("kept aside: %q", aside)
		}
		s.tells(aside[0], "Writes: site b (primary b-db1)")
		kept := s.ssh("a-db1", fmt.Sprintf(`sudo sh -c 'rm -f %[1]s/standby.signal; echo "select line from lines" | runuser -u postgres -- /usr/lib/postgresql/17/bin/postgres --single -D %[1]s app 2>&1'`, aside[0]))
		s.says(kept, `"2 at site a alone"`)
		if strings.Contains(kept, "3 at site b") {
			s.Errorf("what was kept aside holds a line of site b:\n%s", kept)
		}
		s.ssh("a-db1", "sudo rm -r "+aside[0])
		s.becomesWhole("b")
	})
	s.part("site b is demoted and site a promoted, with nothing lost", func(s sites) {
		s.says(s.runs("demote-site", "b", "cluster.yaml", "--yes"), "no site takes writes afterwards")
		s.refuses("database-b")
		s.recovers("b-db1")
		s.waits("have both sites stand by", func(o overview.Overview, _ int) bool {
			return standsBy(o, "a-db1") && standsBy(o, "b-db1") && len(o.Writable) == 0
		})
		s.runs("promote-site", "a", "cluster.yaml", "--yes")
		s.adds("database", "4 at site a again")
		if got := s.sql("database-a", allLines); got != "1 at both, 3 at site b, 4 at site a again" {
			s.Errorf("site a has %q", got)
		}
		s.becomesWhole("a")
		s.replicates("b-db1", "1 at both, 3 at site b, 4 at site a again")
		if got := s.ssh("b-db1", "sudo sh -c 'ls /var/lib/postgresql/17'"); strings.Contains(got, "diverged") {
			s.Errorf("site b has put something aside where nothing was to be lost: %s", got)
		}
		s.refuses("database-b")
		s.recovers("b-db1")
	})
}
