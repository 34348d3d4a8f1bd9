package operations

import (
	"context"
	"fmt"

	"github.com/slipwayhq/slipway/builder/mirror/store"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/role/mirror"
	"github.com/slipwayhq/slipway/internal/fault"
)

// MirrorLoad has the cluster's mirror take in the media that are attached to it.
// A bundle of which volumes are still to come is no failure: they may be on the next disc.
func MirrorLoad(c *Cluster, args mirror.LoadArgs) Prepare {
	return func(_ context.Context, now overview.Overview) (*Operation, error) {
		m := c.Plan.Mirror
		if m == nil || m.Node == "" {
			return nil, fault.New(fault.Input, "no node of the cluster %s is a mirror", c.Plan.Cluster).
				WithMend("add a node of the role mirror and name it under \"mirror\" in the topology; a mirror elsewhere takes media in with slipway mirror import")
		}
		return &Operation{
			Name: "mirror load", Title: "take in the media that are attached to " + m.Node,
			Steps: []Step{{
				What: "have " + m.Node + " take in what is attached to it",
				Do: func(ctx context.Context, say func(string)) error {
					var r mirror.LoadResult
					err := c.Act(ctx, m.Node, mirror.Load.Name, args, &r, say)
					for _, one := range r.Imported {
						say(m.Node + ": " + became(one))
					}
					return err
				},
			}},
			Check: func(overview.Overview) []string { return nil }, // the node has told what became of it
		}, nil
	}
}

// became says what came of a bundle.
func became(i store.Imported) string {
	what := fmt.Sprintf("edition %d of %s", i.Edition, i.Site)
	if i.Published {
		return what + " is complete and published"
	}
	return fmt.Sprintf("%s is not complete; still to come: volume %s", what, store.Numbers(i.Missing))
}
