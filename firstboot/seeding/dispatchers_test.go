package seeding

import (
	"net"
	"slices"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
)

func TestEachDispatchersCertificateIsGoodForAllOfItsSite(t *testing.T) {
	b := newBench(t)
	text := shop + `  - {name: a-d1, role: dispatcher, site: a, nics: [{network: lan, address: 192.0.2.61}]}
  - {name: a-d2, role: dispatcher, site: a, nics: [{network: lan, address: 192.0.2.62}]}
  - {name: a-d3, role: dispatcher, site: a, nics: [{network: lan, address: 192.0.2.63}]}
`
	for _, node := range []string{"a-d1", "a-d3"} {
		cert, err := pki.ParseCertificate(node, b.given(text, node).certificates[member.ServiceCert].Certificate)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a-d1", "a-d2", "a-d3", "localhost"} {
			if !slices.Contains(cert.DNSNames, name) {
				t.Errorf("%s: the certificate is not for %s: %v", node, name, cert.DNSNames)
			}
		}
		for _, address := range []string{"192.0.2.61", "192.0.2.62", "192.0.2.63"} {
			if !slices.ContainsFunc(cert.IPAddresses, func(ip net.IP) bool { return ip.String() == address }) {
				t.Errorf("%s: the certificate is not for %s: %v", node, address, cert.IPAddresses)
			}
		}
	}
}
