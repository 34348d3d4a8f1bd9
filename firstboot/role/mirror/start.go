package mirror

import (
	"context"

	"github.com/slipwayhq/slipway/firstboot/node"
)

// Start lets the service of the node that is the mirror start.
type Start struct{}

// Name implements steps.Step.
func (Start) Name() string { return "mirror" }

// Apply implements steps.Step.
func (Start) Apply(ctx context.Context, n *node.Node) error {
	if n.Member == nil || !n.Member.Plan.Mirrors(n.Member.Self.Name) {
		return nil
	}
	return n.ReleaseAndWait(ctx, Unit)
}
