package mirror

import (
	"context"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
)

const pause = time.Second

// Start lets the service of the node that is the mirror start.
type Start struct{}

// Name implements steps.Step.
func (Start) Name() string { return "mirror" }

// Apply implements steps.Step.
func (Start) Apply(ctx context.Context, n *node.Node) error {
	if n.Member == nil || !n.Member.Plan.Mirrors(n.Member.Self.Name) {
		return nil
	}
	if err := n.Release(ctx, Unit); err != nil {
		return err
	}
	for !n.UnitActive(ctx, Unit) {
		n.Waiting("%s has not started; see: journalctl -u %s", Unit, Unit)
		if !node.Sleep(ctx, pause) {
			return ctx.Err()
		}
	}
	n.Waiting("")
	return nil
}
