// Package vip keeps virtual addresses with keepalived. What goes in is the
// node's part in its cluster (package member); what comes out is
// /etc/keepalived/keepalived.conf, a running keepalived, and a report of which
// addresses the node holds.
//
// The protocol is VRRP version 3 (RFC 9568) with unicast advertisements: an
// address sits on one of its holders at most, and moves when the holder, its
// network or the service behind the address fails. On balancers the service is
// HAProxy; on database nodes it is the writable primary, so there the address
// follows Patroni's leader lock. The configuration follows keepalived.conf(5).
package vip

import (
	"context"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

const (
	// Unit is keepalived's.
	Unit = "keepalived.service"

	configPath = "/etc/keepalived/keepalived.conf"
	// candidatePath is where a configuration stands while keepalived judges it.
	candidatePath = "/etc/keepalived/keepalived.conf.candidate"
	// addressesPath lists what the unit takes off the node when keepalived ends,
	// however it ends.
	addressesPath = "/etc/keepalived/addresses"
	// authorityPath is public; the check reads it as an ordinary user.
	authorityPath = "/etc/keepalived/cluster-ca.pem"
)

// Configure writes what keepalived and its checks need that is known without a
// network. Its own configuration names a network card, which is known only when
// the card has its address; Start writes it.
type Configure struct{}

func (Configure) Name() string { return "vip-setup" }

// Apply takes keepalived's configuration away from a node that may hold no
// address any more.
func (Configure) Apply(ctx context.Context, n *node.Node) error {
	if n.Member == nil {
		return nil
	}
	held := n.Member.Plan.HeldBy(n.Member.Self.Name)
	if len(held) == 0 {
		removed, err := n.Ensure(configPath, 0o644, "")
		if err != nil || !removed {
			return err
		}
		return n.Nudge(ctx, "stop", Unit)
	}
	if _, err := n.Ensure(authorityPath, 0o644, n.Member.Authority); err != nil {
		return err
	}
	_, err := n.Ensure(addressesPath, 0o644, listed(held))
	return err
}

// listed are virtual addresses as they sit on a network card, one a line.
func listed(vips []plan.VIP) string {
	var b strings.Builder
	for _, v := range vips {
		b.WriteString(alone(v).String() + "\n")
	}
	return b.String()
}
