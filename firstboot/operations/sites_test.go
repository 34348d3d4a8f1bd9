package operations

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// country is a cluster of two sites, each of one node. The agents' API and
// its TLS are real, the databases are played.
type country struct {
	base    *membertest.Cluster
	cluster *Cluster
	mu      sync.Mutex
	doors   map[string]string // host of the plan → address
	seats   map[string]*seat  // by site
	newest  plan.Signed
	said    []string
}

type seat struct {
	generation int64
	writes     bool
	standby    bool
	at         uint64   // the end of its log
	done       []string // actions
	seen       []string // what is seen of the other site from here
	mute       bool     // it says nothing of its database
	stops      int      // how many more looks find PostgreSQL running
	clings     int      // how many more looks find the address here, writable or not
}

func settle(t *testing.T) *country {
	t.Helper()
	c := &country{base: membertest.New(t), doors: map[string]string{}, seats: map[string]*seat{}}
	p := &c.base.Plan
	p.Nodes = nil
	p.VIPs = []plan.VIP{{Name: "db", Site: "a", Sites: []string{"a", "b"}, On: plan.OnDatabases, Address: netip.MustParsePrefix("127.0.0.9/8"), RouterID: 51, ReadWrite: 5432}}
	p.Sites = []plan.Site{
		{Name: "a", Scope: "shop-a", Consensus: []string{"a-db1"}, Bootstrap: "a-db1"},
		{Name: "b", Scope: "shop-b", Consensus: []string{"b-db1"}, Bootstrap: "b-db1", StandbyOf: "a"},
	}
	for i, name := range []string{"a-db1", "b-db1"} {
		at := netip.AddrFrom4([4]byte{127, 0, 0, byte(i + 1)})
		p.Nodes = append(p.Nodes, plan.Node{Name: name, Role: "db-master", Site: name[:1], Address: at, Addresses: []netip.Prefix{netip.PrefixFrom(at, 8)}})
	}
	first := *p
	c.cluster = &Cluster{Plan: &first, Dial: c.dial, TLS: func(right string) (tls.Certificate, *x509.CertPool, error) {
		pair, err := c.base.Authority.IssueAdmin(right, "ann@desk", c.base.Begins)
		if err != nil {
			return tls.Certificate{}, nil, err
		}
		cert, err := pair.TLS("admin")
		return cert, c.base.Authority.Pool(), err
	}}
	c.newest = c.base.Signed(t)
	for _, n := range p.Nodes {
		c.move(t, n)
	}
	c.seats["a"].writes, c.seats["b"].standby = true, true
	return c
}

func (c *country) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(address)
	c.mu.Lock()
	there := c.doors[host]
	c.mu.Unlock()
	if there == "" {
		return nil, fmt.Errorf("nobody is at %s", address)
	}
	return (&net.Dialer{}).DialContext(ctx, network, there)
}

