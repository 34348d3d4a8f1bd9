package steps

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
)

// joins is a node with a membership step whose clock the test sets.
func joins(t *testing.T) (*nodetest.Node, *Membership, *time.Time) {
	t.Helper()
	n := nodetest.Start(t)
	n.Put(t, "/etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	now := time.Now()
	return n, &Membership{Store: member.NewStore(n.Path(member.Dir)), Now: func() time.Time { return now }}, &now
}

// hands gives the node a seed with a block and applies the step.
func hands(t *testing.T, n *nodetest.Node, s *Membership, block string) error {
	t.Helper()
	n.Said.Reset()
	n.Seed = &node.Seed{Slipway: block}
	return s.Apply(t.Context(), n.Node)
}

func heldUnits(n *nodetest.Node) (names []string) {
	for _, unit := range held {
		if n.Held(unit) {
			names = append(names, unit)
		}
	}
	return names
}

func TestANodeThatStandsAloneHoldsNothingBack(t *testing.T) {
	n, s, _ := joins(t)
	if err := hands(t, n, s, ""); err != nil || n.Member != nil || len(heldUnits(n)) != 0 {
		t.Errorf("%v, member %v, held %q", err, n.Member, heldUnits(n))
	}
}

func TestANodeWithoutMetadataStartsNothingThatAClusterWouldNotKnow(t *testing.T) {
	n, s, _ := joins(t)
	n.Seed = nil
	if err := s.Apply(t.Context(), n.Node); err != nil || !slices.Equal(heldUnits(n), held) {
		t.Errorf("before: %v, held %q", err, heldUnits(n))
	}
	if err := hands(t, n, s, ""); err != nil || len(heldUnits(n)) != 0 {
		t.Errorf("after: %v, held %q", err, heldUnits(n))
	}
}

func TestANodeWhoseMetadataComeByTheNetworkHoldsItsUnitsUntilThen(t *testing.T) {
	n, s, _ := joins(t)
	unknown := true
	s.Unknown = func() bool { return unknown }
	if err := hands(t, n, s, ""); err != nil || !slices.Equal(heldUnits(n), held) {
		t.Errorf("before: %v, held %q", err, heldUnits(n))
	}
	unknown = false
	if err := hands(t, n, s, ""); err != nil || len(heldUnits(n)) != 0 {
		t.Errorf("after: %v, held %q", err, heldUnits(n))
	}
}

func TestAMemberIsKeptAndItsUnitsAreHeldBack(t *testing.T) {
	n, s, _ := joins(t)
	c := membertest.New(t)
	if err := hands(t, n, s, membertest.Text(t, c.Block(t, "a-db1"))); err != nil {
		t.Fatal(err)
	}
	if n.Member == nil || n.Member.Self.Name != "a-db1" || !slices.Equal(heldUnits(n), held) {
		t.Errorf("member %+v, held %q", n.Member, heldUnits(n))
	}
	info, err := os.Stat(n.Path(member.Dir) + "/member.json")
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("member.json: %v, %v", info, err)
	}
	if info, err = os.Stat(n.Path(member.Dir)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("%s: %v, %v", member.Dir, info, err)
	}
	// The seed's CD may go, and with it the block.
	if err := hands(t, n, s, ""); err != nil || n.Member == nil || n.Member.Self.Name != "a-db1" || !n.Said.Warned("stays a-db1 of cluster shop") {
		t.Errorf("without a block: %v, member %v, warnings %v", err, n.Member, n.Said.Warnings)
	}
}

