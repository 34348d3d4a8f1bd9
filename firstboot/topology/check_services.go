package topology

import (
	"slices"
	"strconv"

	"github.com/slipwayhq/slipway/firstboot/plan"
)

// takenPorts are those that something else on a balancer listens on.
var takenPorts = map[int]string{22: "SSH", plan.EtcdPort: "etcd", plan.EtcdPeerPort: "etcd", plan.PatroniPort: "Patroni", plan.APIPort: "the agent", plan.HealthPort: "HAProxy's health", plan.FrontPort: "the balancers themselves"}

// virtual checks the virtual addresses and who may hold them.
func (c *checker) virtual() {
	ids := c.register()
	holds := map[string]bool{}
	for i, v := range c.VIPs {
		field := at("vips", i)
		if v.Network != "" && v.RouterID > 0 {
			ids.add(field+".router_id", v.Network+" "+strconv.Itoa(v.RouterID), "give every virtual address of a network an id of its own, 1 to 255",
				"the VRRP id %d on network %s", v.RouterID, short(v.Network))
		}
		c.ports(field+".ports", v)
		c.certificate(field+".certificate", v)
		for _, site := range v.at() {
			if slices.Contains(c.siteNames(), site) && v.On != "" {
				for _, n := range c.holders(field, v, site) {
					holds[n.Name] = holds[n.Name] || len(v.Sites) == 0
				}
			}
		}
	}
	for i, n := range c.Nodes {
		switch stays, may := holds[n.Name]; {
		case n.VRRPPriority == 0 || stays:
		case may:
			c.wrong(at("nodes", i)+".vrrp_priority", "take it out", "%s holds no virtual address but such as move between sites, where the newest promotion decides", short(n.Name))
		default:
			c.wrong(at("nodes", i)+".vrrp_priority", "take it out", "%s holds no virtual address", short(n.Name))
		}
	}
}

// at are the sites whose nodes hold a virtual address.
func (v VIP) at() []string {
	if len(v.Sites) > 0 {
		return v.Sites
	}
	return []string{v.Site}
}

// holders checks the nodes of a site that hold a virtual address.
func (c *checker) holders(field string, v VIP, site string) []Node {
	dbs, holders := c.in(site, dbMaster, dbReplica), c.in(site, balancer)
	if v.On == plan.OnDatabases {
		holders = dbs
	} else if len(holders) == 0 {
		c.wrong(field+".on", "add a balancer to the site, or write databases", "site %s has no balancer that could hold the address", short(site))
	} else if len(holders) == 1 {
		c.doubt(field+".on", "add a second balancer", "%s is the only balancer of site %s: without it nothing holds the address",
			short(holders[0].Name), short(site))
	}
	if len(dbs) == 0 {
		where := field + ".site"
		if len(v.Sites) > 0 {
			where = field + ".sites"
		}
		c.wrong(where, "name a site with databases", "site %s has no database that the address could lead to", short(site))
	}
	for _, n := range holders {
		if !slices.ContainsFunc(n.NICs, func(nic NIC) bool { return nic.Network == v.Network }) && v.Network != "" && len(n.NICs) > 0 {
			c.wrong(field+".network", "choose a network that all "+string(v.On)+" of the site are on, or give the node a card on it",
				"%s is to hold the address but has no card on network %s", short(n.Name), short(v.Network))
		}
	}
	return holders
}

// lacks is a site of a virtual address without a node of a role, or "".
func (t *Topology) lacks(v VIP, role string) string {
	for _, site := range v.at() {
		if len(t.in(site, role)) == 0 {
			return site
		}
	}
	return ""
}

func (c *checker) ports(field string, v VIP) {
	if v.On == plan.OnDatabases {
		if v.ReadWrite != postgresPort && c.lines[field+".read_write"] > 0 {
			c.wrong(field+".read_write", "take it out, or put the address on balancers", "on the databases themselves the port is PostgreSQL's, %d", postgresPort)
		}
		for _, key := range portKeys[1:] {
			if c.lines[field+"."+key] > 0 {
				c.wrong(field+"."+key, "take it out, or put the address on balancers", "on the databases themselves the address leads to the writable primary only")
			}
		}
		return
	}
	if v.ReadWrite > 0 && v.ReadWrite == v.ReadOnly {
		c.wrong(field, "give them two ports", "%d cannot be the port of both the primary and the replicas", v.ReadWrite)
	}
	ports := v.ports()
	seen := map[int]string{}
	for _, key := range portKeys {
		port := *ports[key]
		if role := leadsTo[key]; role != "" && c.lacks(v, role) != "" {
			if c.lines[field+"."+key] > 0 {
				c.wrong(field+"."+key, "take it out, or add a "+role, "site %s has no %s", short(c.lacks(v, role)), role)
			}
			continue
		}
		if by := takenPorts[port]; by != "" {
			c.wrong(field+"."+key, "choose another", "port %d is taken by %s on the node itself", port, by)
		}
		if other := seen[port]; port > 0 && other != "" && !(key == "read_only" && other == "read_write") {
			c.wrong(field+"."+key, "choose another", "port %d is that of %s", port, other)
		}
		seen[port] = key
	}
}

