package operations

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/versions"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Upgrade takes nodes to the version of an image: first it is put beside the old one on all of
// them, then they start anew, one at a time, the primary last. A node that does not come up goes
// back by itself, and the upgrade ends there. rate bounds what is sent, in bytes a second; 0 is no bound.
func Upgrade(c *Cluster, releases []*Release, names []string, rate int64) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		r := newRestarter(c)
		r.before = now
		op := &Operation{Name: "upgrade"}
		nodes, err := upgradeOrder(c.Plan, now, names)
		if err != nil {
			return nil, err
		}
		to := map[string]*Release{}
		var install, start []Step
		for _, n := range nodes {
			release, err := releaseFor(releases, n)
			if err != nil {
				return nil, err
			}
			to[n.Name] = release
			o, _ := now.Node(n.Name)
			if why := notUpgradable(o, release); why != "" {
				return nil, fault.New(fault.Failed, "%s", why).WithMend("see slipway status; nodes are upgraded while they are well, or one by one with --node")
			}
			has, runs := state(o, release)
			runs = runs && o.Report.Maintenance == nil
			op.warn(n, o, release)
			install = append(install, Step{
				What: fmt.Sprintf("put version %s beside %s on %s", release.Version, o.Report.Version, n.Name), Done: has,
				Do: func(ctx context.Context, say func(string)) error { return c.install(ctx, n.Name, release, rate, say) },
			})
			what := startStep(c.Plan, now, n, release.Version)
			start = append(start, Step{What: what, Done: runs, Do: func(ctx context.Context, say func(string)) error {
				return r.try(ctx, n, release, say)
			}})
		}
		op.Steps = append(install, start...)
		op.Title = title(nodes, to)
		op.Check = func(now overview.Overview) []string { return upgraded(now, nodes, to, r.before) }
		return op, nil
	}
}

// startStep is what the start of a node with a version comes to.
func startStep(p *plan.Plan, now overview.Overview, n plan.Node, version string) string {
	what := fmt.Sprintf("start %s with version %s, on trial until it is ready", n.Name, version)
	if len(uncarried(p, now, n)) == 0 {
		what += ", in maintenance the while"
	}
	if leads(now, n) && len(p.DatabaseNodes(n.Site)) > 1 {
		what = "hand over from " + n.Name + ", then " + what
	}
	return what
}

func title(nodes []plan.Node, to map[string]*Release) string {
	var parts []string
	for _, n := range nodes {
		parts = append(parts, n.Name)
	}
	seen := []string{}
	for _, n := range nodes {
		if v := to[n.Name].Version; !slices.Contains(seen, v) {
			seen = append(seen, v)
		}
	}
	return fmt.Sprintf("upgrade %s to %s", strings.Join(parts, ", "), strings.Join(seen, ", "))
}

func releaseFor(all []*Release, n plan.Node) (*Release, error) {
	var roles []string
	for _, r := range all {
		if r.Role == n.Role {
			return r, nil
		}
		roles = append(roles, r.Role)
	}
	return nil, fault.New(fault.Usage, "%s is a %s, and the image is for %s", n.Name, n.Role, strings.Join(roles, ", ")).
		WithMend("name an image of its role, or a directory with one for each role")
}

// notUpgradable is why a node cannot be upgraded now.
func notUpgradable(o overview.Node, to *Release) string {
	switch {
	case o.Report == nil:
		return o.Name + ": " + o.Problem
	case o.Report.Versions == nil:
		return o.Name + " tells of no versions: its image is too old to be upgraded in place"
	case !o.Report.State.Up() && o.Report.Version != to.Version:
		return fmt.Sprintf("%s is %s", o.Name, o.Report.State)
	case o.Report.Trial && o.Report.Version != to.Version:
		return fmt.Sprintf("%s runs version %s on trial, which is not over", o.Name, o.Report.Version)
	}
	return ""
}

// state says whether a node has a version, and whether it is the one it runs for good.
func state(o overview.Node, r *Release) (has, runs bool) {
	if o.Report == nil {
		return false, false
	}
	for _, v := range o.Report.Versions {
		if v.Version == r.Version && v.Manifest == r.Manifest() && !v.Incomplete {
			return true, v.Running && v.Good
		}
	}
	return false, false
}

// warn adds what a person should know of an upgrade of a node.
func (o *Operation) warn(n plan.Node, now overview.Node, to *Release) {
	for _, v := range now.Report.Versions {
		if v.Running && v.PostgreSQL != to.PostgreSQL && plan.DatabaseRole(n.Role) {
			o.Warnings = append(o.Warnings, fmt.Sprintf("%s has PostgreSQL %s and the image brings %s, which cannot read its data: the node will not get ready and goes back", n.Name, v.PostgreSQL, to.PostgreSQL))
		}
		if v.Version == to.Version && v.Failed != "" {
			o.Warnings = append(o.Warnings, fmt.Sprintf("version %s did not come up on %s before: %s", v.Version, n.Name, v.Failed))
		}
	}
}

// upgradeOrder is the nodes that are meant, in the order in which they start anew: what nobody would
// miss first, then balancers, those that hold an address later, then replicas, and who leads last;
// the site that takes writes after the other.
func upgradeOrder(p *plan.Plan, now overview.Overview, names []string) ([]plan.Node, error) {
	var nodes []plan.Node
	for _, name := range names {
		n, err := p.Node(name)
		if err != nil {
			return nil, fault.New(fault.Usage, "%w", err)
		}
		nodes = append(nodes, n)
	}
	if len(names) == 0 {
		nodes = slices.Clone(p.Nodes)
	}
	rank := func(n plan.Node) int {
		switch {
		case plan.DatabaseRole(n.Role) && leads(now, n):
			return 4
		case plan.DatabaseRole(n.Role):
			return 3
		}
		if c := now.Word(n.Name); c != nil {
			for _, v := range c.VIPs {
				if v.Held {
					return 2
				}
			}
		}
		if len(p.HeldBy(n.Name)) > 0 {
			return 1
		}
		return 0
	}
	writes := func(n plan.Node) int {
		if d, err := databaseOf(now, n.Site); err == nil && !d.Standby {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(nodes, func(a, b plan.Node) int {
		return cmp.Or(cmp.Compare(writes(a), writes(b)), cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name, b.Name))
	})
	return nodes, nil
}

// try starts a node with a version that it has.
func (r *restarter) try(ctx context.Context, n plan.Node, to *Release, say func(string)) error {
	return r.around(ctx, n, to.Version, func(ctx context.Context) error {
		return r.c.Act(ctx, n.Name, versions.TryAction, versions.TryArgs{Version: to.Version, Manifest: to.Manifest()}, &versions.Restart{}, say)
	}, say)
}

// upgraded is what is missing until all nodes run what they should.
func upgraded(now overview.Overview, nodes []plan.Node, to map[string]*Release, before overview.Overview) (missing []string) {
	for _, n := range nodes {
		o, _ := now.Node(n.Name)
		text, err := arrived(o, to[n.Name].Version, before)
		if err != nil {
			text = err.Error()
		}
		if text == "" && o.Report.Maintenance != nil {
			text = n.Name + " is in maintenance"
		}
		if text != "" {
			missing = append(missing, text)
		}
	}
	return missing
}
