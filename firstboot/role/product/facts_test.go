package product

import (
	"encoding/json"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

func TestAProductIsToldOfItsSiteAndItsSecrets(t *testing.T) {
	p := site()
	p.VIPs = []plan.VIP{
		{Name: "front", Site: "a", Address: netip.MustParsePrefix("10.77.1.10/24"), On: plan.OnBalancers, RouterID: 51, Names: []string{"www.example.org"},
			ReadWrite: 5432, ReadOnly: 5433, HTTP: 80, HTTPS: 443, Gateway: 10443, Tunnel: 1443},
		{Name: "other", Site: "b", Address: netip.MustParsePrefix("10.77.2.10/24"), On: plan.OnBalancers, RouterID: 52, ReadWrite: 5432},
	}
	n := nodetest.Start(t)
	n.Role.Product = manifest.Product{User: "www-data", Units: []string{"portal.service"}}
	n.Member = roletest.Members(t, p)["a-br1"]
	n.Member.Secrets = map[string]string{"gateway-key": "one", "broker-admin": "two"}
	tell := func() about {
		t.Helper()
		if err := Tell(n.Node); err != nil {
			t.Fatal(err)
		}
		var told about
		if err := json.Unmarshal([]byte(n.File(t, factsPath)), &told); err != nil {
			t.Fatal(err)
		}
		return told
	}
	want := about{
		Cluster: "test", Domain: "example.internal", Site: "a", Node: "a-br1", Address: "10.77.1.31",
		Nodes: []aboutNode{{"a-db1", p.Nodes[0].Role, "10.77.1.11"}, {"a-br1", "broker", "10.77.1.31"}, {"a-br2", "broker", "10.77.1.32"}, {"a-br3", "broker", "10.77.1.33"}, {"a-gw1", "gateway", "10.77.1.34"}},
		VIPs:  []aboutVIP{{Name: "front", Address: "10.77.1.10", Names: []string{"www.example.org"}, ReadWrite: 5432, ReadOnly: 5433, HTTP: 80, HTTPS: 443, Gateway: 10443, Tunnel: 1443}},
	}
	first := tell()
	want.Digest = first.Digest
	if diff := cmp.Diff(want, first); diff != "" {
		t.Error(diff)
	}
	for name, value := range n.Member.Secrets {
		if got := n.File(t, secretsDir+"/"+name); got != value+"\n" {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, path := range []string{factsPath, secretsDir + "/gateway-key"} {
		if got := n.Output(t, "stat", "-c", "%U %a", path); got != "www-data 600\n" {
			t.Errorf("%s: %s", path, got)
		}
	}

	// What is no secret of the node any more goes, and maintenance shows.
	n.Member.Secrets = map[string]string{"gateway-key": "three"}
	if err := n.BeginMaintenance(node.Maintenance{Since: time.Now(), By: "ann"}); err != nil {
		t.Fatal(err)
	}
	second := tell()
	want.Maintenance, want.Digest = true, second.Digest
	if diff := cmp.Diff(want, second); diff != "" {
		t.Error(diff)
	}
	if n.Exists(secretsDir+"/broker-admin") || n.File(t, secretsDir+"/gateway-key") != "three\n" {
		t.Error("a secret of before stays")
	}

	// Units that look for cluster.json to change hear of all else, and of nothing else.
	if tell().Digest != second.Digest {
		t.Error("it changes when nothing does")
	}
	pair := n.Member.Certificates[member.ServiceCert]
	for what, change := range map[string]func(){
		"a secret": func() { n.Member.Secrets["gateway-key"] = "four" },
		"a certificate": func() {
			n.Member.Certificates[member.ServiceCert] = member.Pair{Certificate: pair.Certificate, Key: pair.Key + "\n"}
		},
		"a password": func() { n.Member.Secrets[p.Databases[0].PasswordKey()] = "five" },
		"the way to the database": func() {
			p.VIPs[0].ReadWrite = 5444
		},
	} {
		before := tell()
		change()
		if tell().Digest == before.Digest {
			t.Errorf("%s is exchanged, and cluster.json says nothing of it", what)
		}
	}

	n.Member = nil
	if err := Tell(n.Node); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(n.Path(factsPath)); err == nil || n.Exists(secretsDir+"/gateway-key") {
		t.Error("a node that stands alone is told of a cluster")
	}
}
