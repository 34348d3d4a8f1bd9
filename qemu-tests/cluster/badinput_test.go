package clustertest

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// oneDatabase is a cluster of one database node, which needs nobody else.
const oneDatabase = `slipway: 1
name: alone
domain: lab.example.internal
networks:
  lan: {subnet: 10.77.1.0/24, gateway: 10.77.1.1}
dns: {servers: [10.77.1.1], search: [lab.example.internal]}
ntp: [10.77.1.1]
users:
  - {name: ops, keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED ops@example.org]}
nodes:
  - {name: db1, role: db-master, nics: [{network: lan, address: 10.77.1.11}]}
`

const (
	theNode = "db1"
	pgBin   = "/usr/lib/postgresql/17/bin/"
	pgData  = "/var/lib/postgresql/17/main"
)

// given is one node of a cluster that is handed bad input.
type given struct {
	*labtest.Cluster
}

func (g given) in(t *testing.T) given { return given{g.Cluster.In(t)} }

func (g given) node() *labtest.Machine { g.Helper(); return g.Node(theNode) }

// until waits for a report that will do.
func (g given) until(what string, will func(*status.Report) bool) *status.Report {
	g.Helper()
	for deadline := time.Now().Add(readyTime); ; {
		r := g.Report(theNode)
		if will(r) {
			return r
		}
		if time.Now().After(deadline) {
			g.Fatalf("never %s; the last report was:\n%s", what, r.Text(time.Now(), status.Plain))
		}
		time.Sleep(time.Second)
	}
}

// says is the step of a report that says something, as an error or as what it
// waits for.
func says(r *status.Report, step string, texts ...string) bool {
	return slices.ContainsFunc(r.Steps, func(s status.Step) bool {
		said := s.WaitingFor
		if s.State == status.Broken {
			said = s.Error
		}
		return s.Name == step && !slices.ContainsFunc(texts, func(text string) bool { return !strings.Contains(said, text) })
	})
}

// consoles waits until the screen and the serial line tell something, too: they
// are drawn after the report is written.
func (g given) consoles(text string) {
	g.Helper()
	g.node().WaitForScreen(1, text)
	g.node().WaitForConsole(strings.ReplaceAll(regexp.QuoteMeta(text), " ", `\s+`))
}

// nothingRuns checks that no service of the role was started.
func (g given) nothingRuns() {
	g.Helper()
	g.node().MustFail("systemctl is-active etcd.service patroni.service")
}

// sql asks the database on the node itself.
func (g given) sql(query string) string {
	g.Helper()
	return strings.TrimSpace(g.node().Succeed("runuser -u postgres -- " + pgBin + `psql -XAtq -h /run/postgresql -d postgres -c "` + query + `"`))
}

// system is the identifier of the database in a data directory.
func (g given) system(dir string) string {
	g.Helper()
	out := g.node().Succeed(pgBin + "pg_controldata -D " + dir + " | sed -n 's/^Database system identifier: *//p'")
	return strings.TrimSpace(out)
}

// whose is what must stay as it is, whatever the node is handed.
type whose struct{ System, Row, Started string }

func (g given) whose() whose {
	g.Helper()
	return whose{g.system(pgData), g.sql("SELECT what FROM kept"), g.sql("SELECT pg_postmaster_start_time()")}
}

// seedOf writes the seed of the node as an administrator does at some time.
func seedOf(t *testing.T, text, store string, now time.Time) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "cluster.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	top, err := topology.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	v, err := vault.Open(store, vault.Options{Cluster: top.Name, Create: true, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if _, err := seeding.Write(t.Context(), top, v, dir, seeding.Options{Formats: []seeding.Format{seeding.NoCloud}, All: true}); err != nil {
		t.Fatal(err)
	}
	return lab.Seed(dir, theNode)
}

