package boottest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
	"github.com/slipwayhq/slipway/qemu-tests/lab/gateway"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// TestLabNetwork puts a node behind the lab's own switch and gateway, with one
// network untagged and one tagged on the same card, and a clock a day ahead.
func TestLabNetwork(t *testing.T) {
	t.Parallel()
	const ahead = 24 * time.Hour
	sw := ether.New(ether.Options{})
	t.Cleanup(sw.Close)
	gw, err := gateway.New(sw, []gateway.Network{
		{Name: "a", VLAN: 1, Addresses: []netip.Prefix{netip.MustParsePrefix("10.77.1.1/24")}},
		{Name: "b", VLAN: 20, Addresses: []netip.Prefix{netip.MustParsePrefix("10.77.2.1/24")}},
	}, gateway.Options{
		Zones: []string{"example.internal"},
		Names: map[string][]netip.Addr{"db.example.internal": {netip.MustParseAddr("10.77.1.10")}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(gw.Close)
	gw.SetClockOffset(ahead)
	m := labtest.Start(t, lab.VM{
		Name:  "a-gw1",
		Image: images.Path(t, "gateway", "qcow2"),
		CPUs:  1,
		Seeds: []string{noCloudISO(t, seed.Files{
			MetaData: []byte("instance-id: a-gw1\nlocal-hostname: a-gw1\n"),
			UserData: []byte("#cloud-config\nssh_authorized_keys: [\"" + newKey(t).authorized + "\"]\nntp: {servers: [10.77.1.1]}\n"),
			NetworkConfig: []byte(`version: 2
ethernets:
  lan:
    match: {macaddress: "` + nodeMAC + `"}
    addresses: [10.77.1.11/24]
    routes: [{to: default, via: 10.77.1.1}]
    nameservers: {addresses: [10.77.1.1], search: [example.internal]}
vlans:
  lan.20: {id: 20, link: lan, addresses: [10.77.2.11/24]}
`),
		})},
		NICs: []lab.NIC{{MAC: nodeMAC, Switch: sw, Port: ether.PortConfig{VLAN: 1, Trunk: []uint16{20}}}},
	})

	t.Run("the host reaches it in both networks", func(t *testing.T) {
		m := m.In(t)
		m.WaitForUnit("ssh.service")
		for _, address := range []string{"10.77.1.11:22", "10.77.2.11:22"} {
			if banner := sshBanner(t, gw, address); !strings.HasPrefix(banner, "SSH-2.0-") {
				t.Errorf("%s: %q", address, banner)
			}
		}
	})
	t.Run("the lab's names resolve, and no others", func(t *testing.T) {
		m := m.In(t)
		wants(m, "getent ahostsv4 db", "10.77.1.10")
		m.MustFail("getent ahostsv4 nobody.example.internal")
		m.MustFail("getent ahostsv4 example.org")
	})
	t.Run("it takes the gateway's time", func(t *testing.T) {
		m := m.In(t)
		m.WaitUntilSucceeds(fmt.Sprintf("test $(date +%%s) -gt %d", time.Now().Add(ahead/2).Unix()))
		wants(m, "timedatectl show-timesync --property=ServerAddress --value", "10.77.1.1")
	})
	t.Run("nothing beyond the lab is reached, and nobody waits for it", func(t *testing.T) {
		out := m.In(t).MustFail("bash -c 'echo > /dev/tcp/192.0.2.1/443' 2>&1")
		if !strings.Contains(out, "unreachable") {
			t.Error(out)
		}
	})
	t.Run("a power cut takes its port away, and power brings it back", func(t *testing.T) {
		m := m.In(t)
		m.Crash()
		if _, there := sw.Stats()["a-gw1/0"]; there {
			t.Error("a machine without power is on the switch")
		}
		m.PowerOn()
		m.WaitForUnit("ssh.service")
		if banner := sshBanner(t, gw, "10.77.1.11:22"); !strings.HasPrefix(banner, "SSH-2.0-") {
			t.Errorf("%q", banner)
		}
	})
}

// sshBanner is the first line that a guest's SSH server says.
func sshBanner(t *testing.T, gw *gateway.Gateway, address string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := gw.DialContext(ctx, "tcp", address)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	conn.SetDeadline(deadline)
	line, err := bufio.NewReader(conn).ReadBytes('\n')
	if err != nil {
		t.Error(err)
	}
	return string(bytes.TrimSpace(line))
}
