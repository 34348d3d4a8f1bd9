package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"strings"

	"github.com/slipwayhq/slipway/internal/fault"
)

// maxPEM is the largest text that is looked at. A certificate of this package
// takes less than two kilobytes.
const maxPEM = 64 << 10

// maxBundle is the largest text of many certificates: all that Debian ships take a
// fifth of it.
const maxBundle = 1 << 20

const (
	certificateType = "CERTIFICATE"
	keyType         = "PRIVATE KEY"
)

// encode turns a certificate and its key into text.
func encode(der []byte, key *ecdsa.PrivateKey) (Pair, error) {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, err
	}
	return Pair{
		Certificate: EncodeCertificate(der),
		Key:         string(pem.EncodeToMemory(&pem.Block{Type: keyType, Bytes: pkcs8})),
	}, nil
}

// EncodeCertificate is a certificate as text.
func EncodeCertificate(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: certificateType, Bytes: der}))
}

// ParseCertificate reads the one certificate of a text; name says in errors
// where the text is from.
func ParseCertificate(name, text string) (*x509.Certificate, error) {
	der, err := block(name, text, certificateType)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.New(fault.Input, "%s: the certificate cannot be read: %w", name, err)
	}
	return cert, nil
}

// ParseAuthorities reads the certificates of a text, at least one. What stands round
// the blocks is left out, as in the bundles that OpenSSL writes (RFC 7468, section 5.2).
// The errors say what the text is, and nothing of what stands in it.
func ParseAuthorities(text string) ([]*x509.Certificate, error) {
	if len(text) > maxBundle {
		return nil, fault.New(fault.Input, "it has %d bytes, more than the limit of %d", len(text), maxBundle)
	}
	var found []*x509.Certificate
	for rest := []byte(text); ; {
		var b *pem.Block
		if b, rest = pem.Decode(rest); b == nil {
			break
		}
		if b.Type != certificateType {
			return nil, fault.New(fault.Input, "there is a PEM block in it that is no certificate: %.40q", b.Type)
		}
		cert, err := x509.ParseCertificate(b.Bytes)
		if err != nil {
			return nil, fault.New(fault.Input, "certificate %d in it cannot be read", len(found)+1)
		}
		found = append(found, cert)
	}
	switch begin, end := strings.Count(text, "-----BEGIN "), strings.Count(text, "-----END "); {
	case begin == 0 && end == 0:
		return nil, fault.New(fault.Input, "there is no certificate in it, which begins with -----BEGIN CERTIFICATE-----")
	case max(begin, end) > len(found):
		return nil, fault.New(fault.Input, "a certificate in it is damaged or cut off: %d begin, %d end, %d can be read", begin, end, len(found))
	}
	return found, nil
}

// ParseKey reads the one private key of a text. Its errors say nothing of what
// stands in it.
func ParseKey(name, text string) (*ecdsa.PrivateKey, error) {
	der, err := block(name, text, keyType)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fault.New(fault.Input, "%s: the private key is not valid PKCS #8", name)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fault.New(fault.Input, "%s: the private key is of type %T; want ECDSA", name, parsed)
	}
	return key, checkCurve(name, key.Public())
}

// Parse reads a pair and checks that its halves belong together.
func (p Pair) Parse(name string) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	cert, err := ParseCertificate(name, p.Certificate)
	if err != nil {
		return nil, nil, err
	}
	key, err := ParseKey(name, p.Key)
	if err != nil {
		return nil, nil, err
	}
	if !key.PublicKey.Equal(cert.PublicKey) {
		return nil, nil, fault.New(fault.Integrity, "%s: the private key is not that of the certificate of %q", name, cert.Subject.CommonName)
	}
	return cert, key, nil
}

// block returns the content of a text that is one PEM block and nothing else.
func block(name, text, want string) ([]byte, error) {
	switch {
	case text == "":
		return nil, fault.New(fault.Input, "%s: the %s is missing", name, what(want))
	case len(text) > maxPEM:
		return nil, fault.New(fault.Input, "%s: the %s has %d bytes, more than the limit of %d", name, what(want), len(text), maxPEM)
	}
	found, rest := pem.Decode([]byte(text))
	switch {
	case found == nil:
		return nil, fault.New(fault.Input, "%s: the %s is not PEM: no line -----BEGIN %s-----, or it is cut off", name, what(want), want)
	case found.Type != want:
		return nil, fault.New(fault.Input, "%s: where a %s is wanted stands a block of type %q", name, what(want), found.Type)
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, fault.New(fault.Input, "%s: something stands behind the %s", name, what(want))
	}
	return found.Bytes, nil
}

func what(pemType string) string {
	if pemType == keyType {
		return "private key"
	}
	return "certificate"
}

func checkCurve(name string, public any) error {
	key, ok := public.(*ecdsa.PublicKey)
	if !ok {
		return fault.New(fault.Input, "%s: the key is of type %T; want ECDSA", name, public)
	}
	if key.Curve != elliptic.P256() {
		return fault.New(fault.Input, "%s: the key is on the curve %s; want P-256", name, key.Curve.Params().Name)
	}
	return nil
}
