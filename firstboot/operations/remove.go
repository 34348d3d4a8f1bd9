package operations

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/steps"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Removal says what is removed.
type Removal struct {
	Node string
	// Dead: its agent does not answer, and never will.
	Dead bool
	// Without is the topology without the node, and Write writes the file that it was
	// read from. Edited says that the file is so already.
	Without *topology.Topology
	Write   func() error
	Edited  bool
}

// Remove takes a node out of the cluster: out of its duties, out of etcd and
// Patroni, out of the plan, and out of cluster.yaml.
func Remove(h *Home, r Removal) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		c, name := h.Cluster, r.Node
		before, err := h.Vault.PlanWith(name)
		if err != nil {
			return nil, err
		}
		if before == nil {
			return nil, fault.New(fault.Usage, "the cluster has no node %q, and the store remembers none: it is gone already, or never was", name).WithMend("see slipway status")
		}
		n, err := before.Node(name)
		c.Also = []plan.Node{n}
		if err != nil {
			return nil, err
		}
		others, doubts, err := differences(c.Plan, r.Without, name)
		if err != nil {
			return nil, err
		}
		if len(others) > 0 {
			return nil, fault.New(fault.Usage, "the topology differs from the cluster in more nodes than %s: %s", name, strings.Join(others, ", ")).
				WithMend("one at a time: slipway add for each new one, slipway remove for each that goes")
		}
		word := now.Word(name)
		switch {
		case word == nil && !r.Dead && !published(c.Plan, name):
			return nil, fault.New(fault.Failed, "%s does not answer, so that it cannot be asked to stop", name).
				WithMend("start it, or, if it is gone for good: slipway remove %s --dead", name)
		case word != nil && r.Dead && word.Retired == "":
			return nil, fault.New(fault.Failed, "%s answers: it is not dead", name).WithMend("remove it without --dead, or switch it off first")
		}
		s, err := before.Site(n.Site)
		if err != nil {
			return nil, err
		}
		if !published(c.Plan, name) {
			if err := mayGo(now, before, s, name); err != nil {
				return nil, err
			}
		}
		retired := word == nil || word.Retired != ""
		op := &Operation{Name: "remove", Title: fmt.Sprintf("take the %s %s out of the cluster", n.Role, name)}
		op.Warnings = append(loses(now, before, s, n), doubts...)
		if r.Dead {
			op.Warnings = append(op.Warnings, fmt.Sprintf("the machine that was %s must be off; if it comes back, it is refused and stops by itself", name))
		}
		only := true
		for _, d := range before.DatabaseNodes(s.Name) {
			only = only && d.Name == name
		}
		if d, err := databaseOf(now, s.Name); err == nil && plan.DatabaseRole(n.Role) && d.Leader() == name && !only && word != nil {
			to, err := candidate(s, now, d, "")
			if err != nil {
				return nil, err
			}
			op.Steps = append(op.Steps, handOver(c, s, d, to))
		}
		votes := slices.Contains(s.Consensus, name)
		if word != nil {
			op.Steps = append(op.Steps, Step{What: "stop the services of " + name, Done: retired, Do: func(ctx context.Context, say func(string)) error {
				return c.Act(ctx, name, steps.RetireAction, steps.RetireArgs{Votes: votes, Leads: only}, nil, say)
			}})
		}
		done := r.Edited && published(c.Plan, name) && seeding.Same(c.Plan, r.Without.Plan())
		op.Steps = append(op.Steps,
			Step{What: "take " + name + " out of " + r.Without.Path(), Done: r.Edited, Do: func(context.Context, func(string)) error { return r.Write() }},
			Step{What: "sign the plan without it, and write the seeds", Done: done, Do: func(ctx context.Context, say func(string)) error {
				_, err := h.reseed(ctx, r.Without, seeding.Options{}, say)
				return err
			}},
			Step{What: "hand certificates and plan to the nodes that stay", Done: done && h.known(now, name) && h.provided(now, name), Do: func(ctx context.Context, say func(string)) error {
				if err := h.provideAll(ctx, []string{name}, say); err != nil {
					return err
				}
				return h.publish(ctx, []string{name}, say)
			}})
		op.Steps = append(op.Steps, h.part(r, n, s, word != nil, votes)...)
		op.Check = func(now overview.Overview) []string { return h.without(now, r.Without, n) }
		return op, nil
	}
}

