package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Rights of administrators. A certificate gives one of them and nothing of the
// other: what looks on every day can change nothing.
const (
	AdminRead  = "read"  // to ask agents for their status and their audit log
	AdminWrite = "write" // to have agents do something, and to hand them a plan
)

// Request says what a certificate is to hold.
type Request struct {
	Purpose   string // one of package member's
	Node      string // the subject's common name
	Names     []string
	Addresses []netip.Addr
	URI       *url.URL // nil for none
}

// maxCommonName is the longest common name (RFC 5280, ub-common-name).
const maxCommonName = 64

// scheme is that of the URIs by which agents and administrators are known.
const scheme = "slipway"

// NodeURI is what the agent of a node is known by: slipway://ID/node/NAME.
func NodeURI(id, node string) *url.URL {
	return &url.URL{Scheme: scheme, Host: id, Path: "/node/" + node}
}

// AdminURI is what an administrator is known by: slipway://ID/admin/RIGHT.
func AdminURI(id, right string) *url.URL {
	return &url.URL{Scheme: scheme, Host: id, Path: "/admin/" + right}
}

// Peer is who a certificate says that its owner is.
type Peer struct {
	ID    string // of the cluster
	Node  string // "" for an administrator
	Right string // "" for a node
}

// PeerOf reads the URI of a certificate. The certificate must have been
// verified before.
func PeerOf(cert *x509.Certificate) (Peer, error) {
	for _, u := range cert.URIs {
		if u.Scheme != scheme {
			continue
		}
		kind, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
		switch {
		case !ok || name == "" || strings.Contains(name, "/"):
		case kind == "node":
			return Peer{ID: u.Host, Node: name}, nil
		case kind == "admin":
			return Peer{ID: u.Host, Right: name}, nil
		}
		return Peer{}, fault.New(fault.Input, "the certificate of %q has the URI %q, which names neither a node nor an administrator", cert.Subject.CommonName, u)
	}
	return Peer{}, fault.New(fault.Input, "the certificate of %q does not say which node or administrator it is for", cert.Subject.CommonName)
}

// usages are what the certificates of a purpose may be used for. etcd's members
// are clients of each other, and Patroni changes its peers through their REST
// interface with the certificate that it shows to clients.
func usages(purpose string) ([]x509.ExtKeyUsage, error) {
	switch purpose {
	case Agent, Service, Etcd, Backup:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, nil
	case EtcdClient:
		return []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, nil
	}
	return nil, fault.New(fault.Internal, "there is no certificate for the purpose %q", purpose)
}

// Issue makes a key and a certificate for a node.
func (a *Authority) Issue(r Request, now time.Time) (Pair, error) {
	use, err := usages(r.Purpose)
	if err != nil {
		return Pair{}, err
	}
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"slipway " + r.Purpose}, CommonName: r.Node},
		ExtKeyUsage: use,
		DNSNames:    names(r.Names),
		IPAddresses: ips(r.Addresses),
		URIs:        uris(r.URI),
	}, now, NodeLifetime)
}

// IssueAdmin makes a key and a certificate for an administrator. Who that is,
// stands in the nodes' audit log: it is the administrator's own word.
func (a *Authority) IssueAdmin(right, who string, now time.Time) (Pair, error) {
	lifetime := AdminLifetime
	if right != AdminRead {
		lifetime = WriteLifetime
	}
	who = strings.ToValidUTF8(who, "?")
	for len(who) > maxCommonName {
		_, last := utf8.DecodeLastRuneInString(who)
		who = who[:len(who)-last]
	}
	return a.issue(&x509.Certificate{
		Subject:     pkix.Name{Organization: []string{"slipway administrator"}, CommonName: who},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        uris(AdminURI(ID(a.Cert), right)),
	}, now, lifetime)
}

func (a *Authority) issue(template *x509.Certificate, now time.Time, lifetime time.Duration) (Pair, error) {
	if now.After(a.Cert.NotAfter) {
		return Pair{}, fault.New(fault.Input, "the authority of cluster %s has expired on %s", a.Cert.Subject.CommonName, a.Cert.NotAfter.Format(time.DateOnly)).
			WithMend("check this machine's clock; a cluster does not outlive its authority")
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Pair{}, err
	}
	if template.SerialNumber, err = serial(); err != nil {
		return Pair{}, err
	}
	template.NotBefore = now.Add(-skew).UTC()
	// None outlives its authority: what is valid by itself and not by its chain
	// would only be harder to understand.
	template.NotAfter = now.Add(lifetime).UTC()
	if template.NotAfter.After(a.Cert.NotAfter) {
		template.NotAfter = a.Cert.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, a.Cert, key.Public(), a.key)
	if err != nil {
		return Pair{}, err
	}
	return encode(der, key)
}

// Serial is a certificate's serial number, hexadecimal.
func Serial(cert *x509.Certificate) string { return fmt.Sprintf("%x", cert.SerialNumber) }

// Serves reports whether a certificate holds exactly what is asked for, so that
// it may go on being used.
func (a *Authority) Serves(cert *x509.Certificate, r Request) bool {
	use, err := usages(r.Purpose)
	same := func(a, b net.IP) bool { return a.Equal(b) }
	return err == nil &&
		cert.CheckSignatureFrom(a.Cert) == nil &&
		cert.Subject.CommonName == r.Node &&
		slices.Equal(cert.ExtKeyUsage, use) &&
		slices.Equal(cert.DNSNames, names(r.Names)) &&
		slices.EqualFunc(cert.IPAddresses, ips(r.Addresses), same) &&
		slices.EqualFunc(cert.URIs, uris(r.URI), func(a, b *url.URL) bool { return a.String() == b.String() })
}

// ExpiresWithin reports whether a certificate is not valid any more after a time.
func ExpiresWithin(cert *x509.Certificate, now time.Time, d time.Duration) bool {
	return !now.Add(d).Before(cert.NotAfter)
}

// names are DNS names in a fixed order, each once.
func names(given []string) []string {
	out := slices.Clone(given)
	slices.Sort(out)
	return slices.Compact(out)
}

// ips are addresses in a fixed order, each once.
func ips(given []netip.Addr) []net.IP {
	sorted := slices.Clone(given)
	slices.SortFunc(sorted, netip.Addr.Compare)
	var out []net.IP
	for _, a := range slices.Compact(sorted) {
		out = append(out, net.IP(a.Unmap().AsSlice()))
	}
	return out
}

func uris(u *url.URL) []*url.URL {
	if u == nil {
		return nil
	}
	return []*url.URL{u}
}
