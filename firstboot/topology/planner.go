package topology

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// Names of the roles that the planner knows.
const (
	dbMaster   = "db-master"
	dbReplica  = "db-replica"
	balancer   = "balancer"
	broker     = plan.BrokerRole
	gateway    = plan.GatewayRole
	desktop    = plan.DesktopRole
	dispatcher = plan.DispatcherRole
	repository = plan.RepositoryRole
	mirror     = plan.MirrorRole
)

// roles are all of them.
var roles = []string{dbMaster, dbReplica, balancer, broker, gateway, desktop, dispatcher, repository, mirror}

// witnessRoles are the roles beside databases whose appliance carries etcd, the
// one that the planner prefers first.
var witnessRoles = []string{balancer, dispatcher}

// members is how many etcd members a site gets where it has nodes for them. Three
// bear the loss of one; more would only make every write slower.
const members = 3

// Plan works out what the nodes are told. ID and Generation stay empty.
func (t *Topology) Plan() *plan.Plan {
	p := &plan.Plan{Format: plan.Format, Cluster: t.Name, Domain: t.Domain, Clients: slices.Clone(t.Clients), Databases: slices.Clone(t.Databases), Backup: t.Backup, Mirror: t.planMirror()}
	for _, s := range t.Sites {
		p.Sites = append(p.Sites, t.planSite(s))
	}
	for _, n := range t.Nodes {
		p.Nodes = append(p.Nodes, plan.Node{Name: n.Name, Role: n.Role, Site: n.Site, Address: n.Address(),
			Addresses: t.addresses(n), VRRPPriority: n.VRRPPriority})
	}
	for _, v := range t.VIPs {
		p.VIPs = append(p.VIPs, t.planVIP(v))
	}
	if slices.ContainsFunc(t.Nodes, func(n Node) bool { return n.Role == dispatcher }) {
		swarm := t.Roles.Dispatcher
		p.Swarm = &swarm
	}
	slices.SortFunc(p.Sites, func(a, b plan.Site) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(p.Nodes, func(a, b plan.Node) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(p.VIPs, func(a, b plan.VIP) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(p.Databases, func(a, b plan.Database) int { return cmp.Compare(a.Name, b.Name) })
	return p
}

func (t *Topology) planVIP(v VIP) plan.VIP {
	network, _ := t.Network(v.Network)
	p := plan.VIP{Name: v.Name, Site: v.Site, Sites: slices.Clone(v.Sites), On: v.On, RouterID: v.RouterID, Names: slices.Clone(v.Names),
		Address: netip.PrefixFrom(v.Address, network.Subnet.Bits()), ReadWrite: v.ReadWrite, ReadOnly: v.ReadOnly, Certificate: v.Certificate != nil}
	if t.lacks(v, broker) == "" {
		p.HTTP, p.HTTPS = v.HTTP, v.HTTPS
	}
	if t.lacks(v, gateway) == "" {
		p.Gateway, p.Tunnel = v.Gateway, v.Tunnel
	}
	return p
}

func (t *Topology) addresses(n Node) []netip.Prefix {
	var out []netip.Prefix
	for _, nic := range n.NICs {
		network, _ := t.Network(nic.Network)
		out = append(out, netip.PrefixFrom(nic.Address, network.Subnet.Bits()))
	}
	return out
}

func (t *Topology) planSite(s Site) plan.Site {
	r := t.Roles.Database
	site := plan.Site{Name: s.Name, Scope: t.Name + "-" + s.Name, StandbyOf: s.StandbyOf, Consensus: t.consensus(s),
		Postgres: plan.Postgres{Port: postgresPort, MaxConnections: r.MaxConnections,
			MaxSlotWALKeep: int(r.MaxSlotWALKeep / profile.MiB), Parameters: maps.Clone(r.Parameters)},
		Patroni: r.Patroni}
	if masters := t.in(s.Name, dbMaster); len(masters) > 0 {
		site.Bootstrap = masters[0].Name
	}
	return site
}

// consensus chooses who votes, by name. The file's order decides, not the
// alphabet: a database that is added at the end moves no vote.
func (t *Topology) consensus(s Site) []string {
	chosen := slices.Clone(s.Consensus)
	if len(chosen) == 0 {
		for _, n := range append(t.in(s.Name, dbMaster), t.in(s.Name, dbReplica)...) {
			if len(chosen) < members {
				chosen = append(chosen, n.Name)
			}
		}
		if len(chosen) == 2 {
			if w := t.witness(s); w != "" {
				chosen = append(chosen, w)
			}
		}
	}
	slices.Sort(chosen)
	return chosen
}

// witness is the node with the third vote beside two databases, or "".
func (t *Topology) witness(s Site) string {
	if s.Witness != "" {
		return s.Witness
	}
	for _, role := range witnessRoles {
		if nodes := t.in(s.Name, role); len(nodes) > 0 {
			return nodes[0].Name
		}
	}
	return ""
}