// portKeys are the fields of ports, in the order of the documentation; leadsTo are
// the roles behind those that are open only where there are such nodes.
var (
	portKeys = []string{"read_write", "read_only", "http", "https", "gateway", "tunnel"}
	leadsTo  = map[string]string{"http": broker, "https": broker, "gateway": gateway, "tunnel": gateway}
)

// certificate checks what can be seen of a certificate without its files, which
// slipway seed reads.
func (c *checker) certificate(field string, v VIP) {
	switch {
	case v.Certificate == nil:
	case v.On == plan.OnDatabases:
		c.wrong(field, "take it out, or put the address on balancers", "databases show the certificates of the cluster's own authority")
	case len(c.in(v.Site, broker, gateway)) == 0 && slices.Contains(c.siteNames(), v.Site):
		c.wrong(field, "take it out", "site %s has neither a broker nor a gateway, and databases show the certificates of the cluster's own authority", short(v.Site))
	}
}

// databases checks what is asked of PostgreSQL and Patroni.
func (c *checker) databases() {
	taken, users := c.register(), c.register()
	for i, d := range c.Databases {
		field := at("databases", i)
		if wrong, mend := sqlName(d.Name, reservedDatabases); d.Name != "" && wrong != "" {
			c.wrong(field+".name", mend, "%s", wrong)
		}
		wrong, mend := sqlName(d.Owner, reservedRoles)
		switch {
		case d.Owner == "" || wrong == "":
		case c.lines[field+".owner"] > 0:
			c.wrong(field+".owner", mend, "%s", wrong)
		case slices.Contains(reservedRoles, d.Owner) && !slices.Contains(reservedDatabases, d.Owner):
			c.wrong(field+".owner", "name an owner", "is missing: the database's own name %q is taken among the roles", d.Owner)
		}
		taken.add(field+".name", d.Name, "keep one of them", "the database %s", short(d.Name))
		for j, role := range d.UsedBy {
			field := at(field+".used_by", j)
			if role != "" && (!plan.ProductRole(role) || role == desktop) {
				c.wrong(field, "write broker, gateway or dispatcher", "nodes of the role %q use no database", short(role))
				continue
			}
			users.add(field, role, "a product has one database", "the role %s", short(role))
		}
	}
	if len(c.Databases) > 0 && !slices.ContainsFunc(c.Nodes, func(n Node) bool { return n.Role == dbMaster }) {
		c.wrong("databases", "add a db-master, or take the databases out", "no node runs PostgreSQL")
	}
	for name, text := range c.Roles.Database.Parameters {
		if wrong, mend := setting(name, text); wrong != "" {
			c.wrong("roles.database.parameters."+name, mend, "%s", wrong)
		}
	}
	c.swarm()
	const field = "roles.database.patroni"
	p := c.Roles.Database.Patroni
	if p.TTL > 0 && p.LoopWait > 0 && p.RetryTimeout > 0 && p.LoopWait+2*p.RetryTimeout > p.TTL {
		c.wrong(field, "raise ttl, or lower the other two", "loop_wait + 2 * retry_timeout is %d, more than ttl (%d): a healthy primary could lose its lock",
			p.LoopWait+2*p.RetryTimeout, p.TTL)
	}
}

// swarmPorts are those that a dispatcher has other uses for.
var swarmPorts = map[int]string{2377: "Swarm's management", 7946: "Swarm's gossip"}

// swarm checks the parameters of dispatchers.
func (c *checker) swarm() {
	const field = "roles.dispatcher.data_path_port"
	if by := swarmPorts[c.Roles.Dispatcher.DataPathPort]; by != "" {
		c.wrong(field, "choose another", "port %d is taken by %s", c.Roles.Dispatcher.DataPathPort, by)
	}
	if c.lines["roles.dispatcher"] > 0 && !slices.ContainsFunc(c.Nodes, func(n Node) bool { return n.Role == dispatcher }) {
		c.doubt("roles.dispatcher", "add dispatchers, or take it out", "there is no dispatcher")
	}
}
