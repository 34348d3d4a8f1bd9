// Package balancer runs HAProxy in front of a site's databases, brokers and
// gateways. What goes in is the node's part in its cluster (package member); what
// comes out is /etc/haproxy/haproxy.cfg, a running HAProxy, and a report of its
// servers.
//
// Which database node takes writes is Patroni's word, asked over TLS and
// checked against the cluster's authority (Patroni documentation, "Patroni REST
// API", "Health check endpoints"). PostgreSQL's own TLS passes through
// untouched: a client talks to the database end to end. Towards people TLS ends
// here, with the cluster's certificate or the administrator's own, and begins anew
// towards brokers and gateways, which must show theirs. The configuration
// follows the HAProxy 3.0 Configuration Manual.
//
// Without a cluster the image's own configuration stays.
package balancer

import (
	"bytes"
	"context"
	"errors"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	unit       = "haproxy.service"
	configPath = "/etc/haproxy/haproxy.cfg"
	// candidatePath is where a configuration stands while HAProxy judges it.
	candidatePath = "/etc/haproxy/haproxy.cfg.candidate"
	// authorityPath is public. HAProxy reads it before it gives up root.
	authorityPath = "/etc/haproxy/cluster-ca.pem"
	socketPath    = "/run/haproxy/admin.sock"
	// healthURL is asked by keepalived too (package vip).
	healthURL = "http://127.0.0.1:8404/healthz"
)

// Configure writes HAProxy's configuration from the plan.
type Configure struct{}

func (Configure) Name() string { return "balancer-setup" }

// Apply replaces the configuration only by one that HAProxy accepts, and has a
// running HAProxy take it up without ending a session.
func (Configure) Apply(ctx context.Context, n *node.Node) error {
	if !applies(n) {
		return nil
	}
	config, err := render(n.Member)
	if err != nil {
		return err
	}
	files, err := material(n.Member, settleFront(n.Member))
	if err != nil {
		return err
	}
	changed, back, err := place(n, files)
	if err != nil {
		return errors.Join(err, back())
	}
	same, err := isWritten(n, config)
	if err != nil || same && !changed {
		return err
	}
	if err := check(ctx, n, config); err != nil {
		return errors.Join(err, back())
	}
	if _, err := n.Ensure(configPath, 0o644, config); err != nil {
		return err
	}
	return errors.Join(tidy(n, files), n.Nudge(ctx, "reload", unit))
}

// applies reports whether the node is a balancer of a cluster.
func applies(n *node.Node) bool { return n.Member != nil && n.Member.Self.Role == "balancer" }

// isWritten reports whether the configuration in place is this one.
func isWritten(n *node.Node, config string) (bool, error) {
	now, err := n.Read(configPath)
	return bytes.Equal(now, []byte(config)), err
}

// check has HAProxy itself judge a configuration.
func check(ctx context.Context, n *node.Node, config string) error {
	if _, err := n.Write(candidatePath, 0o644, []byte(config)); err != nil {
		return err
	}
	_, err := n.Command(ctx, "haproxy", "-c", "-q", "-f", candidatePath)
	if _, removeErr := n.Remove(candidatePath); err == nil {
		err = removeErr
	}
	if err != nil {
		return fault.New(fault.Input, "HAProxy refuses the configuration made from the cluster's plan; the one in place stays: %w", err).
			WithMend("check the virtual addresses and database nodes in cluster.yaml")
	}
	return nil
}
