package steps

import (
	"context"
	"encoding/json"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/role/product"
	"github.com/slipwayhq/slipway/firstboot/role/vip"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Maintenance has the node give up what others can do instead (node.Maintenance), or
// take it up again. The note comes first: what a power cut keeps from being given up
// now is given up at the next boot, by the steps.
var Maintenance = actions.Action{Name: "maintenance", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
	var a MaintenanceArgs
	if err := actions.Decode(args, &a); err != nil {
		return nil, err
	}
	if a.On {
		return nil, beginMaintenance(ctx, e, a.Force)
	}
	return nil, endMaintenance(ctx, e)
}}

// MaintenanceArgs say what is asked for.
type MaintenanceArgs struct {
	On bool `json:"on"`
	// Force puts even a node into maintenance that leads its database: it leads on.
	Force bool `json:"force,omitempty"`
}

func beginMaintenance(ctx context.Context, e *actions.Env, force bool) error {
	n := e.Node
	if !force {
		leads, err := database.Leads(ctx, n.Member)
		if err != nil {
			return fault.New(fault.Failed, "it cannot be told whether %s leads: %w", n.Member.Self.Name, err).WithMend("see slipway status; or use --force")
		}
		if leads {
			return fault.New(fault.Failed, "%s leads the database", n.Member.Self.Name).WithMend("run the command again: it hands over first")
		}
	}
	if err := n.BeginMaintenance(node.Maintenance{Since: time.Now().UTC().Truncate(time.Second), By: e.By.Name}); err != nil {
		return err
	}
	e.Say("in maintenance from now on, until somebody ends it")
	return follow(ctx, e, vip.Yield)
}

func endMaintenance(ctx context.Context, e *actions.Env) error {
	if err := e.Node.EndMaintenance(); err != nil {
		return err
	}
	e.Say("in maintenance no more")
	return follow(ctx, e, vip.Resume)
}

// follow has the services do what the note says. What does not succeed at once, the
// steps go on trying in a new round.
func follow(ctx context.Context, e *actions.Env, addresses func(context.Context, *node.Node) error) error {
	// The product of a broker or gateway tells its balancers.
	err := product.Tell(e.Node)
	if err == nil {
		err = (database.Configure{}).Apply(ctx, e.Node)
	}
	if err == nil {
		err = addresses(ctx, e.Node)
	}
	if err != nil {
		e.Again("the node goes into maintenance, or out of it")
	}
	return err
}
