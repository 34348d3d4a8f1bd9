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

// Run runs an action and returns its result. What it says is the test's to see by
// the node.
func Run(ctx context.Context, a actions.Action, n *node.Node, args any) (json.RawMessage, error) {
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
	return actions.ReadEvents(answer.Result().Body, func(actions.Event) {})
}
