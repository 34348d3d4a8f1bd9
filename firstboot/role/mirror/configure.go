package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Configure points apt and Docker at the mirror, and gives the node that is the
// mirror its keys. It needs no network and starts nothing.
type Configure struct{}

// Name implements steps.Step.
func (Configure) Name() string { return "mirror-setup" }

// Apply implements steps.Step. A node that knows of no plan stays as it is.
func (Configure) Apply(ctx context.Context, n *node.Node) error {
	if n.Member == nil {
		return nil
	}
	m := n.Member.Plan.Mirror
	if m != nil && m.Node != "" {
		own := *m
		own.CA = n.Member.Authority
		m = &own
	}
	ca := ""
	if m != nil {
		ca = m.CA
	}
	_, err := n.Ensure(caPath, 0o644, ca)
	return errors.Join(err, packages(n, m), images(ctx, n, m), service(ctx, n))
}

// service gives the node that is the mirror what its service reads: certificate, key,
// and the site's public key.
func service(ctx context.Context, n *node.Node) error {
	m := n.Member
	if !m.Plan.Mirrors(m.Self.Name) {
		return nil
	}
	pair, ok := m.Certificates[member.ServiceCert]
	if !ok {
		return fault.New(fault.Input, "%s is the mirror, and its seed lacks a certificate for that", m.Self.Name).
			WithMend("write the node's seed anew: slipway seed")
	}
	changed := false
	for name, content := range map[string]string{"service.pem": pair.Certificate, "service-key.pem": pair.Key, "site.asc": m.Plan.Mirror.Key} {
		wrote, err := n.EnsureFor(user, dir+"/"+name, 0o400, content)
		if err != nil {
			return err
		}
		changed = changed || wrote
	}
	if !changed {
		return nil
	}
	return n.Nudge(ctx, "restart", Unit)
}

const header = "Written by the slipway agent from the cluster's plan. Edits are lost at the next boot."

const (
	sourcesPath = "/etc/apt/sources.list.d/slipway.sources"
	optionsPath = "/etc/apt/apt.conf.d/60slipway-mirror"
)

// packages points apt at the mirror, or back.
func packages(n *node.Node, m *plan.Mirror) error {
	if !n.Exists("/etc/apt") {
		return nil // an image of before there was apt in it
	}
	sources, options := "", ""
	if m != nil {
		if len(n.Role.Archives) == 0 {
			return fault.New(fault.Input, "the image does not say which archives it is made from, so apt cannot be told where the mirror has them").
				WithMend("build the image anew and upgrade the node")
		}
		sources, options = deb822(m, n), aptOptions(m)
	}
	_, err := n.Ensure(optionsPath, 0o644, options)
	if err != nil {
		return err
	}
	if m == nil {
		if _, err := n.Ensure(sourcesPath, 0o644, ""); err != nil {
			return err
		}
		return putBack(n)
	}
	// Those of the world go first: at no moment does apt mix the two.
	if err := setAside(n); err != nil {
		return err
	}
	_, err = n.Ensure(sourcesPath, 0o644, sources)
	return err
}

// deb822 are the image's archives as the mirror has them.
func deb822(m *plan.Mirror, n *node.Node) string {
	var b strings.Builder
	b.WriteString("# " + header + "\n")
	for _, a := range n.Role.Archives {
		fmt.Fprintf(&b, "\nTypes: deb\nURIs: %s/%s\nSuites: %s\nComponents: %s\nSigned-By:\n", m.URL, a.Path, strings.Join(a.Suites, " "), strings.Join(a.Components, " "))
		for line := range strings.Lines(strings.TrimSpace(m.Key)) {
			// An empty line would end the paragraph (deb822(5)).
			b.WriteString(" " + cmp.Or(strings.TrimSpace(line), ".") + "\n")
		}
	}
	return b.String()
}

// aptOptions has apt trust the mirror's authority, for the mirror alone.
func aptOptions(m *plan.Mirror) string {
	host, ok := strings.CutPrefix(m.URL, "https://")
	if !ok || m.CA == "" {
		return ""
	}
	host, _, _ = strings.Cut(host, "/")
	scope := "::" + strings.SplitN(host, ":", 2)[0]
	if strings.HasPrefix(host, "[") {
		scope = "" // apt's own separator is in the address
	}
	return fmt.Sprintf("// %s\nAcquire::https%s::CAInfo \"%s\";\n", header, scope, caPath)
}
