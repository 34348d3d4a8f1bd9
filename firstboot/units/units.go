// Package units asks systemd how units are, at a price that a node can pay
// every few seconds.
//
// Bus speaks D-Bus (org.freedesktop.systemd1(5)) to systemd's own socket, which
// is there before any message bus is, over a connection that stays open: a
// question costs two messages. Systemctl runs systemctl(1), which costs the
// start of a program and much more under emulation; Bus falls back to it where
// the socket does not answer.
package units

import "context"

// Unit is how a unit is.
type Unit struct {
	Name   string // the primary one; an alias may have been asked for
	Load   string // loaded, not-found, masked, …
	Active string // active, reloading, inactive, failed, activating, deactivating
	Sub    string // the unit type's own word, such as running
	Queued bool   // systemd has yet to do something with it

	// Why it does not run; known only of a unit that is at Rest.
	Result    string // how its last run ended
	Unmet     bool   // its conditions did not hold when it was started
	FileState string // enabled, disabled, masked, …
}

// Up reports whether a unit runs.
func (u Unit) Up() bool { return u.Active == "active" || u.Active == "reloading" }

// Rest reports whether a unit does not run and nothing is about to change that.
func (u Unit) Rest() bool {
	return !u.Queued && (u.Active == "failed" || u.Active == "inactive")
}

// Manager is systemd, or a test that plays it.
type Manager interface {
	// Units tells of the units of these names. One that does not exist is told
	// of too, with a Load that says so.
	Units(ctx context.Context, names []string) ([]Unit, error)
	// Starting reports whether the jobs of the boot are still under way. If that
	// cannot be found out, they are.
	Starting(ctx context.Context) bool
}

// started are the states of systemd, in systemctl is-system-running's words,
// in which the jobs of the boot are done.
func started(state string) bool {
	switch state {
	case "running", "degraded", "maintenance", "stopping":
		return true
	}
	return false
}
