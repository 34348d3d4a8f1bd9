package topology

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// cluster is a topology with one site, of nodes in the form "name role".
func cluster(t *testing.T, site string, nodes ...string) *Topology {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "slipway: 1\nname: orders\nnetworks: {lan: {subnet: 192.0.2.0/24}}\n%snodes:\n", site)
	for i, n := range nodes {
		name, role, _ := strings.Cut(n, " ")
		fmt.Fprintf(&b, "  - {name: %s, role: %s, nics: [{network: lan, address: 192.0.2.%d}]}\n", name, role, 11+i)
	}
	got, mistakes := Parse("cluster.yaml", []byte(b.String()))
	if got == nil {
		t.Fatalf("%s\n%v", b.String(), mistakes)
	}
	return got
}

func TestAnOddNumberOfNodesVotes(t *testing.T) {
	for _, c := range []struct {
		name  string
		site  string
		nodes []string
		want  string
	}{
		{"one database votes alone", "", []string{"db1 db-master"}, "db1"},
		{"one database needs no balancer's vote", "", []string{"lb1 balancer", "db1 db-master"}, "db1"},
		{"beside two databases, the first balancer", "", []string{"db1 db-master", "db2 db-replica", "lb2 balancer", "lb1 balancer"}, "db1 db2 lb2"},
		{"beside two databases, a balancer rather than a dispatcher", "", []string{"d1 dispatcher", "db1 db-master", "db2 db-replica", "lb1 balancer"}, "db1 db2 lb1"},
		{"beside two databases, a dispatcher", "", []string{"db1 db-master", "db2 db-replica", "d1 dispatcher", "d2 dispatcher", "d3 dispatcher"}, "d1 db1 db2"},
		{"beside two databases, the node that the file names", "sites: {main: {witness: lb1}}\n", []string{"db1 db-master", "db2 db-replica", "lb2 balancer", "lb1 balancer"}, "db1 db2 lb1"},
		{"three databases vote", "", []string{"db1 db-master", "db2 db-replica", "db3 db-replica", "lb1 balancer"}, "db1 db2 db3"},
		{"of four databases, the first three", "", []string{"db1 db-master", "db2 db-replica", "db3 db-replica", "db4 db-replica"}, "db1 db2 db3"},
		{"of five databases, the master and the first two", "", []string{"db5 db-replica", "db4 db-replica", "db3 db-replica", "db2 db-replica", "db1 db-master"}, "db1 db4 db5"},
		{"a database with an earlier name moves no vote", "", []string{"db2 db-master", "db3 db-replica", "db4 db-replica", "db1 db-replica"}, "db2 db3 db4"},
		{"those that the file names", "sites: {main: {consensus: [db3, db1, lb1]}}\n", []string{"db1 db-master", "db2 db-replica", "db3 db-replica", "lb1 balancer"}, "db1 db3 lb1"},
	} {
		p := cluster(t, c.site, c.nodes...).Plan()
		if got := strings.Join(p.Sites[0].Consensus, " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
		if len(p.Sites[0].Consensus)%2 == 0 {
			t.Errorf("%s: an even number votes", c.name)
		}
	}
}

func TestThePlanOfTwoSites(t *testing.T) {
	topology, mistakes := Parse("cluster.yaml", []byte(base))
	if topology == nil {
		t.Fatal(mistakes)
	}
	postgres := plan.Postgres{Port: 5432, MaxConnections: 100, MaxSlotWALKeep: 4096, Parameters: map[string]string{"work_mem": "8MB"}}
	patroni := plan.Patroni{TTL: 30, LoopWait: 10, RetryTimeout: 10, PrimaryStartTimeout: 15, MaximumLag: 1 << 20}
	node := func(name, role, site, address string) plan.Node {
		p := netip.MustParsePrefix(address)
		return plan.Node{Name: name, Role: role, Site: site, Address: p.Addr(), Addresses: []netip.Prefix{p}}
	}
	want := &plan.Plan{
		Format: plan.Format, Cluster: "orders", Domain: "example.internal",
		Sites: []plan.Site{
			{Name: "a", Scope: "orders-a", Consensus: []string{"db1", "db2", "lb1"}, Bootstrap: "db1", Postgres: postgres, Patroni: patroni},
			{Name: "b", Scope: "orders-b", Consensus: []string{"far1"}, Bootstrap: "far1", StandbyOf: "a", Postgres: postgres, Patroni: patroni},
		},
		Nodes: []plan.Node{
			node("db1", "db-master", "a", "192.0.2.11/24"),
			node("db2", "db-replica", "a", "192.0.2.12/24"),
			node("far1", "db-master", "b", "198.51.100.11/24"),
			node("lb1", "balancer", "a", "192.0.2.21/24"),
			node("lb2", "balancer", "a", "192.0.2.22/24"),
		},
		VIPs: []plan.VIP{{Name: "database", Site: "a", Address: netip.MustParsePrefix("192.0.2.10/24"), On: plan.OnBalancers, RouterID: 51,
			ReadWrite: 5432, ReadOnly: 5433}},
		Databases: []plan.Database{{Name: "app", Owner: "clerk"}},
		Clients:   []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
	}
	if diff := cmp.Diff(want, topology.Plan(), cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
		t.Error(diff)
	}
}

func TestThePlanIsSortedWhateverTheFilesOrder(t *testing.T) {
	p := cluster(t, `vips:
  - {name: writes, address: 192.0.2.98, on: databases, router_id: 7}
  - {name: reads, address: 192.0.2.99, on: databases, router_id: 8}
databases: [{name: shop}, {name: mail}]
`, "z db-master", "b db-replica", "k db-replica", "a balancer").Plan()
	if !slices.IsSortedFunc(p.Nodes, func(a, b plan.Node) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("%+v", p.Nodes)
	}
	if p.VIPs[0].Name != "reads" || p.Databases[0].Name != "mail" || p.Databases[0].Owner != "mail" {
		t.Errorf("%+v, %+v", p.VIPs, p.Databases)
	}
}

func TestWhatTheFileLeavesOutHasItsDefault(t *testing.T) {
	p := cluster(t, "vips: [{name: database, address: 192.0.2.99, on: databases, router_id: 7}]\n", "db1 db-master").Plan()
	s := p.Sites[0]
	if s.Name != DefaultSite || s.Scope != "orders-main" {
		t.Errorf("site %+v", s)
	}
	if r := s.Patroni; r.LoopWait+2*r.RetryTimeout > r.TTL || r.TTL < 20 || r.MaximumLag <= 0 {
		t.Errorf("%+v", r)
	}
	if len(p.Clients) != 1 || p.Clients[0].String() != "192.0.2.0/24" {
		t.Errorf("clients are %v, want the cluster's own network", p.Clients)
	}
	v := p.VIPs[0]
	if v.ReadWrite != 5432 || v.ReadOnly != 0 || v.Site != DefaultSite || v.Address.String() != "192.0.2.99/24" {
		t.Errorf("%+v", v)
	}
}

func TestANodesCardsKeepTheirOrder(t *testing.T) {
	text := spoil(t, "[{network: lan, address: 192.0.2.12}]",
		"[{network: far, address: 198.51.100.12, mac: 52-54-00-AA-00-02}, {network: lan, address: 192.0.2.12, mac: \"52:54:00:aa:00:01\"}]")
	topology, mistakes := Parse("cluster.yaml", []byte(text))
	if topology == nil {
		t.Fatal(mistakes)
	}
	n, err := topology.Plan().Node("db2")
	if err != nil || n.Address.String() != "198.51.100.12" || len(n.Addresses) != 2 || n.Addresses[1].String() != "192.0.2.12/24" {
		t.Errorf("%+v, %v", n, err)
	}
	if got := topology.Nodes[1].NICs[0].MAC; got != "52:54:00:aa:00:02" {
		t.Errorf("the MAC address is %s", got)
	}
}

func TestPrioritiesReachThePlan(t *testing.T) {
	topology, mistakes := Parse("cluster.yaml", []byte(spoil(t, "name: lb1,", "name: lb1, vrrp_priority: 254,")))
	if topology == nil {
		t.Fatal(mistakes)
	}
	if n, _ := topology.Plan().Node("lb1"); n.VRRPPriority != 254 {
		t.Errorf("%+v", n)
	}
}

func TestWhoeverMayVoteHasEtcdInItsProfile(t *testing.T) {
	set, err := profile.Load("../../profiles")
	if err != nil {
		t.Fatal(err)
	}
	voters := append([]string{dbMaster, dbReplica}, witnessRoles...)
	for _, p := range set.Roles {
		has := slices.Contains(p.Packages, "etcd-server")
		if may := slices.Contains(voters, p.Role); has != may {
			t.Errorf("%s: may vote %v, has etcd %v", p.Role, may, has)
		}
		if !slices.Contains(roles, p.Role) {
			t.Errorf("the topology does not know the role %s", p.Role)
		}
	}
}

func TestAnAddressThatMovesLeadsToWhatAllItsSitesHave(t *testing.T) {
	top, mistakes := Parse("cluster.yaml", []byte(withDesktops(t)))
	if top == nil {
		t.Fatal(mistakes)
	}
	v := top.VIPs[0]
	if got := top.planVIP(v); got.HTTPS == 0 || got.Moves() {
		t.Fatalf("%+v", got)
	}
	v.Sites = []string{"a", "b"}
	if got := top.planVIP(v); got.HTTPS != 0 || got.Gateway != 0 || got.Site != "a" || !got.Moves() || len(got.Sites) != 2 {
		t.Errorf("%+v", got)
	}
}
