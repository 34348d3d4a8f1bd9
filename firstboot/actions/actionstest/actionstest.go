// Package actionstest runs an action on a node of a test as its agent does, with
// its events and its audit log.
package actionstest

import (
	"bytes"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/node"
)

// Run runs an action and returns its result.
func Run(ctx context.Context, a actions.Action, n *node.Node, args any) (json.RawMessage, error) {
	return Hear(ctx, a, n, args, func(string) {})
}

// Hear is Run; say is told what the action says.
func Hear(ctx context.Context, a actions.Action, n *node.Node, args any, say func(string)) (json.RawMessage, error) {
	body, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "action-*")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	server := &actions.Server{Log: &actions.Log{Path: filepath.Join(dir, "audit.jsonl")}, Actions: []actions.Action{a}}
	answer := httptest.NewRecorder()
	server.Act(answer, httptest.NewRequestWithContext(ctx, http.MethodPost, "/v1/actions/"+a.Name, bytes.NewReader(body)), a.Name, *n, actions.Caller{Name: "test"})
	return actions.ReadEvents(answer.Result().Body, func(e actions.Event) {
		if e.Say != "" {
			say(e.Say)
		}
	})
}
