package operations

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Switchover has another node lead a site's database. Without a node (to), that is
// the healthiest synchronous standby; without a site, that of the node, or the one
// whose database takes writes.
func Switchover(c *Cluster, site, to string) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		s, err := siteOf(c.Plan, now, site, to)
		if err != nil {
			return nil, err
		}
		d, err := databaseOf(now, s.Name)
		if err != nil {
			return nil, err
		}
		lead := d.Leader()
		if lead == "" {
			return nil, fault.New(fault.Failed, "nobody leads site %s: that is for Patroni to mend, which elects a leader by itself", s.Name).
				WithMend("see slipway status")
		}
		if lead != to {
			if to, err = candidate(s, now, d, to); err != nil {
				return nil, err
			}
		}
		watched := databaseNodes(c.Plan, now, s)
		return &Operation{
			Name: "switchover", Title: fmt.Sprintf("have %s lead site %s", to, s.Name), Again: "slipway switchover --to " + to,
			Steps: []Step{handOver(c, s, d, to)},
			Check: func(now overview.Overview) []string { return led(c.Plan, now, s, to, watched) },
			Lost:  overtaken(lead, to, watched),
		}, nil
	}
}

// handOver is the step that has a node lead.
func handOver(c *Cluster, s plan.Site, d *status.Database, to string) Step {
	lead := d.Leader()
	return Step{
		What: fmt.Sprintf("hand over from %s to %s", lead, to),
		Done: lead == to,
		Do: func(ctx context.Context, say func(string)) error {
			return c.Act(ctx, lead, database.Switchover.Name, database.SwitchoverArgs{Leader: lead, Candidate: to}, nil, say)
		},
	}
}

// siteOf finds the site that is meant.
func siteOf(p *plan.Plan, now overview.Overview, site, node string) (plan.Site, error) {
	if node != "" {
		n, err := p.Node(node)
		if err != nil {
			return plan.Site{}, err
		}
		if !plan.DatabaseRole(n.Role) {
			return plan.Site{}, fault.New(fault.Usage, "%s is no database node (%s)", node, n.Role)
		}
		if site != "" && site != n.Site {
			return plan.Site{}, fault.New(fault.Usage, "%s is a node of site %s, not of %s", node, n.Site, site)
		}
		return p.Site(n.Site)
	}
	if site != "" {
		return p.Site(site)
	}
	var takeWrites []plan.Site
	for _, s := range p.Sites {
		if d, err := databaseOf(now, s.Name); err == nil && !d.Standby {
			takeWrites = append(takeWrites, s)
		}
	}
	if len(takeWrites) != 1 {
		return plan.Site{}, fault.New(fault.Usage, "it is not clear which site is meant").WithMend("name it with --site")
	}
	return takeWrites[0], nil
}

// databaseOf is a site's database cluster, as the first of its nodes tells it that
// knows a leader, or else the first that knows anything.
func databaseOf(now overview.Overview, site string) (*status.Database, error) {
	var found *status.Database
	for _, n := range now.Nodes {
		if n.Site != site || n.Report == nil || n.Report.Cluster == nil {
			continue
		}
		if d := n.Report.Cluster.Database; d != nil && (found == nil || found.Leader() == "") {
			found = d
		}
	}
	if found == nil {
		return nil, fault.New(fault.Failed, "no database node of site %s tells how its database is", site).WithMend("see slipway status")
	}
	return found, nil
}

// candidate is who is to lead: the one that is named, if it is fit to, else the
// fittest.
func candidate(s plan.Site, now overview.Overview, d *status.Database, named string) (string, error) {
	if d.Paused {
		return "", fault.New(fault.Failed, "Patroni of site %s is paused: it would not have anybody else lead", s.Name).
			WithMend("on a database node: sudo patronictl resume")
	}
	unfit := func(name string) string {
		if why := d.Unfit(name, s.Patroni.MaximumLag); why != "" {
			return why
		}
		if n, ok := now.Node(name); !ok || n.Report == nil {
			return "has an agent that does not answer"
		}
		return ""
	}
	if named != "" {
		if why := unfit(named); why != "" {
			return "", fault.New(fault.Failed, "%s %s", named, why).WithMend("see slipway status")
		}
		return named, nil
	}
	var fit []status.DatabaseMember
	var why []string
	for _, m := range d.Members {
		if reason := unfit(m.Node); reason == "" {
			fit = append(fit, m)
		} else if !m.Leads() {
			why = append(why, m.Node+" "+reason)
		}
	}
	if len(fit) == 0 {
		if len(why) == 0 {
			why = []string{"there is no other database node"}
		}
		return "", fault.New(fault.Failed, "no node of site %s can take over: %s", s.Name, strings.Join(why, "; ")).WithMend("see slipway status")
	}
	ready := func(m status.DatabaseMember) int {
		if n, _ := now.Node(m.Node); n.Report.State == status.Ready {
			return 0
		}
		return 1
	}
	return slices.MinFunc(fit, func(a, b status.DatabaseMember) int {
		return cmp.Or(cmp.Compare(ready(a), ready(b)), cmp.Compare(*a.Lag, *b.Lag), cmp.Compare(a.Node, b.Node))
	}).Node, nil
}

