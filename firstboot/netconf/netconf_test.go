package netconf

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipwayhq/slipway/internal/fault"
)

func parseFile(t testing.TB, path string) (*Config, []Warning) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	parse := Parse
	if strings.HasSuffix(path, ".json") {
		parse = ParseOpenStack
	}
	cfg, warnings, err := parse(filepath.Base(path), data)
	if err != nil {
		t.Fatal(err)
	}
	return cfg, warnings
}

func examples(t testing.TB) []string {
	t.Helper()
	yaml, _ := filepath.Glob("testdata/*.yaml")
	jsons, _ := filepath.Glob("testdata/*.json")
	all := append(yaml, jsons...)
	if len(all) == 0 {
		t.Fatal("no examples in testdata")
	}
	return all
}

// text is all files of a configuration, one after the other.
func text(files map[string][]byte) string {
	var b bytes.Buffer
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "==> %s <==\n%s\n", name, files[name])
	}
	return b.String()
}

// The golden files are what a person has read and found right. With
// SLIPWAY_RECORD=1 they are written anew, and the test fails all the same.
func TestRenderWritesTheGoldenFiles(t *testing.T) {
	for _, path := range examples(t) {
		cfg, warnings := parseFile(t, path)
		files, err := Render(cfg)
		if err != nil {
			t.Fatal(err)
		}
		got := text(files)
		for _, w := range warnings {
			got += "warning: " + w.String() + "\n"
		}
		golden := path + ".golden"
		if os.Getenv("SLIPWAY_RECORD") != "" {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			t.Errorf("%s was recorded: read it, then run without SLIPWAY_RECORD", golden)
			continue
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", path, diff)
		}
	}
}

func TestEveryFileSaysWhereItIsFromAndThatEditsAreLost(t *testing.T) {
	cfg, _ := parseFile(t, "testdata/v2-virtual.yaml")
	cfg.Source = "NoCloud (/dev/sr0)\n[Match]"
	files, err := Render(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		lines := strings.SplitN(string(data), "\n", 3)
		if !strings.HasPrefix(lines[0], "# Written by slipway's firstboot from NoCloud (/dev/sr0)?[Match].") || !strings.Contains(lines[1], "change the seed") {
			t.Errorf("%s begins with %q", name, lines[:2])
		}
		if !strings.HasPrefix(name, Prefix) {
			t.Errorf("name %s", name)
		}
	}
}

func TestWithoutConfigurationEveryCardAndNothingElseUsesDHCP(t *testing.T) {
	files, err := Render(Default())
	if err != nil {
		t.Fatal(err)
	}
	got := string(files["10-slipway-default.network"])
	for _, line := range []string{"Type=ether", "Kind=!*", "DHCP=yes", "RequiredForOnline=no"} {
		if !strings.Contains(got, "\n"+line+"\n") {
			t.Errorf("no line %s in\n%s", line, got)
		}
	}
	if len(files) != 1 {
		t.Errorf("files %v", files)
	}
}

func TestNothingSaidIsNoConfiguration(t *testing.T) {
	for _, s := range []string{"", "\n", "# only a comment\n", "null", "{}", "network:\n", "network: {config: disabled}\n"} {
		cfg, _, err := Parse("network-config", []byte(s))
		if s == "{}" {
			if fault.Of(err) != fault.Input {
				t.Errorf("%q: %v, %v", s, cfg, err)
			}
			continue
		}
		if cfg != nil || err != nil {
			t.Errorf("%q: %v, %v", s, cfg, err)
		}
	}
}

