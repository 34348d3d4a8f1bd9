package operations

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/steps"
	"github.com/slipwayhq/slipway/internal/fault"
)

// MaintenanceOn has a node give up what others can do instead: it hands its database
// over, is not read from, and holds no virtual address, until MaintenanceOff. It is
// refused where the others would not carry the service, unless forced.
func MaintenanceOn(c *Cluster, node string, force bool) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		n, err := c.Plan.Node(node)
		if err != nil {
			return nil, err
		}
		answer, ok := now.Node(node)
		if !ok || answer.Report == nil {
			return nil, fault.New(fault.Failed, "%s does not answer: %s", node, answer.Problem).
				WithMend("a node that is off has given up everything; to replace it or take it out: slipway replace, slipway remove")
		}
		op := &Operation{Name: "maintenance on", Title: "put " + node + " into maintenance"}
		lacks := uncarried(c.Plan, now, n)
		if answer.Report.Maintenance != nil {
			lacks = nil // that was agreed to before
		}
		if len(lacks) > 0 && !force {
			return nil, fault.New(fault.Failed, "without %s the service is not carried: %s", node, strings.Join(lacks, "; ")).
				WithMend("bring the others back first; to do it all the same: --force")
		}
		op.Warnings = lacks
		leads, err := op.handOverFrom(c, now, n, force)
		if err != nil {
			return nil, err
		}
		op.Steps = append(op.Steps, Step{
			What: fmt.Sprintf("have %s lead nothing, be read from by nobody and hold no virtual address", node),
			Done: answer.Report.Maintenance != nil,
			Do: func(ctx context.Context, say func(string)) error {
				return c.Act(ctx, node, steps.Maintenance.Name, steps.MaintenanceArgs{On: true, Force: force}, nil, say)
			},
		})
		op.Check = func(now overview.Overview) []string { return givenUp(c.Plan, now, n, leads, len(lacks) > 0) }
		return op, nil
	}
}

// handOverFrom adds the step by which another node leads in the place of this one,
// where it leads. It reports that the node goes on leading, by force.
func (o *Operation) handOverFrom(c *Cluster, now overview.Overview, n plan.Node, force bool) (leads bool, err error) {
	if !plan.DatabaseRole(n.Role) {
		return false, nil
	}
	s, err := c.Plan.Site(n.Site)
	if err != nil {
		return false, err
	}
	d, err := databaseOf(now, n.Site)
	if err != nil && !force {
		return false, err
	}
	if d.Leader() != n.Name {
		return false, nil
	}
	to, err := candidate(s, now, d, "")
	if err != nil && force {
		o.Warnings = append(o.Warnings, "it goes on leading the database: "+err.Error())
		return true, nil
	}
	if err != nil {
		return false, err
	}
	o.Steps = append(o.Steps, handOver(c, s, d, to))
	return false, nil
}

// uncarried is what the cluster would lack without a node.
func uncarried(p *plan.Plan, now overview.Overview, n plan.Node) (lacks []string) {
	others := func(nodes []plan.Node, well func(string) bool) (count int) {
		for _, other := range nodes {
			if other.Name != n.Name && well(other.Name) {
				count++
			}
		}
		return count
	}
	if plan.DatabaseRole(n.Role) {
		d, _ := databaseOf(now, n.Site)
		left := others(p.DatabaseNodes(n.Site), func(name string) bool {
			m, ok := d.Member(name)
			return ok && !m.NoFailover && (m.Leads() && m.State == "running" || m.Streams()) && now.Word(name) != nil
		})
		if left < 2 {
			lacks = append(lacks, fmt.Sprintf("of the other database nodes %d are healthy, and two are needed so that no commit is on one alone", left))
		}
	}
	if n.Role == "balancer" {
		left := others(p.Balancers(n.Site), func(name string) bool {
			other, _ := now.Node(name)
			return other.Report != nil && other.Report.Maintenance == nil && serves(other.Report.Cluster)
		})
		if left == 0 {
			lacks = append(lacks, "no other balancer of site "+n.Site+" serves")
		}
	}
	if p.Votes(n.Name) {
		voters := p.ConsensusNodes(n.Site)
		left := others(voters, func(name string) bool { return votes(now, n.Site, name) })
		if left <= len(voters)/2 && len(voters) > 1 {
			lacks = append(lacks, fmt.Sprintf("when it is switched off, %d of %d members of etcd are left, which is no majority", left, len(voters)))
		}
	}
	return lacks
}

// serves reports whether a balancer has somebody to send clients to.
func serves(c *status.Cluster) bool {
	return c != nil && slices.ContainsFunc(c.Backends, func(b status.Backend) bool { return b.Up })
}

// votes reports whether a node's etcd is healthy, as anybody at the site sees it.
func votes(now overview.Overview, site, name string) bool {
	for _, n := range now.Nodes {
		if n.Site != site || n.Report == nil || n.Report.Cluster == nil || n.Report.Cluster.Consensus == nil {
			continue
		}
		if slices.ContainsFunc(n.Report.Cluster.Consensus.Members, func(m status.ConsensusMember) bool { return m.Node == name && m.Healthy }) {
			return true
		}
	}
	return false
}

