package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

// Remote is the agent of a node, as an administrator reaches it.
type Remote struct {
	Node plan.Node
	// Config shows the administrator's certificate; see TLS.
	Config *tls.Config
	Dial   func(ctx context.Context, network, address string) (net.Conn, error)
}

// silence is how long a node may say nothing while it acts; a test has its own.
var silence = actions.Silence

// Act has the node do something. Its events but the last one go to event. Where the
// answer breaks off, the error is of class Network, and nobody knows whether the action
// came to its end: to ask again is safe.
func (r Remote) Act(ctx context.Context, action string, args any, event func(actions.Event)) (json.RawMessage, error) {
	return r.do(ctx, "/v1/actions/"+action, args, event)
}

// Look has the node look at something. It takes the right to read.
func (r Remote) Look(ctx context.Context, look string, args any, event func(actions.Event)) (json.RawMessage, error) {
	return r.do(ctx, "/v1/looks/"+look, args, event)
}

func (r Remote) do(ctx context.Context, path string, args any, event func(actions.Event)) (json.RawMessage, error) {
	body, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	c := newClient(r.Node.Address, r.Config, r.Dial, nil)
	defer c.close()
	c.patient(silence)
	alive, end := context.WithCancelCause(ctx)
	defer end(nil)
	errSilent := fmt.Errorf("says nothing for %s", silence)
	watch := time.AfterFunc(silence, func() { end(errSilent) })
	defer watch.Stop()
	result, err := c.act(alive, path, body, func(e actions.Event) {
		watch.Reset(silence)
		event(e)
	})
	var refused *fault.Error
	switch {
	case err == nil:
		return result, nil
	case ctx.Err() != nil: // the node may have answered to that already
		return nil, ctx.Err()
	case errors.As(err, &refused):
		return nil, err
	case errors.Is(context.Cause(alive), errSilent):
		err = errSilent
	}
	return nil, fault.New(fault.Network, "%s (%s): %w", r.Node.Name, r.Node.Address, err).
		WithMend("when it can be reached again, run the same command: it goes on from where it was")
}

func (c *client) act(ctx context.Context, path string, body []byte, event func(actions.Event)) (json.RawMessage, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return nil, errors.New(noanswer.Words(err))
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		data, _ := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
		return nil, spoken(&statusError{response.StatusCode, data})
	}
	return actions.ReadEvents(response.Body, event)
}

// Audit are the newest records of the node's audit log, at most n.
func (r Remote) Audit(ctx context.Context, n int) ([]actions.Entry, error) {
	data, err := r.ask(ctx, http.MethodGet, fmt.Sprintf("/v1/audit?n=%d", n), nil, 8*maxAnswer)
	if err != nil {
		return nil, err
	}
	return actions.ParseEntries(data)
}

// Give hands the node a plan; the node hands it on.
func (r Remote) Give(ctx context.Context, signed plan.Signed) error {
	data, err := json.Marshal(signed)
	if err != nil {
		return err
	}
	_, err = r.ask(ctx, http.MethodPut, "/v1/plan", data, maxAnswer)
	return err
}

func (r Remote) ask(ctx context.Context, method, path string, body []byte, most int64) ([]byte, error) {
	c := newClient(r.Node.Address, r.Config, r.Dial, nil)
	defer c.close()
	data, err := c.ask(ctx, method, path, body, most)
	if err == nil {
		return data, nil
	}
	if err = spoken(err); ctx.Err() != nil {
		return nil, ctx.Err()
	}
	var refused *fault.Error
	if errors.As(err, &refused) {
		return nil, err
	}
	return nil, fault.New(fault.Network, "%s (%s): %w", r.Node.Name, r.Node.Address, err)
}

// spoken is what a node says of why it refuses, if it does.
func spoken(err error) error {
	var status *statusError
	if errors.As(err, &status) {
		if why := actions.Refusal(status.body); why != nil {
			return why
		}
	}
	return err
}
