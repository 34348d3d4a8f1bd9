package topology

import (
	"fmt"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/profile"
)

// leastMemory is what a role needs to come up at all. What it needs under load is
// the profile's value.
var leastMemory = map[string]profile.Size{dbMaster: 768 * profile.MiB, dbReplica: 768 * profile.MiB, dispatcher: profile.GiB}

// unknown refuses a name that nothing has.
func (c *checker) unknown(field, what, name string, known []string) {
	mend := "write one of " + short(strings.Join(known, ", "))
	if len(known) == 0 {
		mend = "describe it first"
	}
	if near := nearest(name, known); near != "" {
		mend = fmt.Sprintf("did you mean %q?", near)
	}
	c.wrong(field, mend, "there is no %s %q", what, short(name))
}

func (c *checker) siteNames() []string {
	var names []string
	for _, s := range c.Sites {
		names = append(names, s.Name)
	}
	return names
}

// site checks the site that a field names, or fills it in where there is but one.
func (c *checker) site(field string, site *string) {
	if *site == "" && c.lines[field] == 0 {
		if len(c.Sites) == 1 {
			*site = c.Sites[0].Name
			return
		}
		c.wrong(field, "write one of "+short(strings.Join(c.siteNames(), ", ")), "is missing: there are %d sites", len(c.Sites))
	}
	if *site != "" && !slices.Contains(c.siteNames(), *site) {
		c.unknown(field, "site", *site, c.siteNames())
	}
}

// sitesOf checks where a virtual address is, and between which sites it moves.
func (c *checker) sitesOf(field string, v *VIP) {
	if c.lines[field+".sites"] == 0 {
		c.site(field+".site", &v.Site)
		return
	}
	field += ".sites"
	taken := c.register()
	for i, site := range v.Sites {
		switch {
		case site == "":
			return
		case !slices.Contains(c.siteNames(), site):
			c.unknown(at(field, i), "site", site, c.siteNames())
		}
		taken.add(at(field, i), site, "keep one of them", "the site %s", short(site))
	}
	switch {
	case v.Site != "":
		c.wrong(field, "take \"site\" out; the nodes of all these hold the address in turn", "site and sites cannot both stand")
	case len(v.Sites) < 2:
		c.wrong(field, "list the site that takes the writes and its standby, or write \"site\"", "an address moves between two sites at least")
	default:
		v.Site = v.Sites[0]
	}
}

// machines checks each node by itself.
func (c *checker) machines() {
	if c.lines["nodes"] > 0 && len(c.Nodes) == 0 {
		c.wrong("nodes", "list the machines of the cluster", "there is no node")
	}
	for i, n := range c.Nodes {
		field := at("nodes", i)
		if n.Role != "" && !slices.Contains(roles, n.Role) {
			c.unknown(field+".role", "role", n.Role, roles)
		}
		if c.lines[field+".nics"] > 0 && len(n.NICs) == 0 {
			c.wrong(field+".nics", "write \"nics: [{network: …, address: …}]\"", "the node has no network card")
		}
		if least := leastMemory[n.Role]; n.Size.Memory > 0 && n.Size.Memory < least {
			c.wrong(field+".size.memory", "give at least "+least.String(), "%s is too little for a %s", n.Size.Memory, n.Role)
		}
		if r := c.Roles.Database; databases(n.Role) && n.Size.Disk > 0 && r.MaxSlotWALKeep > n.Size.Disk/2 {
			c.wrong(field+".size.disk", "give a larger disk, or lower roles.database.max_slot_wal_keep",
				"%s is too little: WAL kept for an absent replica may take %s of it, and more than half is not safe", n.Size.Disk, r.MaxSlotWALKeep)
		}
	}
	c.routes()
}

// databases reports whether a role runs PostgreSQL.
func databases(role string) bool { return role == dbMaster || role == dbReplica }

// needs are roles that are of no use without others in their site.
var needs = []struct {
	role string
	any  []string // one of them is enough
	why  string
}{
	{balancer, []string{dbMaster, broker, gateway, dispatcher}, "it has nothing to lead to"},
	{broker, []string{dbMaster}, "it keeps its sessions in a database"},
	{gateway, []string{broker}, "it asks a broker who may pass"},
	{gateway, []string{balancer}, "it reaches the brokers through a balancer"},
	{desktop, []string{gateway}, "nobody else may reach it"},
	{dispatcher, []string{dbMaster}, "its services keep their data in a database"},
}

// parts checks that roles have the nodes that they need.
func (c *checker) parts() {
	for _, s := range c.Sites {
		var masters []string
		for i, n := range c.Nodes {
			field := at("nodes", i) + ".role"
			if n.Site != s.Name {
				continue
			}
			switch n.Role {
			case dbMaster:
				if len(masters) > 0 {
					c.wrong(field, "make it a db-replica: both are equals once the cluster stands",
						"site %s has a db-master already, %s, and only one node may make the database", short(s.Name), short(masters[0]))
				}
				masters = append(masters, n.Name)
			case dbReplica:
				if len(c.in(s.Name, dbMaster)) == 0 {
					c.wrong(field, "make one database of the site a db-master", "site %s has no db-master that this replica could clone", short(s.Name))
				}
			}
			for _, need := range needs {
				if n.Role == need.role && len(c.in(s.Name, need.any...)) == 0 {
					c.wrong(field, "add a "+strings.Join(need.any, " or a ")+" to the site", "site %s has no %s, and a %s without one is of no use: %s",
						short(s.Name), strings.Join(need.any, ", "), need.role, need.why)
				}
			}
		}
		c.dispatchers(s)
		if dbs := c.in(s.Name, dbMaster, dbReplica); len(dbs) == 1 && s.StandbyOf == "" {
			c.doubt(c.siteField(s, ""), "add a db-replica, and a node for the third vote", "%s is the only database of site %s: nothing takes over when it fails",
				short(dbs[0].Name), short(s.Name))
		}
	}
}

// dispatchers are managers of a Docker Swarm, which keep their state by Raft: an
// even number bears no more losses than one less.
func (c *checker) dispatchers(s Site) {
	nodes := c.in(s.Name, dispatcher)
	if n := len(nodes); n > 7 || n > 0 && n%2 == 0 {
		for i, node := range c.Nodes {
			if node.Name == nodes[n-1].Name {
				c.wrong(at("nodes", i)+".role", "have 1, 3, 5 or 7 of them", "site %s has %d dispatchers", short(s.Name), n)
				return
			}
		}
	}
}

// siteField is a field of a site, or "nodes" if the file names no sites.
func (c *checker) siteField(s Site, key string) string {
	switch {
	case c.lines["sites"] == 0:
		return "nodes"
	case key == "":
		return "sites." + s.Name
	}
	return "sites." + s.Name + "." + key
}
