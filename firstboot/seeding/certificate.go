package seeding

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
)

// maxCertificate bounds a file of certificates; a chain has a few KiB.
const maxCertificate = 64 << 10

// certificates adds the administrator's own certificates for the addresses that a
// balancer may hold.
func (w *writer) certificates(n topology.Node, to map[string]string) error {
	for _, held := range w.plan.HeldBy(n.Name) {
		for _, v := range w.t.VIPs {
			if v.Name != held.Name || v.Certificate == nil {
				continue
			}
			pem, err := ownCertificate(w.t, v, time.Now())
			if err != nil {
				return err
			}
			to[held.CertificateKey()] = pem
		}
	}
	return nil
}

// ownCertificate is the chain and the key of a virtual address's certificate, PEM,
// after all that a browser would stumble over was looked at.
func ownCertificate(t *topology.Topology, v topology.VIP, now time.Time) (string, error) {
	chain, err := readBeside(t, v.Certificate.Chain)
	if err != nil {
		return "", certificateFault(t, v, "chain", "%w", err)
	}
	key, err := readBeside(t, v.Certificate.Key)
	if err != nil {
		return "", certificateFault(t, v, "key", "%w", err)
	}
	if strings.Contains(key, "ENCRYPTED") {
		return "", certificateFault(t, v, "key", "%s is encrypted, and a balancer that starts by itself has nobody to ask for the passphrase", v.Certificate.Key).
			WithMend("take the passphrase off: openssl pkey -in %s -out FILE", v.Certificate.Key)
	}
	pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
	if err != nil {
		return "", certificateFault(t, v, "chain", "%s and %s are no certificate and its key: %s", v.Certificate.Chain, v.Certificate.Key, strings.TrimPrefix(err.Error(), "tls: ")).
			WithMend("name PEM files, the server's own certificate first")
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return "", certificateFault(t, v, "chain", "%s: %w", v.Certificate.Chain, err)
	}
	if now.After(leaf.NotAfter) {
		return "", certificateFault(t, v, "chain", "the certificate in %s expired on %s", v.Certificate.Chain, leaf.NotAfter.UTC().Format(time.DateOnly)).
			WithMend("have it renewed")
	}
	for _, name := range v.Names {
		if err := leaf.VerifyHostname(name); err != nil {
			return "", certificateFault(t, v, "chain", "the certificate in %s is not for %s, a name of the address", v.Certificate.Chain, name).
				WithMend("have one made for all of its names, or take the name out")
		}
	}
	return strings.TrimRight(chain, "\n") + "\n" + strings.TrimRight(key, "\n") + "\n", nil
}

// certificateFault names the field of the topology that is wrong.
func certificateFault(t *topology.Topology, v topology.VIP, key, format string, args ...any) *fault.Error {
	return fault.New(fault.Input, "%s: virtual address %s: certificate.%s: "+format, append([]any{t.Path(), v.Name, key}, args...)...)
}

// readBeside reads a file whose path starts where the topology's file is.
func readBeside(t *topology.Topology, name string) (string, error) {
	if !filepath.IsAbs(name) {
		name = filepath.Join(filepath.Dir(t.Path()), name)
	}
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxCertificate+1))
	if err == nil && len(data) > maxCertificate {
		err = fault.New(fault.Input, "%s has more than %d bytes", name, maxCertificate)
	}
	return string(data), err
}
