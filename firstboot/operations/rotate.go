package operations

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/internal/fault"
)

// RotateCertificates gives all nodes new certificates and keys, one node after the
// other. Old and new ones come from the same authority and work together.
func RotateCertificates(h *Home) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		if err := noneLeftBehind(now, h.Cluster.Plan.Nodes); err != nil {
			return nil, err
		}
		begun := h.Vault.Renewing()
		op := &Operation{Name: "rotate certificates", Title: "give all nodes new certificates and keys", Steps: []Step{{
			What: "make them, and write the seeds", Done: false, Do: func(ctx context.Context, say func(string)) error {
				h.Vault.Renew()
				_, err := h.reseed(ctx, h.Topology, seeding.Options{Renew: !begun}, say)
				return err
			},
		}}}
		for _, n := range h.Cluster.Plan.Nodes {
			op.Steps = append(op.Steps, h.exchange(now, n.Name, begun))
		}
		op.Steps = append(op.Steps, Step{What: "see them on all nodes", Do: func(ctx context.Context, say func(string)) error {
			if err := h.Cluster.await(ctx, roundLimit, say, h.certified); err != nil {
				return err
			}
			h.Vault.Renewed()
			return h.Vault.Save()
		}})
		op.Check = h.certified
		return op, nil
	}
}

// RotateSecrets gives passwords new values: all, or those that are named.
func RotateSecrets(h *Home, names []string) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		var nodes []plan.Node
		known := map[string]bool{}
		for _, n := range h.Cluster.Plan.Nodes {
			if has := seeding.Passwords(h.Cluster.Plan, n); has != nil {
				nodes = append(nodes, n)
				for _, name := range has {
					known[name] = true
				}
			}
		}
		if len(names) == 0 {
			for _, name := range h.Vault.SecretNames() {
				if known[name] {
					names = append(names, name)
				}
			}
		}
		for _, name := range names {
			if !known[name] {
				return nil, fault.New(fault.Usage, "the cluster has no password %q that it could change by itself", name).WithMend("slipway secret list names those that there are")
			}
		}
		if len(names) == 0 {
			return nil, fault.New(fault.Usage, "the cluster has no passwords: it has no databases")
		}
		if err := noneLeftBehind(now, nodes); err != nil {
			return nil, err
		}
		// What was begun before is ended, too: its new values are on some nodes already.
		under := h.Vault.Exchanging()
		all := slices.Compact(slices.Sorted(slices.Values(append(slices.Clone(names), under...))))
		if _, err := ledBy(h.Cluster.Plan, now); err != nil {
			return nil, err
		}
		op := &Operation{Name: "rotate secrets", Title: "give " + strings.Join(all, ", ") + " new values", Again: "slipway rotate secrets " + strings.Join(all, " ")}
		for _, name := range all {
			if owner, ok := strings.CutPrefix(name, plan.Database{}.PasswordKey()); ok {
				op.Warnings = append(op.Warnings, fmt.Sprintf("applications that connect as %s need its new password as soon as this runs (slipway secret show %s); connections that are open go on", owner, name))
			}
		}
		begun := len(under) > 0 && len(all) == len(under)
		op.Steps = []Step{{
			What: "make them, keep the former ones until all is done, and write the seeds", Do: func(ctx context.Context, say func(string)) error {
				fresh := false
				for _, name := range all {
					one, err := h.Vault.Exchange(name)
					if err != nil {
						return err
					}
					fresh = fresh || one
				}
				if fresh {
					for _, n := range nodes {
						h.Vault.Outdate(n.Name)
					}
				}
				_, err := h.reseed(ctx, h.Topology, seeding.Options{}, say)
				return err
			},
		}}
		for _, name := range leadersFirst(h.Cluster.Plan, now, nodes) {
			op.Steps = append(op.Steps, h.exchange(now, name, begun))
		}
		taken := func(now overview.Overview) []string { return h.taken(now, nodes) }
		op.Steps = append(op.Steps, Step{What: "see them in use, and forget the former ones", Do: func(ctx context.Context, say func(string)) error {
			if err := h.Cluster.await(ctx, roundLimit, say, taken); err != nil {
				return err
			}
			h.Vault.Exchanged()
			return h.Vault.Save()
		}})
		op.Check = taken
		return op, nil
	}
}

