package node

import (
	"context"
	"path/filepath"
	"time"
)

// holdDir holds one file for each unit that must not start yet. Such units
// carry ConditionPathExists=!/run/slipway/hold/UNIT in the image.
const holdDir = "/run/slipway/hold"

// releasing ends the name of the file that stands there instead while systemd is
// being asked to start the unit, so that nobody takes it for one that does not
// start.
const releasing = ".releasing"

// Hold keeps a unit from being started, by systemd or by a person, until it is
// released. One that runs already goes on.
func (n *Node) Hold(unit string) error {
	_, err := n.Write(filepath.Join(holdDir, unit), 0o644, nil)
	return err
}

// Held reports whether a unit is kept from being started.
func (n *Node) Held(unit string) bool {
	file := filepath.Join(holdDir, unit)
	return n.Exists(file) || n.Exists(file+releasing)
}

// Release lets a unit start and has it started. It does not wait until it runs.
func (n *Node) Release(ctx context.Context, unit string) error {
	file := filepath.Join(holdDir, unit)
	if _, err := n.Write(file+releasing, 0o644, nil); err != nil {
		return err
	}
	if _, err := n.Remove(file); err != nil {
		return err
	}
	if _, err := n.Command(ctx, "systemctl", "start", "--no-block", unit); err != nil {
		return err
	}
	_, err := n.Remove(file + releasing)
	return err
}

// startAgain is how often ReleaseAndWait looks whether a unit runs.
const startAgain = time.Second

// ReleaseAndWait is Release for a step that ends once the unit runs, or with the context.
func (n *Node) ReleaseAndWait(ctx context.Context, unit string) error {
	if err := n.Release(ctx, unit); err != nil {
		return err
	}
	for !n.UnitActive(ctx, unit) {
		n.Waiting("%s has not started; see: journalctl -u %s", unit, unit)
		if !Sleep(ctx, startAgain) {
			return ctx.Err()
		}
	}
	n.Waiting("")
	return nil
}

// Unhold takes a hold away without starting the unit.
func (n *Node) Unhold(unit string) error {
	for _, file := range []string{unit, unit + releasing} {
		if _, err := n.Remove(filepath.Join(holdDir, file)); err != nil {
			return err
		}
	}
	return nil
}
