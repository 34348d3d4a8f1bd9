package netconf

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The judges are the two programs that these formats belong to: netplan for
// version 2, and cloud-init, which translates the other two to version 2.
func TestNetplanAndCloudInitComeToTheSameNetwork(t *testing.T) {
	for _, tool := range []string{"netplan", "cloud-init"} {
		if _, err := exec.LookPath(tool); err != nil {
			// cloud-init is wanted as a judge; the first file keeps it from
			// configuring this machine at its next boot.
			t.Fatalf("%s is missing: mkdir -p /etc/cloud && touch /etc/cloud/cloud-init.disabled && apt-get install -y --no-install-recommends netplan.io cloud-init", tool)
		}
	}
	for _, path := range examples(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			cfg, _ := parseFile(t, path)
			files, err := Render(cfg)
			if err != nil {
				t.Fatal(err)
			}
			got, want := facts(files, Prefix), facts(netplan(t, path, cfg), "10-netplan-")
			for _, d := range differences[filepath.Base(path)] {
				got, want = d.from(got), d.from(want)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-netplan +ours):\n%s", diff)
			}
		})
	}
}

// difference is one that is meant: facts with these words are left out of the
// comparison on both sides.
type difference struct{ words, why string }

func (d difference) from(facts []string) []string {
	return slices.DeleteFunc(slices.Clone(facts), func(f string) bool { return strings.Contains(f, d.words) })
}

var differences = map[string][]difference{
	"v1-proxmox.yaml": {
		{"eth1.network Network DHCP=", "cloud-init asks by DHCPv6 too where the seed says SLAAC; networkd asks when the router says so"},
		{"eth1.network Network IPv6AcceptRA=", "which needs this"},
		{"eth1.network Network DNS=", "cloud-init drops a name server for all where the addresses come by DHCP; we do as told"},
		{"eth1.network Network Domains=", "the same for search domains"},
	},
	"v1-everything.yaml": {
		{"lo.network", "cloud-init leaves the addresses of lo to others"},
		{"br0.network Route Destination=10.7.0.0/16", "cloud-init loses a route that stands beside the interfaces on its way to netplan"},
	},
	"v2-ethernets.yaml": {
		{"IPv6AcceptRA RouteMetric=", "routes of IPv6 come by router advertisements, so the metric that is asked for belongs there too"},
	},
	"openstack.json": {
		{"nic0.link", "cloud-init renames cards to the names that they have already"},
		{"nic1.link", "the same"},
		{"nic2.link", "the same"},
		{"Network DNS=", "cloud-init has lost the servers of a network and those beside an interface with DHCP"},
		{"Network IPv6AcceptRA=no", "cloud-init turns advertisements off beside fixed addresses; the document does not ask for it"},
	},
}

// netplan gives the example to netplan and returns the files that it writes
// for networkd.
func netplan(t *testing.T, path string, cfg *Config) map[string][]byte {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "etc/netplan")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(filepath.Base(path), "v2") {
		kind := "yaml"
		if strings.HasSuffix(path, ".json") {
			kind = "network_data.json"
		}
		out := t.TempDir()
		args := []string{"devel", "net-convert", "-p", path, "-k", kind, "-d", out, "-D", "debian", "-O", "netplan"}
		for _, l := range cfg.Links {
			// cloud-init wants to know the cards that are there.
			if l.Match.MAC != "" {
				args = append(args, "-m", l.ID+","+l.Match.MAC)
			}
		}
		if text, err := exec.Command("cloud-init", args...).CombinedOutput(); err != nil {
			t.Fatalf("cloud-init: %v\n%s", err, text)
		}
		if data, err = os.ReadFile(filepath.Join(out, "etc/netplan/50-cloud-init.yaml")); err != nil {
			t.Fatal(err)
		}
	} else if !strings.Contains(string(data), "network:\n") {
		data = []byte("network:\n  " + strings.ReplaceAll(string(data), "\n", "\n  "))
	}
	if err := os.WriteFile(filepath.Join(dir, "50.yaml"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	if text, err := exec.Command("netplan", "generate", "--root-dir", root).CombinedOutput(); err != nil {
		t.Fatalf("netplan: %v\n%s\n%s", err, text, data)
	}
	files := map[string][]byte{}
	paths, _ := filepath.Glob(filepath.Join(root, "run/systemd/network/*"))
	for _, p := range paths {
		if files[filepath.Base(p)], err = os.ReadFile(p); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

// facts are what the files amount to, one a line and sorted, with the spelling
// and the places in which the two writers differ without meaning evened out.
func facts(files map[string][]byte, prefix string) []string {
	var out []string
	for name, data := range files {
		name = strings.TrimPrefix(name, prefix)
		byMAC := strings.Contains(string(data), "PermanentMACAddress=")
		for _, section := range strings.Split("\n"+string(data), "\n[")[1:] {
			head, body, _ := strings.Cut(section, "]\n")
			var lines []string
			for _, line := range strings.Split(body, "\n") {
				key, val, ok := strings.Cut(strings.TrimSpace(line), "=")
				if ok && !strings.HasPrefix(key, "#") {
					lines = append(lines, evened(name, head, key, val, byMAC)...)
				}
			}
			switch head {
			case "Route", "RoutingPolicyRule", "Address":
				slices.Sort(lines)
				out = append(out, name+" "+head+" "+strings.Join(lines, " "))
			default:
				for _, l := range lines {
					out = append(out, name+" "+l)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// evened returns the lines that one line amounts to.
func evened(file, section, key, val string, byMAC bool) []string {
	switch val {
	case "true":
		val = "yes"
	case "false":
		val = "no"
	}
	none := []string(nil)
	switch {
	case section == "Network" && key == "Gateway":
		return []string{"Route Gateway=" + val}
	case section == "Network" && key == "Address":
		return []string{"Address Address=" + val}
	case section == "Network" && key == "LinkLocalAddressing" && val == "ipv6":
		return none // networkd's default
	case section == "Match" && key == "Name" && byMAC:
		return none // netplan asks for the new name too: its cards have it by then
	case strings.HasSuffix(file, ".link") && (key == "MTUBytes" || key+val == "WakeOnLanoff"):
		return none // networkd sets the MTU; cards have Wake on LAN off
	case section == "DHCP" && (key+val == "RouteMetric100" || key+val == "UseMTUyes"):
		return none // netplan's defaults
	case strings.HasSuffix(file, ".link") && key == "OriginalName":
		return none // such a file only sets the MTU
	case strings.HasSuffix(key, "Sec") && !strings.HasSuffix(val, "ms"):
		val = strings.TrimSuffix(val, "s")
	case key == "AllSlavesActive" && val == "1":
		val = "yes"
	case strings.HasPrefix(section, "DHCPv"):
		section = "DHCP" // netplan writes the old section for both
	case section == "Route" && key == "Destination" && (val == "0.0.0.0/0" || val == "::/0"):
		return none // said by there being no destination
	case section == "Route" || section == "RoutingPolicyRule" || section == "Address":
		return []string{key + "=" + val}
	case key == "Domains" || key == "ARPIPTargets":
		words := strings.FieldsFunc(val, func(r rune) bool { return r == ' ' || r == ',' })
		slices.Sort(words)
		val = strings.Join(words, " ")
	}
	return []string{section + " " + key + "=" + val}
}
