package operations

import (
	"context"
	"fmt"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/versions"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Rollback takes a node back to the version that was good before, or ends a trial that has failed. to is
// that version, or ""; a node that runs it already stays with it.
func Rollback(c *Cluster, node, to string) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		n, o, err := answering(c.Plan, now, node)
		if err != nil {
			return nil, err
		}
		var running, target, failed status.Version
		for _, v := range o.Report.Versions {
			switch {
			case v.Running:
				running = v
			case v.Failed != "":
				failed = v
			}
		}
		for _, v := range o.Report.Versions {
			switch {
			case o.Report.Trial && !running.Previous && v.Good: // out of a trial
				target = v
			case !o.Report.Trial && v.Previous, o.Report.Trial && running.Previous && v.Running:
				target = v
			}
		}
		if failed.Version != "" {
			return endTrial(c, n, o, failed.Version), nil
		}
		r := newRestarter(c)
		r.before = now
		if to != "" && to == o.Report.Version && !o.Report.Trial {
			return r.wentBack(c, n, o), nil
		}
		if target.Version == "" {
			return nil, fault.New(fault.Failed, "%s has no other version that was good than %s", node, o.Report.Version).WithMend("see slipway versions; slipway upgrade takes it to another one")
		}
		if to != "" && to != target.Version {
			return nil, fault.New(fault.Failed, "%s would go back to version %s, not to %s", node, target.Version, to).WithMend("see slipway versions; slipway upgrade takes it to any other one")
		}
		op := &Operation{
			Name: "rollback", Title: fmt.Sprintf("take %s back from version %s to %s", node, o.Report.Version, target.Version),
			// Without the version, a node that has gone back would go forward again.
			Again: fmt.Sprintf("slipway rollback %s --to %s", node, target.Version),
			Check: func(now overview.Overview) []string {
				return upgraded(now, []plan.Node{n}, map[string]*Release{node: {Image: versions.Image{Version: target.Version}}}, r.before)
			},
		}
		what := startStep(c.Plan, now, n, target.Version)
		if running.PostgreSQL != target.PostgreSQL && plan.DatabaseRole(n.Role) {
			op.Warnings = append(op.Warnings, fmt.Sprintf("version %s has PostgreSQL %s, which cannot read the data of PostgreSQL %s: the node will not get ready and goes forward again", target.Version, target.PostgreSQL, running.PostgreSQL))
		}
		op.Steps = []Step{{What: what, Do: func(ctx context.Context, say func(string)) error {
			return r.around(ctx, n, target.Version, func(ctx context.Context) error {
				var back versions.Back
				if err := c.Act(ctx, node, versions.RollbackAction, versions.RollbackArgs{}, &back, say); err != nil {
					return err
				}
				if back.To != target.Version {
					return fault.New(fault.Failed, "%s goes to version %s, not to %s", node, back.To, target.Version).WithMend("see slipway versions")
				}
				return nil
			}, say)
		}}}
		return op, nil
	}
}

// wentBack is the operation for a node that runs the version already: it takes part again, if it does not.
func (r *restarter) wentBack(c *Cluster, n plan.Node, o overview.Node) *Operation {
	return &Operation{
		Name: "rollback", Title: fmt.Sprintf("have %s run version %s", n.Name, o.Report.Version),
		Steps: []Step{{What: "have " + n.Name + " take part again", Done: o.Report.Maintenance == nil, Do: func(ctx context.Context, say func(string)) error {
			return r.resume(ctx, n.Name, say)
		}}},
		Check: func(now overview.Overview) []string {
			return upgraded(now, []plan.Node{n}, map[string]*Release{n.Name: {Image: versions.Image{Version: o.Report.Version}}}, r.before)
		},
	}
}

// endTrial is the operation for a node that has gone back by itself.
func endTrial(c *Cluster, n plan.Node, o overview.Node, failed string) *Operation {
	return &Operation{
		Name: "rollback", Title: fmt.Sprintf("leave %s with version %s, and end the trial of %s, which failed", n.Name, o.Report.Version, failed),
		Steps: []Step{{What: "end the trial", Do: func(ctx context.Context, say func(string)) error {
			return c.Act(ctx, n.Name, versions.RollbackAction, versions.RollbackArgs{}, nil, say)
		}}},
		Check: func(now overview.Overview) (missing []string) {
			is, _ := now.Node(n.Name)
			if is.Report == nil {
				return []string{n.Name + ": " + is.Problem}
			}
			for _, v := range is.Report.Versions {
				if v.Failed != "" {
					missing = append(missing, fmt.Sprintf("%s still has version %s as one that failed", n.Name, v.Version))
				}
			}
			return missing
		},
	}
}

// answering finds a node that answers and tells of its versions.
func answering(p *plan.Plan, now overview.Overview, name string) (plan.Node, overview.Node, error) {
	n, err := p.Node(name)
	if err != nil {
		return n, overview.Node{}, fault.New(fault.Usage, "%w", err)
	}
	o, _ := now.Node(name)
	switch {
	case o.Report == nil:
		return n, o, fault.New(fault.Network, "%s: %s", name, o.Problem).WithMend("see slipway status")
	case o.Report.Versions == nil:
		return n, o, fault.New(fault.Failed, "%s tells of no versions: its image is too old for this", name)
	}
	return n, o, nil
}