// part are the steps by which the others part from a node, once the plan is known.
func (h *Home) part(r Removal, n plan.Node, s plan.Site, answers, votes bool) (list []Step) {
	c, name := h.Cluster, r.Node
	left := r.Without.Plan()
	site, err := left.Site(s.Name)
	stays := err == nil && len(site.Consensus) > 0
	if votes && stays {
		list = append(list, Step{What: "have the nodes that vote from now on do so, and take " + name + " out of etcd", Do: func(ctx context.Context, say func(string)) error {
			if err := c.await(ctx, roundLimit, say, func(now overview.Overview) (missing []string) {
				for _, v := range site.Consensus {
					if !wellIn(now, site, v) {
						missing = append(missing, v+" has no vote in etcd yet")
					}
				}
				return missing
			}); err != nil {
				return err
			}
			return h.expelled(ctx, s.Name, []string{name}, !r.Dead, say)
		}})
	}
	if plan.DatabaseRole(n.Role) && len(left.DatabaseNodes(s.Name)) > 0 {
		list = append(list, Step{What: "have Patroni forget " + name, Do: func(ctx context.Context, say func(string)) error {
			return h.forget(ctx, s.Name, name, say)
		}})
	}
	if votes && answers {
		list = append(list, Step{What: "stop the etcd of " + name, Do: func(ctx context.Context, say func(string)) error {
			return c.Act(ctx, name, steps.RetireAction, steps.RetireArgs{Leads: true}, nil, say)
		}})
	}
	return append(list,
		Step{What: "revoke the certificates of " + name, Do: func(ctx context.Context, say func(string)) error {
			h.Vault.Revoke(name)
			if _, err := h.reseed(ctx, r.Without, seeding.Options{}, say); err != nil {
				return err
			}
			return h.publish(ctx, []string{name}, say)
		}},
		Step{What: "forget the seed and the keys of " + name, Do: func(ctx context.Context, say func(string)) error {
			_, err := h.reseed(ctx, r.Without, seeding.Options{Prune: true}, say)
			return err
		}})
}

// published reports whether a plan is one without a node.
func published(p *plan.Plan, name string) bool {
	_, err := p.Node(name)
	return err != nil
}

// loses is what the cluster loses with a node, in words.
func loses(now overview.Overview, p *plan.Plan, s plan.Site, n plan.Node) (list []string) {
	say := func(format string, args ...any) { list = append(list, fmt.Sprintf(format, args...)) }
	if slices.Contains(s.Consensus, n.Name) {
		say("it has one of the %d votes of site %s", len(s.Consensus), s.Name)
	}
	for _, v := range p.HeldBy(n.Name) {
		say("the virtual address %s can be on %d nodes instead of %d", v.Name, len(p.Holders(v))-1, len(p.Holders(v)))
	}
	if plan.DatabaseRole(n.Role) {
		say("site %s has %d databases instead of %d", s.Name, len(p.DatabaseNodes(s.Name))-1, len(p.DatabaseNodes(s.Name)))
		if word := now.Word(n.Name); word != nil {
			if m, ok := word.Database.Member(n.Name); ok && m.Leads() {
				say("it leads site %s now", s.Name)
			}
		}
	}
	return list
}

// without is what is missing until nothing is left of a node.
func (h *Home) without(now overview.Overview, t *topology.Topology, n plan.Node) (missing []string) {
	if !published(h.Cluster.Plan, n.Name) {
		missing = append(missing, "the plan still has "+n.Name)
	}
	if slices.Contains(h.Vault.Nodes(), n.Name) {
		missing = append(missing, "the store still has the certificates of "+n.Name)
	}
	if s, err := h.Cluster.Plan.Site(n.Site); err == nil {
		missing = append(missing, wholeSite(now, s)...)
	}
	if d, err := databaseOf(now, n.Site); err == nil {
		if _, ok := d.Member(n.Name); ok && len(t.Plan().DatabaseNodes(n.Site)) > 0 {
			missing = append(missing, "Patroni still knows "+n.Name)
		}
	}
	for _, o := range now.Nodes {
		if o.Name != n.Name && o.Report != nil && o.Report.State == status.Converging {
			missing = append(missing, o.Name+" is under way")
		}
	}
	return missing
}
