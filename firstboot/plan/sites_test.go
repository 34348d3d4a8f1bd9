package plan

import (
	"net/netip"
	"testing"
)

// three are three sites: b replicates a, c replicates b, d has no database.
func three() *Plan {
	p := &Plan{Format: Format, Cluster: "shop", Generation: 4, Sites: []Site{{Name: "a"}, {Name: "b", StandbyOf: "a"}, {Name: "c", StandbyOf: "b"}, {Name: "d"}}}
	for _, s := range []string{"a", "b", "c"} {
		p.Nodes = append(p.Nodes, Node{Name: s + "-db1", Role: "db-master", Site: s, Address: netip.MustParseAddr("192.0.2.1")})
	}
	return p
}

func follows(p *Plan) map[string]string {
	out := map[string]string{}
	for _, s := range p.Sites {
		out[s.Name] = s.StandbyOf
	}
	return out
}

func TestPromotingASiteTurnsTheOthers(t *testing.T) {
	for site, want := range map[string]map[string]string{
		"b": {"a": "b", "b": "", "c": "b", "d": ""},
		"c": {"a": "c", "b": "c", "c": "", "d": ""},
		"a": {"a": "", "b": "a", "c": "b", "d": ""},
	} {
		p := three()
		if err := p.Promote(site, 5); err != nil {
			t.Fatal(err)
		}
		if got := follows(p); got["a"] != want["a"] || got["b"] != want["b"] || got["c"] != want["c"] || got["d"] != want["d"] {
			t.Errorf("%s promoted: %v, want %v", site, got, want)
		}
		if p.WritableSite() != site || p.Writable != site || p.Turn != 5 {
			t.Errorf("%s promoted: %q takes writes, Writable %q, Turn %d", site, p.WritableSite(), p.Writable, p.Turn)
		}
	}
	for _, site := range []string{"d", "e"} {
		if err := three().Promote(site, 5); err == nil {
			t.Errorf("site %s was promoted", site)
		}
	}
}

func TestThereAndBackIsWhereItBegan(t *testing.T) {
	p := three()
	p.Sites = p.Sites[:2]
	for turn, site := range []string{"b", "a"} {
		if err := p.Promote(site, int64(turn)+5); err != nil {
			t.Fatal(err)
		}
	}
	if got := follows(p); got["a"] != "" || got["b"] != "a" || p.Turn != 6 {
		t.Errorf("%v, turn %d", got, p.Turn)
	}
}

func TestAChangedTopologyDoesNotChangeWhoTakesWrites(t *testing.T) {
	last := three()
	last.Apart = 2
	if err := last.Promote("b", 5); err != nil {
		t.Fatal(err)
	}
	next := three()
	next.Nodes = append(next.Nodes, Node{Name: "a-db2", Role: "db-replica", Site: "a"})
	if err := next.Keep(last); err != nil || next.WritableSite() != "b" || next.Turn != 5 || next.Apart != 2 {
		t.Errorf("%v; site %q takes writes, turn %d, %d apart", err, next.WritableSite(), next.Turn, next.Apart)
	}
	if err := next.Keep(nil); err != nil {
		t.Error(err)
	}
	// The site is gone: what the topology says counts again.
	last.Writable = "z"
	next = three()
	if err := next.Keep(last); err != nil || next.WritableSite() != "a" || next.Turn != 0 {
		t.Errorf("%v; site %q takes writes, turn %d", err, next.WritableSite(), next.Turn)
	}
}

func TestAnAddressThatMovesBelongsWhereTheWritesAre(t *testing.T) {
	p := three()
	p.Nodes = append(p.Nodes, Node{Name: "a-lb1", Role: "balancer", Site: "a"}, Node{Name: "b-lb1", Role: "balancer", Site: "b"})
	stays := VIP{Name: "a", Site: "a", On: OnBalancers}
	moves := VIP{Name: "both", Site: "a", Sites: []string{"a", "b"}, On: OnDatabases}
	p.VIPs = []VIP{stays, moves}
	held := func() (out string) {
		for _, v := range p.VIPs {
			out += v.Name + " at " + p.SiteOf(v) + ":"
			for _, n := range p.Holders(v) {
				out += " " + n.Name
			}
			out += "; "
		}
		return out
	}
	if got := held(); got != "a at a: a-lb1; both at a: a-db1 b-db1; " {
		t.Error(got)
	}
	if err := p.Promote("b", 5); err != nil {
		t.Fatal(err)
	}
	if got := held(); got != "a at a: a-lb1; both at b: a-db1 b-db1; " {
		t.Error(got)
	}
	// Of a site that it does not move to, it goes nowhere.
	if err := p.Promote("c", 6); err != nil {
		t.Fatal(err)
	}
	if got := p.SiteOf(moves); got != "a" {
		t.Error(got)
	}
	if len(p.HeldBy("b-lb1")) != 0 || len(p.HeldBy("b-db1")) != 1 {
		t.Errorf("b-lb1 holds %v, b-db1 %v", p.HeldBy("b-lb1"), p.HeldBy("b-db1"))
	}
}
