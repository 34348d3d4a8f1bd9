package overview

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// contradict finds what cannot be true at once, or must not be.
func (o *Overview) contradict() {
	o.generations()
	o.paths()
	o.writers()
	for _, s := range o.plan.Sites {
		o.one(s.Name, "PostgreSQL", func(c *status.Cluster) string { return leaders(c.Database) })
		o.one(s.Name, "etcd", func(c *status.Cluster) string { return consensusLeader(c.Consensus) })
		o.one(s.Name, "the database system", func(c *status.Cluster) string {
			if c.Database == nil {
				return ""
			}
			return c.Database.SystemID
		})
	}
	for _, v := range o.plan.VIPs {
		o.address(v)
	}
}

// writers compares the sites that take writes with the one that is to.
func (o *Overview) writers() {
	meant := o.plan.WritableSite()
	if len(o.plan.DatabaseSites()) < 2 {
		return
	}
	o.Writable = []string{}
	known := true
	for _, site := range o.plan.DatabaseSites() {
		if o.primary(site) != "" {
			o.Writable = append(o.Writable, site)
		} else if !o.told(site) {
			known = false
		}
	}
	switch {
	case len(o.Writable) > 1:
		o.say("SITES %s BOTH TAKE WRITES; by the plan site %s does. Keep clients away from the other, which becomes a standby as soon as it hears of the plan",
			strings.Join(o.Writable, " AND "), meant)
	case len(o.Writable) == 1 && o.Writable[0] != meant:
		o.say("site %s takes writes; by the plan site %s does", o.Writable[0], meant)
	case len(o.Writable) == 0 && known:
		o.say("no site takes writes; by the plan site %s does", meant)
	}
}

// primary is the node at a site that can be written to, as any node there says; "" if
// there is none.
func (o *Overview) primary(site string) string {
	for _, n := range o.Nodes {
		if c := n.cluster(); c != nil && n.Site == site && c.Database != nil {
			for _, m := range c.Database.Members {
				if m.Role == "leader" {
					return m.Node
				}
			}
		}
	}
	return ""
}

// told reports whether any node of a site tells how its database is.
func (o *Overview) told(site string) bool {
	return slices.ContainsFunc(o.Nodes, func(n Node) bool {
		c := n.cluster()
		return n.Site == site && c != nil && c.Database != nil
	})
}

func (o *Overview) say(format string, args ...any) {
	o.Contradictions = append(o.Contradictions, fmt.Sprintf(format, args...))
}

// generations compares the plans in effect.
func (o *Overview) generations() {
	by := map[int64][]string{}
	for _, n := range o.Nodes {
		if c := n.cluster(); c != nil {
			by[c.Generation] = append(by[c.Generation], n.Name)
		}
	}
	for _, g := range slices.Sorted(maps.Keys(by)) {
		switch {
		case g < o.Generation:
			o.say("%s: the plan in effect is that of generation %d; the newest is %d", strings.Join(by[g], ", "), g, o.Generation)
		case g > o.Generation:
			o.say("%s: the plan in effect is that of generation %d; the one asked by, %d, is older", strings.Join(by[g], ", "), g, o.Generation)
		}
	}
}

// paths finds nodes that answer here and not their peers.
func (o *Overview) paths() {
	here := map[string]bool{}
	for _, n := range o.Nodes {
		here[n.Name] = n.Report != nil
	}
	for _, n := range o.Nodes {
		c := n.cluster()
		if c == nil {
			continue
		}
		for _, p := range c.Peers {
			if !p.Answers && here[p.Name] && p.Problem != "" {
				o.say("%s has no answer from %s, which answers here: %s", n.Name, p.Name, p.Problem)
			}
		}
	}
}

// one makes sure that the nodes of a site name one and the same.
func (o *Overview) one(site, what string, named func(*status.Cluster) string) {
	by := map[string][]string{}
	for _, n := range o.Nodes {
		if c := n.cluster(); c != nil && n.Site == site {
			if name := named(c); name != "" {
				by[name] = append(by[name], n.Name)
			}
		}
	}
	if len(by) < 2 {
		return
	}
	var say []string
	for _, name := range slices.Sorted(maps.Keys(by)) {
		say = append(say, fmt.Sprintf("%s (as %s says)", name, strings.Join(by[name], ", ")))
	}
	what = map[string]string{"the database system": "databases of different origin", "PostgreSQL": "two leaders of PostgreSQL", "etcd": "two leaders of etcd"}[what]
	o.say("site %s: %s: %s", site, what, strings.Join(say, "; "))
}

// leaders are those whom a node takes for the primary; more than one already
// contradicts itself.
func leaders(d *status.Database) string {
	if d == nil {
		return ""
	}
	var names []string
	for _, m := range d.Members {
		if m.Role == "leader" || m.Role == "standby_leader" {
			names = append(names, m.Node)
		}
	}
	return strings.Join(names, " and ")
}

func consensusLeader(c *status.Consensus) string {
	if c == nil {
		return ""
	}
	var names []string
	for _, m := range c.Members {
		if m.Leader {
			names = append(names, m.Node)
		}
	}
	return strings.Join(names, " and ")
}

// address looks where a virtual address is, and whether it leads to a database
// that can be written to.
func (o *Overview) address(v plan.VIP) {
	var holders []Node
	asked, all := 0, 0
	for _, n := range o.Nodes {
		if !slices.ContainsFunc(o.plan.Holders(v), func(h plan.Node) bool { return h.Name == n.Name }) {
			continue
		}
		all++
		c := n.cluster()
		if c == nil {
			continue
		}
		asked++
		if slices.ContainsFunc(c.VIPs, func(held status.VIP) bool { return held.Name == v.Name && held.Held }) {
			holders = append(holders, n)
		}
	}
	name := fmt.Sprintf("virtual address %s (%s)", v.Name, v.Address.Addr())
	switch {
	case len(holders) > 1:
		var names []string
		for _, h := range holders {
			names = append(names, h.Name)
		}
		o.say("%s is on %d nodes at once: %s", name, len(holders), strings.Join(names, ", "))
		return
	case v.On == plan.OnDatabases && len(holders) == 0 && o.plan.SiteOf(v) != o.plan.WritableSite():
		return // a standby site has no primary that it could be on
	case len(holders) == 0 && asked == all:
		o.say("%s is on no node", name)
		return
	case len(holders) == 0:
		o.say("%s is on no node that answers", name)
		return
	}
	holder, c := holders[0], holders[0].cluster()
	if site := o.plan.SiteOf(v); v.Moves() && holder.Site != site {
		o.say("%s is on %s at site %s; by the plan site %s takes the writes", name, holder.Name, holder.Site, site)
		return
	}
	if v.On == plan.OnDatabases {
		if leader := leaders(c.Database); leader != holder.Name || c.Database.Standby {
			o.say("%s is on %s, which is not the primary", name, holder.Name)
		}
		return
	}
	if o.plan.SiteOf(v) != o.plan.WritableSite() {
		return // nobody is to write there
	}
	if !slices.ContainsFunc(c.Backends, func(b status.Backend) bool { return b.Name == "read-write" && b.Up }) {
		o.say("%s is on %s, whose HAProxy knows no database that can be written to", name, holder.Name)
	}
}
