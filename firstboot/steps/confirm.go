package steps

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/firstboot/node"
)

// Confirmer tells GRUB that the running version works, once its role does. It
// asks nothing of the metadata: a mistake there is no reason to go back to an
// older version.
type Confirmer struct{}

func (Confirmer) Name() string { return "confirm" }

const grubenvPath = bootfacts.ESPDir + "/grub/grubenv"

func (Confirmer) Apply(ctx context.Context, n *node.Node) error {
	if n.Boot.Version == "" {
		return nil // not started by the appliance's init, so there is nothing to confirm
	}
	block, err := os.ReadFile(n.Path(grubenvPath))
	if err != nil {
		return fmt.Errorf("boot counting: %w", err)
	}
	env, err := grubenv.Parse(block)
	if err != nil {
		return fmt.Errorf("boot counting: %w", err)
	}
	running := n.Boot.Version
	switch {
	case env.OnTrial(running):
	case env.Try != "" && env.Tries == 0:
		n.Warn("", "", "version %s did not come up in %d starts; this is version %s, which worked before", env.Try, grubenv.Tries, running)
		return nil
	case env.Try != "" || env.Good == running:
		return nil // another version is about to be tried, or all is said
	}
	block, err = env.Confirm(running).Bytes()
	if err != nil {
		return err
	}
	if err := overwrite(ctx, n, block); err != nil {
		return fmt.Errorf("boot counting: %w", err)
	}
	n.Boot.Trial = false
	n.Changed("version %s is the one to start from now on", running)
	return nil
}

// overwrite writes the block over the old one in place: its sectors must stay
// where GRUB finds them, and 1024 bytes within one cluster reach the disk whole
// or not at all as far as FAT is concerned. The partition is writable for that
// moment only.
func overwrite(ctx context.Context, n *node.Node, block []byte) (err error) {
	if _, err := n.Command(ctx, "mount", "-o", "remount,rw", bootfacts.ESPDir); err != nil {
		return err
	}
	defer func() {
		_, roErr := n.Command(context.WithoutCancel(ctx), "mount", "-o", "remount,ro", bootfacts.ESPDir)
		err = errors.Join(err, roErr)
	}()
	f, err := os.OpenFile(n.Path(grubenvPath), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(block, 0)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}
