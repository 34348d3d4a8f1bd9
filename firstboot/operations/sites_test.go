package operations

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
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

// country is a cluster of two sites, each of one node or more. The agents' API and
// its TLS are real, the databases are played, one for all nodes of a site.
type country struct {
	base    *membertest.Cluster
	cluster *Cluster
	mu      sync.Mutex
	doors   map[string]string // host of the plan → address
	seats   map[string]*seat  // by site
	newest  plan.Signed
	said    []string
	silent  map[string]int // by node, how many more connections fail once plan 2 is there
	busy    map[string]int // by node, how many more plans are not taken
	breaks  string         // where the run is interrupted
	cut     func()         // interrupts it; nil once that has happened
	clash   string         // why a site must not have been promoted
}

type seat struct {
	generation int64
	writes     bool
	standby    bool
	at         uint64        // the end of its log
	done       []string      // actions and looks
	turn       int64         // of the newest plan that took the right to write away
	aside      bool          // fenced, until the other site takes writes
	half       bool          // the primary was stopped to follow, and the agent died
	stopped    uint64        // where the primary stopped
	reign      int64         // the turn by which it had taken writes
	seen       []string      // what is seen of the other site from here
	recalls    []status.Peer // what it last heard of the other site
	mute       bool          // it says nothing of its database
	stops      int           // how many more looks find PostgreSQL running
	clings     int           // how many more looks find the address here, writable or not
}

func settle(t *testing.T, more ...string) *country {
	t.Helper()
	c := &country{base: membertest.New(t), doors: map[string]string{}, silent: map[string]int{}, busy: map[string]int{}, seats: map[string]*seat{
		"a": {generation: 1, at: 100, writes: true}, "b": {generation: 1, at: 100, standby: true},
	}}
	p := &c.base.Plan
	p.Nodes = nil
	p.VIPs = []plan.VIP{{Name: "db", Site: "a", Sites: []string{"a", "b"}, On: plan.OnDatabases, Address: netip.MustParsePrefix("127.0.0.9/8"), RouterID: 51, ReadWrite: 5432}}
	p.Sites = []plan.Site{
		{Name: "a", Scope: "shop-a", Consensus: []string{"a-db1"}, Bootstrap: "a-db1"},
		{Name: "b", Scope: "shop-b", Consensus: []string{"b-db1"}, Bootstrap: "b-db1", StandbyOf: "a"},
	}
	for i, name := range append([]string{"a-db1", "b-db1"}, more...) {
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
	return c
}

func (c *country) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(address)
	c.mu.Lock()
	there := c.doors[host]
	for _, n := range c.base.Plan.Nodes {
		if n.Address.String() == host && c.silent[n.Name] > 0 && c.seats[n.Site].generation > 1 {
			c.silent[n.Name]--
			there = ""
		}
	}
	c.mu.Unlock()
	if there == "" {
		return nil, fmt.Errorf("nobody is at %s", address)
	}
	return (&net.Dialer{}).DialContext(ctx, network, there)
}

// move has a node's agent answer.
func (c *country) move(t *testing.T, n plan.Node) {
	t.Helper()
	w := c.seats[n.Site]
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
		if c.busy[n.Name] > 0 || c.cut != nil && strings.HasPrefix(c.breaks, "plan at ") && c.breaks != "plan at "+n.Site {
			c.busy[n.Name]--
			return errors.New("is busy")
		}
		w.generation = p.Generation
		switch here := p.WritableSite() == n.Site; { // as package database has it
		case here && w.aside:
			w.aside, w.standby = false, true
		case !here && p.Turn > w.turn:
			w.turn, w.aside, w.writes, w.standby = p.Turn, true, false, false
		}
		c.event("plan at " + n.Site)
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
	for _, other := range c.seats {
		if w.aside && other.writes {
			w.aside, w.standby = false, true
		}
	}
	d := &status.Database{Scope: "shop-" + n.Site, SystemID: "7", Standby: w.standby, Paused: w.half}
	role := map[bool]string{true: "leader", false: "standby_leader"}[w.writes]
	if leads := n.Site + "-db1"; w.half {
		d.Demoting = leads
	} else {
		d.Members = []status.DatabaseMember{{Node: leads, Role: role, State: "running", Timeline: 1}}
	}
	if w.mute || w.aside {
		d = nil
	}
	address := status.VIP{Name: "db", Address: "127.0.0.9", Held: w.writes && c.seats["a"].clings == 0 || w.clings > 0}
	if w.clings > 0 && !w.writes {
		w.clings--
	}
	return status.Report{Format: status.Format, State: status.Ready, Cluster: &status.Cluster{
		ID: c.base.Plan.ID, Node: n.Name, Site: n.Site, Generation: w.generation, Expires: c.base.Begins.AddDate(1, 0, 0), Database: d, Peers: w.recalls, VIPs: []status.VIP{address},
	}}
}

