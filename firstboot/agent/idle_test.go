package agent

import (
	"testing"

	"github.com/slipwayhq/slipway/firstboot/datasource"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
)

func TestDevicesAreReadAgainOnlyWhenOneHasChangedOrAfterAWhile(t *testing.T) {
	traces, reads := "sr0 1", 0
	s := &source{node: &node.Node{Root: t.TempDir()}, env: datasource.Env{
		Root:    t.TempDir(),
		DMI:     func(string) (string, error) { return "", nil },
		Devices: func() ([]datasource.Device, error) { reads++; return nil, nil },
		Traces:  func() string { return traces },
	}}
	looks := func(times, want int, when string) {
		t.Helper()
		reads = 0
		for range times {
			if s.look(t.Context()) {
				t.Fatal("found metadata where there is none")
			}
		}
		if reads != want {
			t.Errorf("%s: the devices were read %d times in %d looks, want %d", when, reads, times, want)
		}
	}
	looks(5, 1, "at first")
	traces = "sr0 2"
	looks(5, 1, "with another medium")
	looks(wholeLook, 1, "after a while")
	s.env.Traces = nil
	looks(3, 3, "where nothing tells of changes")
}

func TestTheKernelTellsWhenAnAddressComes(t *testing.T) {
	n := nodetest.Start(t)
	n.Output(t, "ip", "link", "set", "dev", "lo", "down") // another test may have left it up
	events := addressEvents(t.Context())
	n.Output(t, "ip", "link", "set", "dev", "lo", "up")
	<-events
	n.Output(t, "ip", "address", "add", "192.0.2.77/32", "dev", "lo")
	<-events
}
