package versions

import (
	"context"
	"encoding/json"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Names of the actions.
const (
	InstallAction  = "version-install"
	TryAction      = "version-try"
	RollbackAction = "version-rollback"
	ResetAction    = "factory-reset"
)

// Actions are what administrators can do to a node's versions. changed is called when
// one of them may have changed what List says.
func (s *Store) Actions(changed func()) []actions.Action {
	return []actions.Action{
		{Name: InstallAction, Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
			var im Image
			if err := actions.Decode(args, &im); err != nil {
				return nil, err
			}
			defer changed()
			return s.Install(ctx, im, func(text string) { e.Say("%s", text) })
		}},
		{Name: TryAction, Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
			var a TryArgs
			if err := actions.Decode(args, &a); err != nil {
				return nil, err
			}
			defer changed()
			again, err := s.Try(ctx, a.Version, a.Manifest)
			if err != nil || !again {
				return Restart{}, err
			}
			e.Say("starts anew with version %s, on trial", a.Version)
			return Restart{Restarts: true}, s.restart(ctx)
		}},
		{Name: RollbackAction, Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
			var a RollbackArgs
			if err := actions.Decode(args, &a); err != nil {
				return nil, err
			}
			defer changed()
			back, err := s.back(ctx, a.Abandon)
			if err != nil || !back.Restart {
				return back, err
			}
			e.Say("goes back from version %s to %s, and starts anew", back.From, back.To)
			return back, s.restart(ctx)
		}},
		{Name: ResetAction, Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
			var a ResetArgs
			if err := actions.Decode(args, &a); err != nil {
				return nil, err
			}
			m := e.Node.Member
			if a.Node != m.Self.Name {
				return nil, fault.New(fault.Input, "this is node %s, not %s", m.Self.Name, a.Node)
			}
			if a.Data {
				if err := Holds(m.Plan, m.Self).Refusal(); err != nil {
					return nil, err
				}
			}
			if err := s.askForReset(a.Data); err != nil {
				return nil, err
			}
			e.Say("starts anew; the factory reset is done before anything is mounted")
			return Restart{Restarts: true}, s.restart(ctx)
		}},
	}
}

// TryArgs name the version that is to be tried.
type TryArgs struct {
	Version  string `json:"version"`
	Manifest string `json:"manifest"` // SHA-256 of its manifest
}

// RollbackArgs may name a version whose trial is to end; else it is a rollback.
type RollbackArgs struct {
	Abandon string `json:"abandon,omitempty"`
}

// Restart says whether the node starts anew.
type Restart struct {
	Restarts bool `json:"restarts"`
}

// ResetArgs ask for a factory reset. Node is the node's name, once more: what is gone is gone.
type ResetArgs struct {
	Node string `json:"node"`
	Data bool   `json:"data"`
}

// Stake is what a cluster would lose with a node's data.
type Stake string

// Holds says what keeps a node's data from being taken away while it is part of its cluster; "" if
// nothing does. etcd and Patroni each take a member that comes back without its data for a fault, since nobody
// but an administrator can tell whether the others still have what it confirmed.
func Holds(p *plan.Plan, n plan.Node) Stake {
	switch {
	case p.Votes(n.Name):
		return Stake(n.Name + " votes in the site's etcd, which would take a voter without its data for one that has lost what it confirmed")
	case plan.DatabaseRole(n.Role):
		return Stake(n.Name + " is a database node")
	}
	return ""
}

// Refusal is the stake as an error; nil for none.
func (s Stake) Refusal() error {
	if s == "" {
		return nil
	}
	return fault.New(fault.Failed, "%s", string(s)).
		WithMend("put a fresh machine in its place with slipway replace; without --data the data stays, and a reset is safe")
}

// askForReset leaves the wish for the init.
func (s *Store) askForReset(data bool) error {
	text, err := json.Marshal(bootfacts.Reset{Format: 1, Data: data})
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(s.node.Path(bootfacts.ResetPath), 0o600, text)
}

// restart has the machine start anew in five seconds, so that the answer gets out first,
// of a slow machine too.
func (s *Store) restart(ctx context.Context) error {
	_, err := s.node.Command(ctx, "systemd-run", "--on-active=5", "--timer-property=AccuracySec=100ms", "--", "systemctl", "reboot")
	return err
}
