package operations

import (
	"context"
	"fmt"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/versions"
	"github.com/slipwayhq/slipway/internal/fault"
)

// FactoryReset has a node start as it first did: without what was changed in its root file system and, if
// data is set, without what it keeps; it is the same node of its cluster afterwards. A node that is still in the
// maintenance around its reset is not reset once more: whoever asked for it was interrupted then.
func FactoryReset(c *Cluster, node string, data bool) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		n, o, err := answering(c.Plan, now, node)
		if err != nil {
			return nil, err
		}
		op := &Operation{Name: "factory-reset", Title: fmt.Sprintf("reset %s to what its image is", node)}
		want := "system"
		if data {
			if err := versions.Holds(c.Plan, n).Refusal(); err != nil {
				return nil, err
			}
			op.Title += ", without the data that it keeps"
			op.Word, want = node, "data"
			op.Warnings = []string{"all that " + node + " keeps is gone afterwards, but for who it is in its cluster and its audit log"}
		}
		if o.Report.Start == "" {
			return nil, fault.New(fault.Failed, "%s does not tell one start from another: its image is too old for this", node)
		}
		r := newRestarter(c)
		r.before = now
		before, m := o.Report.Start, o.Report.Maintenance
		done := o.Report.Reset == want && m != nil && m.Start != "" && m.Start != before
		if done {
			before = m.Start
		}
		arrived := func(now overview.Overview) []string { return wasReset(now, node, want, before) }
		what := "start " + node + " anew; what was changed in its root file system goes before that is mounted"
		if leads(now, n) && len(c.Plan.DatabaseNodes(n.Site)) > 1 {
			what = "hand over from " + node + ", then " + what
		}
		op.Check = func(now overview.Overview) []string {
			if o, _ := now.Node(node); o.Report != nil && o.Report.Maintenance != nil {
				return []string{node + " is in maintenance"}
			}
			return arrived(now)
		}
		op.Steps = []Step{{What: what, Done: done, Do: func(ctx context.Context, say func(string)) error {
			if err := r.relieve(ctx, n, say); err != nil {
				return err
			}
			if err := c.Act(ctx, node, versions.ResetAction, versions.ResetArgs{Node: node, Data: data}, nil, say); err != nil {
				return err
			}
			return r.comeBack(ctx, arrived, say)
		}}, {What: "have " + node + " take part again", Do: func(ctx context.Context, say func(string)) error {
			return r.resume(ctx, node, say)
		}}}
		return op, nil
	}
}

// comeBack waits until nothing is missing any more.
func (r *restarter) comeBack(ctx context.Context, missing func(overview.Overview) []string, say func(string)) error {
	op := &Operation{Check: missing, Patience: r.patience}
	return (&Runner{Cluster: r.c, Look: r.look, Say: say, Pause: r.pause}).verify(ctx, op, &Result{})
}

// wasReset is what is missing until a node is well after a reset, in maintenance or not. before is the
// start of its machine that it was asked in.
func wasReset(now overview.Overview, node, want, before string) []string {
	o, _ := now.Node(node)
	switch {
	case o.Report == nil:
		return []string{node + ": " + o.Problem}
	case o.Report.Reset != want || o.Report.Start == before:
		return []string{node + " has not started anew yet"}
	case o.Report.State != status.Ready && o.Report.State != status.Maintenance:
		text := fmt.Sprintf("%s is %s", node, o.Report.State)
		if why := waits(o.Report); why != "" {
			text += ": " + why
		}
		return []string{text}
	}
	return nil
}
