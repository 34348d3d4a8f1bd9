// Package member is a node's own part in its cluster: the block "slipway" of its
// meta-data, checked. It holds the node's certificates with their private keys,
// the secrets that its role needs and no others, and the signed plan.
package member

import (
	"crypto/x509"
	"time"

	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// Format is the version of the block's layout.
const Format = 1

// Keys of Block.Certificates.
const (
	AgentCert   = pki.Agent
	ServiceCert = pki.Service
	EtcdCert    = pki.Etcd
	EtcdClient  = pki.EtcdClient
	BackupCert  = pki.Backup
)

// Block is what stands under "slipway" in the meta-data (YAML).
type Block struct {
	Format  int    `yaml:"format"`
	Cluster string `yaml:"cluster"` // name, for people
	Node    string `yaml:"node"`    // name in the plan
	// Authority is the certificate of the cluster's authority, PEM.
	Authority string `yaml:"authority"`
	// EtcdAuthority signs for etcd alone, PEM; empty where the node has nothing to do with etcd.
	EtcdAuthority string          `yaml:"etcd_authority,omitempty"`
	Certificates  map[string]Pair `yaml:"certificates"` // by purpose
	// Secrets are those that the role needs, by name.
	Secrets map[string]string `yaml:"secrets,omitempty"`
	// Issue grows whenever the node's certificates or secrets change; 0 are the first.
	Issue int64       `yaml:"issue,omitempty"`
	Plan  plan.Signed `yaml:"plan"`
}

// Pair is a certificate and its private key, both PEM (PKCS #8).
type Pair = pki.Pair

// Member is a node that knows its cluster.
type Member struct {
	Block
	CA   *x509.Certificate // of Block.Authority
	Plan *plan.Plan        // the newest known one that has this node
	Self plan.Node
	Site plan.Site
	// Newest is the newest plan, and Removed its generation, where that one has no
	// such node any more; else they are empty.
	Newest  plan.Signed
	Removed int64
	// Expires is when the first of the node's certificates does so.
	Expires time.Time
	// Retired says why the node does nothing for its cluster any more; "" as long as it
	// does. KeepsVote: but for its etcd member, until that was taken out.
	Retired   string
	KeepsVote bool
}
