package topology

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

const mirrorNode = "  - {name: m1, role: mirror, site: a, nics: [{network: lan, address: 192.0.2.61}]}\n"

// siteKey is a key of a mirror's site, and its secret half.
func siteKey(t *testing.T) (public, secret string) {
	t.Helper()
	k, err := sign.Generate("plant-7", time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	hidden, err := k.Secret()
	if err != nil {
		t.Fatal(err)
	}
	return string(k.Public()), string(hidden)
}

// certificate is one that signs itself, PEM.
func certificate(t *testing.T, authority bool) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "plant-7"}, NotAfter: time.Now().Add(time.Hour), IsCA: authority, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// mirrored is base with a mirror; %KEY in the fields is a good key.
func mirrored(t *testing.T, fields string) string {
	public, _ := siteKey(t)
	text := spoil(t, "nodes:\n", "mirror: {"+strings.ReplaceAll(fields, "%KEY", fmt.Sprintf("%q", public))+"}\nnodes:\n")
	if strings.Contains(fields, "node: m1") {
		text += mirrorNode
	}
	return text
}

func TestMistakesOfTheMirrorAreFoundAtTheirLine(t *testing.T) {
	_, secret := siteKey(t)
	quote := func(text string) string { return fmt.Sprintf("%q", text) }
	for _, c := range []struct{ name, text, want string }{
		{"no place", mirrored(t, "key: %KEY"), "23: mirror: it does not say where the mirror is"},
		{"two places", mirrored(t, "node: m1, url: \"https://mirror.example.org\", key: %KEY"), "23: mirror.url: a node of the cluster serves the mirror, or another machine"},
		{"no key", mirrored(t, "node: m1"), "23: mirror.key: is missing"},
		{"no such node", mirrored(t, "node: m2, key: %KEY"), "23: mirror.node: there is no node \"m2\""},
		{"another node than there is", mirrored(t, "node: m3, key: %KEY") + mirrorNode, "23: mirror.node: there is no node \"m3\""},
		{"a node of another role", mirrored(t, "node: db2, key: %KEY"), "23: mirror.node: db2 is a db-replica"},
		{"a mirror of nothing", base + mirrorNode, "29: nodes[5].role: nothing is to be had from the mirror m1"},
		{"a registry beside a node", mirrored(t, "node: m1, registry: \"https://x.example.org\", key: %KEY"), "23: mirror.registry: a node of the cluster serves images too"},
		{"an authority beside a node", mirrored(t, "node: m1, key: %KEY, ca: "+quote(certificate(t, true))), "23: mirror.ca: a node of the cluster serves images too"},
		{"an authority without TLS", mirrored(t, "url: \"http://mirror.example.org\", key: %KEY, ca: "+quote(certificate(t, true))), "23: mirror.ca: without TLS there is nothing"},
		{"no URL", mirrored(t, "url: mirror.example.org, key: %KEY"), "23: mirror.url: \"mirror.example.org\" is no URL"},
		{"another scheme", mirrored(t, "url: \"ftp://mirror.example.org\", key: %KEY"), "23: mirror.url: \"ftp://mirror.example.org\" is no URL of http or https"},
		{"a password", mirrored(t, "url: \"https://me:secret@mirror.example.org\", key: %KEY"), "23: mirror.url: a name or password has no place here"},
		{"a query", mirrored(t, "url: \"https://mirror.example.org/?a=b\", key: %KEY"), "23: mirror.url: \"https://mirror.example.org/?a=b\" has more than"},
		{"a quote", mirrored(t, "url: \"https://mirror.example.org/';\", key: %KEY"), "23: mirror.url: \"https://mirror.example.org/';\" has more than"},
		{"a port", mirrored(t, "url: \"https://mirror.example.org:99999\", key: %KEY"), "23: mirror.url: \"https://mirror.example.org:99999\" has no port"},
		{"no host", mirrored(t, "url: \"https://mirror_7/\", key: %KEY"), "23: mirror.url: \"mirror_7\" is no host"},
		{"a registry with a path", mirrored(t, "url: \"https://mirror.example.org\", registry: \"https://mirror.example.org/v2\", key: %KEY"), "23: mirror.registry: a registry has no path"},
		{"no armour", mirrored(t, "node: m1, key: 7D8357E3F5D36393D5796F3D5A1006288641563B"), "23: mirror.key: this is no OpenPGP key"},
		{"a damaged key", mirrored(t, "node: m1, key: \"-----BEGIN PGP PUBLIC KEY BLOCK-----\\n\\nAAAA\\n-----END PGP PUBLIC KEY BLOCK-----\""), "23: mirror.key: the key cannot be read"},
		{"a secret key", mirrored(t, "node: m1, key: "+quote(secret)), "23: mirror.key: this is a secret key"},
		{"no certificate", mirrored(t, "url: \"https://mirror.example.org\", key: %KEY, ca: none"), "23: mirror.ca: there is no certificate in it"},
		{"a server's certificate", mirrored(t, "url: \"https://mirror.example.org\", key: %KEY, ca: "+quote(certificate(t, false))), "23: mirror.ca: CN=plant-7 is no authority's"},
		{"something else beside it", mirrored(t, "url: \"https://mirror.example.org\", key: %KEY, ca: "+quote(certificate(t, true)+"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")), "23: mirror.ca: there is a PEM block in it that is no certificate: \"PRIVATE KEY\""},
	} {
		got, mistakes := Parse("cluster.yaml", []byte(c.text))
		found := false
		for _, m := range mistakes.Errors() {
			found = found || strings.HasPrefix(fmt.Sprintf("%d: %s: %s", m.Line, m.Field, m.Text), c.want)
			if m.Mend == "" || strings.Contains(m.String(), "secret@") || strings.Contains(m.String(), "\n") {
				t.Errorf("%s: %s", c.name, m)
			}
		}
		if !found || got != nil {
			t.Errorf("%s: want %s\n got %v", c.name, c.want, mistakes)
		}
	}
}

