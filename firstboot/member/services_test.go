package member

import (
	"slices"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/plan"
)

func TestEtcdCountsWhereThePlanGivesAVote(t *testing.T) {
	p := &plan.Plan{Sites: []plan.Site{{Name: "a", Consensus: []string{"db1", "db2", "lb1"}}}}
	at := func(name string) *Member { return &Member{Plan: p, Self: plan.Node{Name: name}} }
	for _, c := range []struct {
		node   *Member
		marked []string
		want   []string
	}{
		{nil, []string{"etcd.service", "patroni.service"}, []string{"etcd.service", "patroni.service"}},
		{at("db1"), []string{"etcd.service", "patroni.service"}, []string{"etcd.service", "patroni.service"}},
		{at("db4"), []string{"etcd.service", "patroni.service"}, []string{"patroni.service"}},
		{at("lb1"), []string{"haproxy.service"}, []string{"etcd.service", "haproxy.service"}},
		{at("lb2"), []string{"haproxy.service"}, []string{"haproxy.service"}},
	} {
		if got := c.node.Services(c.marked); !slices.Equal(got, c.want) {
			t.Errorf("%v: %q, want %q", c.marked, got, c.want)
		}
	}
}

func TestPgBackRestCountsWhereItHasSomebodyToSpeakTo(t *testing.T) {
	p := &plan.Plan{Backup: &plan.Backup{Repository: "r1"}, Nodes: []plan.Node{{Name: "db1", Role: "db-master"}, {Name: "lb1", Role: "balancer"}, {Name: "r1", Role: "repository"}, {Name: "r2", Role: "repository"}}}
	at := func(name string) *Member {
		n, err := p.Node(name)
		if err != nil {
			t.Fatal(err)
		}
		return &Member{Plan: p, Self: n}
	}
	for _, c := range []struct {
		node   *Member
		marked []string
		want   []string
	}{
		{nil, []string{"pgbackrest.service"}, []string{}},
		{at("db1"), []string{"patroni.service"}, []string{"patroni.service", "pgbackrest.service"}},
		{at("r1"), []string{"pgbackrest.service"}, []string{"pgbackrest.service"}},
		{at("r2"), []string{"pgbackrest.service"}, []string{}},
		{at("lb1"), []string{"haproxy.service"}, []string{"haproxy.service"}},
	} {
		if got := c.node.Services(c.marked); !slices.Equal(got, c.want) {
			t.Errorf("%v: %q, want %q", c.marked, got, c.want)
		}
	}
}
