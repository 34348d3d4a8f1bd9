package topology

import (
	"slices"
	"strings"
)

// votes checks who is to decide in each site.
func (c *checker) votes() {
	for _, s := range c.Sites {
		field := c.siteField(s, "")
		dbs := c.in(s.Name, dbMaster, dbReplica)
		if len(s.Consensus) > 0 {
			c.chosen(s, dbs)
			continue
		}
		switch {
		case s.Witness != "" && len(dbs) != 2:
			c.wrong(field+".witness", "take it out", "a witness is the third vote beside two databases, and site %s has %d", short(s.Name), len(dbs))
		case s.Witness != "":
			c.carrier(s, field+".witness", s.Witness)
			if slices.ContainsFunc(dbs, func(n Node) bool { return n.Name == s.Witness }) {
				c.wrong(field+".witness", "name a node with another role", "%s is a database and has a vote already", short(s.Witness))
			}
		case len(dbs) == 2 && c.witness(s) == "":
			c.wrong(field, "add a third database, or a "+strings.Join(witnessRoles, " or a ")+" that carries the third vote",
				"there is no witness for the third vote: with the two databases of site %s alone, losing either stops both", short(s.Name))
		}
	}
}

// chosen checks votes that the file itself gives.
func (c *checker) chosen(s Site, dbs []Node) {
	field := c.siteField(s, "consensus")
	taken := c.register()
	for i, name := range s.Consensus {
		c.carrier(s, at(field, i), name)
		taken.add(at(field, i), name, "give every node one vote", "the node %s", short(name))
	}
	n := len(s.Consensus)
	switch {
	case n%2 == 0:
		c.wrong(field, "name 3 or 5 nodes; 1 bears no loss", "%d consensus members are an even number: they bear no more losses than %d", n, n-1)
	case n > 7:
		c.wrong(field, "name 3 or 5 nodes", "%d consensus members make every write slow", n)
	case n == 1 && len(dbs) > 1:
		c.doubt(field, "name 3 nodes", "the loss of %s alone stops every database of site %s", short(s.Consensus[0]), short(s.Name))
	}
	if s.Witness != "" {
		c.wrong(c.siteField(s, "witness"), "take it out, and name the node under consensus", "the votes are given under consensus already")
	}
}

// carrier checks that a node that is to vote is there, in the site, and has etcd.
func (c *checker) carrier(s Site, field, name string) {
	if name == "" {
		return
	}
	n, ok := c.Node(name)
	carriers := c.in(s.Name, append([]string{dbMaster, dbReplica}, witnessRoles...)...)
	var names []string
	for _, n := range carriers {
		names = append(names, n.Name)
	}
	switch {
	case !ok:
		c.unknown(field, "node", name, names)
	case n.Site != s.Name:
		c.wrong(field, "name a node of the site itself", "%s is not in site %s", short(name), short(s.Name))
	case !slices.Contains(names, name):
		c.wrong(field, "name a database, a "+strings.Join(witnessRoles, " or a "), "%s is a %s, which has no etcd", short(name), short(n.Role))
	}
}

// standby checks which site replicates which.
func (c *checker) standby() {
	var sources []string
	upstream := map[string]string{}
	for _, s := range c.Sites {
		upstream[s.Name] = s.StandbyOf
	}
	for _, s := range c.Sites {
		field := c.siteField(s, "standby_of")
		has := len(c.in(s.Name, dbMaster, dbReplica)) > 0
		if s.StandbyOf == "" {
			if !has || c.lines["sites."+s.Name+".standby_of"] > 0 {
				continue
			}
			if sources = append(sources, s.Name); len(sources) > 1 {
				c.wrong(c.siteField(s, ""), "write \"standby_of: "+short(sources[0])+"\" in the site that replicates the other",
					"sites %s and %s would each have a writable database", short(sources[0]), short(s.Name))
			}
			continue
		}
		switch {
		case s.StandbyOf == s.Name:
			c.wrong(field, "name the site whose database it replicates", "site %s cannot replicate itself", short(s.Name))
			continue
		case !slices.Contains(c.siteNames(), s.StandbyOf):
			c.unknown(field, "site", s.StandbyOf, c.siteNames())
			continue
		}
		// As many steps as there are sites lead to a source, or never do.
		up := s.StandbyOf
		for range c.Sites {
			up = upstream[up]
		}
		if up != "" && slices.Contains(c.siteNames(), up) {
			c.wrong(field, "let one site have the writable database", "the sites replicate each other in a circle")
			continue
		}
		if !has {
			c.wrong(field, "add a db-master to it", "site %s has no database that could replicate", short(s.Name))
		}
		if len(c.in(s.StandbyOf, dbMaster, dbReplica)) == 0 {
			c.wrong(field, "name a site with databases", "site %s has no database to replicate", short(s.StandbyOf))
		}
	}
}