// move has a node's agent answer.
func (c *country) move(t *testing.T, n plan.Node) {
	t.Helper()
	w := &seat{generation: 1, at: 100}
	c.seats[n.Site] = w
	self := &node.Node{Root: t.TempDir(), Member: c.base.Member(t, n.Name)}
	for path, text := range map[string]string{"/etc/machine-id": n.Name + "\n", "/proc/sys/kernel/random/boot_id": "boot\n"} {
		if err := os.MkdirAll(filepath.Dir(self.Path(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(self.Path(path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	service := peers.New(func() status.Report { return c.report(n) }, func(p *plan.Plan, _ plan.Signed) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if w.generation = p.Generation; w.writes && p.WritableSite() != n.Site {
			w.writes, w.standby = false, true // as package database has it
		}
		return nil
	}, &actions.Server{Log: &actions.Log{Path: self.Path(actions.LogPath)}, Actions: c.actions(w), Looks: c.looks(w)})
	// Agents hear of plans from the administrator alone here.
	service.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, fmt.Errorf("no way") }
	service.Listen = func() (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			c.doors[n.Address.String()] = l.Addr().String()
		}
		return l, err
	}
	life, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	if err := (peers.Task{Service: service, Life: life}).Apply(t.Context(), self); err != nil {
		t.Fatal(err)
	}
}

func (c *country) report(n plan.Node) status.Report {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.seats[n.Site]
	d := &status.Database{Scope: "shop-" + n.Site, SystemID: "7", Standby: w.standby}
	role := map[bool]string{true: "leader", false: "standby_leader"}[w.writes]
	d.Members = []status.DatabaseMember{{Node: n.Name, Role: role, State: "running", Timeline: 1}}
	if w.mute {
		d = nil
	}
	address := status.VIP{Name: "db", Address: "127.0.0.9", Held: w.writes && c.seats["a"].clings == 0 || w.clings > 0}
	if w.clings > 0 && !w.writes {
		w.clings--
	}
	return status.Report{Format: status.Format, State: status.Ready, Cluster: &status.Cluster{
		ID: c.base.Plan.ID, Node: n.Name, Site: n.Site, Generation: w.generation, Expires: c.base.Begins.AddDate(1, 0, 0), Database: d, VIPs: []status.VIP{address},
	}}
}

// play is something that package database does, played.
func (c *country) play(w *seat, a actions.Action, do func(args json.RawMessage) (any, error)) actions.Action {
	return actions.Action{Name: a.Name, Run: func(_ context.Context, _ *actions.Env, args json.RawMessage) (any, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		w.done = append(w.done, a.Name+" "+string(args))
		return do(args)
	}}
}

func (c *country) actions(w *seat) []actions.Action {
	return []actions.Action{
		c.play(w, database.PromoteSite, func(json.RawMessage) (any, error) {
			w.writes, w.standby = true, false
			return database.SwitchoverResult{}, nil
		}),
		c.play(w, database.DemoteSite, func(json.RawMessage) (any, error) {
			w.writes, w.standby = false, true
			return nil, nil
		}),
	}
}

func (c *country) looks(w *seat) []actions.Action {
	return []actions.Action{
		c.play(w, database.Position, func(json.RawMessage) (any, error) {
			return database.PositionResult{At: lsnText(w.at)}, nil
		}),
		c.play(w, database.ProbeSite, func(json.RawMessage) (any, error) {
			found := database.ProbeSiteResult{Answers: w.seen}
			if w.stops > 0 {
				w.stops--
				found.Databases = []string{"a-db1"}
			}
			return found, nil
		}),
	}
}

// lose has a site fall silent.
func (c *country) lose(site string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.doors, map[string]string{"a": "127.0.0.1", "b": "127.0.0.2"}[site])
}

// publish is the administrator's store.
func (c *country) publish(p *plan.Plan) (plan.Signed, error) {
	if p == nil {
		return c.newest, nil
	}
	p.ID, p.Generation = c.base.Plan.ID, c.cluster.Plan.Generation+1
	var err error
	c.newest, err = plan.Sign(p, c.base.Authority.Signer())
	return c.newest, err
}

// run does an operation for somebody who types a word, or "" for a yes.
func (c *country) run(t *testing.T, prepare Prepare, types string) (*Result, error) {
	t.Helper()
	c.said = nil
	r := &Runner{Cluster: c.cluster, Pause: 10 * time.Millisecond, Say: func(line string) { c.said = append(c.said, line) },
		Agree: func(_ context.Context, word string) error {
			if word != types {
				return fault.New(fault.Usage, "nobody agreed to %q", word)
			}
			return nil
		}}
	return r.Run(t.Context(), prepare)
}

func (c *country) promote(o Promotion) Prepare {
	o.Site = "b"
	return PromoteSite(c.cluster, c.publish, o)
}

func (c *country) did(site string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.seats[site].done, "; ")
}

func TestASiteSwitchoverComparesTheLogsFirst(t *testing.T) {
	c := settle(t)
	result, err := c.run(t, c.promote(Promotion{Planned: true}), "")
	if err != nil || !result.Verified {
		t.Fatalf("%v: %q", err, c.said)
	}
	if got := c.did("a"); got != `demote-site {"to":"b"}; wal-position {}` {
		t.Errorf("site a did %s", got)
	}
	if got := c.did("b"); got != `wal-position {}; promote-site {"turn":2,"at_least":"0/64"}` {
		t.Errorf("site b did %s", got)
	}
	if p := c.cluster.Plan; p.WritableSite() != "b" || p.Generation != 2 || c.seats["a"].generation != 2 || c.seats["b"].generation != 2 {
		t.Errorf("the plan of generation %d has site %s take the writes", p.Generation, p.WritableSite())
	}
	if c.cluster.Plan.Apart != 0 {
		t.Errorf("both sites took part, and they count as apart (%d)", c.cluster.Plan.Apart)
	}
	before := c.did("b")
	if result, err = c.run(t, c.promote(Promotion{Planned: true}), "nobody is asked"); err != nil || !result.Verified || c.did("b") != before {
		t.Errorf("a second time: %v, %q", err, c.said)
	}
}

func TestAPromotionEndsOnceTheAddressIsThere(t *testing.T) {
	c := settle(t)
	c.seats["a"].clings = 40
	result, err := c.run(t, c.promote(Promotion{Planned: true}), "")
	if err != nil || !result.Verified || c.seats["a"].clings != 0 {
		t.Errorf("%v: site a would have kept the address for %d more looks; %q", err, c.seats["a"].clings, c.said)
	}
	if said := strings.Join(c.said, "\n"); !strings.Contains(said, "the virtual address db is on a-db1") {
		t.Errorf("nobody said where it still is: %s", said)
	}
}

func TestASiteThatLacksSomethingIsNotPromoted(t *testing.T) {
	c := settle(t)
	c.seats["b"].at = 99
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := &promotion{Promotion: Promotion{Site: "b", Planned: true}, cluster: c.cluster, publish: c.publish, other: "a", lead: "b-db1"}
	ended := make(chan error)
	go func() { ended <- p.compare(ctx, func(string) {}) }()
	for deadline := time.Now().Add(time.Minute); strings.Count(c.did("b"), "wal-position") < 2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the logs are not compared")
		}
	}
	cancel()
	if err := <-ended; err == nil || p.atLeast != "" {
		t.Errorf("%v, %q", err, p.atLeast)
	}
}

