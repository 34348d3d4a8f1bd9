package vault

import (
	"crypto/rand"
	"maps"
	"slices"
	"time"

	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// remember keeps the serial number of a certificate of the agent that is about to
// be replaced by another, and forgets those that have ended by themselves.
func (n *nodeState) remember(purpose string, now time.Time) {
	if purpose != pki.Agent {
		return
	}
	n.Former = valid(n.Former, now)
	if have, ok := n.Certificates[purpose]; ok {
		if cert, err := pki.ParseCertificate(purpose, have.Certificate); err == nil {
			n.Former = append(n.Former, revoked{pki.Serial(cert), cert.NotAfter})
		}
	}
}

func valid(list []revoked, now time.Time) []revoked {
	return slices.DeleteFunc(list, func(r revoked) bool { return r.Until.Before(now) })
}

// revoke has no certificate count any more that a node's agent ever had.
func (v *Vault) revoke(name string) {
	n := v.node(name)
	n.remember(pki.Agent, v.now)
	v.state.Revoked = append(v.state.Revoked, n.Former...)
	n.Former, n.Certificates = nil, map[string]pki.Pair{}
}

// Revoke has the certificates of a node count no more, once the next plan is known.
// What else is known of the node stays until Forget.
func (v *Vault) Revoke(name string) {
	if _, ok := v.state.Nodes[name]; ok {
		v.revoke(name)
	}
}

// Revoked are the serial numbers of agents' certificates that count no more, as a
// plan names them.
func (v *Vault) Revoked() []string {
	v.state.Revoked = valid(v.state.Revoked, v.now)
	var serials []string
	for _, r := range v.state.Revoked {
		serials = append(serials, r.Serial)
	}
	slices.Sort(serials)
	return slices.Compact(serials)
}

// Forget drops a node's certificates and keys; the next plan revokes them.
func (v *Vault) Forget(name string) {
	if _, ok := v.state.Nodes[name]; ok {
		v.revoke(name)
		delete(v.state.Nodes, name)
	}
}

// Replace begins to have a fresh machine take a node's place: certificates of the
// machine before count no more, once the next plan is known, and the next seed has
// others. To begin again what was begun changes nothing.
func (v *Vault) Replace(name string) error {
	n, ok := v.state.Nodes[name]
	if !ok {
		return fault.New(fault.Input, "the store %s does not know the node %s", v.dir, name)
	}
	if !n.Replacing {
		v.revoke(name)
		n.Replacing = true
	}
	return nil
}

// Replacing reports whether a fresh machine is to take a node's place.
func (v *Vault) Replacing(name string) bool {
	n := v.state.Nodes[name]
	return n != nil && n.Replacing
}

// Replaced ends what Replace has begun.
func (v *Vault) Replaced(name string) {
	if n := v.state.Nodes[name]; n != nil {
		n.Replacing = false
	}
}

// Issue is the number of a node's certificates and passwords, which grows whenever
// any of them changes.
func (v *Vault) Issue(name string) int64 {
	if n := v.state.Nodes[name]; n != nil {
		return n.Issue
	}
	return 0
}

// Holds notes the names of the certificates and passwords that a node's seed has. One
// that comes to have further ones has an older issue. One that is to have fewer keeps
// what it has until it is given others: an etcd member whose vote is taken has to see
// that it was.
func (v *Vault) Holds(name string, names []string) {
	n := v.node(name)
	further := func(one string) bool { return !slices.Contains(n.Holds, one) }
	if n.Holds != nil && slices.ContainsFunc(names, further) {
		v.Outdate(name)
	}
	n.Holds = names
}

// Outdate has a node's certificates and passwords count as other ones than before:
// a password that it has is a new one.
func (v *Vault) Outdate(name string) {
	if n := v.state.Nodes[name]; n != nil && n.Generation > 0 {
		n.Issue++
	}
}

// Exchange begins to replace a password by a new one. The former one is kept until
// Exchanged; to begin again what was begun changes nothing. It reports whether there
// is a new password now.
func (v *Vault) Exchange(name string) (begun bool, err error) {
	if _, under := v.state.Rotating[name]; under {
		return false, nil
	}
	old, err := v.Secret(name)
	if err != nil {
		return false, err
	}
	if v.state.Rotating == nil {
		v.state.Rotating = map[string]string{}
	}
	v.state.Rotating[name], v.state.Secrets[name] = old, rand.Text()
	return true, nil
}

// Exchanging are the passwords that are being replaced, by name.
func (v *Vault) Exchanging() []string { return slices.Sorted(maps.Keys(v.state.Rotating)) }

// Exchanged ends all exchanges: the former passwords are forgotten.
func (v *Vault) Exchanged() { v.state.Rotating = nil }

// SignedPlan is the newest plan as it travels.
func (v *Vault) SignedPlan() (plan.Signed, error) {
	if len(v.state.Plans) == 0 {
		return plan.Signed{}, fault.New(fault.Internal, "the store has no plan yet")
	}
	return v.state.Plans[len(v.state.Plans)-1], nil
}

// PlanWith is the newest plan that has a node; nil if none has.
func (v *Vault) PlanWith(name string) (*plan.Plan, error) {
	for _, signed := range slices.Backward(v.state.Plans) {
		p, err := signed.Open(v.cluster.Cert)
		if err != nil {
			return nil, err
		}
		if _, err := p.Node(name); err == nil {
			return p, nil
		}
	}
	return nil, nil
}

// Renew notes that all nodes are being given new certificates, Renewed that they
// have them, and Renewing tells which of the two was last.
func (v *Vault) Renew() { v.state.Renewing = true }

// Renewed ends what Renew has begun.
func (v *Vault) Renewed() { v.state.Renewing = false }

// Renewing reports whether Renew was not followed by Renewed.
func (v *Vault) Renewing() bool { return v.state.Renewing }
