package database

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

//go:embed patroni.yml.tmpl
var configuration string

// Configure writes Patroni's configuration, keys and passwords. It needs no network
// and starts nothing.
type Configure struct{}

// Name implements steps.Step.
func (Configure) Name() string { return "database-setup" }

// Apply implements steps.Step.
func (Configure) Apply(ctx context.Context, n *node.Node) error {
	m := n.Member
	if !runs(m) {
		return nil
	}
	keys, err := writeKeys(n, m)
	if err != nil {
		return err
	}
	if _, err := n.Ensure(secretsPath, 0o600, environment); err != nil {
		return err
	}
	memory, err := installed(n)
	if err != nil {
		return err
	}
	r, err := readRecord(n, m)
	if err != nil {
		return err
	}
	text, err := render(m, memory, n.Maintenance() != nil, turned(m, r))
	if err != nil {
		return err
	}
	stoodAlone := !n.Exists(configPath)
	changed, err := n.EnsureFor(user, configPath, 0o600, text)
	if err == nil {
		err = tidyKeys(n, m)
	}
	switch {
	case err != nil || !changed && !keys:
		return err
	case stoodAlone:
		// One that ran as a cluster of its own stops here.
		return n.Nudge(ctx, "restart", Unit)
	}
	return n.Nudge(ctx, "reload", Unit)
}

// writeKeys reports whether any is another one than before. A key stands in the file
// of its certificate: who reads them meanwhile never gets two that do not fit.
func writeKeys(n *node.Node, m *member.Member) (changed bool, err error) {
	service, ok := m.Certificates[member.ServiceCert]
	etcd, ok2 := m.Certificates[member.EtcdClient]
	if !ok || !ok2 || m.EtcdAuthority == "" {
		return false, fault.New(fault.Input, "%s is a database node, and its seed lacks a certificate for that", m.Self.Name).
			WithMend("write the node's seed anew: slipway seed")
	}
	for _, f := range []struct{ name, content string }{
		{"ca.pem", m.Authority}, {"service.pem", service.Both()}, {restKeys(m) + ".pem", service.Both()},
		{"etcd-ca.pem", m.EtcdAuthority}, {"etcd-client.pem", etcd.Both()},
	} {
		other, err := n.EnsureFor(user, pkiDir+"/"+f.name, 0o600, f.content)
		if err != nil {
			return changed, err
		}
		changed = changed || other
	}
	return changed, nil
}

// restKeys names the file of the certificate that Patroni's REST API shows. Each
// issue has a name of its own: Patroni looks into a file of the same name only when
// nothing else in its configuration has changed, and passwords may have.
func restKeys(m *member.Member) string { return fmt.Sprintf("rest-%d", m.Issue) }

// tidyKeys removes the keys of former issues, which the configuration names no more.
func tidyKeys(n *node.Node, m *member.Member) error {
	found, err := filepath.Glob(n.Path(pkiDir + "/rest-*.pem"))
	for _, file := range found {
		if filepath.Base(file) != restKeys(m)+".pem" {
			err = errors.Join(err, os.Remove(file))
		}
	}
	return err
}

// environment is what a cluster's node has in place of the passwords that one which
// stands alone makes for itself. What Patroni is told by its environment it keeps
// until it is restarted, and PostgreSQL with it; its configuration it reads anew.
const environment = "# The passwords stand in Patroni's configuration.\n"

// role is one of Patroni's own, with its password.
type role struct{ Name, Password string }

func passwords(m *member.Member) ([]role, error) {
	var list []role
	for _, s := range []struct{ role, secret string }{
		{"superuser", plan.SuperuserPassword}, {"replication", plan.ReplicationPassword}, {"rewind", plan.RewindPassword},
	} {
		password := m.Secrets[s.secret]
		if password == "" || strings.ContainsAny(password, "\n\r\x00") {
			return nil, fault.New(fault.Input, "the seed's secret %s is missing, or is no password", s.secret).
				WithMend("write the node's seed anew: slipway seed")
		}
		list = append(list, role{s.role, password})
	}
	return list, nil
}

// quote writes text as a JSON string, which is a YAML string too.
func quote(text string) (string, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(text)
	return strings.TrimSpace(b.String()), err
}

// render is Patroni's configuration. A node in maintenance must not lead, nor be one
// whose word makes a commit count, and is not read from. unchecked keeps Patroni from
// rewinding what this node's data holds and the promoted site lacks.
func render(m *member.Member, memory mebibytes, maintenance, unchecked bool) (string, error) {
	t, err := template.New("patroni.yml").Funcs(template.FuncMap{"q": quote}).Parse(configuration)
	if err != nil {
		return "", err
	}
	var members []string
	for _, peer := range m.Plan.ConsensusNodes(m.Site.Name) {
		members = append(members, netip.AddrPortFrom(peer.Address, plan.EtcdPort).String())
	}
	if len(members) == 0 {
		return "", fault.New(fault.Input, "the plan names no node that runs etcd for site %s", m.Site.Name)
	}
	roles, err := passwords(m)
	if err != nil {
		return "", err
	}
	data := map[string]any{
		"Site": m.Site, "Self": m.Self, "PKI": pkiDir, "RestPort": plan.PatroniPort, "RestPassword": restPassword(m),
		"RestAddress": netip.AddrPortFrom(m.Self.Address, plan.PatroniPort).String(),
		"Address":     netip.AddrPortFrom(m.Self.Address, uint16(m.Site.Postgres.Port)).String(),
		"Consensus":   members, "Roles": roles,
		"Rest": restKeys(m), "Margin": m.Site.Patroni.SafetyMargin(), "MiB": int(memory), "Memory": memorySettings(memory, m.Site.Postgres), "Access": access(m.Plan), "Bootstrap": "",
		"Maintenance": maintenance, "Unchecked": unchecked,
	}
	if m.Site.Bootstrap == m.Self.Name {
		dcs, err := json.Marshal(initial(m))
		if err != nil {
			return "", err
		}
		data["Bootstrap"] = string(dcs)
	}
	var text strings.Builder
	if err := t.Execute(&text, data); err != nil {
		return "", fmt.Errorf("Patroni's configuration: %w", err)
	}
	return text.String(), nil
}

// access is pg_hba.conf: the first line that matches decides. The superuser comes
// through the socket alone, the roles of replication from database nodes alone,
// all others from nodes of the cluster and from the clients' networks.
func access(p *plan.Plan) []string {
	rules := []string{"local all " + superuser + " peer", "local all all scram-sha-256", "host all " + superuser + " all reject"}
	allow := func(databases, users string, from netip.Prefix) {
		rules = append(rules, strings.Join([]string{"hostssl", databases, users, from.Masked().String(), "scram-sha-256"}, " "))
	}
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128")}
	var peers, nodes []netip.Prefix
	for _, n := range p.Nodes {
		for _, address := range n.Addresses {
			one := netip.PrefixFrom(address.Addr(), address.Addr().BitLen())
			if nodes = append(nodes, one); plan.DatabaseRole(n.Role) {
				peers = append(peers, one)
			}
		}
	}
	for _, from := range append(loopback, peers...) {
		allow("replication", replicator, from)
		allow("postgres", rewinder, from)
	}
	rules = append(rules, "host all "+replicator+","+rewinder+" all reject")
	for _, from := range append(append(loopback, nodes...), p.Clients...) {
		allow("all", "all", from)
	}
	return rules
}
