package seeding

import (
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
	"slices"
)

// Credentials are the certificates and passwords that a node's seed has, for a node
// that runs. The seeds must have been written (Write): nothing is issued here.
func Credentials(t *topology.Topology, v *vault.Vault, name string) (member.Credentials, error) {
	n, ok := t.Node(name)
	if !ok {
		return member.Credentials{}, fault.New(fault.Usage, "the topology has no node %q", name)
	}
	p, err := v.Plan()
	if err != nil {
		return member.Credentials{}, err
	}
	w := writer{t: t, v: v, plan: p}
	c, issued, err := w.content(n)
	if err != nil {
		return member.Credentials{}, err
	}
	if issued {
		return member.Credentials{}, fault.New(fault.Internal, "the seed of %s is older than what it needs now", name)
	}
	b, err := w.block(n, c)
	if err != nil {
		return member.Credentials{}, err
	}
	return member.Credentials{Cluster: v.ID(), Node: name, Issue: b.Issue, EtcdAuthority: b.EtcdAuthority, Certificates: b.Certificates, Secrets: b.Secrets}, nil
}

// Passwords are the names of the passwords that a node has; nil if it has none.
func Passwords(p *plan.Plan, n plan.Node) []string {
	if !plan.DatabaseRole(n.Role) {
		return nil
	}
	names := []string{plan.SuperuserPassword, plan.ReplicationPassword, plan.RewindPassword}
	for _, d := range p.Databases {
		names = append(names, d.PasswordKey())
	}
	return names
}

// Same reports whether two plans differ in nothing but what signing one adds.
func Same(a, b *plan.Plan) bool {
	left, right := *a, *b
	right.Revoked = left.Revoked
	right.Sites = slices.Clone(right.Sites)
	for i := range min(len(left.Sites), len(right.Sites)) {
		right.Sites[i].Formed = left.Sites[i].Formed
	}
	how, err := compare(&left, &right)
	return err == nil && how == same
}
