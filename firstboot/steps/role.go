package steps

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
)

// Role waits until the units run that make the role's service.
type Role struct{}

func (Role) Name() string { return "role" }

// rolePause is how often systemd is asked; it has no cheaper way to wait for
// several units at once that would also tell why they are not up.
const rolePause = time.Second

func (Role) Apply(ctx context.Context, n *node.Node) error {
	n.RoleUp = false
	for {
		health, err := CheckRole(ctx, n)
		if err != nil {
			return err
		}
		switch {
		case len(health.Broken) > 0:
			return fmt.Errorf("%s", strings.Join(health.Broken, "; "))
		case len(health.Waiting) == 0:
			n.Waiting("")
			n.RoleUp = true
			return nil
		}
		n.Waiting("%s", strings.Join(health.Waiting, ", "))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(rolePause):
		}
	}
}

// Health is how a role's units are.
type Health struct {
	Waiting []string // those that will be up, or may be
	Broken  []string // those that will not, with the reason
}

// CheckRole asks systemd once how the role's units are.
func CheckRole(ctx context.Context, n *node.Node) (Health, error) {
	var h Health
	if len(n.Role.Services) == 0 {
		return h, nil
	}
	out, err := n.Command(ctx, append([]string{"systemctl", "show", "--property=Id,LoadState,ActiveState,SubState,Result,ConditionResult,ConditionTimestampMonotonic,UnitFileState,Job", "--"}, n.Role.Services...)...)
	if err != nil {
		return h, err
	}
	starting := sync.OnceValue(func() bool { return bootUnderWay(ctx, n) })
	seen := 0
	for _, block := range strings.Split(strings.TrimSpace(out), "\n\n") {
		unit := map[string]string{}
		for _, line := range strings.Split(block, "\n") {
			key, value, _ := strings.Cut(line, "=")
			unit[key] = value
		}
		if unit["Id"] == "" {
			continue
		}
		seen++
		id := unit["Id"]
		queued := unit["Job"] != "" && unit["Job"] != "0"
		switch {
		case unit["LoadState"] != "loaded":
			h.Broken = append(h.Broken, fmt.Sprintf("%s cannot be loaded (%s)", id, unit["LoadState"]))
		case unit["ActiveState"] == "active" || unit["ActiveState"] == "reloading":
		case unit["ActiveState"] == "failed" && !queued:
			h.Broken = append(h.Broken, fmt.Sprintf("%s failed (%s); see: journalctl -u %s", id, unit["Result"], id))
		case unit["ActiveState"] == "inactive" && !queued && !starting():
			reason := "nothing has started it"
			if unit["ConditionResult"] == "no" && unit["ConditionTimestampMonotonic"] != "0" {
				reason = "its conditions do not hold; see: systemctl status " + id
			} else if unit["UnitFileState"] == "disabled" || unit["UnitFileState"] == "masked" {
				reason = "it is " + unit["UnitFileState"]
			}
			h.Broken = append(h.Broken, fmt.Sprintf("%s does not run: %s", id, reason))
		default:
			h.Waiting = append(h.Waiting, fmt.Sprintf("%s (%s, %s)", id, unit["ActiveState"], unit["SubState"]))
		}
	}
	if seen < len(n.Role.Services) {
		return h, fmt.Errorf("systemd told of %d of the role's %d units", seen, len(n.Role.Services))
	}
	return h, nil
}

// bootUnderWay reports whether systemd still works off the jobs of the boot.
func bootUnderWay(ctx context.Context, n *node.Node) bool {
	state, _ := n.Command(ctx, "systemctl", "is-system-running") // its exit status says the same once more
	switch strings.TrimSpace(state) {
	case "running", "degraded", "maintenance", "stopping":
		return false
	}
	return true
}
