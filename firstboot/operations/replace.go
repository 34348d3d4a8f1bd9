package operations

import (
	"context"
	"fmt"
	"slices"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Replace has a fresh machine take the place of a dead one: with the node's name and
// address, its vote and its database's place, and with certificates of its own. The
// machine before it is refused when it comes back.
func Replace(h *Home, name string) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		n, ok := h.Topology.Node(name)
		if !ok {
			return nil, fault.New(fault.Usage, "%s has no node %q", h.Topology.Path(), name)
		}
		if _, err := h.Cluster.Plan.Node(name); err != nil || !samePlan(h.Cluster.Plan, h.Topology) {
			return nil, fault.New(fault.Usage, "the topology has changed since its plan was signed").WithMend("bring the cluster to it first: slipway add, slipway remove or slipway seed; a node keeps its role when it is replaced")
		}
		begun := h.Vault.Replacing(name)
		if answersItself(now, name) && !begun {
			return nil, fault.New(fault.Failed, "%s answers: it is not dead", name).
				WithMend("switch the machine off for good, then run the same command; to mend it, see slipway status")
		}
		s, err := h.Cluster.Plan.Site(n.Site)
		if err != nil {
			return nil, err
		}
		if !answersItself(now, name) {
			if err := mayGo(now, h.Cluster.Plan, s, name); err != nil {
				return nil, err
			}
		}
		fresh := begun && answersItself(now, name)
		op := &Operation{Name: "replace", Title: fmt.Sprintf("have a fresh machine take the place of the %s %s", n.Role, name), Patience: h.Patience}
		if op.Patience == 0 {
			op.Patience = freshReady
		}
		if !begun {
			op.Warnings = []string{
				fmt.Sprintf("the machine that was %s must be off, and stay off until the plan is known to all: nobody can tell from here", name),
				"what its disk holds and the others do not have is lost",
			}
		}
		op.Steps = []Step{
			{What: "make new certificates for " + name + ", revoke those of the machine before, write its seed", Done: fresh, Do: func(ctx context.Context, say func(string)) error {
				if err := h.Vault.Replace(name); err != nil {
					return err
				}
				_, err := h.reseed(ctx, h.Topology, seeding.Options{}, say)
				return err
			}},
			{What: "tell the running nodes", Done: fresh && h.known(now, name), Do: func(ctx context.Context, say func(string)) error {
				if err := h.provideAll(ctx, []string{name}, say); err != nil {
					return err
				}
				return h.publish(ctx, []string{name}, say)
			}},
		}
		op.Steps = append(op.Steps, h.clear(n.Site, name, plan.DatabaseRole(n.Role), slices.Contains(s.Consensus, name), fresh)...)
		op.Steps = append(op.Steps, h.birth(now, n), Step{
			What: "note that " + name + " is whole again", Do: func(ctx context.Context, say func(string)) error {
				if err := h.Cluster.await(ctx, op.Patience, say, func(now overview.Overview) []string { return h.whole(now, name) }); err != nil {
					return err
				}
				h.Vault.Replaced(name)
				return h.Vault.Save()
			},
		})
		op.Check = func(now overview.Overview) []string { return h.whole(now, name) }
		return op, nil
	}
}

// clear are the steps that take away what a dead node has left with the others.
func (h *Home) clear(site, name string, isDatabase, votes, done bool) (list []Step) {
	if votes {
		list = append(list, Step{What: "take the dead member of " + name + " out of etcd", Done: done, Do: func(ctx context.Context, say func(string)) error {
			return h.expelled(ctx, site, []string{name}, false, say)
		}})
	}
	if isDatabase {
		list = append(list, Step{What: "have Patroni forget " + name, Done: done, Do: func(ctx context.Context, say func(string)) error {
			return h.forget(ctx, site, name, say)
		}})
	}
	return list
}

// forget has the node that leads a site's database forget another.
func (h *Home) forget(ctx context.Context, site, name string, say func(string)) error {
	lead := ""
	err := h.Cluster.await(ctx, roundLimit, say, func(now overview.Overview) []string {
		d, err := databaseOf(now, site)
		if err != nil {
			return []string{err.Error()}
		}
		if lead = d.Leader(); lead == "" || lead == name {
			return []string{"site " + site + " has no leader yet"}
		}
		if m, ok := d.Member(name); ok && m.Streams() {
			return []string{"Patroni still takes " + name + " for a replica that streams"}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return h.Cluster.Act(ctx, lead, database.ForgetMember.Name, database.ForgetArgs{Node: name}, nil, say)
}

// mayGo refuses where the others could not go on without a node.
func mayGo(now overview.Overview, p *plan.Plan, s plan.Site, name string) error {
	n, err := p.Node(name)
	if err != nil {
		return err
	}
	if slices.Contains(s.Consensus, name) {
		by, err := voter(now, s, name)
		if err != nil && len(s.Consensus) > 1 {
			return fault.New(fault.Failed, "the etcd of site %s has no quorum, so that nothing can be changed there: %w", s.Name, err).
				WithMend("bring another of its members back: %s", fmt.Sprint(s.Consensus))
		}
		if err == nil {
			if word := now.Word(by); word != nil {
				healthy, others := 0, 0
				for _, m := range word.Consensus.Members {
					if m.Node == name {
						continue
					}
					if others++; m.Healthy {
						healthy++
					}
				}
				if healthy <= others/2 {
					return fault.New(fault.Failed, "without %s, %d of %d members of etcd would be well: no quorum", name, healthy, others).
						WithMend("bring another member back first: see slipway status")
				}
			}
		}
	}
	if !plan.DatabaseRole(n.Role) || len(p.DatabaseNodes(s.Name)) == 1 {
		return nil
	}
	d, err := databaseOf(now, s.Name)
	if err != nil {
		return err
	}
	if lead := d.Leader(); lead == "" || lead == name && !answersItself(now, name) {
		return fault.New(fault.Failed, "nobody leads the database of site %s: what %s has may be all that there is", s.Name, name).
			WithMend("wait until another node leads (slipway status), or bring %s back", name)
	}
	return nil
}