// exchange is the step that hands a node what is new for it.
func (h *Home) exchange(now overview.Overview, name string, begun bool) Step {
	word := now.Word(name)
	return Step{
		What: "hand them to " + name,
		Done: begun && word != nil && word.Issue >= h.Vault.Issue(name),
		Do:   func(ctx context.Context, say func(string)) error { return h.provide(ctx, name, say) },
	}
}

func noneLeftBehind(now overview.Overview, nodes []plan.Node) error {
	var silent []string
	for _, n := range nodes {
		if now.Word(n.Name) == nil {
			silent = append(silent, n.Name)
		}
	}
	if len(silent) > 0 {
		return fault.New(fault.Network, "these nodes do not answer, and would be left with the former ones: %s", strings.Join(silent, ", ")).
			WithMend("start them, or take them out: slipway remove NODE --dead")
	}
	return nil
}

// ledBy are the leaders of all sites with databases, the primary before those of
// standby sites; a site that has none is an error.
func ledBy(p *plan.Plan, now overview.Overview) (leaders []string, err error) {
	var standby []string
	for _, s := range p.Sites {
		if len(p.DatabaseNodes(s.Name)) == 0 {
			continue
		}
		d, ofErr := databaseOf(now, s.Name)
		switch {
		case ofErr != nil:
			err = errors.Join(err, ofErr)
		case d.Leader() == "":
			err = errors.Join(err, fault.New(fault.Failed, "nobody leads site %s", s.Name).WithMend("see slipway status"))
		case d.Standby:
			standby = append(standby, d.Leader())
		default:
			leaders = append(leaders, d.Leader())
		}
	}
	return append(leaders, standby...), err
}

// leadersFirst are the names of nodes: first the primary, which has PostgreSQL take new
// passwords, then the leaders of other sites, then all others.
func leadersFirst(p *plan.Plan, now overview.Overview, nodes []plan.Node) (names []string) {
	leaders, _ := ledBy(p, now)
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	place := func(name string) int {
		if i := slices.Index(leaders, name); i >= 0 {
			return i
		}
		return len(leaders)
	}
	slices.SortStableFunc(names, func(a, b string) int { return place(a) - place(b) })
	return names
}

// taken is what is missing until nodes have their newest passwords, the primary has
// seen to it that these are the database's, and all others stream.
func (h *Home) taken(now overview.Overview, nodes []plan.Node) (missing []string) {
	for _, n := range nodes {
		word := now.Word(n.Name)
		switch {
		case word == nil:
			missing = append(missing, n.Name+" does not answer")
		case word.Issue < h.Vault.Issue(n.Name):
			missing = append(missing, n.Name+" has the former ones")
		case word.Database == nil:
			missing = append(missing, n.Name+" does not tell how its database is")
		default:
			m, ok := word.Database.Member(n.Name)
			switch f := word.Database.Furnished; {
			case !ok || !m.Leads() && !m.Streams():
				missing = append(missing, n.Name+" does not stream")
			case m.Leads() && !word.Database.Standby && (f == nil || *f < h.Vault.Issue(n.Name)):
				missing = append(missing, n.Name+" has not set them in the database yet")
			}
		}
	}
	return missing
}

// certified is what is missing until all nodes have the certificates of the store.
func (h *Home) certified(now overview.Overview) (missing []string) {
	for _, n := range h.Cluster.Plan.Nodes {
		word := now.Word(n.Name)
		ends, err := h.expires(n.Name)
		switch {
		case err != nil:
			missing = append(missing, err.Error())
		case word == nil:
			missing = append(missing, n.Name+" does not answer")
		case word.Issue < h.Vault.Issue(n.Name):
			missing = append(missing, n.Name+" has the former certificates")
		case word.Expires.Before(ends):
			missing = append(missing, fmt.Sprintf("a certificate of %s ends on %s already", n.Name, word.Expires.Format(time.DateOnly)))
		}
	}
	return missing
}

// expires is when the first of a node's certificates in the store ends.
func (h *Home) expires(name string) (first time.Time, err error) {
	c, err := seeding.Credentials(h.Topology, h.Vault, name)
	if err != nil {
		return first, err
	}
	for purpose, pair := range c.Certificates {
		cert, err := pki.ParseCertificate(name+", "+purpose, pair.Certificate)
		if err != nil {
			return first, err
		}
		if first.IsZero() || cert.NotAfter.Before(first) {
			first = cert.NotAfter
		}
	}
	return first, nil
}
