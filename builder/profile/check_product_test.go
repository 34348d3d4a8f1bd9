package profile

import (
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/internal/fault"
)

// withProduct is a role that has the given lines in place of a product of its own.
func withProduct(lines string) []byte {
	return []byte(`role: portal
summary: A portal
packages: [nginx]
state: [/var/lib/acme]
services: [portal.service]
vm: {cpus: 1, memory: 1GiB, disk: 8GiB}
` + lines)
}

func TestAProductIsRead(t *testing.T) {
	p, err := parse("portal.yaml", withProduct(`
debs: [payload/acme]
images:
  - {name: "acme/session:4", registry: "registry.acme.example/session@sha256:00"}
  - {name: acme/agent, layout: payload/agent}
  - {name: acme/report, tarball: payload/report.tar}
  - {name: acme/probe, go: ./payload/probe}
product:
  user: acme
  units: [portal.service]
  setup: {command: [/usr/lib/acme/setup, --all], timeout: 60}
  shared:
    - {path: /var/lib/acme/settings.py, user: acme, mode: "0600", restart: [portal.service]}
  health: {url: "https://localhost:8443/health"}
  stack: /usr/lib/acme/stack.yml
`))
	if err != nil {
		t.Fatal(err)
	}
	if p.Debs[0] != "payload/acme" || len(p.Images) != 4 || p.Images[3].Go != "./payload/probe" || p.Images[0].Name != "acme/session:4" {
		t.Errorf("debs %v, images %+v", p.Debs, p.Images)
	}
	set := &Set{Base: &Profile{}}
	m := set.Marker(p).Product
	if m.User != "acme" || len(m.Setup.Command) != 2 || m.Setup.Timeout != 60 || m.Shared[0].Mode != "0600" || m.Health.URL == "" || m.Stack == "" {
		t.Errorf("the agent is told %+v", m)
	}
}

func TestAProductThatCannotBeIsRefusedAtItsLine(t *testing.T) {
	for name, test := range map[string]struct{ lines, says string }{
		"debs outside":       {"debs: [../acme]", "portal.yaml:7:8: debs[0]: \"../acme\""},
		"no name":            {"images: [{name: ACME, go: ./x}]", "images[0].name"},
		"a registry in it":   {"images: [{name: \"host:5000/acme\", go: ./x}]", "images[0].name"},
		"twice":              {"images: [{name: a:1, go: ./x}, {name: a:2, go: ./y}]", "a is listed twice"},
		"no source":          {"images: [{name: a}]", "images[0]: it has 0 places to come from"},
		"two sources":        {"images: [{name: a, go: ./x, layout: y}]", "images[0]: it has 2 places to come from"},
		"go outside":         {"images: [{name: a, go: ./../x}]", "images[0]: go:"},
		"go by import path":  {"images: [{name: a, go: example.org/x}]", "images[0]: go:"},
		"go below vendor":    {"images: [{name: a, go: ./vendor/x}]", "images[0]: go:"},
		"layout outside":     {"images: [{name: a, layout: /x}]", "images[0]: layout:"},
		"tarball outside":    {"images: [{name: a, tarball: ../x.tar}]", "images[0]: tarball:"},
		"user":               {"product: {user: Acme}", "product.user"},
		"unit not a service": {"product: {units: [other.service]}", "portal.yaml:7:19: product.units[0]: \"other.service\" is none of the role's services"},
		"relative command":   {"product: {setup: {command: [setup]}}", "product.setup.command"},
		"timeout":            {"product: {setup: {command: [/s], timeout: 90000}}", "product.setup.timeout"},
		"shared relative":    {"product: {shared: [{path: settings.py}]}", "product.shared[0].path"},
		"shared not kept":    {"product: {shared: [{path: /etc/acme.conf}]}", "below none of the role's state directories"},
		"shared twice":       {"product: {shared: [{path: /var/lib/acme/a}, {path: /var/lib/acme/a}]}", "product.shared[1].path: /var/lib/acme/a is listed twice"},
		"mode":               {"product: {shared: [{path: /var/lib/acme/a, mode: \"0888\"}]}", "product.shared[0].mode"},
		"restart":            {"product: {shared: [{path: /var/lib/acme/a, restart: [portal]}]}", "product.shared[0].restart[0]"},
		"health elsewhere":   {"product: {health: {url: \"https://example.org/\"}}", "its host is not localhost"},
		"health by another":  {"product: {health: {url: \"ftp://localhost/\"}}", "neither http nor https"},
		"stack":              {"product: {stack: stack.yml}", "product.stack"},
		"unknown":            {"product: {setp: {}}", "product.setp: this field is not known"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse("portal.yaml", withProduct(test.lines))
			if fault.Of(err) != fault.Input || err == nil || !strings.Contains(err.Error(), test.says) || !strings.HasPrefix(err.Error(), "portal.yaml:7:") {
				t.Errorf("got %v, want %q", err, test.says)
			}
		})
	}
}