func TestANodeNeverBecomesAnother(t *testing.T) {
	c, namesake := membertest.New(t), membertest.New(t)
	for what, block := range map[string]string{
		"another node":    membertest.Text(t, c.Block(t, "a-db2")),
		"another cluster": membertest.Text(t, namesake.Block(t, "a-db1")),
	} {
		n, s, _ := joins(t)
		if err := hands(t, n, s, membertest.Text(t, c.Block(t, "a-db1"))); err != nil {
			t.Fatal(err)
		}
		before := n.File(t, member.Dir+"/member.json")
		err := hands(t, n, s, block)
		if err == nil || !strings.Contains(err.Error(), "but this machine is node a-db1 of cluster shop") || !strings.Contains(err.Error(), "remove "+member.Dir) {
			t.Errorf("%s: %v", what, err)
		}
		if what == "another cluster" && !strings.Contains(err.Error(), "another cluster of that name") {
			t.Errorf("%s: %v", what, err)
		}
		if n.Member == nil || n.Member.Self.Name != "a-db1" || n.Member.Plan.ID != c.Plan.ID {
			t.Errorf("%s: the node is now %+v", what, n.Member)
		}
		if n.File(t, member.Dir+"/member.json") != before {
			t.Errorf("%s: what the node kept has changed", what)
		}
		if !slices.Equal(heldUnits(n), held) {
			t.Errorf("%s: held %q", what, heldUnits(n))
		}
		// Whoever means it takes the directory away.
		if err := os.RemoveAll(n.Path(member.Dir)); err != nil {
			t.Fatal(err)
		}
		if err := hands(t, n, s, block); err != nil || n.Member == nil {
			t.Errorf("%s, after the node forgot: %v", what, err)
		}
	}
}

func TestABrokenBlockLeavesTheNodeWhatItWas(t *testing.T) {
	n, s, _ := joins(t)
	c := membertest.New(t)
	if err := hands(t, n, s, "format: 1\n"); err == nil || n.Member != nil || !slices.Equal(heldUnits(n), held) {
		t.Errorf("at first: %v, member %v, held %q", err, n.Member, heldUnits(n))
	}
	if err := hands(t, n, s, membertest.Text(t, c.Block(t, "a-db1"))); err != nil {
		t.Fatal(err)
	}
	if err := hands(t, n, s, "format: 1\n"); err == nil || !strings.Contains(err.Error(), "the former one is") || n.Member == nil {
		t.Errorf("later: %v, member %v", err, n.Member)
	}
}

func TestTheNewestPlanCounts(t *testing.T) {
	n, s, _ := joins(t)
	c := membertest.New(t)
	first := membertest.Text(t, c.Block(t, "a-db1"))
	if err := hands(t, n, s, first); err != nil {
		t.Fatal(err)
	}
	c.Plan.Generation = 3
	if err := s.Store.SavePlan(&c.Plan, c.Signed(t)); err != nil {
		t.Fatal(err)
	}
	if err := hands(t, n, s, first); err != nil || n.Member.Plan.Generation != 3 {
		t.Errorf("an older seed: %v, generation %d", err, n.Member.Plan.Generation)
	}
	c.Plan.Generation = 5
	if err := hands(t, n, s, membertest.Text(t, c.Block(t, "a-db1"))); err != nil || n.Member.Plan.Generation != 5 {
		t.Errorf("a newer seed: %v, generation %d", err, n.Member.Plan.Generation)
	}
	c.Plan.Generation, c.Plan.Nodes = 6, c.Plan.Nodes[1:]
	c.Plan.Sites[0].Consensus = []string{"a-db2"}
	if err := s.Store.SavePlan(&c.Plan, c.Signed(t)); err != nil {
		t.Fatal(err)
	}
	if err := hands(t, n, s, first); err != nil || n.Member.Plan.Generation != 5 || n.Member.Removed != 6 {
		t.Errorf("a plan without this node: %v, generation %d, removed %d", err, n.Member.Plan.Generation, n.Member.Removed)
	}
	// What somebody did to the file with the plan does not count.
	kept, err := s.Store.Load()
	if err != nil {
		t.Fatal(err)
	}
	kept.Without.Signature[8] ^= 1
	if err := s.Store.Save(*kept); err != nil {
		t.Fatal(err)
	}
	if err := hands(t, n, s, first); err == nil || n.Member == nil || n.Member.Removed != 0 {
		t.Errorf("a plan that is not signed: %v", err)
	}
}

