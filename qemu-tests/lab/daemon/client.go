package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Client speaks to a place's daemon.
type Client struct {
	place Place
	http  *http.Client
}

// NewClient makes a client; nothing is connected before the first question.
func NewClient(place Place) *Client {
	return &Client{place: place, http: &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return place.connect(ctx) },
		DisableKeepAlives: true,
	}}}
}

// ErrNotRunning says that the lab has no daemon, and so no machines.
var ErrNotRunning = errors.New("the lab is not running")

// State is what the daemon says of the lab.
func (c *Client) State(ctx context.Context) (State, error) {
	var s State
	return s, c.ask(ctx, http.MethodGet, "/v1/lab", nil, &s)
}

// Reports is what the nodes that have power say of themselves within the limit,
// by name.
func (c *Client) Reports(ctx context.Context, limit time.Duration) (map[string]NodeReport, error) {
	var all map[string]NodeReport
	return all, c.ask(ctx, http.MethodGet, "/v1/reports?limit="+limit.String(), nil, &all)
}

// Order has nodes started or stopped.
func (c *Client) Order(ctx context.Context, o Order) (Outcome, error) {
	var out Outcome
	return out, c.ask(ctx, http.MethodPost, "/v1/power", o, &out)
}

// Inject has a fault made on nodes, which lasts until Heal or is over at once.
func (c *Client) Inject(ctx context.Context, name string, nodes []string) (Fault, error) {
	var f Fault
	return f, c.ask(ctx, http.MethodPost, "/v1/faults", Fault{Name: name, Nodes: nodes}, &f)
}

// Heal has all faults undone, and says which there were.
func (c *Client) Heal(ctx context.Context) ([]Fault, error) {
	var all []Fault
	return all, c.ask(ctx, http.MethodDelete, "/v1/faults", nil, &all)
}

// Adopt has the daemon read the topology's file again, in which there may be other
// nodes than before (lab.Cluster.Adopt).
func (c *Client) Adopt(ctx context.Context) (State, error) {
	var s State
	return s, c.ask(ctx, http.MethodPost, "/v1/adopt", struct{}{}, &s)
}

// Quit ends the daemon and with it all machines that still have power, and waits
// until it is gone.
func (c *Client) Quit(ctx context.Context) error {
	if err := c.ask(ctx, http.MethodPost, "/v1/quit", struct{}{}, nil); err != nil {
		return err
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if runs, err := c.place.Runs(); err != nil || !runs {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fault.New(fault.Failed, "the lab's daemon has not ended: %w", ctx.Err()).WithMend("see %s", c.place.Log())
		}
	}
}

// Screenshot is a node's screen as PNG.
func (c *Client) Screenshot(ctx context.Context, node string) ([]byte, error) {
	answer, err := c.send(ctx, http.MethodGet, nodePath(node, "screenshot"), nil)
	if err != nil {
		return nil, err
	}
	defer answer.Body.Close()
	return readAll(answer.Body)
}

// Resize tells a guest how large the terminal is that shows its console.
func (c *Client) Resize(ctx context.Context, node string, size Size) error {
	return c.ask(ctx, http.MethodPost, nodePath(node, "size"), size, nil)
}

// Console connects to a node's serial port.
func (c *Client) Console(ctx context.Context, node string) (net.Conn, error) {
	return c.stream(ctx, nodePath(node, "console"))
}

// Dial connects to an address and port in the cluster's network. The only
// network is TCP.
func (c *Client) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	return c.stream(ctx, "/v1/dial?"+url.Values{"to": {address}}.Encode())
}

func nodePath(node, what string) string { return "/v1/nodes/" + url.PathEscape(node) + "/" + what }

// ask sends a question and decodes the answer into out, unless it is nil.
func (c *Client) ask(ctx context.Context, method, path string, body, out any) error {
	answer, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if out == nil {
		return nil
	}
	return json.NewDecoder(io.LimitReader(answer.Body, maxAnswer)).Decode(out)
}

// send turns a daemon that is not there, and one that refuses, into errors.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var content io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		content = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://lab"+path, content)
	if err != nil {
		return nil, err
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	if answer.StatusCode != http.StatusOK {
		defer answer.Body.Close()
		return nil, refusal(answer)
	}
	return answer, nil
}

func (c *Client) unreachable(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fault.New(fault.Failed, "%w", ErrNotRunning).WithMend("start it with slipway up")
	}
	return fault.New(fault.Failed, "the lab's daemon does not answer: %w", err).WithMend("see %s", c.place.Log())
}

func refusal(answer *http.Response) error {
	data, err := readAll(answer.Body)
	if err != nil {
		return err
	}
	var p problem
	if err := json.Unmarshal(data, &p); err != nil || p.Message == "" {
		return fault.New(fault.Failed, "the lab's daemon answers %s", answer.Status)
	}
	return p.fault()
}

func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxAnswer+1))
	if err == nil && len(data) > maxAnswer {
		err = fmt.Errorf("the lab's daemon answers more than %d MiB", maxAnswer>>20)
	}
	return data, err
}

// stream asks for a connection to be upgraded to a stream of bytes.
func (c *Client) stream(ctx context.Context, path string) (net.Conn, error) {
	conn, err := c.place.connect(ctx)
	if err != nil {
		return nil, c.unreachable(ctx, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	upgraded, err := upgrade(ctx, conn, path)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	return upgraded, nil
}

func upgrade(ctx context.Context, conn net.Conn, path string) (net.Conn, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lab"+path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", streamProtocol)
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	in := bufio.NewReader(conn)
	answer, err := http.ReadResponse(in, request)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode != http.StatusSwitchingProtocols {
		defer answer.Body.Close()
		return nil, refusal(answer)
	}
	return bufferedConn{conn, in}, nil
}
