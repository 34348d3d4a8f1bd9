package database

import (
	"context"
	"slices"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
)

// aloneAfter is how long a site that starts as a whole waits for a word from the
// other sites: as long as routers need that got their power back with the machines.
const aloneAfter = time.Minute

// heard waits until another site's agent has said that there is no newer plan, before
// a site that comes back as a whole starts to take writes again: it may have been
// lost, and the other site promoted. Two sites cannot tell that from the other one's
// being down, and a primary site must be able to start while its standby is down; so
// the wait ends.
func (s *Start) heard(ctx context.Context, n *node.Node, rest *patroni) error {
	m := n.Member
	var others []string
	for _, p := range m.Plan.Sites {
		if p.Name != m.Site.Name && len(m.Plan.DatabaseNodes(p.Name)) > 0 {
			others = append(others, p.Name)
		}
	}
	if s.Agrees == nil || m.Site.StandbyOf != "" || len(others) == 0 {
		return nil
	}
	limit := s.Alone
	if limit == 0 {
		limit = aloneAfter
	}
	for begun := time.Now(); ; {
		if slices.ContainsFunc(others, s.Agrees) || s.siteRuns(ctx, n, rest) {
			return nil
		}
		left := limit - time.Since(begun)
		if left <= 0 {
			break
		}
		n.Waiting("no other site answers that would know whether one was promoted: this one starts alone in %d s", int(left.Seconds())+1)
		if !node.Sleep(ctx, min(lookAgain, left)) {
			return ctx.Err()
		}
	}
	n.Changed("started without a word from another site: if one was promoted, both take writes until they see each other")
	return nil
}

// siteRuns reports whether another node of this site is the primary already.
func (s *Start) siteRuns(ctx context.Context, n *node.Node, rest *patroni) bool {
	for _, other := range n.Member.Plan.DatabaseNodes(n.Member.Site.Name) {
		if other.Name == n.Member.Self.Name {
			continue
		}
		if o, err := rest.own(ctx, other); err == nil && o.Role == "primary" && o.State == "running" {
			return true
		}
	}
	return false
}
