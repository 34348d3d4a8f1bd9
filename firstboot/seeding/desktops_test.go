package seeding

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/topology"
)

// desks is a shop with brokers, gateways and a desktop.
const desks = `  - {name: a-br1, role: broker, site: a, nics: [{network: lan, address: 192.0.2.31}]}
  - {name: a-br2, role: broker, site: a, nics: [{network: lan, address: 192.0.2.32}]}
  - {name: a-gw1, role: gateway, site: a, nics: [{network: lan, address: 192.0.2.41}]}
  - {name: a-pc1, role: desktop, site: a, nics: [{network: lan, address: 192.0.2.51}]}
`

func withDesks(pairs ...string) string {
	return strings.NewReplacer(pairs...).Replace(shop) + desks
}

// given are a node's secrets and certificates.
func (b *bench) given(text, node string) content {
	b.t.Helper()
	v := b.open()
	defer v.Close()
	t := b.topology(text)
	w := writer{t: t, v: v}
	if err := w.updatePlan(); err != nil {
		b.t.Fatal(err)
	}
	n, ok := t.Node(node)
	if !ok {
		b.t.Fatalf("no node %s", node)
	}
	c, _, err := w.content(n)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := v.Save(); err != nil {
		b.t.Fatal(err)
	}
	return c
}

func TestEachNodeHasTheSecretsOfItsRoleAndNoOthers(t *testing.T) {
	b := newBench(t)
	for node, want := range map[string][]string{
		"a-br1": {plan.BrokerAdmin, plan.GatewayKey}, "a-gw1": {plan.GatewayKey}, "a-pc1": nil, "a-lb1": nil,
	} {
		c := b.given(withDesks(), node)
		if got := keys(c.secrets); !slices.Equal(got, want) {
			t.Errorf("%s has %v, want %v", node, got, want)
		}
		if _, ok := c.certificates[member.ServiceCert]; !ok {
			t.Errorf("%s has no certificate for its service", node)
		}
	}
	if first, second := b.given(withDesks(), "a-br1"), b.given(withDesks(), "a-br2"); first.secrets[plan.BrokerAdmin] != second.secrets[plan.BrokerAdmin] {
		t.Error("two brokers have different passwords for the administrator")
	}
}

func TestBalancersShowACertificateThatGatewaysCanCheck(t *testing.T) {
	b := newBench(t)
	for text, want := range map[string]bool{withDesks(): true, shop: false} {
		cert, err := pki.ParseCertificate("service", b.given(text, "a-lb1").certificates[member.ServiceCert].Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if got := cert.VerifyHostname(plan.BrokersName) == nil; got != want {
			t.Errorf("for the brokers' name: %v, want %v", got, want)
		}
		for _, name := range []string{"db.example.internal", "192.0.2.10"} {
			if err := cert.VerifyHostname(name); err != nil {
				t.Error(err)
			}
		}
	}
}

// certificate writes one for a name, and its key, beside the topology.
func (b *bench) certificate(name string, until time.Time) {
	b.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: until.AddDate(-1, 0, 0), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		b.t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		b.t.Fatal(err)
	}
	b.put("vdi.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	b.put("vdi.key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})))
}

func (b *bench) put(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

func TestTheAdministratorsOwnCertificateGoesToBalancersAlone(t *testing.T) {
	b := newBench(t)
	b.certificate("db.example.internal", time.Now().AddDate(1, 0, 0))
	own := "names: [db.example.internal], certificate: {chain: " + b.dir + "/vdi.pem, key: " + b.dir + "/vdi.key}"
	text := withDesks("names: [db.example.internal]", own)
	key := plan.VIP{Name: "database"}.CertificateKey()
	pem := b.given(text, "a-lb2").secrets[key]
	if !strings.Contains(pem, "BEGIN CERTIFICATE") || !strings.Contains(pem, "BEGIN PRIVATE KEY") {
		t.Errorf("the balancer has %q", pem)
	}
	for _, node := range []string{"a-br1", "a-gw1", "a-db1"} {
		if _, ok := b.given(text, node).secrets[key]; ok {
			t.Errorf("%s has the balancers' key", node)
		}
	}
	if p := b.topology(text).Plan(); !p.VIPs[0].Certificate {
		t.Error("the plan does not say that there is one")
	}
}

func TestACertificateThatCannotServeIsRefused(t *testing.T) {
	next := time.Now().AddDate(1, 0, 0)
	for want, spoil := range map[string]func(*bench){
		"certificate.chain: open ":                      func(b *bench) { os.Remove(filepath.Join(b.dir, "vdi.pem")) },
		"certificate.key: open ":                        func(b *bench) { os.Remove(filepath.Join(b.dir, "vdi.key")) },
		"certificate.key: " + "vdi.key is encrypted":    func(b *bench) { b.put("vdi.key", "-----BEGIN ENCRYPTED PRIVATE KEY-----\n") },
		"are no certificate and its key":                func(b *bench) { b.put("vdi.pem", "hello\n") },
		"has more than 65536 bytes":                     func(b *bench) { b.put("vdi.pem", strings.Repeat("x", 65537)) },
		"expired on ":                                   func(b *bench) { b.certificate("db.example.internal", time.Now().AddDate(0, 0, -1)) },
		"is not for db.example.internal, a name of the": func(b *bench) { b.certificate("other.example.internal", next) },
		"private key does not match public key": func(b *bench) {
			was, _ := os.ReadFile(filepath.Join(b.dir, "vdi.pem"))
			b.certificate("db.example.internal", next)
			b.put("vdi.pem", string(was))
		},
	} {
		b := newBench(t)
		b.certificate("db.example.internal", next)
		spoil(b)
		text := withDesks("names: [db.example.internal]", "names: [db.example.internal], certificate: {chain: vdi.pem, key: vdi.key}")
		top, mistakes := topology.Parse(filepath.Join(b.dir, "cluster.yaml"), []byte(text))
		if top == nil {
			t.Fatal(mistakes)
		}
		pem, err := ownCertificate(top, top.VIPs[0], time.Now())
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "cluster.yaml: virtual address database: ") || pem != "" {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}
