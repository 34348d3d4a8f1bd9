// Package pki makes and reads the certificates of a cluster.
//
// A cluster has two authorities: one for everything that its nodes and their
// clients say to each other, and one for etcd alone, so that a certificate which
// PostgreSQL's clients see opens no way into etcd. Both are kept by the
// administrator (package vault). A node gets one certificate with a key of its
// own for each purpose: what goes in is a Request, what comes out is a Pair of PEM
// texts.
//
// All keys are ECDSA on P-256, certificates follow RFC 5280, keys are PKCS #8
// (RFC 5958), text is PEM (RFC 7468). Authorities issue for nodes only: their path
// length is 0. Who a peer is stands in a URI (RFC 5280, 4.2.1.6): see NodeURI.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"math/big"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	// AuthorityLifetime is how long an authority is valid.
	AuthorityLifetime = 10 * 365 * 24 * time.Hour
	// NodeLifetime is how long a node's certificates are valid.
	NodeLifetime = 2 * 365 * 24 * time.Hour
	// AdminLifetime is how long a certificate is valid with which an administrator
	// looks on. It is made anew whenever the store is opened.
	AdminLifetime = 7 * 24 * time.Hour
	// WriteLifetime is how long one is valid that changes something. It is made anew
	// for each deed, so that one which leaks is soon worth nothing.
	WriteLifetime = time.Hour

	// skew is how far a node's clock may be behind that of the administrator.
	skew = time.Hour
)

// Names of the authorities, as they stand in their subjects.
const (
	ClusterAuthority = "slipway cluster authority"
	EtcdAuthority    = "slipway etcd authority"
)

// Purposes of certificates. Each has a key of its own, so that a service which
// is broken into cannot pass for another.
const (
	Agent      = "agent"       // the agent's API, both sides; cluster authority
	Service    = "service"     // what clients see: PostgreSQL, Patroni, HAProxy; cluster authority
	Etcd       = "etcd"        // an etcd member, towards its peers and clients; etcd authority
	EtcdClient = "etcd-client" // Patroni towards etcd; etcd authority
	Backup     = "backup"      // pgBackRest, both sides; cluster authority
)

// Pair is a certificate and its private key, both PEM (PKCS #8).
type Pair struct {
	Certificate string `json:"certificate" yaml:"certificate"`
	Key         string `json:"key" yaml:"key"`
}

// Both are the certificate and its key as one file, which programs take for either.
// Replaced at once, it leaves no moment in which the two do not fit.
func (p Pair) Both() string { return p.Certificate + p.Key }

// Authority issues certificates.
type Authority struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes an authority for a cluster; kind is one of the names above.
func NewAuthority(kind, cluster string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	number, err := serial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          number,
		Subject:               pkix.Name{Organization: []string{kind}, CommonName: cluster},
		NotBefore:             now.Add(-skew).UTC(),
		NotAfter:              now.Add(AuthorityLifetime).UTC(),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLen:            0,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &Authority{Cert: cert, key: key}, err
}

// LoadAuthority reads an authority; name says in errors which one it is.
func LoadAuthority(name string, p Pair) (*Authority, error) {
	cert, key, err := p.Parse(name)
	if err != nil {
		return nil, err
	}
	if err := CheckAuthority(name, cert); err != nil {
		return nil, err
	}
	return &Authority{Cert: cert, key: key}, nil
}

// CheckAuthority tells whether a certificate is that of an authority which made
// its own: a root, with the key that this package uses.
func CheckAuthority(name string, cert *x509.Certificate) error {
	if !cert.IsCA || !cert.BasicConstraintsValid {
		return fault.New(fault.Input, "%s: the certificate of %q is not that of an authority", name, cert.Subject.CommonName)
	}
	if err := checkCurve(name, cert.PublicKey); err != nil {
		return err
	}
	if err := cert.CheckSignatureFrom(cert); err != nil {
		return fault.New(fault.Integrity, "%s: the certificate of %q is not signed with its own key: %w", name, cert.Subject.CommonName, err)
	}
	return nil
}

// Pair is the authority as text.
func (a *Authority) Pair() (Pair, error) { return encode(a.Cert.Raw, a.key) }

// Signer signs with the authority's key, which plan.Sign asks for.
func (a *Authority) Signer() crypto.Signer { return a.key }

// Pool is the authority alone, for the verification of peers.
func (a *Authority) Pool() *x509.CertPool { return Pool(a.Cert) }

// Pool is one authority, for the verification of peers.
func Pool(authority *x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(authority)
	return pool
}

// ID is a cluster's identity: the SHA-256 of its authority's certificate,
// hexadecimal. It is what plan.Plan and the URIs of peers carry.
func ID(authority *x509.Certificate) string {
	sum := sha256.Sum256(authority.Raw)
	return hex.EncodeToString(sum[:])
}

// TLS is the pair in the form that crypto/tls wants.
func (p Pair) TLS(name string) (tls.Certificate, error) {
	cert, key, err := p.Parse(name)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}, nil
}

// serial is a random serial number of 127 bits: positive, and at most 20 octets
// long, as RFC 5280, 4.1.2.2, wants it.
func serial() (*big.Int, error) {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return n.Add(n, big.NewInt(1)), nil
}
