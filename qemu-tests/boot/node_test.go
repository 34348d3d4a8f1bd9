package boottest

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
	"github.com/slipwayhq/slipway/qemu-tests/lab/gateway"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

const (
	gib = 1 << 30

	nodeMAC  = "52:54:00:00:00:01"
	nodeAddr = "10.77.1.11"
	vlanAddr = "10.77.2.11"
)

// TestNode follows one node from its first boot to a grown disk. What it claims
// of the first boot holds for every role: base and agent are the same. The node is
// behind the lab's own switch and gateway, with one network untagged and one tagged on
// the same card, and its time server is a day ahead.
func TestNode(t *testing.T) {
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
	key := newKey(t)
	authority := newAuthority(t)
	m := labtest.Start(t, lab.VM{
		Name:  "gateway-1",
		Image: images.Path(t, "gateway", "qcow2"),
		CPUs:  1, // HAProxy needs what lab.VM tells of
		Seeds: []string{noCloudISO(t, seed.Files{
			MetaData: []byte("instance-id: gateway-1\nlocal-hostname: gateway-1\n"),
			UserData: fullUserData(key, authority),
			NetworkConfig: []byte(`version: 2
ethernets:
  lan:
    match: {macaddress: "` + nodeMAC + `"}
    addresses: [` + nodeAddr + `/24]
    routes: [{to: default, via: 10.77.1.1}]
    nameservers: {addresses: [10.77.1.1], search: [example.internal]}
vlans:
  lan.20: {id: 20, link: lan, addresses: [` + vlanAddr + `/24]}
`),
		})},
		Disks: []lab.Disk{{Serial: "payload", Size: gib}},
		NICs:  []lab.NIC{{MAC: nodeMAC, Switch: sw, Port: ether.PortConfig{VLAN: 1, Trunk: []uint16{20}}}},
	})
	report := waitUntilReady(m)

	t.Run("the serial line shows the boot", func(t *testing.T) {
		for _, want := range []string{"slipway gateway", "handing over to systemd"} {
			if !strings.Contains(m.Lab().SerialLog(), want) {
				t.Errorf("the serial log never shows %q", want)
			}
		}
	})
	t.Run("the screen shows the report", func(t *testing.T) {
		m := m.In(t)
		t.Logf("kept %s", m.Screenshot("ready"))
		m.WaitForScreen(1, "slipway gateway - READY")
	})
	t.Run("the role's services run", func(t *testing.T) { servicesRun(m.In(t)) })
	t.Run("the address is the one of network-config version 2", func(t *testing.T) {
		m := m.In(t)
		hasOnlyAddress(m, nodeAddr+"/24")
		wants(m, "ip -4 -brief address show dev lan.20", vlanAddr+"/24")
		wants(m, "resolvectl dns", "10.77.1.1")
		wants(m, "resolvectl domain", "example.internal")
		wants(m, "ip route show default", "via 10.77.1.1")
	})
	t.Run("the host reaches it in both networks", func(t *testing.T) {
		for _, address := range []string{nodeAddr, vlanAddr} {
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
	t.Run("what the metadata asks for is in effect", func(t *testing.T) {
		m := m.In(t)
		wants(m, "hostname", "gateway-1")
		wants(m, "timedatectl show --property=Timezone --value", "Asia/Tokyo")
		wants(m, "timedatectl show-timesync --property=SystemNTPServers --value", "10.77.1.1")
		wants(m, "cat /etc/motd.d/note", "carried over")
		wants(m, "stat --format=%a:%U /etc/motd.d/note", "640:root")
		wants(m, "id --name --groups operator", "adm")
		wants(m, "cat /var/lib/slipway/ran", "ran")
		wants(m, "findmnt --noheadings --output=FSTYPE,LABEL /srv/payload", "ext4 payload")
		if bundle := m.ReadFile("/etc/ssl/certs/ca-certificates.crt"); !strings.Contains(squash(bundle), squash(authority)) {
			t.Error("the node does not trust the CA of the metadata")
		}
	})
	t.Run("the kernel's parameters are the image's", func(t *testing.T) {
		wants(m.In(t), "cd /proc/sys && cat net/ipv4/tcp_retries2 net/ipv4/conf/all/arp_ignore kernel/panic", "5\n1\n30")
	})
	t.Run("the administrator logs in with a key and becomes root", func(t *testing.T) {
		out := sshRun(t, gw, "operator", key, hostKeyOf(t, report), "sudo -n id --user")
		if strings.TrimSpace(out) != "0" {
			t.Errorf("sudo id says %q", out)
		}
		sshRefuses(t, gw, "operator", newKey(t))
		sshRefuses(t, gw, "root", key)
	})
	t.Run("no account has a password", func(t *testing.T) { noPasswords(m.In(t)) })
	t.Run("only the role's ports are open", func(t *testing.T) { onlyRolePortsOpen(m.In(t)) })
	t.Run("a port that is not the role's cannot be reached", func(t *testing.T) {
		m := m.In(t)
		const port = "9999"
		m.Succeed("systemd-run --quiet --unit=intruder /usr/bin/systemd-socket-activate --listen=0.0.0.0:" + port + " --accept /bin/cat")
		m.WaitUntilSucceeds("ss --no-header --tcp --listening --numeric 'sport = :" + port + "' | grep -q .")
		m.Succeed("bash -c 'echo > /dev/tcp/127.0.0.1/" + port + "'")
		for _, address := range []string{nodeAddr, vlanAddr} {
			unreachable(t, gw, address, port)
		}
		m.Succeed("systemctl stop intruder")
	})

	m.Succeed("echo kept > /var/lib/gateway/kept; echo kept > /etc/kept; sync")
	first, size := identityOf(m), factsOf(m).State.Size
	t.Run("the power button shuts the node down", func(t *testing.T) { m.In(t).PressPower() })
	if _, there := sw.Stats()["gateway-1/0"]; there {
		t.Error("a machine without power is on the switch")
	}
	m.ResizeDisk(40 * gib)
	m.PowerOn()
	report = waitUntilReady(m)
	t.Run("the second boot changes nothing", func(t *testing.T) {
		m := m.In(t)
		if again := identityOf(m); again != first {
			t.Errorf("first boot:\n%+v\nsecond boot:\n%+v", first, again)
		}
		for _, s := range report.Steps {
			if len(s.Changed) > 0 {
				t.Errorf("step %s changed %v", s.Name, s.Changed)
			}
		}
		wants(m, "cat /var/lib/slipway/ran", "ran")
		servicesRun(m)
		if banner := sshBanner(t, gw, nodeAddr); !strings.HasPrefix(banner, "SSH-2.0-") {
			t.Errorf("%q", banner)
		}
	})
	t.Run("a grown disk is used, and the data kept", func(t *testing.T) {
		m := m.In(t)
		facts := factsOf(m)
		if !facts.State.Grown || facts.State.Size-size < 9*gib {
			t.Errorf("the state partition went from %d to %d bytes (grown: %v)", size, facts.State.Size, facts.State.Grown)
		}
		wants(m, "df --output=size --block-size=1G "+bootfacts.StateDir+" | tail -n 1", "3[5-7]")
		wants(m, "cat /var/lib/gateway/kept /etc/kept", "kept\nkept")
	})
}

// unreachable shows from outside that the firewall lets nobody to a port where
// something listens: nothing has answered by the time that a later connection to an
// open port is answered.
func unreachable(t *testing.T, gw *gateway.Gateway, address, port string) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answered := make(chan net.Conn, 1)
	go func() {
		if conn, err := gw.DialContext(ctx, "tcp", net.JoinHostPort(address, port)); err == nil {
			answered <- conn
		}
	}()
	sshBanner(t, gw, address)
	select {
	case conn := <-answered:
		conn.Close()
		t.Errorf("the firewall lets a computer outside to port %s of %s", port, address)
	default:
	}
}

// fullUserData asks for a bit of everything that a node can be asked for.
func fullUserData(key sshKey, authority string) []byte {
	return []byte(`#cloud-config
timezone: Asia/Tokyo
ntp:
  servers: [10.77.1.1]
users:
  - name: operator
    groups: [adm]
    sudo: "ALL=(ALL) NOPASSWD:ALL"
    shell: /bin/bash
    ssh_authorized_keys: ["` + key.authorized + `"]
ca_certs:
  trusted:
    - |
` + indent(authority, "      ") + `
write_files:
  - path: /etc/motd.d/note
    permissions: "0640"
    content: |
      carried over
fs_setup:
  - {label: payload, filesystem: ext4, device: /dev/disk/by-id/virtio-payload, partition: none}
mounts:
  - [/dev/disk/by-id/virtio-payload, /srv/payload, ext4, defaults]
runcmd:
  - echo ran >> /var/lib/slipway/ran
`)
}

// identity is what makes a node that node, and what was done to it.
type identity struct {
	MachineID, HostKeys, Kept, Local, Ran string
}

func identityOf(m *labtest.Machine) identity {
	return identity{
		MachineID: m.ReadFile("/etc/machine-id"),
		HostKeys:  m.Succeed("cat /var/lib/slipway/ssh/*.pub"),
		Kept:      m.ReadFile(node.KeptPath),
		Local:     m.Succeed("cat " + node.LocalPath + " 2>/dev/null || true"),
		Ran:       m.ReadFile("/var/lib/slipway/ran"),
	}
}

// factsOf reads what the init left for the agent.
func factsOf(m *labtest.Machine) bootfacts.Facts {
	var f bootfacts.Facts
	if err := json.Unmarshal([]byte(m.ReadFile(bootfacts.Path)), &f); err != nil {
		m.Fatalf("%s: %v", bootfacts.Path, err)
	}
	return f
}

// wants runs a guest command whose trimmed output must match.
func wants(m *labtest.Machine, command, pattern string) {
	m.Helper()
	out := strings.TrimSpace(m.Succeed(command))
	if !regexp.MustCompile(`(?s)^(.*[^\w])?(`+pattern+`)([^\w].*)?$`).MatchString(strings.Join(strings.Fields(out), " ")) &&
		out != pattern {
		m.Errorf("%s: want %q, got %q", command, pattern, out)
	}
}

func squash(text string) string { return strings.Join(strings.Fields(text), "") }

func indent(text, with string) string {
	return with + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n"+with)
}
