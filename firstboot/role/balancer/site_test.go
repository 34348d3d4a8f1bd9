package balancer

import (
	"net/netip"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// site is a balancer's part in a cluster of two sites, all on the loopback.
func site(t testing.TB, change func(*plan.Plan)) (*member.Member, *pki.Authority) {
	t.Helper()
	authority, err := pki.NewAuthority("cluster", "example", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	machine := func(name, role, site, address string) plan.Node {
		return plan.Node{Name: name, Role: role, Site: site, Address: netip.MustParseAddr(address),
			Addresses: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(address), 24)}}
	}
	p := &plan.Plan{
		Format: plan.Format, Cluster: "example", Generation: 1,
		Sites: []plan.Site{{Name: "a", Scope: "example-a", Postgres: plan.Postgres{Port: 5432, MaxConnections: 200}, Patroni: plan.Patroni{MaximumLag: 1 << 20}}},
		Nodes: []plan.Node{
			machine("a-db1", "db-master", "a", "127.77.1.11"), machine("a-db2", "db-replica", "a", "127.77.1.12"), machine("a-db3", "db-replica", "a", "127.77.1.13"),
			machine("a-lb1", "balancer", "a", "127.77.1.21"), machine("a-lb2", "balancer", "a", "127.77.1.22"),
			machine("b-db1", "db-master", "b", "127.77.2.11"),
		},
		VIPs: []plan.VIP{{Name: "db", Site: "a", Address: netip.MustParsePrefix("127.77.1.10/24"), On: plan.OnBalancers, RouterID: 51, ReadWrite: 5432, ReadOnly: 5433}},
	}
	if change != nil {
		change(p)
	}
	pair, err := authority.Pair()
	if err != nil {
		t.Fatal(err)
	}
	self, err := p.Node("a-lb1")
	if err != nil {
		t.Fatal(err)
	}
	m := &member.Member{
		Block: member.Block{Cluster: "example", Node: self.Name, Authority: pair.Certificate, Certificates: map[string]member.Pair{}, Secrets: map[string]string{}},
		CA:    authority.Cert, Plan: p, Self: self, Site: p.Sites[0],
	}
	names := []string{self.Name, plan.BrokersName}
	addresses := []netip.Addr{self.Address}
	for _, v := range p.VIPs {
		addresses = append(addresses, v.Address.Addr())
		if !v.Certificate {
			continue
		}
		own, err := authority.Issue(pki.Request{Purpose: member.ServiceCert, Node: ownName, Names: []string{ownName}}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		m.Secrets[v.CertificateKey()] = own.Certificate + own.Key
	}
	m.Certificates[member.ServiceCert], err = authority.Issue(pki.Request{Purpose: member.ServiceCert, Node: self.Name, Names: names, Addresses: addresses}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return m, authority
}

// ownName is what the administrator's own certificate is for.
const ownName = "desktops.example.org"

// desktops adds what brings people to desktops.
func desktops(p *plan.Plan) {
	for _, n := range []plan.Node{
		{Name: "a-br1", Role: plan.BrokerRole, Address: netip.MustParseAddr("127.77.1.31")}, {Name: "a-br2", Role: plan.BrokerRole, Address: netip.MustParseAddr("127.77.1.32")},
		{Name: "a-gw1", Role: plan.GatewayRole, Address: netip.MustParseAddr("127.77.1.41")}, {Name: "a-gw2", Role: plan.GatewayRole, Address: netip.MustParseAddr("127.77.1.42")},
	} {
		n.Site = "a"
		p.Nodes = append(p.Nodes, n)
	}
	v := &p.VIPs[0]
	v.HTTP, v.HTTPS, v.Gateway, v.Tunnel = 80, 443, 10443, 1443
}
