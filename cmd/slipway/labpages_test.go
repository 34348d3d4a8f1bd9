package main

import (
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

func TestPagesOfALabAreFoundFromThisComputer(t *testing.T) {
	for name, want := range map[string][]string{
		"vdi-pair": {
			`--host-resolver-rules="MAP vdi.example.internal:443 127.0.0.1:9443, MAP vdi.example.internal:10443 127.0.0.1:10443" https://vdi.example.internal/`,
			"slipway secret show c.yaml broker-admin --store dir", "ca.pem",
		},
		"vdi-dispatchers": {
			"curl --cacert ca.pem --connect-to 10.77.1.41:443:127.0.0.1:9443 https://10.77.1.41/",
			"curl --cacert ca.pem --connect-to 10.77.1.43:443:127.0.0.1:9443 https://10.77.1.43/",
		},
		"postgres-pair": nil,
	} {
		top, err := topology.Load("../../examples/" + name + "/cluster.yaml")
		if err != nil {
			t.Fatal(err)
		}
		forwards := daemon.ForwardsOf(top)
		for i, f := range forwards {
			_, port, _ := strings.Cut(f.Guest, ":")
			forwards[i].Host = "127.0.0.1:" + map[string]string{"443": "9443"}[port]
			if port != "443" {
				forwards[i].Host += port
			}
		}
		got := howToOpen(top.Plan(), forwards, "c.yaml", "ca.pem", "dir")
		for _, line := range want {
			if !strings.Contains(got, line) {
				t.Errorf("%s: no %q in:\n%s", name, line, got)
			}
		}
		if want == nil && got != "" {
			t.Errorf("%s: %s", name, got)
		}
	}
}