func TestWhatHasNoEffectIsReportedWithItsLine(t *testing.T) {
	_, warnings, err := Parse("network-config", []byte(`network:
  version: 2
  renderer: NetworkManager
  ethernets:
    ens3:
      dhcp4: true
      dchp6: true
      nameservers: {addresses: [1.1.1.1], option: x}
      dhcp4-overrides: {use-dn: true}
    ens4:
      addresses: [10.0.0.2/32]
      routes: [{to: default, via: 10.0.0.1, colour: red}, {to: 10.5.5.5/16, via: 10.0.0.1}]
  wifis:
    wlan0: {}
other: 1
`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range warnings {
		got = append(got, w.String())
	}
	for _, want := range []string{
		"network-config:3: renderer has no effect", `network-config:7: ens3: key "dchp6" is not known`, `network-config:8: nameservers: key "option"`,
		`network-config:9: dhcp4-overrides: key "use-dn"`, `network-config:12: routes: key "colour"`, "network-config:13: wifis is not known here",
		`network-config:15: key "other" beside network:`, "network-config:10: ens4: the gateway 10.0.0.1 is in none of its networks", "the route to 10.5.5.5/16 is taken to be to 10.5.0.0/16",
	} {
		if !strings.Contains(strings.Join(got, "\n"), want) {
			t.Errorf("no warning %q in:\n%s", want, strings.Join(got, "\n"))
		}
	}
}

func TestEveryMistakeIsNamedWithItsLine(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{"a: [", "f:1: not valid YAML"},
		{"a: 1\n\tb: 2", "f:2: not valid YAML"},
		{"- a", "f:1: no key version:"},
		{"version: 3", "f:1: version must be between 1 and 2, not 3"},
		{"version: two", `f:1: version must be a number, not "two"`},
		{"version: 2\nethernets: [a]", "f:2: ethernets must hold keys and values"},
		{"version: 2\nethernets:\n  a: {dhcp4: perhaps}", `f:3: dhcp4 must be true or false, not "perhaps"`},
		{"version: 2\nethernets:\n  a:\n    addresses: [10.0.0.1]", `f:4: addresses: "10.0.0.1" lacks the length of its network: write for example 10.0.0.1/24`},
		{"version: 2\nethernets:\n  a:\n    addresses: [10.0.0.300/24]", `f:4: addresses: "10.0.0.300/24" is not an address`},
		{"version: 2\nethernets:\n  a:\n    addresses: [10.0.0.1/33]", "f:4: addresses:"},
		{"version: 2\nethernets:\n  a: {gateway4: '2001:db8::1'}", "f:3: gateway4: 2001:db8::1 is of the other IP version"},
		{"version: 2\nethernets:\n  a: {mtu: 1}", "f:3: mtu must be between 68 and 65535, not 1"},
		{"version: 2\nethernets:\n  a: {match: {macaddress: '52:54'}}", "is not a MAC address such as"},
		{"version: 2\nethernets:\n  a: {set-name: lan0}", "f:3: a: set-name needs a match: by macaddress"},
		{"version: 2\nethernets:\n  a: {match: {macaddress: '52:54:00:00:00:01'}, set-name: ../../etc}", "cannot name an interface"},
		{"version: 2\nethernets:\n  ../a: {}", "cannot name an interface"},
		{"version: 2\nethernets:\n  averyveryverylongname: {}", "cannot name an interface: at most 15"},
		{"version: 2\nethernets:\n  a: {}\n  a: {}", `f:4: ethernets: key "a" is given twice, first in line 3`},
		{"version: 2\nethernets:\n  a: {match: {macaddress: '52:54:00:00:00:01'}}\n  b: {match: {macaddress: '52:54:00:00:00:01'}}", "f:4: interfaces a and b have one MAC address"},
		{"version: 2\nbonds:\n  b: {interfaces: [x]}", "f:3: b has a member x, which is not in the configuration"},
		{"version: 2\nethernets: {x: {}}\nbonds:\n  b: {interfaces: [x]}\n  c: {interfaces: [x]}", "x is a member of b and of c"},
		{"version: 2\nbridges:\n  b: {interfaces: [c]}\n  c: {interfaces: [b]}", "stands on itself by way of other interfaces"},
		{"version: 2\nvlans:\n  a: {id: 1, link: b}\n  b: {id: 1, link: a}", "stands on itself by way of other interfaces"},
		{"version: 2\nbonds:\n  b: {parameters: {mode: fast}}", "mode must be one of balance-rr"},
		{"version: 2\nbonds:\n  b: {parameters: {primary: x}}", "the primary of bond b, x, is not one of its members"},
		{"version: 2\nvlans:\n  v: {id: 5000, link: a}", "id must be between 0 and 4094"},
		{"version: 2\nvlans:\n  v: {id: 5}", "f:3: v: a VLAN needs link:"},
		{"version: 2\nvlans:\n  v: {link: a}", "f:3: v: a VLAN needs id:"},
		{"version: 2\nvlans:\n  v: {id: 5, link: a}", `VLAN v stands on "a", which is not in the configuration`},
		{"version: 2\nethernets:\n  a:\n    routes: [{via: 10.0.0.1}]", "f:4: a route needs its destination"},
		{"version: 2\nethernets:\n  a:\n    routes: [{to: default}]", "f:4: a default route needs its gateway"},
		{"version: 2\nethernets:\n  a:\n    routes: [{to: '2001:db8::/32', via: 10.0.0.1}]", "gateway of the other IP version"},
		{"version: 2\nethernets:\n  a: {nameservers: {search: [\"a\\nDNS=6.6.6.6\"]}}", "search holds a control character"},
		{"version: 2\nethernets:\n  a: {match: {name: 'a b'}}", "no interface or driver has"},
		{"version: 2\nethernets:\n  a:\n    routing-policy: [{table: 5}]", "a routing policy needs from, to, mark"},
		{"version: 1\nconfig: [{name: a}]", "f:2: an entry of config: needs its type:"},
		{"version: 1\nconfig: [{type: physical}]", "f:2: this physical lacks its name:"},
		{"version: 1\nconfig: [{type: physical, name: a, subnets: [{type: static}]}]", "a subnet of type static needs its address:"},
		{"version: 1\nconfig: [{type: physical, name: a, subnets: [{type: static, address: 10.0.0.1}]}]", "lacks the length of its network"},
		{"version: 1\nconfig: [{type: physical, name: a, subnets: [{type: static, address: 10.0.0.1, netmask: 255.0.255.0}]}]", "its ones are not in one row"},
		{"version: 1\nconfig: [{type: physical, name: a, subnets: [{type: odd}]}]", `subnet type "odd" is not known`},
		{"version: 1\nconfig: [{type: vlan, name: a}]", "VLAN a lacks vlan_link:"},
		{"version: 1\nconfig: [{type: nameserver, address: [x]}]", `address: "x" is not an IP address`},
		{"version: 1\nconfig: [{type: nameserver, interface: x, address: [1.1.1.1]}]", `interface "x" is not in the configuration`},
		{"version: 1\nconfig: [{type: route, destination: 10.0.0.0/8, gateway: 10.0.0.1}]", "no interface has a network that holds the gateway"},
	} {
		cfg, _, err := Parse("f", []byte(c.in))
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngot  %v, %v\nwant %s", c.in, cfg, err, c.want)
			continue
		}
		if fault.Of(err) != fault.Input || fault.Mend(err) == "" {
			t.Errorf("%s: class %v, mend %q", c.in, fault.Of(err), fault.Mend(err))
		}
	}
}

