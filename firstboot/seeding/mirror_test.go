package seeding

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
)

func TestTheMirrorHasACertificateForItsAddressAndNoSecret(t *testing.T) {
	key, err := sign.Generate("plant-7", time.Now(), 0)
	if err != nil {
		t.Fatal(err)
	}
	const node = "  - {name: m1, role: mirror, site: a, nics: [{network: lan, address: 192.0.2.61}]}\n"
	c := newBench(t).given(strings.Replace(shop, "nodes:\n", fmt.Sprintf("mirror: {node: m1, key: %q}\nnodes:\n", key.Public()), 1)+node, "m1")
	if len(c.secrets) > 0 || len(c.certificates) != 2 {
		t.Errorf("it has %v and the certificates %v", keys(c.secrets), len(c.certificates))
	}
	cert, err := pki.ParseCertificate("service", c.certificates[member.ServiceCert].Certificate)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"192.0.2.61", "m1", "m1.example.internal"} {
		if err := cert.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
}
