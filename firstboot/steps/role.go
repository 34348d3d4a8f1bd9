package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/vip"
	"github.com/slipwayhq/slipway/firstboot/units"
)

// Role waits until the units run that make the role's service, and until the
// SSH server does: who is told that the node is ready may log in at once. The
// server is no part of the role, though. One that is switched off is not waited
// for, and one that ends later does not make the role fail.
type Role struct{}

// sshUnit tells systemd that it is up once it listens.
const sshUnit = "ssh.service"

func (Role) Name() string { return "role" }

// rolePause is how often systemd is asked while units start.
const rolePause = time.Second

func (Role) Apply(ctx context.Context, n *node.Node) error {
	for {
		health, err := CheckRole(ctx, n)
		if err != nil {
			return err
		}
		if err := health.Err(); err != nil {
			return err
		}
		waits := health.Waiting
		if len(waits) == 0 {
			if waits, err = startingSSH(ctx, n); err != nil {
				return err
			}
		}
		if len(waits) == 0 {
			n.Waiting("")
			return nil
		}
		n.Waiting("%s", strings.Join(waits, "; "))
		if !node.Sleep(ctx, rolePause) {
			return ctx.Err()
		}
	}
}

// startingSSH says how the SSH server is that is about to be up; nothing if it is
// up, or will not be.
func startingSSH(ctx context.Context, n *node.Node) ([]string, error) {
	list, err := n.Units.Units(ctx, []string{sshUnit})
	if err != nil {
		return nil, err
	}
	var waits []string
	for _, u := range list {
		if u.Name == sshUnit && u.Load == "loaded" && !u.Up() && !(u.Rest() && !n.Units.Starting(ctx)) {
			waits = append(waits, words(u))
		}
	}
	return waits, nil
}

// words is how a unit is that does not run.
func words(u units.Unit) string { return fmt.Sprintf("%s is %s (%s)", u.Name, u.Active, u.Sub) }

// Health is how a role's units are.
type Health struct {
	Waiting []string // those that will be up, or may be, with what they do now
	Broken  []string // those that will not, with the reason
}

// Err is what is broken, or nil.
func (h Health) Err() error {
	if len(h.Broken) == 0 {
		return nil
	}
	return errors.New(strings.Join(h.Broken, "; "))
}

// CheckRole asks systemd once how the role's units are.
func CheckRole(ctx context.Context, n *node.Node) (Health, error) {
	var h Health
	services := n.Member.Services(n.Role.Services)
	if n.Maintenance() != nil { // addresses are what the node has given up
		services = slices.DeleteFunc(slices.Clone(services), func(unit string) bool { return unit == vip.Unit })
	}
	if len(services) == 0 {
		return h, nil
	}
	list, err := n.Units.Units(ctx, services)
	if err != nil {
		return h, err
	}
	if len(list) < len(services) {
		return h, fmt.Errorf("systemd told of %d of the role's %d units", len(list), len(services))
	}
	starting := sync.OnceValue(func() bool { return n.Units.Starting(ctx) })
	for _, u := range list {
		switch {
		case n.Held(u.Name):
			what := "the cluster is there for it"
			if n.Seed == nil {
				what = "there is metadata that can be used"
			}
			h.Waiting = append(h.Waiting, fmt.Sprintf("%s is held back until %s", u.Name, what))
		case u.Load != "loaded":
			h.Broken = append(h.Broken, fmt.Sprintf("%s cannot be loaded (%s)", u.Name, u.Load))
		case u.Up():
		case u.Active == "failed" && u.Rest():
			h.Broken = append(h.Broken, fmt.Sprintf("%s failed (%s); see: journalctl -u %s", u.Name, u.Result, u.Name))
		case u.Active == "inactive" && u.Rest() && !starting():
			h.Broken = append(h.Broken, fmt.Sprintf("%s does not run: %s", u.Name, whyNot(u)))
		default:
			h.Waiting = append(h.Waiting, words(u))
		}
	}
	return h, nil
}

// whyNot says why an inactive unit is not active.
func whyNot(u units.Unit) string {
	switch {
	case u.Unmet:
		return "its conditions do not hold; see: systemctl status " + u.Name
	case u.FileState == "disabled" || u.FileState == "masked":
		return "it is " + u.FileState
	}
	return "nothing has started it"
}