func TestAWrongClockIsWaitedFor(t *testing.T) {
	n, s, now := joins(t)
	c := membertest.New(t)
	right := *now
	*now = time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)
	if err := hands(t, n, s, membertest.Text(t, c.Block(t, "a-db1"))); err != nil || n.Member != nil || s.Untimely == nil || !slices.Equal(heldUnits(n), held) {
		t.Fatalf("in 2001: %v, member %v, held %q", err, n.Member, heldUnits(n))
	}
	if s.timely(n.Node) {
		t.Error("2001 is taken for the right time")
	}
	*now = right
	if !s.timely(n.Node) {
		t.Error("the right time is not noticed")
	}
	*now = right.AddDate(5, 0, 0)
	if err := hands(t, n, s, n.Seed.Slipway); err == nil || !strings.Contains(err.Error(), "expired on") || s.Untimely == nil {
		t.Errorf("five years later: %v", err)
	}
}

func TestDamageToWhatIsKeptIsToldAndTheSeedCounts(t *testing.T) {
	n, s, _ := joins(t)
	n.Put(t, member.Dir+"/member.json", "{")
	c := membertest.New(t)
	err := hands(t, n, s, membertest.Text(t, c.Block(t, "a-db1")))
	if err == nil || !strings.Contains(err.Error(), "damaged") || n.Member == nil {
		t.Errorf("%v, member %v", err, n.Member)
	}
	if err := hands(t, n, s, n.Seed.Slipway); err != nil {
		t.Errorf("the second time: %v", err)
	}
}

func TestTheFirewallKnowsTheClusterAndItsClients(t *testing.T) {
	n := nodetest.Start(t,
		manifest.Port{Port: "8008", Proto: "tcp", From: "cluster", Why: "Patroni"},
		manifest.Port{Port: "15672", Proto: "tcp", From: "clients", Why: "for tests"})
	policy, err := os.ReadFile("../../overlays/base/usr/lib/slipway/nftables.conf")
	if err != nil {
		t.Fatal(err)
	}
	n.Put(t, policyPath, string(policy))
	c := membertest.New(t)
	list := func(set string) string {
		t.Helper()
		return n.Output(t, "nft", "list", "set", "inet", "slipway", set)
	}
	n.Member = c.Member(t, "a-lb1")
	apply(t, n, Firewall{})
	for set, wants := range map[string][]string{
		"peers4": {"127.0.0.1-127.0.0.3"}, "clients4": {"198.51.100.0/24"}, "clients6": {"2001:db8:1::/64"},
		"tcp_any": {"7420"}, "tcp_cluster": {"5432-5433", "8008"}, "tcp_clients": {"5432-5433", "15672"},
	} {
		for _, want := range wants {
			if rules := list(set); !strings.Contains(rules, want) {
				t.Errorf("%s lacks %s:\n%s", set, want, rules)
			}
		}
	}
	// A database node has no virtual address here, so clients have no way to it.
	n.Member = c.Member(t, "a-db1")
	apply(t, n, Firewall{})
	if rules := list("tcp_clients"); strings.Contains(rules, "5432") {
		t.Errorf("clients reach the database directly:\n%s", rules)
	}
	// A node that joins later is let in.
	joined := c.Plan.Nodes[2]
	joined.Name, joined.Address, joined.Addresses = "a-lb2", joined.Address.Next().Next(), nil
	c.Plan.Nodes = append(c.Plan.Nodes, joined)
	n.Member = c.Member(t, "a-db1")
	apply(t, n, Firewall{})
	if rules := list("peers4"); !strings.Contains(rules, "127.0.0.5") {
		t.Errorf("the new node is kept out:\n%s", rules)
	}
}

func FuzzKept(f *testing.F) {
	f.Add([]byte(`{"format":1,"id":"a","cluster":"shop","node":"a-db1","machine":"m","block":"format: 1","plan":{"plan":"e30=","signature":""}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/member.json", data, 0o600); err != nil {
			t.Fatal(err)
		}
		if k, err := member.NewStore(dir).Load(); err == nil && k == nil {
			t.Error("neither kept nor damaged")
		}
	})
}
