package product

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Configure writes what the product is told, and holds its units back until Start
// lets them go. It needs no network and starts nothing.
type Configure struct{}

// Name implements steps.Step.
func (Configure) Name() string { return "product-setup" }

// Apply implements steps.Step.
func (Configure) Apply(ctx context.Context, n *node.Node) error {
	p := of(n)
	if idle(p) {
		return nil
	}
	for _, unit := range p.Units {
		if n.UnitActive(ctx, unit) {
			continue
		}
		if err := n.Hold(unit); err != nil {
			return err
		}
	}
	return Tell(n)
}

// Tell writes the files of Dir. A node that stands alone has nobody to tell of.
func Tell(n *node.Node) error {
	if idle(of(n)) {
		return nil
	}
	env, err := Environment(n.Member)
	if err != nil {
		return err
	}
	files := []struct{ path, content string }{{envPath, envFile(env)}}
	if m := n.Member; m != nil {
		pair := m.Certificates[member.ServiceCert]
		files = append(files, []struct{ path, content string }{
			{pgpassPath, pgpass(m)}, {caPath, m.Authority}, {certPath, pair.Certificate}, {keyPath, pair.Key},
		}...)
	}
	var told bytes.Buffer
	for _, f := range files {
		fmt.Fprintf(&told, "%s %d\n%s", f.path, len(f.content), f.content)
		if f.content == "" && f.path != envPath {
			if _, err := n.Ensure(f.path, 0o600, ""); err != nil {
				return err
			}
			continue
		}
		if _, err := n.EnsureFor(user(of(n)), f.path, 0o600, f.content); err != nil {
			return err
		}
	}
	return tellFacts(n, &told)
}

// Variable is a name and its value.
type Variable struct{ Name, Value string }

// Environment is what a product is told of its node and cluster, and of its
// database as libpq reads it (PostgreSQL documentation, "Environment Variables").
// None of it is secret. A node that stands alone (nil) is told nothing.
func Environment(m *member.Member) ([]Variable, error) {
	if m == nil {
		return nil, nil
	}
	var peers []string
	for _, peer := range m.Plan.With(m.Self.Site, m.Self.Role) {
		peers = append(peers, peer.Name+"="+peer.Address.String())
	}
	fqdn := m.Self.Name
	if m.Plan.Domain != "" {
		fqdn += "." + m.Plan.Domain
	}
	env := []Variable{
		{"SLIPWAY_CLUSTER", m.Plan.Cluster}, {"SLIPWAY_SITE", m.Self.Site}, {"SLIPWAY_NODE", m.Self.Name},
		{"SLIPWAY_FQDN", fqdn}, {"SLIPWAY_ADDRESS", m.Self.Address.String()}, {"SLIPWAY_PEERS", strings.Join(peers, " ")},
	}
	for _, v := range m.Plan.VIPs {
		if v.At(m.Self.Site) {
			env = append(env, Variable{"SLIPWAY_VIP_" + capitals(v.Name), v.Address.Addr().String()})
		}
	}
	database, err := libpq(m)
	if err != nil {
		return nil, err
	}
	return append(env, database...), nil
}

// capitals is a name as a variable's.
func capitals(name string) string { return strings.ToUpper(strings.ReplaceAll(name, "-", "_")) }

// libpq leads to the role's database: to a virtual address of the site, or where
// there is none, to whichever of its databases takes writes.
func libpq(m *member.Member) ([]Variable, error) {
	d, ok := m.Plan.DatabaseFor(m.Self.Role)
	if !ok {
		return nil, nil
	}
	var hosts []string
	port := m.Site.Postgres.Port
	for _, v := range m.Plan.VIPs {
		if v.At(m.Self.Site) && v.ReadWrite > 0 && hosts == nil {
			hosts, port = []string{v.Address.Addr().String()}, v.ReadWrite
		}
	}
	if hosts == nil {
		for _, db := range m.Plan.DatabaseNodes(m.Self.Site) {
			hosts = append(hosts, db.Address.String())
		}
	}
	if len(hosts) == 0 {
		return nil, fault.New(fault.Input, "the plan has a database %s for %s, and site %s has neither a virtual address nor a database", d.Name, m.Self.Role, m.Self.Site)
	}
	return []Variable{
		{"PGHOST", strings.Join(hosts, ",")}, {"PGPORT", strconv.Itoa(port)}, {"PGDATABASE", d.Name}, {"PGUSER", d.Owner},
		{"PGPASSFILE", pgpassPath}, {"PGSSLMODE", "verify-full"}, {"PGSSLROOTCERT", caPath},
		{"PGTARGETSESSIONATTRS", "read-write"}, {"PGCONNECT_TIMEOUT", "5"},
	}, nil
}

// pgpass is the password of the role's database (PostgreSQL documentation, "The
// Password File"), or "" if it has none.
func pgpass(m *member.Member) string {
	d, ok := m.Plan.DatabaseFor(m.Self.Role)
	if !ok {
		return ""
	}
	escape := strings.NewReplacer(`\`, `\\`, `:`, `\:`).Replace
	return "*:*:" + escape(d.Name) + ":" + escape(d.Owner) + ":" + escape(m.Secrets[d.PasswordKey()]) + "\n"
}

// envFile is variables as systemd reads them (systemd.exec(5), EnvironmentFile=).
func envFile(env []Variable) string {
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "`", "\\`", `$`, `\$`).Replace
	var b strings.Builder
	for _, v := range env {
		b.WriteString(v.Name + `="` + quote(v.Value) + "\"\n")
	}
	return b.String()
}
