package steps

import (
	"context"
	"time"

	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/versions"
)

// Confirmer tells GRUB that the running version works, once its role does. It
// asks nothing of the metadata: a mistake there is no reason to go back to an
// older version.
type Confirmer struct {
	// Missing says what has yet to come up beside the steps, in a clause; "" is nothing.
	// A nil func is the same.
	Missing func() string
}

// confirmPause is the time between two looks at what is missing.
const confirmPause = time.Second

func (Confirmer) Name() string { return "confirm" }

func (c Confirmer) Apply(ctx context.Context, n *node.Node) error {
	if n.Boot.Version == "" {
		return nil // not started by the appliance's init, so there is nothing to confirm
	}
	env, err := versions.ReadEnv(n)
	if err != nil {
		return err
	}
	running := n.Boot.Version
	switch {
	case env.OnTrial(running):
		// Without the cluster's part, a version that cannot read the database would pass for good.
		if err := c.complete(ctx, n); err != nil {
			return err
		}
	case env.Failed():
		n.Warn("", "", "version %s did not come up in %d starts; this is version %s, which worked before: %s",
			env.Try, grubenv.Tries, running, versions.Failure(n, env.Try))
		return nil
	case env.Try != "" || env.Good == running:
		return nil // another version is about to be tried, or all is said
	}
	if err := versions.WriteEnv(ctx, n, env.Confirm(running)); err != nil {
		return err
	}
	n.Boot.Trial = false
	n.Changed("version %s is the one to start from now on", running)
	return nil
}

// complete waits until nothing is missing any more.
func (c Confirmer) complete(ctx context.Context, n *node.Node) error {
	for c.Missing != nil {
		missing := c.Missing()
		if missing == "" {
			n.Waiting("")
			return nil
		}
		n.Waiting("%s", missing)
		if !node.Sleep(ctx, confirmPause) {
			return ctx.Err()
		}
	}
	return nil
}