// torn is a copy of a seed that ends in the middle of the node's block.
func torn(t *testing.T, iso string) (dir string) {
	t.Helper()
	content, err := os.ReadFile(iso)
	if err != nil {
		t.Fatal(err)
	}
	const sector = 2048
	begins, ends := bytes.Index(content, []byte("slipway:\n")), bytes.LastIndex(content, []byte("END PRIVATE KEY"))
	if begins < 0 || ends-begins < 2*sector {
		t.Fatalf("the block is at %d to %d", begins, ends)
	}
	dir = t.TempDir()
	if err := os.WriteFile(lab.Seed(dir, theNode), content[:(begins+ends)/2/sector*sector], 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestBadInputIsRefusedWithItsReasonAndMendedInputTakenUp hands a node one bad
// thing after the other. It is started twice: the first time with a hardware
// clock of 2001, the second time with one that is ten years ahead, and both times
// without a network, so that no time server answers until the story wants it.
func TestBadInputIsRefusedWithItsReasonAndMendedInputTakenUp(t *testing.T) {
	store := filepath.Join(t.TempDir(), "store")
	expired := seedOf(t, oneDatabase, store, time.Now().AddDate(-5, 0, 0))
	right := seedOf(t, oneDatabase, store, time.Now()) // with new certificates
	foreign := seedOf(t, strings.NewReplacer("name: alone", "name: other", "10.77.1.11", "10.77.1.99").Replace(oneDatabase),
		filepath.Join(t.TempDir(), "other"), time.Now())

	top, err := topology.Load(filepath.Join(filepath.Dir(right), "cluster.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	g := given{labtest.NewCluster(t, lab.ClusterConfig{
		Topology: top, Images: filepath.Dir(images.Path(t, "db-master", "qcow2")), Seeds: torn(t, right),
	})}
	g.SetClock(theNode, time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC))
	g.Block(theNode)
	g.Start(theNode)
	g.node().WaitForGuest()

	part := func(name string, tell func(given)) {
		t.Helper()
		if !t.Run(name, func(t *testing.T) { tell(g.in(t)) }) {
			t.FailNow() // the story goes on from there
		}
	}
	part("a truncated ISO", func(g given) {
		g.until("refusing the seed", func(r *status.Report) bool {
			return r.State == status.Failed && says(r, "datasource", "NoCloud (/dev/sr0): meta-data") && says(r, "role", "held back until there is metadata")
		})
		g.consoles("NoCloud (/dev/sr0): meta-data")
		g.nothingRuns()
		g.node().MustFail("find " + pgData + " /var/lib/etcd -mindepth 1 | grep .")
	})
	part("expired certificates", func(g given) {
		g.InsertSeed(theNode, expired)
		ended := "expired on " + time.Now().AddDate(-3, 0, 0).UTC().Format("2006-01")
		g.until("refusing certificates that have expired", func(r *status.Report) bool {
			return r.State == status.Failed && says(r, "membership", "the certificate of db1", ended, "write its seed anew") && says(r, "time", ended)
		})
		g.consoles(ended)
		g.nothingRuns()
	})
	part("a clock years behind", func(g given) {
		g.InsertSeed(theNode, right)
		g.until("waiting for the time", func(r *status.Report) bool {
			return r.State == status.Converging && says(r, "time", "time from NTP servers", "which is before", "the certificate of db1")
		})
		g.consoles("which is before")
		g.nothingRuns()
	})
	part("the right seed and the right time", func(g given) {
		g.Unblock(theNode)
		g.WaitUntilReady(readyTime, theNode)
		g.sql("CREATE TABLE kept AS SELECT 'the row' AS what")
	})
	before := g.whose()
	part("a seed of another cluster", func(g given) {
		// What is in use is read again at the next boot, or when asked for.
		g.InsertSeed(theNode, foreign)
		g.node().Succeed("systemctl reload slipway-firstboot.service")
		refusal := "the seed is for node db1 of cluster other, but this machine is node db1 of cluster alone"
		refused := func(w node.Warning) bool { return w.Serious && strings.Contains(w.Message, refusal) }
		g.until("refusing the seed", func(r *status.Report) bool {
			return r.State == status.Degraded && slices.ContainsFunc(r.Warnings, refused)
		})
		g.consoles(refusal)
		g.node().MustFail("ip -4 address | grep 10.77.1.99")
		if now := g.whose(); now != before {
			g.Errorf("it is %+v; was %+v", now, before)
		}
		g.InsertSeed(theNode, right)
		g.WaitUntilReady(readyTime, theNode)
		if now := g.whose(); now != before {
			g.Errorf("with its own seed it is %+v; was %+v", now, before)
		}
	})
	part("a clock years ahead", func(g given) {
		g.node().Succeed("systemctl stop patroni.service && cd /var/lib/postgresql/17 && mv main own && " +
			"runuser -u postgres -- " + pgBin + "initdb --no-sync --encoding=UTF8 --locale=C.UTF-8 main")
		g.Shutdown(readyTime, theNode)
		g.SetClock(theNode, time.Now().AddDate(10, 0, 0))
		g.Block(theNode)
		g.Start(theNode)
		g.node().WaitForGuest()
		g.until("waiting for the time", func(r *status.Report) bool {
			return r.State == status.Failed && says(r, "membership", "expired on") && says(r, "time", "time from NTP servers", "expired on")
		})
		g.consoles("expired on")
		g.nothingRuns()
		g.Unblock(theNode)
	})
	part("a foreign data directory", func(g given) {
		other := g.system(pgData)
		if other == before.System {
			g.Fatalf("both databases are %s", other)
		}
		refusal := "holds another database (system identifier " + other + ") than this cluster's (" + before.System + ")"
		g.until("refusing the data", func(r *status.Report) bool {
			return r.State == status.Failed && says(r, "database", refusal, "nothing was changed")
		})
		g.consoles("another database (system identifier " + other)
		g.node().MustFail("systemctl is-active patroni.service")
		if now := g.system(pgData); now != other {
			g.Errorf("%s is database %s now; was %s", pgData, now, other)
		}
		g.node().Succeed("cd /var/lib/postgresql/17 && mv main other && mv own main")
		g.WaitUntilReady(readyTime, theNode)
		if now := g.whose(); now.System != before.System || now.Row != before.Row {
			g.Errorf("it is %+v; was %+v", now, before)
		}
	})
}
