package topology

import (
	"crypto/dsa"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// line is a public key as authorized_keys has it.
func line(t *testing.T, public any) string {
	t.Helper()
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
}

func TestKeysThatOpenSSHTakesAreTaken(t *testing.T) {
	ed, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{line(t, ed), line(t, ed) + " me@example.org", "from=\"192.0.2.0/24\",no-pty " + line(t, ed), line(t, ed) + "\n", line(t, &ec.PublicKey), line(t, &strong.PublicKey)} {
		if wrong, _ := authorizedKey(key); wrong != "" {
			t.Errorf("%s: %s", key, wrong)
		}
	}
}

func TestKeysThatAreWeakOrNoneAreRefused(t *testing.T) {
	weak := &rsa.PublicKey{N: new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 1024), big.NewInt(1)), E: 65537}
	old := new(dsa.PrivateKey)
	if err := dsa.GenerateParameters(&old.Parameters, rand.Reader, dsa.L1024N160); err != nil {
		t.Fatal(err)
	}
	if err := dsa.GenerateKey(old, rand.Reader); err != nil {
		t.Fatal(err)
	}
	ed, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	certificate := &ssh.Certificate{Key: signer.PublicKey(), CertType: ssh.UserCert}
	if err := certificate.SignCert(rand.Reader, signer); err != nil {
		t.Fatal(err)
	}
	for want, key := range map[string]string{
		"too weak":      line(t, weak),
		"DSA":           line(t, &old.PublicKey),
		"certificate":   string(ssh.MarshalAuthorizedKey(certificate)),
		"more than one": line(t, ed) + "\n" + line(t, ed),
		"private key":   "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----",
		"no public SSH": "# " + line(t, ed),
	} {
		wrong, mend := authorizedKey(key)
		if !strings.Contains(wrong, want) || mend == "" {
			t.Errorf("%s: %q, %q", want, wrong, mend)
		}
		if strings.Contains(wrong+mend, "AAAA\n") {
			t.Errorf("%s: the message repeats the key", want)
		}
	}
}