// databaseNodes are a site's database nodes whose agents and Patronis answer.
func databaseNodes(p *plan.Plan, now overview.Overview, s plan.Site) (names []string) {
	for _, n := range p.DatabaseNodes(s.Name) {
		if c := now.Word(n.Name); c != nil && c.Database != nil {
			names = append(names, n.Name)
		}
	}
	return names
}

// led is what is missing until a node leads its site in good order: the watched
// nodes see it lead and the others among them follow it, the virtual addresses lead
// to it, and somebody could take over from it in turn.
func led(p *plan.Plan, now overview.Overview, s plan.Site, leader string, watched []string) (missing []string) {
	say := func(format string, args ...any) { missing = append(missing, fmt.Sprintf(format, args...)) }
	for _, name := range watched {
		c := now.Word(name)
		if c == nil || c.Database == nil {
			say("%s does not tell how its database is", name)
			continue
		}
		if lead := c.Database.Leader(); lead != leader {
			say("%s takes %s for the leader", name, cmp.Or(lead, "nobody"))
			continue
		}
		own, _ := c.Database.Member(name)
		switch {
		case name == leader && own.State != "running":
			say("%s is %s", name, own.State)
		case name != leader && !own.Streams():
			say("%s does not stream yet (%s)", name, cmp.Or(own.State, "no member"))
		}
	}
	if c := now.Word(leader); len(watched) > 1 && c != nil && c.Database != nil && !c.Database.Standby {
		// Until then nobody could be promoted without the risk of losing something.
		if !slices.ContainsFunc(c.Database.Members, status.DatabaseMember.Synchronous) {
			say("no standby of %s is synchronous yet", leader)
		}
	}
	for _, v := range p.VIPs {
		if p.SiteOf(v) == s.Name {
			missing = append(missing, leadsTo(p, now, v, leader)...)
		}
	}
	return missing
}

// overtaken tells when another node leads than the one that was handed over to: reports
// that are older than the switchover name the former leader, which therefore counts only
// once the new one was seen to lead.
func overtaken(former, to string, watched []string) func(overview.Overview) error {
	took := false
	return func(now overview.Overview) error {
		var leaders []string
		for _, name := range watched {
			if c := now.Word(name); c != nil && c.Database != nil {
				leaders = append(leaders, c.Database.Leader())
			}
		}
		slices.Sort(leaders)
		leaders = slices.Compact(leaders)
		took = took || slices.Contains(leaders, to)
		if len(leaders) != 1 { // they do not agree, or say nothing
			return nil
		}
		if lead := leaders[0]; lead == "" || lead == to || lead == former && !took {
			return nil
		}
		return fault.New(fault.Failed, "%s has lost the lead again: since then %s leads", to, leaders[0]).
			WithMend("see why on %s: journalctl -u patroni; then: slipway switchover --to %s", to, to)
	}
}

// leadsTo is what keeps a virtual address from leading to a node.
func leadsTo(p *plan.Plan, now overview.Overview, v plan.VIP, leader string) []string {
	d, err := databaseOf(now, p.SiteOf(v))
	for _, h := range p.Holders(v) {
		c := now.Word(h.Name)
		if c == nil || !slices.ContainsFunc(c.VIPs, func(held status.VIP) bool { return held.Name == v.Name && held.Held }) {
			continue
		}
		switch {
		case v.On == plan.OnDatabases && h.Name != leader:
			return []string{fmt.Sprintf("the virtual address %s is on %s", v.Name, h.Name)}
		case v.On == plan.OnDatabases || err == nil && d.Standby:
			return nil // a standby site has nobody to write to
		}
		if !slices.ContainsFunc(c.Backends, func(b status.Backend) bool {
			return b.Name == "read-write" && b.Server == leader && b.Up
		}) {
			return []string{fmt.Sprintf("the virtual address %s is on %s, which does not send writes to %s yet", v.Name, h.Name, leader)}
		}
		return nil
	}
	if v.On == plan.OnDatabases && err == nil && d.Standby {
		return nil // nobody is the primary there, and nobody has the address
	}
	return []string{fmt.Sprintf("the virtual address %s is on no node", v.Name)}
}