func TestOpenStackMistakesAreNamedWithTheirLine(t *testing.T) {
	for _, c := range []struct{ in, want string }{
		{`{`, "f:1: not valid YAML"},
		{`{"links": [{"type": "phy"}]}`, "f:1: a link lacks its id"},
		{`{"links": [{"id": "a", "type": "phy"}]}`, "link a lacks its ethernet_mac_address"},
		{"{\"links\": [\n{\"id\": \"a\", \"ethernet_mac_address\": \"zz\"}]}", "f:2: ethernet_mac_address:"},
		{`{"links": [{"id": "v", "type": "vlan", "vlan_id": 1, "vlan_link": "x"}]}`, `link "x" is not in the document`},
		{`{"networks": [{"type": "ipv4_dhcp", "link": "x"}]}`, `link "x" is not in the document`},
		{`{"networks": [{"type": "ipv4_dhcp"}]}`, "a network lacks its link"},
		{`{"links": [{"id": "a", "ethernet_mac_address": "fa:16:3e:ed:9a:59"}], "networks": [{"type": "ipv4", "link": "a"}]}`, "lacks its ip_address"},
		{`{"links": [{"id": "a", "ethernet_mac_address": "fa:16:3e:ed:9a:59"}], "networks": [{"type": "odd", "link": "a"}]}`, `network type "odd" is not known`},
	} {
		if _, _, err := ParseOpenStack("f", []byte(c.in)); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\ngot  %v\nwant %s", c.in, err, c.want)
		}
	}
}

func TestAllMistakesOfADocumentAreNamedAtOnce(t *testing.T) {
	_, _, err := Parse("f", []byte("version: 2\nethernets:\n  a: {mtu: 1}\n  b: {dhcp4: 7}\n"))
	if err == nil || !strings.Contains(err.Error(), "f:3:") || !strings.Contains(err.Error(), "f:4:") {
		t.Errorf("got %v", err)
	}
	_, _, err = Parse("f", bytes.Repeat([]byte("#"), MaxSize+1))
	if err == nil || !strings.Contains(err.Error(), "more than the limit") {
		t.Errorf("got %v", err)
	}
}

