// Package membertest makes small clusters for tests: real authorities and
// certificates, a signed plan, and each node's block.
package membertest

import (
	"net/netip"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// Cluster is a cluster to hand out blocks of.
type Cluster struct {
	Plan      plan.Plan
	Authority *pki.Authority
	Etcd      *pki.Authority
	Begins    time.Time // of the certificates; valid from an hour before
}

// New makes a cluster of one site whose nodes are a-db1, a-db2, a-lb1 at
// 127.0.0.1, .2 and .3.
func New(t testing.TB) *Cluster {
	t.Helper()
	return Since(t, time.Now())
}

// Since is New with certificates that were made at a given time.
func Since(t testing.TB, begins time.Time) *Cluster {
	t.Helper()
	c := &Cluster{Begins: begins}
	var err error
	c.Authority, err = pki.NewAuthority(pki.ClusterAuthority, "shop", begins)
	must(t, err)
	c.Etcd, err = pki.NewAuthority(pki.EtcdAuthority, "shop", begins)
	must(t, err)
	node := func(name, role string, last byte) plan.Node {
		address := netip.AddrFrom4([4]byte{127, 0, 0, last})
		return plan.Node{Name: name, Role: role, Site: "a", Address: address, Addresses: []netip.Prefix{netip.PrefixFrom(address, 8)}}
	}
	c.Plan = plan.Plan{
		Format: plan.Format, Cluster: "shop", ID: pki.ID(c.Authority.Cert), Generation: 1, Domain: "example.internal",
		Sites: []plan.Site{{Name: "a", Scope: "shop-a", Consensus: []string{"a-db1", "a-db2", "a-lb1"}, Bootstrap: "a-db1", Postgres: plan.Postgres{Port: 5432}}},
		Nodes: []plan.Node{node("a-db1", "db-master", 1), node("a-db2", "db-replica", 2), node("a-lb1", "balancer", 3)},
		VIPs: []plan.VIP{{
			Name: "db", Site: "a", Address: netip.MustParsePrefix("127.0.0.10/8"), On: plan.OnBalancers, RouterID: 10, ReadWrite: 5432, ReadOnly: 5433,
		}},
		Clients: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:1::/64")},
	}
	return c
}

// Signed is the plan of the cluster, signed.
func (c *Cluster) Signed(t testing.TB) plan.Signed {
	t.Helper()
	signed, err := plan.Sign(&c.Plan, c.Authority.Signer())
	must(t, err)
	return signed
}

// Block is the part of a node.
func (c *Cluster) Block(t testing.TB, name string) member.Block {
	t.Helper()
	authority, err := c.Authority.Pair()
	must(t, err)
	etcd, err := c.Etcd.Pair()
	must(t, err)
	b := member.Block{
		Format: member.Format, Cluster: c.Plan.Cluster, Node: name, Authority: authority.Certificate, EtcdAuthority: etcd.Certificate,
		Certificates: map[string]member.Pair{}, Secrets: map[string]string{plan.SuperuserPassword: "correct-horse"}, Plan: c.Signed(t),
	}
	issue := func(a *pki.Authority, purpose string) {
		r := pki.Request{
			Purpose: purpose, Node: name, Names: []string{name, "localhost"},
			Addresses: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		}
		if purpose == member.AgentCert {
			r.URI = pki.NodeURI(c.Plan.ID, name)
		}
		pair, err := a.Issue(r, c.Begins)
		must(t, err)
		b.Certificates[purpose] = pair
	}
	issue(c.Authority, member.AgentCert)
	issue(c.Authority, member.ServiceCert)
	issue(c.Etcd, member.EtcdCert)
	issue(c.Etcd, member.EtcdClient)
	return b
}

// Text is a block as it stands in the meta-data.
func Text(t testing.TB, b member.Block) string {
	t.Helper()
	text, err := yaml.Marshal(b)
	must(t, err)
	return string(text)
}

// Member is a node of the cluster.
func (c *Cluster) Member(t testing.TB, name string) *member.Member {
	t.Helper()
	m, err := member.Parse(Text(t, c.Block(t, name)), c.Begins)
	must(t, err)
	return m
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
