package consensus

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions/actionstest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/status"
)

func TestTheWitnesssVoteMovesToADatabaseThatIsAddedAndBack(t *testing.T) {
	// With the third database, and without: then a witness has the third vote.
	with := roletest.Plan()
	with.Sites, with.Nodes = with.Sites[:1], with.Nodes[:3]
	address := netip.MustParseAddr("10.77.1.21")
	with.Nodes = append(with.Nodes, plan.Node{Name: "witness", Role: "balancer", Site: "a", Address: address, Addresses: []netip.Prefix{netip.PrefixFrom(address, 24)}})
	members := roletest.Members(t, with)
	planned := func(n *roletest.Node, generation int64, nodes, votes []string) {
		p := *with
		p.Generation, p.Nodes, p.Sites = generation, nil, []plan.Site{with.Sites[0]}
		for _, name := range nodes {
			p.Nodes = append(p.Nodes, members[name].Self)
		}
		p.Sites[0].Consensus, p.Sites[0].Formed = votes, generation > 1
		m := *n.Member
		m.Plan, m.Site = &p, p.Sites[0]
		n.Member = &m
		if err := (Configure{}).Apply(t.Context(), n.Node.Node); err != nil {
			t.Fatal(err)
		}
	}
	running := map[string]*roletest.Node{}
	born := func(name string) *roletest.Node {
		m := *members[name]
		running[name] = roletest.Start(t, &m)
		return running[name]
	}
	two, three := []string{"a-db1", "a-db2", "witness"}, []string{"a-db1", "a-db2", "a-db3"}
	all := []string{"a-db1", "a-db2", "a-db3", "witness"}
	for _, name := range two {
		planned(born(name), 1, two, two)
	}
	startAll(t, running["a-db1"], running["a-db2"], running["witness"])

	observed := func(n *roletest.Node) (status.Consensus, error) {
		var c status.Cluster
		err := (&Start{}).Observe(t.Context(), n.Node.Node, &c)
		if c.Consensus == nil {
			return status.Consensus{}, err
		}
		return *c.Consensus, err
	}
	until := func(what string, is func() (bool, any)) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
			ok, seen := is()
			if ok {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("not so: %s: %v", what, seen)
			}
		}
	}
	expel := func(name string) {
		t.Helper()
		if _, err := actionstest.Run(t.Context(), Expel, running["a-db1"].Node.Node, ExpelArgs{Node: name, Alive: true}); err != nil {
			t.Fatal(err)
		}
	}
	stops := func(name string) {
		t.Helper()
		until(name+" has stopped its etcd", func() (bool, any) {
			_, err := observed(running[name])
			return err == nil && !running[name].Running(Unit), err
		})
		n := running[name]
		if n.Exists(memberDir(n.Member)) || !n.Exists(memberDir(n.Member)+former) {
			t.Errorf("%s has not set its data aside", name)
		}
	}
	whole := func() {
		t.Helper()
		until("three members vote, and no other", func() (bool, any) {
			c, err := observed(running["a-db1"])
			return err == nil && c.Quorum && len(c.Strangers) == 0, err
		})
	}

	// The third database comes: the plan gives it the vote, and takes the witness's.
	for _, name := range two {
		planned(running[name], 2, all, three)
	}
	if _, err := observed(running["witness"]); err == nil || !strings.Contains(err.Error(), "etcd still counts on this node") || !running["witness"].Running(Unit) {
		t.Errorf("before its vote was taken: %v", err)
	}
	planned(born("a-db3"), 2, all, three)
	late(t, running["a-db3"])
	expel("witness")
	whole()
	stops("witness")

	// And it goes: the witness votes again, with an empty directory.
	for _, name := range all {
		planned(running[name], 3, two, two)
	}
	ctx, stop := context.WithTimeout(t.Context(), 5*time.Minute)
	defer stop()
	if err := (&Start{}).Apply(ctx, running["witness"].Node.Node); err != nil {
		t.Fatalf("%v\n%s", err, running["witness"].Log(Unit))
	}
	expel("a-db3")
	whole()
	stops("a-db3")
	for _, name := range two {
		if _, ok := running[name].Member.Certificates[member.EtcdCert]; !ok || !running[name].Running(Unit) {
			t.Errorf("%s does not vote", name)
		}
	}
}

// late starts a member that reaches nobody at first, as before its network is up: it
// must not begin an etcd of its own.
func late(t *testing.T, n *roletest.Node) {
	t.Helper()
	whole := n.Member
	alone, p := *whole, *whole.Plan
	p.Nodes = slices.Clone(p.Nodes)
	for i := range p.Nodes {
		if p.Nodes[i].Name != whole.Self.Name {
			p.Nodes[i].Address = netip.MustParseAddr("127.0.0.9") // where nobody answers
		}
	}
	alone.Plan, n.Member = &p, &alone
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
	defer stop()
	err := (&Start{}).Apply(ctx, n.Node.Node)
	if !errors.Is(err, context.DeadlineExceeded) || n.Running(Unit) || len(n.Said.Waits) == 0 || !strings.Contains(n.Said.Waits[len(n.Said.Waits)-1], "takes this one in") {
		t.Errorf("%v; running: %t; it waits for %q", err, n.Running(Unit), n.Said.Waits)
	}
	n.Member = whole
	startAll(t, n)
}