func TestRenamesGiveEveryCardItsNameWithoutACollision(t *testing.T) {
	cfg := &Config{Links: []Link{
		{ID: "a", Match: Match{MAC: "m1"}, SetName: "eth1", Kind: Ethernet},
		{ID: "b", Match: Match{MAC: "m2"}, SetName: "eth0", Kind: Ethernet},
		{ID: "c", Match: Match{Names: []string{"ens*"}, MAC: "m3"}, SetName: "lan", Kind: Ethernet},
		{ID: "d", Match: Match{MAC: "gone"}, SetName: "wan", Kind: Ethernet},
		{ID: "e", Kind: Ethernet},
	}}
	for name, c := range map[string]struct {
		cards []Card
		want  map[string]string // by MAC
		steps int
	}{
		"as wanted":         {[]Card{{Name: "eth1", PermanentMAC: "m1"}, {Name: "eth0", PermanentMAC: "m2"}}, map[string]string{"m1": "eth1", "m2": "eth0"}, 0},
		"swapped":           {[]Card{{Name: "eth0", PermanentMAC: "m1"}, {Name: "eth1", PermanentMAC: "m2"}}, map[string]string{"m1": "eth1", "m2": "eth0"}, 3},
		"chain":             {[]Card{{Name: "eth0", PermanentMAC: "m1"}, {Name: "ens2", PermanentMAC: "m2"}, {Name: "ens3", PermanentMAC: "m3"}}, map[string]string{"m1": "eth1", "m2": "eth0", "m3": "lan"}, 3},
		"taken by stranger": {[]Card{{Name: "lan", PermanentMAC: "x"}, {Name: "ens3", PermanentMAC: "m3"}}, map[string]string{"m3": "lan", "x": "lan-old0"}, 2},
	} {
		steps := Renames(cfg, c.cards)
		now := map[string]string{}
		for _, card := range c.cards {
			now[card.Name] = card.PermanentMAC
		}
		for _, s := range steps {
			if now[s.From] == "" || now[s.To] != "" || len(s.To) > 15 {
				t.Fatalf("%s: step %v in %v", name, s, now)
			}
			now[s.To] = now[s.From]
			delete(now, s.From)
		}
		got := map[string]string{}
		for ifname, mac := range now {
			got[mac] = ifname
		}
		if !reflect.DeepEqual(got, c.want) || len(steps) != c.steps {
			t.Errorf("%s: %v in %d steps, want %v in %d", name, got, len(steps), c.want, c.steps)
		}
	}
}

// The agent keeps the configuration as JSON for boots without the seed.
func TestAConfigurationOutlivesJSON(t *testing.T) {
	for _, path := range examples(t) {
		cfg, _ := parseFile(t, path)
		data, err := json.Marshal(cfg)
		if err != nil {
			t.Fatal(err)
		}
		var back Config
		if err := json.Unmarshal(data, &back); err != nil {
			t.Fatal(err)
		}
		before, err := Render(cfg)
		if err != nil {
			t.Fatal(err)
		}
		after, err := Render(&back)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(text(before), text(after)); diff != "" {
			t.Errorf("%s: %s", path, diff)
		}
	}
}

func TestBondModesMayBeNumbers(t *testing.T) {
	for i, mode := range bondModes {
		cfg, _, err := Parse("f", fmt.Appendf(nil, "version: 1\nconfig: [{type: bond, name: b, bond_mode: %d, params: {bond_lacp_rate: '1', bond-miimon: 1500}}]", i))
		if err != nil || cfg.Links[0].Bond.Mode != mode || cfg.Links[0].Bond.LACPRate != "fast" || span(cfg.Links[0].Bond.MIIMonitor) != "1500ms" {
			t.Errorf("mode %d: %+v, %v", i, cfg, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, path := range examples(f) {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("version: 2\nethernets: &a {a: *a}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, parse := range []func(string, []byte) (*Config, []Warning, error){Parse, ParseOpenStack} {
			cfg, _, err := parse("file", data)
			if err != nil && fault.Of(err) != fault.Input {
				t.Errorf("class %v: %v", fault.Of(err), err)
			}
			if cfg == nil {
				continue
			}
			files, err := Render(cfg)
			if err != nil {
				t.Fatalf("parsed, but not rendered: %v", err)
			}
			Renames(cfg, []Card{{Name: "a", PermanentMAC: "52:54:00:00:00:01"}, {Name: "lan"}, {Name: "eth0"}})
			for name, content := range files {
				if filepath.Base(name) != name {
					t.Errorf("file name %q", name)
				}
				// Nothing from outside may begin a line of its own.
				for _, line := range strings.Split(string(content), "\n") {
					key, _, isKey := strings.Cut(line, "=")
					if line != "" && line[0] != '#' && line[0] != '[' && (!isKey || strings.Trim(key, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ46") != "") {
						t.Errorf("line %q", line)
					}
				}
			}
		}
	})
}

func mustPrefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }
