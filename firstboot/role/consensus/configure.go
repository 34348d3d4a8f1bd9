package consensus

import (
	"context"
	_ "embed"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"text/template"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

//go:embed etcd.env.tmpl
var environment string

// Configure writes the member's configuration and keys. It needs no network and
// starts nothing.
type Configure struct{}

// Name implements steps.Step.
func (Configure) Name() string { return "consensus-setup" }

// Apply implements steps.Step.
func (Configure) Apply(ctx context.Context, n *node.Node) error {
	m := n.Member
	if !votes(m) {
		return nil
	}
	if err := writeKeys(n, m); err != nil {
		return err
	}
	text, err := render(m, bootstrap{cluster: staticCluster(m), state: "new"})
	if err != nil {
		return err
	}
	if before, err := n.Read(envPath); err == nil && hasData(n, m) && lasting(string(before)) == lasting(text) {
		return nil // what differs counts only without data, and to restart all members at once would cost the quorum
	}
	changed, err := n.Ensure(envPath, 0o644, text)
	if err != nil || !changed {
		return err
	}
	// One that ran with another configuration stops here, and is started again by
	// Start; keys are read anew at every connection.
	return n.Nudge(ctx, "restart", Unit)
}

// lasting is what of a configuration counts for a member that has data.
func lasting(text string) string {
	var kept strings.Builder
	for line := range strings.Lines(text) {
		if !strings.HasPrefix(line, "ETCD_INITIAL_CLUSTER") {
			kept.WriteString(line)
		}
	}
	return kept.String()
}

func writeKeys(n *node.Node, m *member.Member) error {
	pair, ok := m.Certificates[member.EtcdCert]
	if !ok || m.EtcdAuthority == "" {
		return fault.New(fault.Input, "the plan gives %s a vote, and its seed holds no certificate for etcd", m.Self.Name).
			WithMend("write the node's seed anew: slipway seed")
	}
	for _, f := range []struct{ name, content string }{{"ca.pem", m.EtcdAuthority}, {"server.pem", pair.Both()}} {
		if _, err := n.EnsureFor(user, pkiDir+"/"+f.name, 0o600, f.content); err != nil {
			return err
		}
	}
	return nil
}

// bootstrap is what a member without data needs to know.
type bootstrap struct {
	cluster string // NAME=PEER-URL,…
	state   string // new or existing
}

// staticCluster are the members that the plan names, as they form a new cluster.
func staticCluster(m *member.Member) string {
	var members []string
	for _, peer := range m.Plan.ConsensusNodes(m.Site.Name) {
		members = append(members, peer.Name+"="+url(peer.Address, plan.EtcdPeerPort))
	}
	return strings.Join(members, ",")
}

func url(address netip.Addr, port uint16) string {
	return "https://" + netip.AddrPortFrom(address, port).String()
}

// Endpoint is where a member answers clients.
func Endpoint(n plan.Node) string { return url(n.Address, plan.EtcdPort) }

// Token names a site's etcd cluster among all others in the world.
func Token(m *member.Member) string { return m.Plan.ID + "-" + m.Site.Scope }

// election is etcd's election timeout in milliseconds: two of them, which is as
// long as an election takes, fit into what Patroni waits for etcd.
func election(p plan.Patroni) int { return min(max(p.RetryTimeout*1000*2/5, 1000), 5000) }

func render(m *member.Member, b bootstrap) (string, error) {
	if err := checkScope(m.Site.Scope); err != nil {
		return "", err
	}
	t, err := template.New("etcd.env").Parse(environment)
	if err != nil {
		return "", err
	}
	listen := []string{url(m.Self.Address, plan.EtcdPort)}
	if loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1}); m.Self.Address != loopback {
		listen = append(listen, url(loopback, plan.EtcdPort))
	}
	slices.Sort(listen)
	var text strings.Builder
	err = t.Execute(&text, map[string]any{
		"Name": m.Self.Name, "DataDir": memberDir(m), "PKI": pkiDir, "Token": Token(m),
		"ListenClient": strings.Join(listen, ","), "Client": url(m.Self.Address, plan.EtcdPort), "Peer": url(m.Self.Address, plan.EtcdPeerPort),
		"Initial": b.cluster, "State": b.state,
		"Retry": m.Site.Patroni.RetryTimeout, "Election": election(m.Site.Patroni), "Heartbeat": election(m.Site.Patroni) / 10,
	})
	if err != nil {
		return "", fmt.Errorf("etcd's configuration: %w", err)
	}
	return text.String(), nil
}
