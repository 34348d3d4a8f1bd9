package backup

import (
	"context"
	"encoding/json"
	"slices"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Backup makes a backup now. With S3 it is asked of the primary.
var Backup = actions.Action{Name: "backup", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
	var a Args
	if err := actions.Decode(args, &a); err != nil {
		return nil, err
	}
	switch {
	case !makes(e.Node.Member):
		return nil, fault.New(fault.Input, "%s makes no backups", e.Node.Member.Self.Name)
	case !slices.Contains(Kinds, a.Type):
		return nil, fault.New(fault.Usage, "%q is no kind of backup", a.Type).WithMend("it is full, diff or incr")
	}
	e.Say("making a backup (%s)", a.Type)
	set, err := Make(ctx, e.Node, a.Type)
	if err != nil {
		return nil, err
	}
	e.Say("%s is there", set.Label)
	return set, nil
}}

// Taking has the node that makes backups take the database that leads for the
// cluster's own. See Take.
var Taking = actions.Action{Name: "backup-take", Run: func(ctx context.Context, e *actions.Env, _ json.RawMessage) (any, error) {
	if !makes(e.Node.Member) {
		return nil, fault.New(fault.Input, "%s makes no backups", e.Node.Member.Self.Name)
	}
	info, err := Take(ctx, e.Node)
	if err != nil {
		return nil, err
	}
	e.Say("%s is there", info.Sets[len(info.Sets)-1].Label)
	return info.Sets, nil
}}

// Looking tells of the backups that another cluster made.
var Looking = actions.Action{Name: "backup-look", Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
	var a LookArgs
	if err := actions.Decode(args, &a); err != nil {
		return nil, err
	}
	if m := e.Node.Member; m == nil || !plan.DatabaseRole(m.Self.Role) {
		return nil, fault.New(fault.Input, "%s is no database node", e.Node.Member.Self.Name)
	}
	info, err := Look(ctx, e.Node, a.From)
	return info.Sets, err
}}

// LookArgs name the cluster whose backups are meant.
type LookArgs struct {
	From string `json:"from"`
}

// Args say which kind of backup is made.
type Args struct {
	Type string `json:"type"`
}

// Kinds are those of backups: all of the database; what has changed since the last
// full one; what has changed since the last one of any kind.
var Kinds = []string{"full", "diff", "incr"}
