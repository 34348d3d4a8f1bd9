package node

import (
	"context"
	"path/filepath"
)

// holdDir holds one file for each unit that must not start yet. Such units
// carry ConditionPathExists=!/run/slipway/hold/UNIT in the image.
const holdDir = "/run/slipway/hold"

// Hold keeps a unit from being started, by systemd or by a person, until it is
// released. One that runs already goes on.
func (n *Node) Hold(unit string) error {
	_, err := n.Write(filepath.Join(holdDir, unit), 0o644, nil)
	return err
}

// Held reports whether a unit is kept from being started.
func (n *Node) Held(unit string) bool { return n.Exists(filepath.Join(holdDir, unit)) }

// Release lets a unit start and has it started. It does not wait until it runs.
func (n *Node) Release(ctx context.Context, unit string) error {
	if _, err := n.Remove(filepath.Join(holdDir, unit)); err != nil {
		return err
	}
	_, err := n.Command(ctx, "systemctl", "start", "--no-block", unit)
	return err
}
