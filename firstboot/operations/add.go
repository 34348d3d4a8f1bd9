package operations

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
)

const expelAction = "expel"

type expelArgs = consensus.ExpelArgs

// Add brings a node into the cluster that the topology has and the cluster has not.
func Add(h *Home, name string) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		c := h.Cluster
		n, ok := h.Topology.Node(name)
		if !ok {
			return nil, fault.New(fault.Usage, "%s has no node %q", h.Topology.Path(), name).WithMend("describe the node there first, under nodes")
		}
		if word := now.Word(name); word != nil && word.Retired != "" {
			return nil, fault.New(fault.Failed, "the machine that answers for %s was taken out of the cluster", name).
				WithMend("switch it off; a node is added with a fresh machine")
		}
		_, err := c.Plan.Node(name)
		signed := err == nil && samePlan(c.Plan, h.Topology)
		others, doubts, err := differences(c.Plan, h.Topology, name)
		if err != nil {
			return nil, err
		}
		if len(others) > 0 {
			return nil, fault.New(fault.Usage, "the topology differs from the cluster in more nodes than %s: %s", name, strings.Join(others, ", ")).
				WithMend("one at a time: slipway add for each new one, slipway remove for each that goes")
		}
		if len(now.Nodes) > 0 && !answers(now, name) {
			return nil, fault.New(fault.Network, "no node of the cluster answers").WithMend("see slipway status")
		}
		site := h.Topology.Plan()
		var votes string
		if s, err := site.Site(n.Site); err == nil && slices.Contains(s.Consensus, name) {
			votes = fmt.Sprintf("; it joins etcd as a learner and votes once it has all that the others have (votes: %s)", strings.Join(s.Consensus, ", "))
		}
		op := &Operation{Name: "add", Title: fmt.Sprintf("add the %s %s%s", n.Role, name, votes), Patience: h.Patience, Warnings: doubts}
		if op.Patience == 0 {
			op.Patience = freshReady
		}
		op.Steps = []Step{
			{What: "write the seed of " + name + " and sign the plan", Done: signed && answersItself(now, name), Do: func(ctx context.Context, say func(string)) error {
				_, err := h.reseed(ctx, h.Topology, seeding.Options{}, say)
				return err
			}},
			{What: "hand certificates to the running nodes whose part changes", Done: signed && h.provided(now, name), Do: func(ctx context.Context, say func(string)) error {
				return h.provideAll(ctx, []string{name}, say)
			}},
			{What: "hand the plan to the running nodes", Done: signed && h.known(now, name), Do: func(ctx context.Context, say func(string)) error {
				return h.publish(ctx, []string{name}, say)
			}},
			h.birth(now, n),
			h.votesMove(n.Site, signed && answersItself(now, name) && h.settledVotes(now, n.Site)),
		}
		op.Check = func(now overview.Overview) []string { return h.whole(now, name) }
		return op, nil
	}
}

// birth is the step in which a person starts a fresh machine.
func (h *Home) birth(now overview.Overview, n topology.Node) Step {
	limit := h.Patience
	if limit == 0 {
		limit = freshReady
	}
	return Step{
		What: "wait until the fresh machine of " + n.Name + " is up",
		Done: answersItself(now, n.Name) && now.Word(n.Name).Issue >= h.Vault.Issue(n.Name) && !h.Vault.Replacing(n.Name),
		Do: func(ctx context.Context, say func(string)) error {
			for _, line := range h.Instruct(n) {
				say(line)
			}
			return h.Cluster.await(ctx, limit, say, func(now overview.Overview) []string {
				word := now.Word(n.Name)
				if word == nil {
					return []string{n.Name + " does not answer yet"}
				}
				if word.Issue < h.Vault.Issue(n.Name) {
					return []string{n.Name + " was started with an older seed"}
				}
				s, err := h.Cluster.Plan.Site(n.Site)
				if err == nil && slices.Contains(s.Consensus, n.Name) && !wellIn(now, s, n.Name) {
					return []string{n.Name + " has no vote in etcd yet"}
				}
				return nil
			})
		},
	}
}

// votesMove is the step that takes the votes of those to whom the plan gives none
// any more.
func (h *Home) votesMove(site string, done bool) Step {
	return Step{What: "take out of etcd whom the plan gives no vote", Done: done, Do: func(ctx context.Context, say func(string)) error {
		return h.expelled(ctx, site, nil, true, say)
	}}
}

func (h *Home) settledVotes(now overview.Overview, site string) bool {
	s, err := h.Cluster.Plan.Site(site)
	return err == nil && len(wholeSite(now, s)) == 0
}

// wellIn reports whether a node's etcd member has a vote and is well.
func wellIn(now overview.Overview, s plan.Site, name string) bool {
	for _, missing := range wholeSite(now, plan.Site{Name: s.Name, Consensus: []string{name}}) {
		if !strings.HasPrefix(missing, "etcd still counts") {
			return false
		}
	}
	return true
}

// provided reports whether all nodes but one have the newest of their certificates.
func (h *Home) provided(now overview.Overview, but string) bool {
	for _, n := range h.Cluster.Plan.Nodes {
		if word := now.Word(n.Name); n.Name != but && h.Vault.Issue(n.Name) > 0 && (word == nil || word.Issue < h.Vault.Issue(n.Name)) {
			return false
		}
	}
	return true
}

func answersItself(now overview.Overview, name string) bool { return now.Word(name) != nil }

// answers reports whether any node but one answers.
func answers(now overview.Overview, but string) bool {
	return slices.ContainsFunc(now.Nodes, func(n overview.Node) bool { return n.Name != but && n.Report != nil })
}

// samePlan reports whether a topology amounts to a plan.
func samePlan(p *plan.Plan, t *topology.Topology) bool { return seeding.Same(p, t.Plan()) }

// differences are nodes other than one in which plan and topology differ, and, in
// words, whether anything else does.
func differences(p *plan.Plan, t *topology.Topology, but string) (nodes, doubts []string, err error) {
	next := t.Plan()
	for _, n := range next.Nodes {
		if _, err := p.Node(n.Name); err != nil && n.Name != but {
			nodes = append(nodes, n.Name+" is new")
		}
	}
	for _, n := range p.Nodes {
		if _, err := next.Node(n.Name); err != nil && n.Name != but {
			nodes = append(nodes, n.Name+" is gone")
		}
	}
	for i, s := range next.Sites {
		if i < len(p.Sites) && p.Sites[i].Name == s.Name && !slices.Equal(p.Sites[i].Consensus, s.Consensus) {
			doubts = append(doubts, fmt.Sprintf("votes of site %s: %s instead of %s", s.Name, strings.Join(s.Consensus, ", "), strings.Join(p.Sites[i].Consensus, ", ")))
		}
	}
	return nodes, doubts, nil
}
