package product

import (
	"context"
	"os"
	"os/exec"
	accounts "os/user"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

// members are the members of a plan; asked twice, they are the same.
func members(t *testing.T, p *plan.Plan) map[string]*member.Member {
	t.Helper()
	if known, ok := membersOf.Load(p); ok {
		return known.(map[string]*member.Member)
	}
	made := roletest.Members(t, p)
	membersOf.Store(p, made)
	return made
}

// database runs PostgreSQL on the database node of a plan.
func database(t *testing.T, p *plan.Plan) *roletest.Node {
	t.Helper()
	n := roletest.Start(t, members(t, p)["a-db1"])
	n.Role = &manifest.Role{Name: "db-master"}
	n.PostgreSQL("app", "secret-of-app")
	return n
}

func sql(t *testing.T, db *roletest.Node, text string) string { return db.SQL("app", text) }

func TestTheProductIsSetUpOnceThoughAllNodesBeginAtOnce(t *testing.T) {
	p, s := site(), &street{}
	db := database(t, p)
	ran := map[string]string{}
	var at sync.Mutex
	start := func(names ...string) (contents map[string]string) {
		t.Helper()
		ctx, end := context.WithCancel(t.Context())
		defer end()
		contents = map[string]string{}
		var all sync.WaitGroup
		for _, name := range names {
			n, played := broker(t, p, name)
			own := s.open(n.Node)
			all.Go(func() {
				if err := (Configure{}).Apply(ctx, n.Node); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				if err := (&Start{Peers: own}).Apply(ctx, n.Node); err != nil {
					t.Errorf("%s: %v", name, err)
					return
				}
				at.Lock()
				defer at.Unlock()
				text, _ := n.Read(settings)
				contents[name] = string(text)
				if text, _ := n.Read("/ran"); len(text) > 0 {
					ran[name] += string(text)
				}
				if n.Held("portal.service") || played.count("start --no-block portal.service") != 1 {
					t.Errorf("%s: its unit does not run: %q", name, played.did)
				}
			})
		}
		all.Wait()
		return contents
	}
	first := start("a-br1", "a-br2", "a-br3")
	if len(ran) != 1 {
		t.Fatalf("set up on %v", ran)
	}
	for name, text := range ran {
		if text != name+" 10.77.1.11 app\n" {
			t.Errorf("it ran as %q", text)
		}
	}
	for name, text := range first {
		if text == "" || text != first["a-br1"] {
			t.Errorf("%s has %q, a-br1 %q", name, text, first["a-br1"])
		}
	}
	// Two are replaced, the one that did it among them, in whatever state their disks are.
	var doer, other string
	for _, name := range []string{"a-br1", "a-br2", "a-br3"} {
		if ran[name] != "" {
			doer = name
		} else {
			other = name
		}
	}
	again := start(doer, other)
	if again[doer] != first["a-br1"] || again[other] != first["a-br1"] {
		t.Errorf("replaced nodes have %q, want %q", again, first["a-br1"])
	}
	if len(ran) != 1 || strings.Count(ran[doer], "\n") != 1 {
		t.Errorf("set up anew: %v", ran)
	}
	if got := sql(t, db, "SELECT role, node, done IS NOT NULL FROM slipway.setup"); got != "broker|"+doer+"|t" {
		t.Errorf("the row says %s", got)
	}
}

func TestASetUpThatWasCutOffIsTakenOverAndItsFormerNodeCannotEndIt(t *testing.T) {
	p := site()
	db := database(t, p)
	guardOf := func(name string) *row {
		n, _ := broker(t, p, name)
		if err := (Configure{}).Apply(t.Context(), n.Node); err != nil {
			t.Fatal(err)
		}
		g, err := dial(n.Node)
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	begin := func(g *row, wantDone bool, wantBy string) {
		t.Helper()
		if done, by, err := g.begin(t.Context()); err != nil || done != wantDone || by != wantBy {
			t.Fatalf("begin: done %v, by %q, %v; want %v, %q", done, by, err, wantDone, wantBy)
		}
	}
	one, two := guardOf("a-br1"), guardOf("a-br2")
	begin(one, false, "a-br1")
	begin(two, false, "a-br1")
	sql(t, db, "UPDATE slipway.setup SET renewed = now() - interval '61 seconds'")
	begin(two, false, "a-br2")
	if err := one.end(t.Context()); err == nil || !strings.Contains(err.Error(), "taken the set-up over") {
		t.Errorf("the former one: %v", err)
	}
	// The same node, after it has started anew, need not wait.
	anew := guardOf("a-br2")
	begin(anew, false, "a-br2")
	if err := anew.end(t.Context()); err != nil {
		t.Fatal(err)
	}
	begin(one, true, "a-br2")
	sql(t, db, "UPDATE slipway.setup SET renewed = now() - interval '1 year'")
	begin(one, true, "a-br2")
}

func TestWithoutADatabaseAProductOfAClusterIsNotSetUp(t *testing.T) {
	p := site()
	p.Databases[0].UsedBy = nil
	n, _ := broker(t, p, "a-br1")
	err := (&Start{Peers: (&street{}).open(n.Node)}).Apply(t.Context(), n.Node)
	if err == nil || !strings.Contains(err.Error(), "the topology has none for it") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(n.Path("/ran")); err == nil {
		t.Error("it ran")
	}
}

// The agent is root, and root's home is nothing that a product's user may look into.
func TestSetUpHasItsUsersHomeAndWhatItIsToldAndNothingOfTheAgents(t *testing.T) {
	who, err := accounts.Lookup("www-data")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", "/root")
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	argv := setupArgv(manifest.Product{User: "www-data", Setup: manifest.Setup{Command: []string{"/usr/bin/env"}}},
		[]Variable{{Name: "PGHOST", Value: "10.77.1.10"}, {Name: "SLIPWAY_PEERS", Value: "br1=10.77.1.31 br2=10.77.1.32"}})
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v\n%s", argv, err, out)
	}
	said := strings.Split(strings.TrimSpace(string(out)), "\n")
	for _, want := range []string{"HOME=" + who.HomeDir, "USER=www-data", "PGHOST=10.77.1.10", "SLIPWAY_PEERS=br1=10.77.1.31 br2=10.77.1.32"} {
		if !slices.Contains(said, want) {
			t.Errorf("%s is not in\n%s", want, out)
		}
	}
	if strings.Contains(string(out), "NOTIFY_SOCKET") {
		t.Errorf("the agent's own environment is in\n%s", out)
	}
}
