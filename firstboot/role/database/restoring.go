package database

import (
	"context"
	"encoding/json"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/internal/fault"
)

// deedOf is a part of a restore as an action, with the request as its arguments.
func deedOf(name string, do func(ctx context.Context, e *actions.Env, want Request) (*Restore, error)) actions.Action {
	return actions.Action{Name: name, Run: func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
		var want Request
		if err := actions.Decode(args, &want); err != nil {
			return nil, err
		}
		if !runs(e.Node.Member) {
			return nil, fault.New(fault.Input, "%s is no database node", e.Node.Member.Self.Name)
		}
		return do(ctx, e, want)
	}}
}

// The deeds of a restore, in their order; see restore.go.
var (
	RestoreAside = deedOf("restore-aside", func(ctx context.Context, e *actions.Env, want Request) (*Restore, error) {
		return StepAside(ctx, e.Node, want, func(line string) { e.Say("%s", line) })
	})
	RestoreBack = deedOf("restore-back", func(ctx context.Context, e *actions.Env, want Request) (*Restore, error) {
		return BringBack(ctx, e.Node, want, func(line string) { e.Say("%s", line) })
	})
	RestoreCommit = deedOf("restore-commit", func(_ context.Context, e *actions.Env, _ Request) (*Restore, error) {
		return nil, Commit(e.Node)
	})
	RestoreForget = deedOf("restore-forget", func(ctx context.Context, e *actions.Env, _ Request) (*Restore, error) {
		return nil, Forget(ctx, e.Node)
	})
	RestoreJoin = deedOf("restore-join", func(ctx context.Context, e *actions.Env, _ Request) (*Restore, error) {
		return nil, TakePart(ctx, e.Node)
	})
	RestoreTidy = deedOf("restore-tidy", func(_ context.Context, e *actions.Env, _ Request) (*Restore, error) {
		return nil, Tidy(e.Node)
	})
	RestoreUndo = deedOf("restore-undo", func(ctx context.Context, e *actions.Env, _ Request) (*Restore, error) {
		return nil, StepBack(ctx, e.Node)
	})
)

// Restoring are all of them.
var Restoring = []actions.Action{RestoreAside, RestoreBack, RestoreCommit, RestoreForget, RestoreJoin, RestoreTidy, RestoreUndo}
