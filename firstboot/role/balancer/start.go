package balancer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Start lets HAProxy start and waits until it serves.
//
// A balancer is not up before it has seen a database node that takes what it
// sends; that the node is lost again later is a problem that Observe reports,
// since a failover is the balancer's daily work.
type Start struct{}

func (Start) Name() string { return "balancer" }

const pause = 2 * time.Second

// Apply implements steps.Step.
func (Start) Apply(ctx context.Context, n *node.Node) error {
	if !applies(n) {
		return nil
	}
	config, err := render(n.Member)
	if err != nil {
		return err
	}
	if same, err := isWritten(n, config); err != nil {
		return err
	} else if !same {
		return fault.New(fault.Failed, "%s is not what the plan asks for, so HAProxy is not started", configPath).
			WithMend("see what the step %s reports", Configure{}.Name())
	}
	if err := n.Release(ctx, unit); err != nil {
		return err
	}
	for {
		_, err := look(ctx, n)
		if err == nil {
			n.Waiting("")
			return nil
		}
		n.Waiting("%v", err)
		if !node.Sleep(ctx, pause) {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// Observe reports the servers; its error is what is wrong with them.
func (Start) Observe(ctx context.Context, n *node.Node, c *status.Cluster) error {
	if !applies(n) {
		return nil
	}
	list, err := look(ctx, n)
	c.Backends = shown(slices.Clone(list))
	if list == nil {
		return err
	}
	return errors.Join(err, judgeFront(list, settleFront(n.Member)))
}

// look asks HAProxy for its servers and judges them.
func look(ctx context.Context, n *node.Node) ([]status.Backend, error) {
	list, err := servers(ctx, n.Path(socketPath))
	if err != nil {
		return nil, err
	}
	s, err := settle(n.Member)
	if err != nil {
		return list, err
	}
	if len(s.ReadWrite) == 0 {
		return list, healthy(ctx)
	}
	if err := judge(list, s.Standby); err != nil {
		return list, err
	}
	return list, healthy(ctx)
}

// judge says why the databases cannot be used through this balancer, or nil.
func judge(list []status.Backend, standby bool) error {
	name, problem := "read-write", "no database node says that it is the primary"
	if standby {
		name, problem = "read-only", "no database node can be read from"
	}
	var why []string
	up := 0
	for _, b := range list {
		switch {
		case b.Name != name:
		case b.Up:
			up++
		case !strings.HasPrefix(b.Server, leaderPrefix):
			why = append(why, b.Server+": "+b.Check)
		}
	}
	switch {
	case up == 0:
		return fmt.Errorf("%s: %s", problem, strings.Join(why, ", "))
	case up > 1 && !standby:
		return fmt.Errorf("%d database nodes pass for the primary, so none is written to", up)
	}
	return nil
}

var client = &http.Client{
	Timeout:   5 * time.Second,
	Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true},
}

// healthy asks the health frontend, as keepalived does.
func healthy(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, healthURL, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("haproxy's health frontend does not answer: %w", err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 200))
	if err != nil {
		return fmt.Errorf("haproxy's health frontend does not answer: %w", err)
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("haproxy's health frontend says: %s", strings.TrimSpace(string(text)))
	}
	return nil
}
