package seeding

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vmware/govmomi/ovf/importer"
	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/datasource"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/netconf"
)

func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// found is what a node finds in a CD drive with one of the ISOs.
func (b *bench) found(name string) *datasource.Metadata {
	b.t.Helper()
	md, err := datasource.Find(context.Background(), datasource.Env{
		Root: b.t.TempDir(),
		Devices: func() ([]datasource.Device, error) {
			return []datasource.Device{{Path: "/dev/sr0", Open: func() (datasource.Medium, error) { return os.Open(filepath.Join(b.out, name)) }}}, nil
		},
		DMI: func(string) (string, error) { return "", errors.New("none") },
	})
	if err != nil {
		b.t.Fatalf("%s: %v", name, err)
	}
	return md
}

func blockText(t *testing.T, md *datasource.Metadata) string {
	t.Helper()
	text, err := yaml.Marshal(md.Slipway)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestANodeFindsTheSameOnEveryMedium(t *testing.T) {
	b := newBench(t)
	b.write(shop, Options{ExtraKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED lab"}})
	for _, node := range everybody {
		want := b.found(node + ".nocloud.iso")
		for _, ending := range []string{".nocloud.iso", ".configdrive.iso", ".ovf.iso"} {
			md := b.found(node + ending)
			if len(md.Warnings) > 0 || md.NetworkError != nil {
				t.Errorf("%s%s: %v, %v", node, ending, md.Warnings, md.NetworkError)
			}
			if md.Hostname != node || md.FQDN != node+".example.internal" || !strings.HasPrefix(md.InstanceID, node+"-") {
				t.Errorf("%s%s: called %s, %s, %s", node, ending, md.Hostname, md.FQDN, md.InstanceID)
			}
			m, err := member.Parse(blockText(t, md), now)
			if err != nil {
				t.Fatalf("%s%s: %v", node, ending, err)
			}
			if m.Self.Name != node || m.Plan.Generation != 1 {
				t.Errorf("%s%s: is %s", node, ending, m.Self.Name)
			}
			if !bytes.Equal(md.UserData, want.UserData) || blockText(t, md) != blockText(t, want) {
				t.Errorf("%s%s says something else than the NoCloud CD", node, ending)
			}
			if got, want := networkFiles(t, md), networkFiles(t, want); !reflect.DeepEqual(got, want) {
				t.Errorf("%s%s has another network: %s", node, ending, got)
			}
		}
	}
}

// networkFiles are networkd's files, without the line that names their source.
func networkFiles(t *testing.T, md *datasource.Metadata) map[string]string {
	t.Helper()
	files, err := netconf.Render(md.Network)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for name, data := range files {
		out[name] = regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(string(data), "")
	}
	return out
}

func TestTheNetworkIsTheTopologys(t *testing.T) {
	b := newBench(t)
	b.write(shop, Options{})
	var all []string
	for name, text := range networkFiles(t, b.found("a-db1.nocloud.iso")) {
		all = append(all, name+"\n"+text)
	}
	slices.Sort(all)
	got := strings.Join(all, "\n")
	for _, want := range []string{"PermanentMACAddress=52:54:00:00:00:11", "Address=192.0.2.11/24", "Gateway=192.0.2.1", "DNS=192.0.2.53", "Domains=example.internal", "MTUBytes=1400",
		"PermanentMACAddress=52:54:00:00:01:11", "VLAN=vlan77", "Id=77", "Address=198.51.100.11/24"} {
		if strings.Count(got, want) != 1 {
			t.Errorf("%q is there %d times in\n%s", want, strings.Count(got, want), got)
		}
	}
	if text := networkFiles(t, b.found("a-db2.nocloud.iso"))["10-slipway-nic0.network"]; !strings.Contains(text, "[Match]\nName=e*\n") || !strings.Contains(text, "Address=192.0.2.12/24") {
		t.Errorf("the only card:\n%s", text)
	}
}

// openStackNetwork is what network_data.json by itself says.
func openStackNetwork(t *testing.T, b *bench, node string) *netconf.Config {
	t.Helper()
	text, err := exec.Command("isoinfo", "-R", "-i", filepath.Join(b.out, node+".configdrive.iso"), "-x", "/openstack/latest/network_data.json").Output()
	if err != nil {
		t.Fatal(err)
	}
	cfg, warnings, err := netconf.ParseOpenStack("network_data.json", text)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v, %v", err, warnings)
	}
	return cfg
}

// The judges of the formats are those that they belong to.
func TestCloudInitAndNetplanAcceptTheFiles(t *testing.T) {
	for _, tool := range []string{"cloud-init", "netplan", "isoinfo"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("%s is missing: mkdir -p /etc/cloud && touch /etc/cloud/cloud-init.disabled && apt-get install -y --no-install-recommends netplan.io cloud-init genisoimage", tool)
		}
	}
	b := newBench(t)
	b.write(shop, Options{ExtraKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED lab"}})
	run := func(name string, args ...string) []byte {
		t.Helper()
		out, err := exec.Command(name, args...).CombinedOutput()
		if err != nil {
			t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return out
	}
	for _, node := range []string{"a-db1", "a-db2"} { // with cards that are told apart, and with one card
		dir := t.TempDir()
		extract := func(iso, file, to string) string {
			path := filepath.Join(dir, to)
			os.MkdirAll(filepath.Dir(path), 0o755)
			if err := os.WriteFile(path, run("isoinfo", "-R", "-i", filepath.Join(b.out, node+iso), "-x", "/"+file), 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		user := extract(".nocloud.iso", "user-data", "user-data")
		run("cloud-init", "schema", "-c", user)
		text, _ := os.ReadFile(user)
		for _, finding := range cloudconfig.Parse(cloudconfig.Document{Name: "user-data", Content: text}).Findings {
			t.Errorf("%s: %s", node, finding)
		}
		network := extract(".nocloud.iso", "network-config", "network-config")
		text, _ = os.ReadFile(network)
		path := filepath.Join(dir, "root/etc/netplan/50.yaml")
		os.MkdirAll(filepath.Dir(path), 0o755)
		os.WriteFile(path, []byte("network:\n  "+strings.ReplaceAll(string(text), "\n", "\n  ")), 0o600)
		run("netplan", "generate", "--root-dir", filepath.Join(dir, "root"))
		run("cloud-init", "devel", "net-convert", "-p", network, "-k", "yaml", "-d", t.TempDir(), "-D", "debian", "-O", "networkd")
	}
	// The node whose cards the topology knows by their addresses.
	path := filepath.Join(t.TempDir(), "network_data.json")
	os.WriteFile(path, run("isoinfo", "-R", "-i", filepath.Join(b.out, "a-db1.configdrive.iso"), "-x", "/openstack/latest/network_data.json"), 0o600)
	out := t.TempDir()
	run("cloud-init", "devel", "net-convert", "-p", path, "-k", "network_data.json", "-d", out, "-D", "debian", "-O", "netplan",
		"-m", "nic0,52:54:00:00:00:11", "-m", "nic1,52:54:00:00:01:11")
	converted, _ := os.ReadFile(filepath.Join(out, "etc/netplan/50-cloud-init.yaml"))
	for _, want := range []string{"192.0.2.11/24", "198.51.100.11/24", "192.0.2.1\n", "id: 77", "192.0.2.53"} {
		if !strings.Contains(string(converted), want) {
			t.Errorf("cloud-init does not find %q in the config drive:\n%s", want, converted)
		}
	}
	if cfg := openStackNetwork(t, b, "a-db1"); len(cfg.Links) != 3 {
		t.Errorf("network_data.json says %+v", cfg)
	}
}

func TestGovcTakesTheImportOptions(t *testing.T) {
	b := newBench(t)
	b.write(shop, Options{Formats: []Format{OVF}})
	data, err := os.ReadFile(filepath.Join(b.out, "a-db1.ovf.json"))
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var options importer.Options
	if err := decoder.Decode(&options); err != nil {
		t.Fatal(err)
	}
	if options.Name == nil || *options.Name != "a-db1" || !options.InjectOvfEnv {
		t.Errorf("options %+v", options)
	}
	got := map[string]string{}
	for _, p := range options.PropertyMapping {
		got[p.Key] = p.Value
	}
	// Those that the OVA declares (builder/export), and no others.
	if names := keys(got); !slices.Equal(names, []string{"hostname", "instance-id", "meta-data", "network-config", "user-data"}) {
		t.Errorf("properties %v", names)
	}
	meta, err := base64.StdEncoding.DecodeString(got["meta-data"])
	if err != nil || !bytes.Contains(meta, []byte("\nslipway:\n")) {
		t.Errorf("meta-data: %v", err)
	}
	if len(got["meta-data"]) > 60000 {
		t.Errorf("meta-data has %d characters; vSphere takes 65535", len(got["meta-data"]))
	}
	if names := filesIn(b.out); !slices.Contains(names, "a-db1.ovf.iso") || slices.Contains(names, "a-db1.nocloud.iso") {
		t.Errorf("files %v", names)
	}
}

func TestASeedHoldsNoKeyOfAnotherNodeNorOfAnAuthority(t *testing.T) {
	b := newBench(t)
	b.write(shop, Options{})
	stored, err := os.ReadFile(filepath.Join(b.dir, "cluster.store/store.json"))
	if err != nil {
		t.Fatal(err)
	}
	type pair struct{ Key string }
	var store struct {
		Authority     pair `json:"authority"`
		EtcdAuthority pair `json:"etcd_authority"`
		Nodes         map[string]struct {
			Certificates map[string]pair `json:"certificates"`
		} `json:"nodes"`
		Secrets map[string]string `json:"secrets"`
	}
	if err := json.Unmarshal(stored, &store); err != nil {
		t.Fatal(err)
	}
	// A line from the middle of a key is in it wherever it stands as text; the
	// OVF files hold it as base64, so they are looked at unpacked.
	secret := func(key string) string { return strings.Split(key, "\n")[1] }
	owners := map[string]string{secret(store.Authority.Key): "the authority", secret(store.EtcdAuthority.Key): "etcd's authority"}
	for node, n := range store.Nodes {
		for _, p := range n.Certificates {
			owners[secret(p.Key)] = node
		}
	}
	if len(owners) < 2+4*3 {
		t.Fatalf("%d keys", len(owners))
	}
	for name, data := range b.snapshot() {
		node, _, _ := strings.Cut(name, ".")
		text := data + unpacked(data)
		own := 0
		for key, owner := range owners {
			switch {
			case !strings.Contains(text, key):
			case owner == node:
				own++
			default:
				t.Errorf("%s holds a private key of %s", name, owner)
			}
		}
		if own == 0 {
			t.Errorf("%s: its own keys were not found, so this test proves nothing", name)
		}
		for what, password := range store.Secrets {
			if strings.Contains(text, password) != strings.Contains(node, "db") {
				t.Errorf("%s and the password %s", name, what)
			}
		}
	}
}

// unpacked is whatever long base64 stands in a text, decoded.
func unpacked(text string) string {
	var out strings.Builder
	for _, word := range regexp.MustCompile(`[A-Za-z0-9+/]{200,}={0,2}`).FindAllString(text, -1) {
		if data, err := base64.StdEncoding.DecodeString(word); err == nil {
			out.Write(data)
		}
	}
	return out.String()
}
