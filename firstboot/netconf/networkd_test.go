package netconf

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// inNetworkd runs systemd-networkd on the files, in namespaces of its own,
// until the condition (a shell command) holds; it returns networkd's log and
// what ip says then.
func inNetworkd(t *testing.T, files map[string][]byte, cards, until string) (log, kernel string) {
	t.Helper()
	for tool, pkg := range map[string]string{"unshare": "util-linux", "ip": "iproute2"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: apt-get install -y %s", tool, pkg)
		}
	}
	if _, err := os.Stat("/usr/lib/systemd/systemd-networkd"); err != nil {
		if _, err := os.Stat("/lib/systemd/systemd-networkd"); err != nil {
			t.Fatal("systemd-networkd is missing: apt-get install -y systemd")
		}
	}
	dir := t.TempDir()
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	script, err := filepath.Abs("testdata/networkd.sh")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("unshare", "--user", "--map-root-user", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", script, dir, cards, until)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	log, kernel, ok := strings.Cut(string(out), "== kernel\n")
	if !ok || strings.Contains(log, "NEVER: ") {
		t.Fatalf("networkd did not get there:\n%s", out)
	}
	return log, kernel
}

// complaints are the lines in which networkd refuses something in a file.
func complaints(log string) []string {
	var out []string
	for _, line := range strings.Split(log, "\n") {
		// New in systemd 255, so that Debian 12's does not know them. It goes on without.
		since255 := strings.Contains(line, "Unknown key 'SendHostname' in section [DHCPv6]") || strings.Contains(line, "Unknown key 'Hostname' in section [DHCPv6]")
		if strings.Contains(line, Prefix) && !strings.Contains(line, "onfiguring with") && !since255 {
			out = append(out, line)
		}
	}
	return out
}

func TestNetworkdUnderstandsEveryLineThatIsWritten(t *testing.T) {
	for _, path := range examples(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			cfg, _ := parseFile(t, path)
			cfg.Links = append(cfg.Links, Default().Links...)
			// A card of its own shows when all files have been read.
			cfg.Links = append(cfg.Links, Link{ID: "probe", Kind: Ethernet, Addresses: []Address{{Prefix: mustPrefix("192.0.2.77/32")}}})
			files, err := Render(cfg)
			if err != nil {
				t.Fatal(err)
			}
			log, _ := inNetworkd(t, files, "probe", "ip address show dev probe | grep -F 192.0.2.77")
			if bad := complaints(log); len(bad) > 0 {
				t.Errorf("networkd complains:\n%s", strings.Join(bad, "\n"))
			}
		})
	}
}

func TestNetworkdMakesTheKernelsNetworkOfIt(t *testing.T) {
	cfg, warnings, err := Parse("network-config", []byte(`version: 2
ethernets:
  lan:
    addresses: [192.0.2.10/24, "2001:db8::10/64"]
    mtu: 1400
    macaddress: 52:54:00:00:00:42
    accept-ra: false
    routes:
    - {to: default, via: 192.0.2.1, metric: 10}
    - {to: default, via: "2001:db8::1"}
    - {to: 198.51.100.0/24, via: 192.0.2.2, table: 100}
    - {to: 203.0.113.0/24, via: 10.9.9.9, on-link: true}
    - {to: 198.18.0.0/15, scope: link}
    routing-policy:
    - {from: 192.0.2.10, table: 100, priority: 50}
  port: {}
  off: {activation-mode: "off", addresses: [10.7.7.7/24]}
bridges:
  br0:
    interfaces: [port]
    addresses: [10.1.0.2/16]
    parameters: {stp: true, forward-delay: 4, priority: 4096}
`))
	if err != nil || len(warnings) > 0 {
		t.Fatal(warnings, err)
	}
	files, err := Render(cfg)
	if err != nil {
		t.Fatal(err)
	}
	log, kernel := inNetworkd(t, files, "lan port off", strings.Join([]string{
		"ip address show dev lan | grep -F 192.0.2.10/24", "ip -6 route | grep -F 'default via 2001:db8::1'", "ip address show dev br0 | grep -F 10.1.0.2/16",
		"ip rule | grep -F 192.0.2.10", "ip route show table 100 | grep 198.51.100", "ip route | grep 198.18",
	}, " && "))
	if bad := complaints(log); len(bad) > 0 {
		t.Errorf("networkd complains:\n%s", strings.Join(bad, "\n"))
	}
	for _, want := range []string{
		"mtu 1400", "link/ether 52:54:00:00:00:42", "inet 192.0.2.10/24", "inet6 2001:db8::10/64", "default via 192.0.2.1 dev lan proto static metric 10",
		"198.51.100.0/24 via 192.0.2.2 dev lan table 100", "203.0.113.0/24 via 10.9.9.9 dev lan proto static onlink", "198.18.0.0/15 dev lan proto static scope link",
		"50:\tfrom 192.0.2.10 lookup 100", "inet 10.1.0.2/16", "master br0", "forward_delay 400", "stp_state 1", "priority 4096",
	} {
		if !strings.Contains(kernel, want) {
			t.Errorf("no %q in:\n%s", want, kernel)
		}
	}
}
