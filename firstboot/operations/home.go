package operations

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/steps"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Home is the administrator's side of a cluster: what operations need that change
// which nodes there are, or what they know.
type Home struct {
	Cluster  *Cluster
	Topology *topology.Topology
	Vault    *vault.Vault // open for writing
	// Seed brings the seeds up to date with a topology, and saves the store before.
	Seed func(ctx context.Context, t *topology.Topology, o seeding.Options) (*seeding.Result, error)
	// Instruct says how a node gets a fresh machine with its seed.
	Instruct func(n topology.Node) []string
	// Patience is how long a fresh machine may take to be ready.
	Patience time.Duration
}

const (
	roundLimit  = 10 * time.Minute // for a running node to take something up: emulated ones take minutes
	roundPause  = time.Second
	freshReady  = 30 * time.Minute
	credentials = steps.CredentialsAction
)

// reseed writes the seeds and signs the plan that goes with them.
func (h *Home) reseed(ctx context.Context, t *topology.Topology, o seeding.Options, say func(string)) (*seeding.Result, error) {
	now, err := h.Cluster.Look(ctx)
	if err != nil {
		return nil, err
	}
	o.Formed = formed(now, h.Cluster.Plan)
	r, err := h.Seed(ctx, t, o)
	if err != nil {
		return nil, err
	}
	for _, n := range r.Nodes {
		if n.State == seeding.Written {
			say(fmt.Sprintf("seed of %s written into %s", n.Node, r.Dir))
		}
	}
	h.Topology = t
	if h.Cluster.Plan, err = h.Vault.Plan(); err != nil {
		return nil, err
	}
	return r, nil
}

// formed are the sites whose etcd has a quorum.
func formed(now overview.Overview, p *plan.Plan) (sites []string) {
	for _, s := range p.Sites {
		if slices.ContainsFunc(s.Consensus, func(node string) bool {
			word := now.Word(node)
			return word != nil && word.Consensus != nil && word.Consensus.Quorum
		}) {
			sites = append(sites, s.Name)
		}
	}
	return sites
}

// await looks until nothing is missing any more.
func (c *Cluster) await(ctx context.Context, limit time.Duration, say func(string), missing func(overview.Overview) []string) error {
	until, last := time.Now().Add(limit), []string{}
	for {
		now, err := c.Look(ctx)
		if err != nil {
			return err
		}
		left := missing(now)
		if len(left) == 0 {
			return nil
		}
		if !slices.Equal(left, last) {
			say("waiting: " + strings.Join(left, "; "))
			last = left
		}
		if time.Now().After(until) {
			return fault.New(fault.Failed, "after %s: %s", limit, strings.Join(left, "; ")).WithMend("see slipway status; then run the same command again")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(roundPause):
		}
	}
}

// provide hands a node the certificates and passwords that its seed has, unless it
// has them, and waits until it has taken them up.
func (h *Home) provide(ctx context.Context, name string, say func(string)) error {
	want := h.Vault.Issue(name)
	now, err := h.Cluster.Look(ctx)
	if err != nil {
		return err
	}
	if word := now.Word(name); word != nil && word.Issue >= want && settled(now, name) {
		return nil
	}
	given, err := seeding.Credentials(h.Topology, h.Vault, name)
	if err != nil {
		return err
	}
	if err := h.Cluster.Act(ctx, name, credentials, given, nil, say); err != nil {
		return err
	}
	return h.Cluster.await(ctx, roundLimit, say, func(now overview.Overview) []string {
		if word := now.Word(name); word == nil || word.Issue < want {
			return []string{name + " takes up its new certificates and passwords"}
		}
		if !settled(now, name) {
			return []string{name + " brings its services up to date"}
		}
		return nil
	})
}

// settled reports whether a node is not under way.
func settled(now overview.Overview, name string) bool {
	n, _ := now.Node(name)
	return n.Report != nil && n.Report.State != status.Converging && n.Report.State != status.Starting
}

// provideAll hands all nodes but some what they lack, leaders first: a password that a
// replica has and the database has not keeps it from streaming.
func (h *Home) provideAll(ctx context.Context, but []string, say func(string)) error {
	now, err := h.Cluster.Look(ctx)
	if err != nil {
		return err
	}
	for _, name := range leadersFirst(h.Cluster.Plan, now, h.Cluster.Plan.Nodes) {
		if slices.Contains(but, name) {
			continue
		}
		if word := now.Word(name); word != nil && word.Issue >= h.Vault.Issue(name) {
			continue
		} else if word == nil && h.Vault.Issue(name) == 0 {
			continue // it has what it was born with
		}
		if err := h.provide(ctx, name, say); err != nil {
			return err
		}
	}
	return nil
}