func TestPlainRegistriesAreWarnedOf(t *testing.T) {
	got, mistakes := Parse("cluster.yaml", []byte(mirrored(t, "url: \"http://mirror.example.org\", registry: \"http://mirror.example.org:5000\", key: %KEY")))
	if got == nil || len(mistakes) != 1 || mistakes[0].Field != "mirror.registry" || !mistakes[0].Warning {
		t.Errorf("%v", mistakes)
	}
}

func TestThePlanTellsNodesWhereTheMirrorIs(t *testing.T) {
	for fields, want := range map[string]plan.Mirror{
		"node: m1, key: %KEY": {Node: "m1", URL: "https://192.0.2.61", Registry: "https://192.0.2.61"},
		"url: \"https://mirror.example.org/apt/\", key: %KEY":                                            {URL: "https://mirror.example.org/apt", Registry: "https://mirror.example.org"},
		"url: \"https://mirror.example.org:8443\", registry: \"https://images.example.org/\", key: %KEY": {URL: "https://mirror.example.org:8443", Registry: "https://images.example.org"},
		"url: \"http://192.0.2.99:8080\", key: %KEY":                                                     {URL: "http://192.0.2.99:8080"}, // a registry without TLS is asked for by name
		"url: \"http://192.0.2.99:8080\", registry: \"http://192.0.2.99:8080\", key: %KEY":               {URL: "http://192.0.2.99:8080", Registry: "http://192.0.2.99:8080"},
		"url: \"http://192.0.2.99\", registry: \"https://192.0.2.99\", key: %KEY, ca: %CA":               {URL: "http://192.0.2.99", Registry: "https://192.0.2.99"},
	} {
		ca := ""
		if strings.Contains(fields, "%CA") {
			ca = certificate(t, true)
			fields = strings.Replace(fields, "%CA", fmt.Sprintf("%q", ca), 1)
		}
		got, mistakes := Parse("cluster.yaml", []byte(mirrored(t, fields)))
		if mistakes.Err() != nil {
			t.Errorf("%s: %v", fields, mistakes)
			continue
		}
		m := got.Plan().Mirror
		if _, err := sign.ParseRing([]byte(m.Key)); err != nil {
			t.Errorf("%s: %v", fields, err)
		}
		want.Key, want.CA = m.Key, ca
		if *m != want {
			t.Errorf("%s:\n got %+v\nwant %+v", fields, *m, want)
		}
		if got.Plan().Mirrors("m1") != (want.Node == "m1") || got.Plan().Mirrors("") {
			t.Errorf("%s: who mirrors", fields)
		}
	}
	without, _ := Parse("cluster.yaml", []byte(base))
	if p := without.Plan(); p.Mirror != nil || p.Mirrors("") {
		t.Errorf("%+v", p.Mirror)
	}
}

func TestTheSchemaJudgesMirrorsAsTheParserDoes(t *testing.T) {
	s := compiled(t)
	for fields, right := range map[string]bool{
		"node: m1, key: %KEY": true,
		"url: \"https://mirror.example.org/apt\", registry: \"https://mirror.example.org:5000\", key: %KEY": true,
		"key: %KEY": false,
		"node: m1":  false,
		"node: m1, url: \"https://mirror.example.org\", key: %KEY":                 false,
		"url: mirror.example.org, key: %KEY":                                       false,
		"url: \"https://me:secret@mirror.example.org\", key: %KEY":                 false,
		"url: \"https://a.example\", registry: \"https://a.example/b\", key: %KEY": false,
		"url: \"https://a.example\", key: none":                                    false,
		"url: \"https://a.example\", key: %KEY, ca: none":                          false,
	} {
		text := mirrored(t, fields)
		if err := s.Validate(asJSON(t, text)); (err == nil) != right {
			t.Errorf("%s: the schema says %v", fields, err)
		}
		if _, mistakes := Parse("cluster.yaml", []byte(text)); (mistakes.Err() == nil) != right {
			t.Errorf("%s: the parser says %v", fields, mistakes)
		}
	}
}