// givenUp is what a node in maintenance has not given up yet. leads: it goes on
// leading; forced: nobody may be there to take what it gives up.
func givenUp(p *plan.Plan, now overview.Overview, n plan.Node, leads, forced bool) (missing []string) {
	say := func(format string, args ...any) { missing = append(missing, fmt.Sprintf(format, args...)) }
	answer, _ := now.Node(n.Name)
	if answer.Report == nil || answer.Report.Cluster == nil {
		return []string{n.Name + " does not answer"}
	}
	if answer.Report.Maintenance == nil {
		say("%s is not in maintenance", n.Name)
	}
	for _, v := range p.HeldBy(n.Name) {
		holder := ""
		for _, h := range p.Holders(v) {
			if c := now.Word(h.Name); c != nil && slices.ContainsFunc(c.VIPs, func(held status.VIP) bool { return held.Name == v.Name && held.Held }) {
				holder = h.Name
			}
		}
		d, _ := databaseOf(now, p.SiteOf(v))
		switch {
		case holder == n.Name:
			say("the virtual address %s is still on %s", v.Name, n.Name)
		case holder == "" && !forced && !(v.On == plan.OnDatabases && d != nil && d.Standby):
			say("the virtual address %s is on no node", v.Name)
		}
	}
	if !plan.DatabaseRole(n.Role) {
		return missing
	}
	own, member := answer.Report.Cluster.Database.Member(n.Name)
	switch {
	case !member:
		say("%s does not tell how its database is", n.Name)
	case own.Leads() && !leads:
		say("%s still leads", n.Name)
	case !own.NoFailover:
		say("%s might still be made the leader", n.Name)
	}
	return append(missing, readFrom(p, now, n, false)...)
}

// readFrom is what is not yet so about a replica being read from, or not, through
// the balancers.
func readFrom(p *plan.Plan, now overview.Overview, n plan.Node, want bool) (missing []string) {
	for _, b := range p.Balancers(n.Site) {
		c := now.Word(b.Name)
		if c == nil {
			continue
		}
		for _, server := range c.Backends {
			switch {
			case server.Name != "read-only" || server.Server != n.Name || server.Up == want:
			case want:
				missing = append(missing, fmt.Sprintf("%s does not send readers to %s yet (%s)", b.Name, n.Name, server.Check))
			default:
				missing = append(missing, fmt.Sprintf("%s still sends readers to %s", b.Name, n.Name))
			}
		}
	}
	return missing
}

// MaintenanceOff has a node take up again what it gave up. What others took over
// stays with them: the node may lead and hold addresses again, when it has to.
func MaintenanceOff(c *Cluster, node string) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		n, err := c.Plan.Node(node)
		if err != nil {
			return nil, err
		}
		answer, ok := now.Node(node)
		if !ok || answer.Report == nil {
			return nil, fault.New(fault.Failed, "%s does not answer: %s", node, answer.Problem).WithMend("switch it on first")
		}
		return &Operation{
			Name: "maintenance off", Title: "end the maintenance of " + node,
			Steps: []Step{{
				What: fmt.Sprintf("have %s take part again", node),
				Done: answer.Report.Maintenance == nil,
				Do: func(ctx context.Context, say func(string)) error {
					return c.Act(ctx, node, steps.Maintenance.Name, steps.MaintenanceArgs{}, nil, say)
				},
			}},
			Check: func(now overview.Overview) []string { return takenUp(c.Plan, now, n) },
		}, nil
	}
}

// takenUp is what a node has not taken up again yet.
func takenUp(p *plan.Plan, now overview.Overview, n plan.Node) (missing []string) {
	say := func(format string, args ...any) { missing = append(missing, fmt.Sprintf(format, args...)) }
	answer, _ := now.Node(n.Name)
	if answer.Report == nil || answer.Report.Cluster == nil {
		return []string{n.Name + " does not answer"}
	}
	if answer.Report.Maintenance != nil {
		say("%s is in maintenance", n.Name)
	}
	if s := answer.Report.State; !s.Up() {
		say("%s is %s", n.Name, s)
	}
	for _, v := range p.HeldBy(n.Name) {
		if v.On != plan.OnBalancers || p.SiteOf(v) != n.Site {
			continue
		}
		for _, held := range answer.Report.Cluster.VIPs {
			if held.Name == v.Name && !held.Held && held.Problem != "" {
				say("%s could not hold the virtual address %s: %s", n.Name, v.Name, held.Problem)
			}
		}
	}
	if !plan.DatabaseRole(n.Role) {
		return missing
	}
	own, member := answer.Report.Cluster.Database.Member(n.Name)
	switch {
	case !member:
		say("%s does not tell how its database is", n.Name)
	case own.NoFailover:
		say("%s cannot be made the leader yet", n.Name)
	case !own.Leads() && !own.Streams():
		say("%s does not stream yet (%s)", n.Name, own.State)
	case !own.Leads():
		missing = append(missing, readFrom(p, now, n, true)...)
	}
	return missing
}