// publish hands the newest plan to the nodes that answer, but some, and waits until
// it is in effect on them. One that cannot be handed it now hears of it from the
// others, if any of them has it.
func (h *Home) publish(ctx context.Context, but []string, say func(string)) error {
	c := h.Cluster
	signed, err := h.Vault.SignedPlan()
	if err != nil {
		return err
	}
	now, err := c.Look(ctx)
	if err != nil {
		return err
	}
	var awaited []string
	told := false // one of them at least
	missed := error(fault.New(fault.Network, "no node takes the plan: none answers").WithMend("see slipway status"))
	for _, n := range c.Plan.Nodes {
		word := now.Word(n.Name)
		if word == nil || slices.Contains(but, n.Name) {
			continue
		}
		awaited = append(awaited, n.Name)
		if word.Generation < c.Plan.Generation {
			err := c.Give(ctx, n.Name, signed)
			if fault.Of(err) == fault.Network {
				say(err.Error() + "; it hears of the plan from the others")
				missed = err
				continue
			}
			if err != nil {
				return err
			}
		}
		told = true
	}
	if !told {
		return missed
	}
	return c.await(ctx, roundLimit, say, func(now overview.Overview) (left []string) {
		for _, name := range awaited {
			if word := now.Word(name); word == nil || word.Generation < c.Plan.Generation {
				left = append(left, fmt.Sprintf("%s takes up the plan of generation %d", name, c.Plan.Generation))
			}
		}
		return left
	})
}

// known reports whether all nodes that answer, but some, know the newest plan.
func (h *Home) known(now overview.Overview, but ...string) bool {
	for _, n := range h.Cluster.Plan.Nodes {
		if word := now.Word(n.Name); word != nil && !slices.Contains(but, n.Name) && word.Generation < h.Cluster.Plan.Generation {
			return false
		}
	}
	return true
}

// expelled has whoever votes take members out of a site's etcd that the plan does not
// name; of others, those that are named.
func (h *Home) expelled(ctx context.Context, site string, named []string, alive bool, say func(string)) error {
	c := h.Cluster
	now, err := c.Look(ctx)
	if err != nil {
		return err
	}
	s, err := c.Plan.Site(site)
	if err != nil {
		return err
	}
	// Whoever is named and a stranger comes twice, and the second time is a wait: with a
	// leader that went, the others agree on nothing until they have another.
	for _, name := range append(strangers(now, s), named...) {
		by, err := voter(now, s, name)
		if err != nil {
			return err
		}
		if err := c.Act(ctx, by, expelAction, expelArgs{Node: name, Alive: alive}, nil, say); err != nil {
			return err
		}
	}
	return nil
}

// strangers are the members of a site's etcd that the plan gives no vote, as its
// members tell.
func strangers(now overview.Overview, s plan.Site) []string {
	var found []string
	for _, name := range s.Consensus {
		if word := now.Word(name); word != nil && word.Consensus != nil {
			for _, stranger := range word.Consensus.Strangers {
				if !slices.Contains(found, stranger) {
					found = append(found, stranger)
				}
			}
		}
	}
	return found
}

// voter is a node of a site whose etcd member is well, other than one.
func voter(now overview.Overview, s plan.Site, but string) (string, error) {
	for _, name := range s.Consensus {
		word := now.Word(name)
		if name == but || word == nil || word.Consensus == nil || !word.Consensus.Quorum {
			continue
		}
		if slices.ContainsFunc(word.Consensus.Members, func(m status.ConsensusMember) bool { return m.Node == name && m.Healthy }) {
			return name, nil
		}
	}
	return "", fault.New(fault.Failed, "no other member of etcd at site %s is well", s.Name).WithMend("see slipway status")
}

// whole is what is missing until a node is ready, and its site's etcd and database
// with it.
func (h *Home) whole(now overview.Overview, name string) (missing []string) {
	n, _ := now.Node(name)
	switch {
	case n.Report == nil:
		return []string{name + " does not answer: " + n.Problem}
	case n.Report.Cluster == nil || n.Report.State != status.Ready:
		missing = append(missing, fmt.Sprintf("%s is %s", name, n.Report.State))
	}
	word := now.Word(name)
	if word == nil {
		return missing
	}
	if word.Issue < h.Vault.Issue(name) {
		missing = append(missing, name+" has the certificates of an older seed")
	}
	if word.Generation < h.Cluster.Plan.Generation {
		missing = append(missing, name+" does not have the newest plan")
	}
	s, err := h.Cluster.Plan.Site(word.Site)
	if err != nil {
		return append(missing, err.Error())
	}
	return append(missing, wholeSite(now, s)...)
}

// wholeSite is what is missing until a site's etcd has all members and no other.
func wholeSite(now overview.Overview, s plan.Site) (missing []string) {
	for _, name := range s.Consensus {
		word := now.Word(name)
		if word == nil || word.Consensus == nil {
			missing = append(missing, name+" does not tell how etcd is")
			continue
		}
		for _, m := range word.Consensus.Members {
			if m.Node == name && !m.Healthy {
				missing = append(missing, fmt.Sprintf("etcd on %s: %s", name, m.Problem))
			}
		}
	}
	if extra := strangers(now, s); len(extra) > 0 {
		missing = append(missing, "etcd still counts on "+strings.Join(extra, ", "))
	}
	return missing
}