func TestASiteIsNotPromotedWhileTheOtherShowsAnySignOfLife(t *testing.T) {
	for name, arrange := range map[string]func(c *country){
		"the agent of a-db1 answers here":                    func(*country) {},
		"PostgreSQL of a-db1 (127.0.0.1:5432) answers b-db1": func(c *country) { c.lose("a"); c.seats["b"].seen = []string{"PostgreSQL of a-db1 (127.0.0.1:5432)"} },
	} {
		c := settle(t)
		arrange(c)
		_, err := c.run(t, c.promote(Promotion{}), "")
		if fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), name) || !strings.Contains(fault.Mend(err), "--force-site a") {
			t.Errorf("%s: %v", name, err)
		}
		// A yes is not the site's name, and neither is another site's.
		if _, err := c.run(t, c.promote(Promotion{Ask: true}), ""); fault.Of(err) != fault.Usage || !strings.Contains(err.Error(), `"a"`) {
			t.Errorf("%s: a yes: %v", name, err)
		}
		if _, err := c.run(t, c.promote(Promotion{Force: "A"}), "A"); fault.Of(err) != fault.Usage {
			t.Errorf("%s: another name: %v", name, err)
		}
		if c.seats["b"].writes || strings.Contains(c.did("b"), "promote-site") || c.cluster.Plan.Generation != 1 {
			t.Errorf("%s: something was done: %s", name, c.did("b"))
		}
	}
}

func TestADryRunOfAPromotionOnlyLooks(t *testing.T) {
	for name, arrange := range map[string]func(c *country) Promotion{
		"a site that is lost":  func(c *country) Promotion { c.lose("a"); return Promotion{} },
		"a site that is alive": func(*country) Promotion { return Promotion{Force: "a"} },
		"a planned switch":     func(*country) Promotion { return Promotion{Planned: true} },
	} {
		c := settle(t)
		issue := c.cluster.TLS
		c.cluster.TLS = func(right string) (tls.Certificate, *x509.CertPool, error) {
			if right != pki.AdminRead {
				t.Errorf("%s: a dry run took the right %q", name, right)
			}
			return issue(right)
		}
		if _, err := (&Runner{Cluster: c.cluster, DryRun: true, Say: func(string) {}}).Run(t.Context(), c.promote(arrange(c))); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestALostSiteIsReplaced(t *testing.T) {
	c := settle(t)
	c.lose("a")
	result, err := c.run(t, c.promote(Promotion{}), "")
	if err != nil || !result.Verified {
		t.Fatalf("%v: %q", err, c.said)
	}
	if got := c.did("b"); got != `probe-site {"site":"a"}; promote-site {"turn":2}` {
		t.Errorf("site b did %s", got)
	}
	if c.cluster.Plan.Apart != 1 {
		t.Errorf("site a may not have heard of it, and %d promotions count as such", c.cluster.Plan.Apart)
	}
	if c.seats["a"].generation != 1 || !slices.ContainsFunc(c.said, func(s string) bool { return strings.Contains(s, "keep it off") }) {
		t.Errorf("site a has plan %d; said %q", c.seats["a"].generation, c.said)
	}
}

func TestASiteThatIsAliveIsFencedBeforeItIsGivenUp(t *testing.T) {
	c := settle(t)
	result, err := c.run(t, c.promote(Promotion{Force: "a"}), "a")
	if err != nil || !result.Verified {
		t.Fatalf("%v: %q", err, c.said)
	}
	var steps []string
	for _, s := range result.Steps {
		steps = append(steps, string(s.Outcome))
	}
	if len(steps) != 3 || !strings.Contains(result.Steps[1].What, "fenced itself") || slices.ContainsFunc(steps, func(s string) bool { return s != "done" }) {
		t.Errorf("%+v", result.Steps)
	}
	if c.seats["a"].writes || !c.seats["b"].writes || !strings.Contains(strings.Join(c.said, "\n"), "SITE a IS ALIVE") {
		t.Errorf("a writes: %v, b writes: %v, said %q", c.seats["a"].writes, c.seats["b"].writes, c.said)
	}
}

func TestASiteThatSaysNothingOfItsDatabaseIsAskedWhetherItRuns(t *testing.T) {
	c := settle(t)
	c.seats["a"].mute, c.seats["a"].stops = true, 2
	if _, err := c.run(t, c.promote(Promotion{Force: "a"}), "a"); err != nil {
		t.Fatalf("%v: %q", err, c.said)
	}
	if got := strings.Count(c.did("a"), "probe-site"); got != 3 || !c.seats["b"].writes {
		t.Errorf("site a was asked %d times, though PostgreSQL was found running twice; b writes: %v", got, c.seats["b"].writes)
	}
}

func TestAnInterruptedPromotionGoesOn(t *testing.T) {
	c := settle(t)
	c.lose("a")
	p := &promotion{Promotion: Promotion{Site: "b"}, cluster: c.cluster, publish: c.publish, other: "a"}
	if err := p.announce(t.Context(), func(string) {}); err != nil {
		t.Fatal(err)
	}
	if c.seats["b"].writes {
		t.Fatal("a plan alone made a site take writes")
	}
	result, err := c.run(t, c.promote(Promotion{}), "")
	if err != nil || !result.Verified || result.Steps[0].Outcome != Already || c.cluster.Plan.Generation != 2 || !c.seats["b"].writes {
		t.Errorf("%v: %+v, plan %d", err, result, c.cluster.Plan.Generation)
	}
}

func TestADemotedSiteCanTakeTheWritesAgain(t *testing.T) {
	c := settle(t)
	if _, err := c.run(t, DemoteSite(c.cluster, c.publish, "a"), ""); err != nil {
		t.Fatal(err)
	}
	if c.seats["a"].writes || c.cluster.Plan.WritableSite() != "a" {
		t.Errorf("a writes: %v; by the plan site %s does", c.seats["a"].writes, c.cluster.Plan.WritableSite())
	}
	o, err := c.cluster.Look(t.Context())
	if err != nil || strings.Join(o.Contradictions, "; ") != "no site takes writes; by the plan site a does; virtual address db (127.0.0.9) is on no node" {
		t.Errorf("%q, %v", o.Contradictions, err)
	}
	result, err := c.run(t, PromoteSite(c.cluster, c.publish, Promotion{Site: "a"}), "")
	if err != nil || !result.Verified || !c.seats["a"].writes || c.cluster.Plan.Generation != 1 {
		t.Errorf("%v: %q, plan %d", err, c.said, c.cluster.Plan.Generation)
	}
	// Where the plan has another site take the writes, its nodes only need the plan.
	next := *c.cluster.Plan
	next.Sites = slices.Clone(next.Sites)
	if err := next.Promote("b", 2); err != nil {
		t.Fatal(err)
	}
	if _, err := c.publish(&next); err != nil {
		t.Fatal(err)
	}
	c.cluster.Plan, c.seats["b"].writes, c.seats["b"].standby = &next, true, false
	o, err = c.cluster.Look(t.Context())
	if err != nil || !strings.Contains(strings.Join(o.Contradictions, "\n"), "SITES a AND b BOTH TAKE WRITES") || !strings.Contains(o.Text(time.Now(), status.Plain), "Writes: site a (primary a-db1) AND site b (primary b-db1)") {
		t.Errorf("%q, %v", o.Contradictions, err)
	}
	if _, err := c.run(t, DemoteSite(c.cluster, c.publish, "a"), ""); err != nil || c.seats["a"].writes || c.seats["a"].generation != 2 {
		t.Errorf("%v: a writes: %v, plan %d", err, c.seats["a"].writes, c.seats["a"].generation)
	}
}

func TestPromotionNeedsTwoSites(t *testing.T) {
	c := settle(t)
	for _, site := range []string{"x", ""} {
		if _, err := c.run(t, PromoteSite(c.cluster, c.publish, Promotion{Site: site}), ""); err == nil {
			t.Errorf("site %q was promoted", site)
		}
	}
	c.cluster.Plan.Sites, c.cluster.Plan.Nodes = c.cluster.Plan.Sites[:1], c.cluster.Plan.Nodes[:1]
	if _, err := c.run(t, PromoteSite(c.cluster, c.publish, Promotion{Site: "a"}), ""); fault.Of(err) != fault.Usage {
		t.Error(err)
	}
}
