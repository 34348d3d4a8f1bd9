package consensus

import (
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/status"
)

func TestWhoIsToLeadEtcdInsteadOfTheNodeItself(t *testing.T) {
	p := roletest.Plan()
	witness := p.Nodes[2]
	witness.Name, witness.Role = "a-lb1", "balancer"
	withWitness := *p
	withWitness.Nodes = append(p.Nodes[:2:2], witness)
	withWitness.Sites = append(p.Sites[:0:0], p.Sites...)
	withWitness.Sites[0].Consensus = []string{"a-db1", "a-db2", "a-lb1"}
	m, beside := roletest.Members(t, p)["a-db1"], roletest.Members(t, &withWitness)["a-db1"]

	well, leads, ill := status.ConsensusMember{Healthy: true}, status.ConsensusMember{Healthy: true, Leader: true}, status.ConsensusMember{}
	found := func(quorum bool, third string, states ...status.ConsensusMember) *status.Consensus {
		for i, name := range []string{"a-db1", "a-db2", third} {
			states[i].Node = name
		}
		return &status.Consensus{Quorum: quorum, Members: states}
	}
	for _, c := range []struct {
		about string
		got   string
		want  string
	}{
		{"nobody has looked", successor(m, nil), ""},
		{"another leads", successor(m, found(true, "a-db3", well, leads, well)), ""},
		{"it leads", successor(m, found(true, "a-db3", leads, well, well)), "a-db2"},
		{"one is ill", successor(m, found(true, "a-db3", leads, ill, well)), "a-db3"},
		{"there is no quorum", successor(m, found(false, "a-db3", leads, ill, ill)), ""},
		{"it is alone", successor(m, &status.Consensus{Quorum: true, Members: []status.ConsensusMember{{Node: "a-db1", Healthy: true, Leader: true}}}), ""},
		{"one has no database", successor(beside, found(true, "a-lb1", leads, well, well)), "a-lb1"},
		{"the one without a database is ill", successor(beside, found(true, "a-lb1", leads, well, ill)), "a-db2"},
	} {
		if c.got != c.want {
			t.Errorf("%s: %q, not %q", c.about, c.got, c.want)
		}
	}
}

func TestEtcdIsHandedOver(t *testing.T) {
	p := roletest.Plan()
	members := roletest.Members(t, p)
	var nodes []*roletest.Node
	for _, name := range p.Sites[0].Consensus {
		n := roletest.Start(t, members[name])
		if err := (Configure{}).Apply(t.Context(), n.Node.Node); err != nil {
			t.Fatal(err)
		}
		nodes = append(nodes, n)
	}
	startAll(t, nodes...)

	leader := func() (name string, seen *status.Consensus) {
		for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			var c status.Cluster
			if err := (&Start{}).Observe(t.Context(), nodes[0].Node.Node, &c); err != nil {
				continue
			}
			for _, v := range c.Consensus.Members {
				if v.Leader {
					return v.Node, c.Consensus
				}
			}
		}
		t.Fatal("etcd has no leader")
		return "", nil
	}
	was, seen := leader()
	for _, n := range nodes {
		if name := n.Member.Self.Name; name != was {
			if err := HandOver(t.Context(), n.Member, seen); err != nil {
				t.Errorf("%s, which does not lead: %v", name, err)
			}
		}
	}
	to := successor(members[was], seen)
	if now, _ := leader(); now != was || to == "" || to == was {
		t.Fatalf("%s leads, then %s, and %q is to", was, now, to)
	}
	if err := HandOver(t.Context(), members[was], seen); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		if now, _ := leader(); now == to {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("%s leads, not %s", now, to)
		}
	}
}