// play is something that package database does, played.
func (c *country) play(w *seat, a actions.Action, do func(args json.RawMessage) (any, error)) actions.Action {
	return actions.Action{Name: a.Name, Run: func(_ context.Context, _ *actions.Env, args json.RawMessage) (any, error) {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.event("before " + a.Name) {
			return nil, errors.New("nobody has asked")
		}
		w.done = append(w.done, a.Name+" "+string(args))
		result, err := do(args)
		c.event("after " + a.Name)
		return result, err
	}}
}

// event interrupts the run if that is where it is to be.
func (c *country) event(what string) bool {
	if c.cut == nil || c.breaks != what {
		return false
	}
	c.cut()
	c.cut = nil
	return true
}

func (c *country) actions(w *seat) []actions.Action {
	return []actions.Action{
		c.play(w, database.PromoteSite, func(json.RawMessage) (any, error) {
			for _, n := range c.base.Plan.Nodes {
				if other := c.seats[n.Site]; other != w && (other.writes || other.stops > 0 || c.silent[n.Name] > 0) {
					c.clash = n.Name + " may take writes"
				}
			}
			w.writes, w.standby, w.stopped = true, false, 0
			return database.SwitchoverResult{}, nil
		}),
		c.play(w, database.DemoteSite, func(json.RawMessage) (any, error) {
			w.writes = false
			if c.event("half of demote-site") {
				w.half = true
				return nil, errors.New("the agent has died")
			}
			w.half, w.standby, w.stopped, w.reign = false, true, w.at, c.cluster.Plan.Turn
			return nil, nil
		}),
	}
}

func (c *country) looks(w *seat) []actions.Action {
	return []actions.Action{
		c.play(w, database.Position, func(json.RawMessage) (any, error) {
			result := database.PositionResult{At: lsnText(w.at), Primary: w.writes}
			if w.stopped > 0 {
				result.Stopped, result.Turn = lsnText(w.stopped), w.reign
			}
			return result, nil
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
	for _, n := range c.base.Plan.Nodes {
		if n.Site == site {
			delete(c.doors, n.Address.String())
		}
	}
}

// publish is the administrator's store.
func (c *country) publish(p *plan.Plan) (plan.Signed, error) {
	if p == nil {
		return c.newest, nil
	}
	p.ID, p.Generation = c.base.Plan.ID, c.cluster.Plan.Generation+1
	var err error
	c.newest, err = plan.Sign(p, c.base.Authority.Signer())
	c.mu.Lock()
	defer c.mu.Unlock()
	c.event("after the plan is signed")
	return c.newest, err
}

// run does an operation for somebody who types a word, or "" for a yes.
func (c *country) run(t *testing.T, prepare Prepare, types string) (*Result, error) {
	t.Helper()
	return c.runUntil(t.Context(), prepare, types)
}

func (c *country) runUntil(ctx context.Context, prepare Prepare, types string) (*Result, error) {
	c.said = nil
	r := &Runner{Cluster: c.cluster, Pause: 10 * time.Millisecond, Say: func(line string) { c.said = append(c.said, line) },
		Agree: func(_ context.Context, word string) error {
			if word != types {
				return fault.New(fault.Usage, "nobody agreed to %q", word)
			}
			return nil
		}}
	return r.Run(ctx, prepare)
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

// interrupt runs a planned promotion of site b that is interrupted somewhere.
func (c *country) interrupt(t *testing.T, where string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c.breaks, c.cut = where, cancel
	if _, err := c.runUntil(ctx, c.promote(Promotion{Planned: true}), ""); err == nil || c.cut != nil {
		t.Fatalf("%s: it was not interrupted (%v): %q", where, err, c.said)
	}
}

// again runs something once the action that was interrupted has come to its end.
func (c *country) again(t *testing.T, prepare Prepare) (*Result, error) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		result, err := c.run(t, prepare, "")
		if err == nil || !strings.Contains(err.Error(), " is busy with ") || time.Now().After(deadline) {
			return result, err
		}
	}
}

func TestAPlannedPromotionGoesOnWhereverItWasInterrupted(t *testing.T) {
	for _, where := range []string{
		"before demote-site", "half of demote-site", "after demote-site", "before wal-position", "after wal-position",
		"after the plan is signed", "plan at a", "plan at b", "before promote-site", "after promote-site",
	} {
		c := settle(t)
		c.interrupt(t, where)
		result, err := c.again(t, c.promote(Promotion{Planned: true}))
		if err != nil || !result.Verified || !c.seats["b"].writes || c.seats["a"].writes || !c.seats["a"].standby {
			t.Errorf("interrupted %s, the same command: %v: %q", where, err, c.said)
		}
		if c.cluster.Plan.Generation != 2 || c.clash != "" || !strings.HasSuffix(c.did("b"), `promote-site {"turn":2,"at_least":"0/64"}`) {
			t.Errorf("interrupted %s: plan %d, %s; site b did %s", where, c.cluster.Plan.Generation, c.clash, c.did("b"))
		}
	}
}

func TestAnInterruptedPromotionIsTurnedBack(t *testing.T) {
	for where, generation := range map[string]int64{"after demote-site": 1, "after the plan is signed": 3, "plan at a": 3, "before promote-site": 3} {
		c := settle(t)
		c.interrupt(t, where)
		result, err := c.again(t, PromoteSite(c.cluster, c.publish, Promotion{Site: "a"}))
		if err != nil || !result.Verified || !c.seats["a"].writes || c.seats["b"].writes || c.clash != "" || c.cluster.Plan.Generation != generation {
			t.Errorf("interrupted %s: %v: %q; plan %d, %s", where, err, c.said, c.cluster.Plan.Generation, c.clash)
		}
	}
}

func TestAnInterruptedDemotionGoesOn(t *testing.T) {
	c := settle(t)
	c.seats["a"].writes, c.seats["a"].half = false, true
	if _, err := c.run(t, PromoteSite(c.cluster, c.publish, Promotion{Site: "a"}), ""); err == nil || !strings.Contains(fault.Mend(err), "demote-site a") {
		t.Errorf("a site that is half demoted was promoted: %v", err)
	}
	result, err := c.run(t, DemoteSite(c.cluster, c.publish, "a"), "")
	if err != nil || !result.Verified || !c.seats["a"].standby {
		t.Errorf("%v: %q", err, c.said)
	}
}

func TestThePlanIsOfferedUntilTheSiteHasIt(t *testing.T) {
	c := settle(t)
	c.busy["b-db1"] = 2
	if result, err := c.run(t, c.promote(Promotion{Planned: true}), ""); err != nil || !result.Verified || c.busy["b-db1"] != 0 {
		t.Errorf("%v: %q", err, c.said)
	}
}

func TestASiteIsNotPromotedWhileANodeIsSilentThatHadAnswered(t *testing.T) {
	for _, silent := range [][]string{{"a-db1"}, {"a-db2"}, {"a-db1", "a-db2"}} {
		c := settle(t, "a-db2")
		c.seats["a"].stops = 2
		for _, name := range silent {
			c.silent[name] = 3
		}
		if result, err := c.run(t, c.promote(Promotion{Force: "a"}), "a"); err != nil || !result.Verified || c.clash != "" {
			t.Errorf("%q silent for a while: %v, %s: %q", silent, err, c.clash, c.said)
		}
	}
	c := settle(t, "a-db2")
	delete(c.doors, "127.0.0.3")
	if _, err := c.run(t, c.promote(Promotion{Force: "a"}), "a"); err != nil || !strings.Contains(strings.Join(c.said, "\n"), "the agent of a-db2 does not answer here, so it cannot be fenced") {
		t.Errorf("one that has not answered: %v: %q", err, c.said)
	}
}

func TestTheEndOfALogIsKnownFromAllNodesOrFromTheDemotion(t *testing.T) {
	for _, c := range []struct {
		story   string
		arrange func(a, b *seat)
		silent  string
		wrong   string // "" for an end, which b has
		end     uint64
	}{
		{"all tell", func(*seat, *seat) {}, "", "", 100},
		{"b lacks something", func(_, b *seat) { b.at = 99 }, "", "b-db1 has the log up to 0/63", 0},
		{"a primary is left", func(a, _ *seat) { a.writes = true }, "", "takes writes yet", 0},
		{"the former primary is lost, which may have been alone", func(*seat, *seat) {}, "a-db1", "known only when all of its nodes tell", 0},
		{"it is, where it stopped is noted, and b lacks something", func(a, _ *seat) { a.stopped = 150 }, "a-db1", "it goes on to 0/96", 0},
		{"it is, where it stopped is noted, and b has all", func(a, b *seat) { a.stopped, b.at = 150, 150 }, "a-db1", "", 150},
		{"b itself was demoted in this turn", func(_, b *seat) { b.stopped = 100 }, "a-db1", "", 100},
		{"b itself was demoted in a former turn", func(_, b *seat) { b.stopped, b.reign = 100, -1 }, "a-db1", "known only when all", 0},
	} {
		w := settle(t, "a-db2", "a-db3")
		w.seats["a"].writes, w.seats["a"].standby = false, true
		c.arrange(w.seats["a"], w.seats["b"])
		if n, err := w.base.Plan.Node(c.silent); err == nil {
			delete(w.doors, n.Address.String())
		}
		p := &promotion{Promotion: Promotion{Site: "b", Planned: true}, cluster: w.cluster, publish: w.publish, other: "a", lead: "b-db1"}
		end, err := p.compared(t.Context())
		if c.wrong == "" && (err != nil || end != c.end) || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
			t.Errorf("%s: %s, %v", c.story, lsnText(end), err)
		}
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

func TestWhatASiteLastHeardOfALostOneIsNoSignOfLife(t *testing.T) {
	c := settle(t)
	c.lose("a")
	c.seats["b"].recalls = []status.Peer{{Name: "a-db1", Site: "a", Answers: true}}
	if result, err := c.run(t, c.promote(Promotion{}), ""); err != nil || !result.Verified || !c.seats["b"].writes {
		t.Errorf("%v: %q", err, c.said)
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
