package operations

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// Cluster is a cluster as an administrator reaches it, be it of real machines or in
// a lab.
type Cluster struct {
	// Plan says which nodes there are and where. An operation that makes a newer plan
	// puts that here.
	Plan *plan.Plan
	// Also are nodes that the plan no longer has and that are still reached.
	Also []plan.Node
	// Dial reaches the nodes.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// TLS gives a certificate with a right, and the cluster's authority (package vault).
	TLS func(right string) (tls.Certificate, *x509.CertPool, error)
}

// lookTime bounds one look at all nodes.
const lookTime = 20 * time.Second

// Look asks all nodes how they are.
func (c *Cluster) Look(ctx context.Context) (overview.Overview, error) {
	cert, authorities, err := c.TLS(pki.AdminRead)
	if err != nil {
		return overview.Overview{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	return overview.Gather(ctx, c.reached(), &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: authorities}, c.Dial), nil
}

// reached is the plan with the nodes that are still reached.
func (c *Cluster) reached() *plan.Plan {
	if len(c.Also) == 0 {
		return c.Plan
	}
	p := *c.Plan
	p.Revoked = nil // what is to go is asked until it has gone
	p.Nodes = slices.Clone(p.Nodes)
	for _, n := range c.Also {
		if _, err := p.Node(n.Name); err != nil {
			p.Nodes = append(p.Nodes, n)
		}
	}
	return &p
}

// Act has a node do something, and decodes what comes of it into result (unless that
// is nil). say takes what the node tells on the way.
func (c *Cluster) Act(ctx context.Context, node, action string, args, result any, say func(string)) error {
	remote, err := c.remote(node, pki.AdminWrite)
	if err != nil {
		return err
	}
	data, err := remote.Act(ctx, action, args, func(e actions.Event) {
		if e.Say != "" {
			say(node + ": " + e.Say)
		}
	})
	if err != nil || result == nil {
		return err
	}
	return understood(node, action, data, result)
}

// Ask has a node look at something, which changes nothing, and decodes what it sees.
func (c *Cluster) Ask(ctx context.Context, node, look string, args, result any) error {
	remote, err := c.remote(node, pki.AdminRead)
	if err != nil {
		return err
	}
	data, err := remote.Look(ctx, look, args, func(actions.Event) {})
	if err != nil {
		return err
	}
	return understood(node, look, data, result)
}

func understood(node, action string, data json.RawMessage, result any) error {
	if err := json.Unmarshal(data, result); err != nil {
		return fmt.Errorf("%s answered to %s with something that this version does not understand: %w", node, action, err)
	}
	return nil
}

// Give hands a node a plan, which it hands on to the others.
func (c *Cluster) Give(ctx context.Context, node string, signed plan.Signed) error {
	remote, err := c.remote(node, pki.AdminWrite)
	if err != nil {
		return err
	}
	return remote.Give(ctx, signed)
}

// Audit are the newest records of a node's audit log, at most n.
func (c *Cluster) Audit(ctx context.Context, node string, n int) ([]actions.Entry, error) {
	remote, err := c.remote(node, pki.AdminRead)
	if err != nil {
		return nil, err
	}
	return remote.Audit(ctx, n)
}

func (c *Cluster) remote(name, right string) (peers.Remote, error) {
	n, err := c.reached().Node(name)
	if err != nil {
		return peers.Remote{}, err
	}
	cert, authorities, err := c.TLS(right)
	if err != nil {
		return peers.Remote{}, err
	}
	return peers.Remote{Node: n, Config: peers.Refusing(peers.TLS(cert, authorities, c.Plan.ID, name, time.Now), c.reached()), Dial: c.Dial}, nil
}
