// Package vault is the administrator's store: what makes a cluster this cluster
// and no other. It holds the two authorities with their keys, the certificates
// and keys of all nodes, the generated passwords, and the plans that were signed.
// Whoever has it has the cluster.
//
// It is a directory beside the topology (see DefaultDir), mode 0700:
//
//	store.json      everything, as JSON, mode 0600; or
//	store.json.age  the same, encrypted (age-encryption.org/v1)
//	authority.pem   the cluster authority's certificate, for programs that check it
//
// Everything secret is in one file, which is replaced as a whole, so that no
// power cut leaves a key without its certificate. A directory that is open for
// writing is locked (flock(2)) against a second writer. A store that is damaged,
// that others may read or that is another cluster's is refused, never mended.
//
// Nothing in this package prints or logs a secret.
package vault

import (
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// RenewBefore is how long before its end a certificate is replaced.
const RenewBefore = 60 * 24 * time.Hour

// Vault is an open store.
type Vault struct {
	dir      string
	state    *state
	read     []byte   // the JSON that the file holds; nil if there is none yet
	lock     *os.File // nil if open for reading alone
	now      time.Time
	fixed    bool // now is a test's
	cluster  *pki.Authority
	etcd     *pki.Authority
	envelope envelope
}

// Options say how a store is opened.
type Options struct {
	// Cluster is the name of the cluster whose store it must be; "" takes any.
	Cluster string
	// Create makes a new store where there is none.
	Create bool
	// ReadOnly takes no lock and refuses Save. With Create, a store that is not
	// there yet is made in memory alone.
	ReadOnly bool
	// Recipients are age's public keys that the store is encrypted for from its
	// next Save on. Without any, it stays as it is.
	Recipients []string
	// IdentityFile holds the age identities that open an encrypted store.
	IdentityFile string
	// Passphrase is asked for where the store is encrypted with one, or is to be
	// (anew). nil: nobody can be asked.
	Passphrase func(anew bool) (string, error)
	// Encrypt encrypts with the passphrase from the next Save on.
	Encrypt bool
	// Now is the time; the zero value is the machine's.
	Now time.Time
}

// DefaultDir is where the store of a topology is: cluster.store beside cluster.yaml.
func DefaultDir(topology string) string {
	base := filepath.Base(topology)
	return filepath.Join(filepath.Dir(topology), strings.TrimSuffix(base, filepath.Ext(base))+".store")
}

// Open opens a store. Close it when done.
func Open(dir string, o Options) (*Vault, error) {
	v := &Vault{dir: dir, now: o.Now, fixed: !o.Now.IsZero()}
	if v.now.IsZero() {
		v.now = time.Now()
	}
	if err := v.open(o); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

func (v *Vault) open(o Options) error {
	exists, err := checkDir(v.dir)
	if err != nil {
		return err
	}
	if !exists && !o.Create {
		return noStore(v.dir)
	}
	if !o.ReadOnly {
		if v.lock, err = lockDir(v.dir); err != nil {
			return err
		}
	}
	if v.read, v.envelope, err = readStore(v.dir, o); err != nil {
		return err
	}
	if v.read == nil {
		if !o.Create {
			return noStore(v.dir)
		}
		return v.create(o)
	}
	if v.state, err = parse(v.read); err != nil {
		return damaged(v.path(), err)
	}
	if o.Cluster != "" && v.state.Cluster != o.Cluster {
		return fault.New(fault.Input, "%s is the store of the cluster %s, not of %s", v.dir, v.state.Cluster, o.Cluster).
			WithMend("name the right store with --store DIR, or give the topology the name that its cluster has")
	}
	if v.cluster, v.etcd, err = v.state.authorities(); err != nil {
		return damaged(v.path(), err)
	}
	return v.envelope.change(o, &v.state.Recipients)
}

func (v *Vault) create(o Options) error {
	if o.Cluster == "" {
		return fault.New(fault.Internal, "a store is made for a cluster with a name")
	}
	var err error
	if v.cluster, err = pki.NewAuthority(pki.ClusterAuthority, o.Cluster, v.now); err != nil {
		return err
	}
	if v.etcd, err = pki.NewAuthority(pki.EtcdAuthority, o.Cluster, v.now); err != nil {
		return err
	}
	v.state = &state{Format: format, Cluster: o.Cluster, Secrets: map[string]string{}, Nodes: map[string]*nodeState{}}
	if v.state.Authority, err = v.cluster.Pair(); err != nil {
		return err
	}
	if v.state.EtcdAuthority, err = v.etcd.Pair(); err != nil {
		return err
	}
	return v.envelope.change(o, &v.state.Recipients)
}

// path is the file that the store was read from, or will be written to.
func (v *Vault) path() string { return filepath.Join(v.dir, v.envelope.fileName()) }

// Dir is the store's directory.
func (v *Vault) Dir() string { return v.dir }

// New reports whether the store has never been saved.
func (v *Vault) New() bool { return v.read == nil }

// Encrypted reports whether the store is, or will be, encrypted.
func (v *Vault) Encrypted() bool { return v.envelope.encrypted }

// Cluster is the cluster's name.
func (v *Vault) Cluster() string { return v.state.Cluster }

// ID is the cluster's identity.
func (v *Vault) ID() string { return pki.ID(v.cluster.Cert) }

// Authority is the certificate of the cluster's authority.
func (v *Vault) Authority() *x509.Certificate { return v.cluster.Cert }

// EtcdAuthority is the certificate of etcd's authority.
func (v *Vault) EtcdAuthority() *x509.Certificate { return v.etcd.Cert }

// Signer signs plans.
func (v *Vault) Signer() crypto.Signer { return v.cluster.Signer() }

// AdminTLS is what an administrator needs to ask agents for something: a
// certificate with one of package pki's rights, made for this purpose and kept
// nowhere, and the authority that the agents' certificates come from. It is valid
// from the time of the call.
func (v *Vault) AdminTLS(right string) (tls.Certificate, *x509.CertPool, error) {
	now := v.now
	if !v.fixed {
		now = time.Now()
	}
	pair, err := v.cluster.IssueAdmin(right, administrator(), now)
	if err != nil {
		return tls.Certificate{}, nil, err
	}
	cert, err := pair.TLS("administrator")
	return cert, v.cluster.Pool(), err
}

// administrator is who uses the store, as far as this machine knows.
func administrator() string {
	name, host := "somebody", "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if h, err := os.Hostname(); err == nil {
		host = h
	}
	return name + "@" + host
}

// Secret returns a generated password.
func (v *Vault) Secret(name string) (string, error) {
	s, ok := v.state.Secrets[name]
	if !ok {
		return "", fault.New(fault.Input, "the store %s has no secret %q", v.dir, name).
			WithMend("slipway secret list names those that it has")
	}
	return s, nil
}

// EnsureSecret returns a password, and makes it where there is none: 130 random
// bits as letters and digits, which need quoting nowhere.
func (v *Vault) EnsureSecret(name string) string {
	if v.state.Secrets[name] == "" {
		v.state.Secrets[name] = rand.Text()
	}
	return v.state.Secrets[name]
}

// SetSecret keeps a secret that was made elsewhere, and reports whether that is news.
func (v *Vault) SetSecret(name, value string) (changed bool) {
	changed = v.state.Secrets[name] != value
	v.state.Secrets[name] = value
	return changed
}

// SecretNames are the names of all passwords, sorted.
func (v *Vault) SecretNames() []string { return slices.Sorted(maps.Keys(v.state.Secrets)) }

// Certificate returns the certificate of a node for a purpose. One that is
// there is kept as long as it holds what is asked for and is not near its end;
// renew replaces it all the same. issued tells whether it is a new one.
func (v *Vault) Certificate(r pki.Request, renew bool) (pair pki.Pair, issued bool, err error) {
	authority := v.cluster
	if r.Purpose == member.EtcdCert || r.Purpose == member.EtcdClient {
		authority = v.etcd
	}
	n := v.node(r.Node)
	if have, ok := n.Certificates[r.Purpose]; ok && !renew {
		cert, err := pki.ParseCertificate(r.Node+", "+r.Purpose, have.Certificate)
		if err == nil && authority.Serves(cert, r) && !pki.ExpiresWithin(cert, v.now, RenewBefore) {
			return have, false, nil
		}
	}
	if pair, err = authority.Issue(r, v.now); err != nil {
		return pki.Pair{}, false, err
	}
	n.remember(r.Purpose, v.now)
	n.Certificates[r.Purpose] = pair
	if n.Generation > 0 { // it has a seed, whose certificates are older ones now
		n.Issue++
	}
	return pair, true, nil
}

func (v *Vault) node(name string) *nodeState {
	n := v.state.Nodes[name]
	if n == nil {
		n = &nodeState{Certificates: map[string]pki.Pair{}}
		v.state.Nodes[name] = n
	}
	return n
}

// Nodes are the names of the nodes that have certificates, sorted.
func (v *Vault) Nodes() []string { return slices.Sorted(maps.Keys(v.state.Nodes)) }

// Plan is the newest plan, or nil before the first.
func (v *Vault) Plan() (*plan.Plan, error) {
	if len(v.state.Plans) == 0 {
		return nil, nil
	}
	return v.state.Plans[len(v.state.Plans)-1].Open(v.cluster.Cert)
}

// AddPlan signs a plan, which becomes the newest. It sets identity and generation.
func (v *Vault) AddPlan(p *plan.Plan) error {
	last, err := v.Plan()
	if err != nil {
		return err
	}
	p.ID, p.Generation = v.ID(), 1
	if last != nil {
		p.Generation = last.Generation + 1
	}
	signed, err := plan.Sign(p, v.Signer())
	if err != nil {
		return err
	}
	v.state.Plans = append(v.state.Plans, signed)
	return nil
}

// NewestPlan is the newest plan, signed.
func (v *Vault) NewestPlan() (plan.Signed, error) {
	if len(v.state.Plans) == 0 {
		return plan.Signed{}, fault.New(fault.Internal, "the store has no plan yet")
	}
	return v.state.Plans[len(v.state.Plans)-1], nil
}

// SeedPlan is the plan that a node's seed carries, or the newest one if its seed
// has never been written.
func (v *Vault) SeedPlan(node string) (plan.Signed, error) {
	if len(v.state.Plans) == 0 {
		return plan.Signed{}, fault.New(fault.Internal, "the store has no plan yet")
	}
	n := v.node(node)
	for _, s := range v.state.Plans {
		p, err := s.Open(v.cluster.Cert)
		if err != nil {
			return plan.Signed{}, err
		}
		if p.Generation == n.Generation {
			return s, nil
		}
	}
	return v.state.Plans[len(v.state.Plans)-1], nil
}

// UseNewestPlan has a node's seed carry the newest plan.
func (v *Vault) UseNewestPlan(node string) error {
	p, err := v.Plan()
	if err != nil {
		return err
	}
	if p == nil {
		return fault.New(fault.Internal, "the store has no plan yet")
	}
	v.node(node).Generation = p.Generation
	return nil
}

// String keeps secrets out of whatever prints a Vault.
func (v *Vault) String() string { return fmt.Sprintf("store %s", v.dir) }

// GoString does the same for %#v.
func (v *Vault) GoString() string { return v.String() }
