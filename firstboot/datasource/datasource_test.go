package datasource

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/seed"
	"github.com/slipwayhq/slipway/internal/fault"
)

// machine is an Env that tests fill: disks by path, DMI serial, command line,
// guestinfo keys.
type machine struct {
	disks   map[string][]byte
	serial  string
	cmdline string
	guest   map[string]string
	slept   []time.Duration
	now     time.Time
}

type memory struct{ *bytes.Reader }

func (memory) Close() error { return nil }

func (m *machine) env(t testing.TB) Env {
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "proc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "proc/cmdline"), []byte(m.cmdline+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	env := Env{
		Root: root,
		Devices: func() ([]Device, error) {
			var out []Device
			for _, path := range []string{"/dev/sr0", "/dev/sr1", "/dev/vda", "/dev/vdb"} {
				if data, ok := m.disks[path]; ok {
					out = append(out, Device{path, func() (Medium, error) {
						if data == nil {
							return nil, &os.PathError{Op: "open", Path: path, Err: errors.New("no medium found")}
						}
						return memory{bytes.NewReader(data)}, nil
					}})
				}
			}
			return out, nil
		},
		DMI: func(field string) (string, error) { return m.serial, nil },
		Now: func() time.Time { return m.now },
		Sleep: func(_ context.Context, d time.Duration) error {
			m.slept = append(m.slept, d)
			m.now = m.now.Add(d)
			return nil
		},
	}
	if m.guest != nil {
		env.GuestInfo = func(_ context.Context, key string) (string, bool, error) {
			v, ok := m.guest[key]
			return v, ok, nil
		}
	}
	return env
}

func (m *machine) find(t testing.TB) (*Metadata, error) { return Find(context.Background(), m.env(t)) }

func (m *machine) mustFind(t testing.TB) *Metadata {
	t.Helper()
	md, err := m.find(t)
	if err != nil {
		t.Fatal(err)
	}
	return md
}

func image(t testing.TB, write func(io.Writer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func noCloud(t testing.TB, f seed.Files) []byte {
	return image(t, func(w io.Writer) error { return seed.NoCloudISO(w, f) })
}

func example() seed.Files {
	return seed.Files{
		MetaData:      []byte("instance-id: i-1\nlocal-hostname: db1.example.org\npublic-keys:\n- ssh-ed25519 AAAA one\nslipway:\n  cluster: shop\n"),
		UserData:      []byte("#cloud-config\ntimezone: UTC\n"),
		NetworkConfig: []byte("version: 2\nethernets:\n  ens3:\n    dhcp4: true\n"),
		VendorData:    []byte("#cloud-config\n"),
	}
}

func warned(md *Metadata, text string) bool {
	return strings.Contains(strings.Join(md.Warnings, "\n"), text)
}

func checkExample(t *testing.T, md *Metadata, source, location string) {
	t.Helper()
	if md.Source != source || md.Location != location {
		t.Errorf("source %q (%q), want %q (%q)", md.Source, md.Location, source, location)
	}
	if md.Hostname != "db1" || md.FQDN != "db1.example.org" || md.InstanceID != "i-1" {
		t.Errorf("host %q, name %q, id %q", md.Hostname, md.FQDN, md.InstanceID)
	}
	if !reflect.DeepEqual(md.PublicKeys, []string{"ssh-ed25519 AAAA one"}) {
		t.Errorf("keys %q", md.PublicKeys)
	}
	if string(md.UserData) != "#cloud-config\ntimezone: UTC\n" || string(md.VendorData) != "#cloud-config\n" {
		t.Errorf("user-data %q, vendor-data %q", md.UserData, md.VendorData)
	}
	if md.Network == nil || md.Network.Link("ens3") == nil || !md.Network.Link("ens3").DHCP4 {
		t.Errorf("network %+v", md.Network)
	}
	var block struct{ Cluster string }
	if md.Slipway == nil || md.Slipway.Decode(&block) != nil || block.Cluster != "shop" {
		t.Errorf("block slipway: %+v", md.Slipway)
	}
	if len(md.Warnings) > 0 {
		t.Errorf("warnings %q", md.Warnings)
	}
	if md.Fingerprint == "" {
		t.Error("no fingerprint")
	}
}

func TestNoCloudOnADisk(t *testing.T) {
	for name, disk := range map[string][]byte{
		"ISO": noCloud(t, example()), "vfat": image(t, func(w io.Writer) error { return seed.NoCloudVFAT(w, example()) }),
	} {
		t.Run(name, func(t *testing.T) {
			m := machine{disks: map[string][]byte{"/dev/sr0": nil, "/dev/vda": make([]byte, 1<<20), "/dev/vdb": disk}}
			checkExample(t, m.mustFind(t), NoCloud, "/dev/vdb")
		})
	}
}

func server(t *testing.T, files map[string]string, fail int) *httptest.Server {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fail > 0 {
			fail--
			http.Error(w, "later", http.StatusServiceUnavailable)
			return
		}
		text, ok := files[strings.TrimPrefix(r.URL.Path, "/seed/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		io.WriteString(w, text)
	}))
	t.Cleanup(s.Close)
	return s
}

func asText(f seed.Files) map[string]string {
	return map[string]string{"meta-data": string(f.MetaData), "user-data": string(f.UserData), "network-config": string(f.NetworkConfig), "vendor-data": string(f.VendorData)}
}

func TestNoCloudByURLWaitsForTheNetworkThenFetches(t *testing.T) {
	for _, place := range []string{"DMI serial number", "kernel command line"} {
		t.Run(place, func(t *testing.T) {
			s := server(t, asText(example()), 3)
			m := machine{}
			if ds := "ds=nocloud;s=" + s.URL + "/seed/"; place == "DMI serial number" {
				m.serial = ds
			} else {
				m.cmdline = `console=tty0 "` + strings.ReplaceAll(ds, ";", `\;`) + `" quiet`
			}
			_, err := m.find(t)
			var needs *NeedsNetworkError
			if !errors.As(err, &needs) || needs.URL != s.URL+"/seed/" || needs.Source != place {
				t.Fatalf("want NeedsNetworkError, got %v", err)
			}
			env := m.env(t)
			env.NetworkUp = true
			md, err := Find(context.Background(), env)
			if err != nil {
				t.Fatal(err)
			}
			checkExample(t, md, NoCloud, s.URL+"/seed/, named by the "+place)
			if want := []time.Duration{time.Second, 2 * time.Second, 4 * time.Second}; !reflect.DeepEqual(m.slept, want) {
				t.Errorf("waited %v between attempts, want %v", m.slept, want)
			}
		})
	}
}

func TestAURLMayLackTheOptionalFilesOnly(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"only the required": {map[string]string{"meta-data": "", "user-data": ""}, ""},
		"no meta-data":      {map[string]string{"user-data": ""}, "meta-data: the server says 404"},
		"no user-data":      {map[string]string{"meta-data": ""}, "user-data: the server says 404"},
	} {
		s := server(t, c.files, 0)
		m := machine{serial: "ds=nocloud-net;seedfrom=" + s.URL + "/seed"}
		env := m.env(t)
		env.NetworkUp = true
		_, err := Find(context.Background(), env)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

func TestAServerThatStaysDownIsGivenUp(t *testing.T) {
	s := server(t, nil, 1000)
	m := machine{serial: "ds=nocloud;s=" + s.URL}
	env := m.env(t)
	env.NetworkUp = true
	_, err := Find(context.Background(), env)
	if fault.Of(err) != fault.Network || !strings.Contains(err.Error(), "tried 10 times") {
		t.Errorf("got %v", err)
	}
}

func TestAnEndlessAnswerIsCutOff(t *testing.T) {
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		block := make([]byte, 1<<20)
		for {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	}))
	defer s.Close()
	m := machine{serial: "ds=nocloud;s=" + s.URL}
	env := m.env(t)
	env.NetworkUp = true
	if _, err := Find(context.Background(), env); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "limit of 16 MiB") {
		t.Errorf("got %v", err)
	}
}

func TestNoCloudByFileURLAndByNameAlone(t *testing.T) {
	m := machine{cmdline: "ds=nocloud;s=file:///seed/"}
	env := m.env(t)
	for name, text := range asText(example()) {
		os.MkdirAll(filepath.Join(env.Root, "seed"), 0o755)
		if err := os.WriteFile(filepath.Join(env.Root, "seed", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	md, err := Find(context.Background(), env)
	if err != nil {
		t.Fatal(err)
	}
	checkExample(t, md, NoCloud, "file:///seed/, named by the kernel command line")

	m = machine{serial: "ds=nocloud;h=web1;i=i-7"}
	if md := m.mustFind(t); md.Hostname != "web1" || md.InstanceID != "i-7" || md.Network != nil {
		t.Errorf("got %+v", md)
	}
}

func drive(t testing.TB, c seed.ConfigDrive) []byte {
	return image(t, func(w io.Writer) error { return seed.ConfigDriveISO(w, c) })
}

func TestConfigDrive(t *testing.T) {
	m := machine{disks: map[string][]byte{"/dev/sr0": drive(t, seed.ConfigDrive{
		MetaData: []byte(`{"uuid": "i-1", "name": "other", "hostname": "db1.example.org",
			"public_keys": {"one": "ssh-ed25519 AAAA one"}, "keys": [{"type": "ssh", "data": "ssh-ed25519 AAAA one"}],
			"meta": {"slipway": "cluster: shop"}, "admin_pass": "not-used"}`),
		UserData: []byte("#cloud-config\ntimezone: UTC\n"),
		NetworkData: []byte(`{"links": [{"id": "tap1", "type": "ovs", "ethernet_mac_address": "52:54:00:00:00:01", "name": "ens3"}],
			"networks": [{"id": "n0", "type": "ipv4_dhcp", "link": "tap1"}], "services": []}`),
		VendorData: []byte(`{"cloud-init": "#cloud-config\n"}`),
	})}}
	md := m.mustFind(t)
	checkExample(t, md, ConfigDrive, "/dev/sr0")
	if md.Password != "" {
		t.Error("the platform's random password was taken")
	}
}

func TestAConfigDriveMayHaveItsNetworkInCloudInitsFormat(t *testing.T) {
	meta := func(network string) []byte {
		return []byte(`{"uuid": "u", "meta": {"network-config": "version: 2\nethernets:\n  lan: {match: {name: e*}, addresses: [` + network + `]}\n"}}`)
	}
	other := []byte(`{"links": [{"id": "a", "type": "phy", "ethernet_mac_address": "52:54:00:00:00:01"}], "networks": [{"id": "n", "link": "a", "type": "ipv4_dhcp"}]}`)
	m := machine{disks: map[string][]byte{"/dev/sr0": drive(t, seed.ConfigDrive{MetaData: meta("192.0.2.10/24"), NetworkData: other})}}
	md := m.mustFind(t)
	if md.Network == nil || len(md.Network.Links) != 1 || md.Network.Links[0].DHCP4 || md.Network.Links[0].Addresses[0].Prefix.String() != "192.0.2.10/24" {
		t.Errorf("network %+v, %v", md.Network, md.NetworkError)
	}
	m = machine{disks: map[string][]byte{"/dev/sr0": drive(t, seed.ConfigDrive{MetaData: meta("wrong"), NetworkData: other})}}
	if md := m.mustFind(t); md.NetworkError == nil || !strings.Contains(md.NetworkError.Error(), "meta.network-config:3") {
		t.Errorf("a mistake in it: %v", md.NetworkError)
	}
}

func TestAConfigDriveMayHaveEmptyJSON(t *testing.T) {
	for _, empty := range []string{"", " \n", "{}", "null"} {
		m := machine{disks: map[string][]byte{"/dev/sr0": drive(t, seed.ConfigDrive{
			MetaData: []byte(`{"uuid": "u"}`), NetworkData: []byte(empty), VendorData: []byte(empty),
		})}}
		if md := m.mustFind(t); md.Network != nil || md.VendorData != nil {
			t.Errorf("%q: network %+v, vendor data %q", empty, md.Network, md.VendorData)
		}
	}
}

func ovf() seed.OVF {
	f := example()
	return seed.OVF{InstanceID: "x", Hostname: "db1.example.org", PublicKeys: "ssh-ed25519 AAAA one", Files: f}
}

func TestOVFEnvironmentOnACDAndInGuestinfo(t *testing.T) {
	m := machine{disks: map[string][]byte{"/dev/sr0": image(t, func(w io.Writer) error { return seed.OVFISO(w, ovf()) })}}
	checkExample(t, m.mustFind(t), OVF, "/dev/sr0")

	xml := string(image(t, func(w io.Writer) error { return seed.OVFEnv(w, ovf()) }))
	m = machine{guest: map[string]string{"guestinfo.ovfEnv": xml}}
	checkExample(t, m.mustFind(t), OVF, "guestinfo.ovfEnv")
}

func TestOVFPropertiesComePlainOrPackedAndKeepThePassword(t *testing.T) {
	packed := func(s string) string {
		var b bytes.Buffer
		z := gzip.NewWriter(&b)
		io.WriteString(z, s)
		z.Close()
		return base64.StdEncoding.EncodeToString(b.Bytes())
	}
	for name, userData := range map[string]string{
		"plain": "#cloud-config\ntimezone: UTC\n", "base64": base64.StdEncoding.EncodeToString([]byte("#cloud-config\ntimezone: UTC\n")), "gzip": packed("#cloud-config\ntimezone: UTC\n"),
	} {
		xml := `<?xml version="1.0"?><Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" xmlns:oe="http://schemas.dmtf.org/ovf/environment/1">
			<PlatformSection><Kind>VMware ESXi</Kind></PlatformSection>
			<PropertySection><Property oe:key="user-data" oe:value="` + strings.ReplaceAll(userData, "\n", "&#10;") + `"/>
			<Property oe:key="password" oe:value=" secret "/><Property oe:key="seedfrom" oe:value="http://x/"/><Property oe:key="empty" oe:value=""/></PropertySection>
			<Entity oe:id="other"><PropertySection><Property oe:key="hostname" oe:value="another-machine"/></PropertySection></Entity>
			</Environment>`
		m := machine{guest: map[string]string{"guestinfo.ovfEnv": xml}}
		md := m.mustFind(t)
		if string(md.UserData) != "#cloud-config\ntimezone: UTC\n" || md.Password != " secret " || md.Hostname != "" {
			t.Errorf("%s: %q %q %q", name, md.UserData, md.Password, md.Hostname)
		}
		if len(md.Warnings) != 1 || !warned(md, `property "seedfrom"`) {
			t.Errorf("%s: warnings %q", name, md.Warnings)
		}
	}
}

func TestAnOVFEnvironmentWithItsDefaultsAloneIsNoMetadata(t *testing.T) {
	xml := string(image(t, func(w io.Writer) error { return seed.OVFEnv(w, seed.OVF{InstanceID: "id-ovf"}) }))
	m := machine{guest: map[string]string{"guestinfo.ovfEnv": xml}}
	if _, err := m.find(t); !IsNone(err) || !strings.Contains(err.Error(), "all of its properties are empty") {
		t.Errorf("got %v", err)
	}
}

func TestVMwareGuestinfo(t *testing.T) {
	f := example()
	meta := string(f.MetaData) + "network:\n  version: 2\n  ethernets:\n    ens3:\n      dhcp4: true\n"
	encoded := base64.StdEncoding.EncodeToString([]byte(meta))
	for name, guest := range map[string]map[string]string{
		"plain":           {"guestinfo.metadata": meta},
		"base64":          {"guestinfo.metadata": encoded, "guestinfo.metadata.encoding": "base64"},
		"network encoded": {"guestinfo.metadata": string(f.MetaData) + "network: " + base64.StdEncoding.EncodeToString(f.NetworkConfig) + "\nnetwork.encoding: b64\n"},
	} {
		t.Run(name, func(t *testing.T) {
			guest["guestinfo.userdata"], guest["guestinfo.vendordata"] = string(f.UserData), string(f.VendorData)
			m := machine{guest: guest}
			checkExample(t, m.mustFind(t), VMware, "guestinfo")
		})
	}
	m := machine{guest: map[string]string{"guestinfo.metadata": "%%%", "guestinfo.metadata.encoding": "base64"}}
	if _, err := m.find(t); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "guestinfo.metadata") {
		t.Errorf("got %v", err)
	}
	m = machine{guest: map[string]string{"guestinfo.userdata": "---", "guestinfo.metadata": " "}}
	if _, err := m.find(t); !IsNone(err) {
		t.Errorf("keys that were cleared: got %v", err)
	}
}

func TestWithoutMetadataTheErrorSaysWhatWasLookedAt(t *testing.T) {
	m := machine{serial: "VMW-1234", cmdline: "quiet", disks: map[string][]byte{"/dev/sr0": nil, "/dev/vda": make([]byte, 4096)}}
	_, err := m.find(t)
	for _, want := range []string{"/dev/sr0 (no medium found)", "/dev/vda (no seed)", "the DMI serial number", "kernel command line", "VMware guestinfo"} {
		if !IsNone(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in: %v", want, err)
		}
	}
}

func TestOfTwoSeedsThatDifferTheFirstIsUsedAndTheOtherNamed(t *testing.T) {
	other := example()
	other.MetaData = []byte("local-hostname: web1\n")
	m := machine{
		disks:  map[string][]byte{"/dev/sr0": noCloud(t, example()), "/dev/sr1": noCloud(t, other), "/dev/vdb": drive(t, seed.ConfigDrive{MetaData: []byte(`{}`)})},
		serial: "ds=nocloud;s=http://192.0.2.1/",
		guest:  map[string]string{"guestinfo.userdata": "#cloud-config\n"},
	}
	for range 3 {
		md := m.mustFind(t)
		if md.Location != "/dev/sr0" || md.Hostname != "db1" {
			t.Errorf("used %s", md)
		}
		for _, want := range []string{"NoCloud (/dev/sr1) also", "http://192.0.2.1/, which has no effect", "ConfigDrive (/dev/vdb) also", "VMware guestinfo (guestinfo) also"} {
			if !warned(md, want) {
				t.Errorf("no warning %q in %q", want, md.Warnings)
			}
		}
	}
	m = machine{disks: map[string][]byte{"/dev/sr0": noCloud(t, example()), "/dev/vdb": image(t, func(w io.Writer) error { return seed.NoCloudVFAT(w, example()) })}}
	if md := m.mustFind(t); len(md.Warnings) > 0 {
		t.Errorf("the same seed twice is no conflict: %q", md.Warnings)
	}
}

func TestADriveThatAppearsLateIsWaitedForWithinBounds(t *testing.T) {
	m := machine{disks: map[string][]byte{}}
	env := m.env(t)
	looks := 0
	list := env.Devices
	env.Devices = func() ([]Device, error) {
		if looks++; looks == 4 {
			m.disks["/dev/sr0"] = noCloud(t, example())
		}
		return list()
	}
	md, err := FindWithin(context.Background(), env, 10*time.Second, time.Second)
	if err != nil || md.Hostname != "db1" || len(m.slept) != 3 {
		t.Errorf("%v, %v after waiting %v", md, err, m.slept)
	}
	m = machine{}
	if _, err := FindWithin(context.Background(), m.env(t), 5*time.Second, time.Second); !IsNone(err) || len(m.slept) != 5 {
		t.Errorf("%v after waiting %v", err, m.slept)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	env = (&machine{}).env(t)
	env.Sleep = nil
	if _, err := FindWithin(ctx, env, time.Hour, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestWhatIsWrongIsNamedWithSourceFileAndLine(t *testing.T) {
	with := func(change func(*seed.Files)) map[string][]byte {
		f := example()
		change(&f)
		return map[string][]byte{"/dev/sr0": noCloud(t, f)}
	}
	whole := noCloud(t, example())
	for name, c := range map[string]struct {
		m    machine
		want string
	}{
		"broken YAML":       {machine{disks: with(func(f *seed.Files) { f.MetaData = []byte("a: 1\nb: [1\nc: 2\n") })}, "NoCloud (/dev/sr0): meta-data:"},
		"tab":               {machine{disks: with(func(f *seed.Files) { f.MetaData = []byte("a: 1\n\tb: 2\n") })}, "meta-data:2: not valid YAML"},
		"no mapping":        {machine{disks: with(func(f *seed.Files) { f.MetaData = []byte("\n- one\n") })}, "meta-data:2: must hold keys"},
		"nothing in it":     {machine{disks: map[string][]byte{"/dev/sr0": relabel(t, "cidata")}}, "neither meta-data nor user-data; it holds ovf-env.xml"},
		"wrong drive":       {machine{disks: map[string][]byte{"/dev/sr0": relabel(t, "config-2")}}, "neither openstack/latest/meta_data.json"},
		"truncated ISO":     {machine{disks: map[string][]byte{"/dev/sr0": whole[:50000]}}, "truncated"},
		"broken JSON":       {machine{disks: map[string][]byte{"/dev/sr0": drive(t, seed.ConfigDrive{MetaData: []byte("{\n\"uuid\":\n}")})}}, "openstack/latest/meta_data.json:3: not valid JSON"},
		"JSON of a type":    {machine{disks: map[string][]byte{"/dev/sr0": drive(t, seed.ConfigDrive{MetaData: []byte("{\n\"uuid\": 7}")})}}, "openstack/latest/meta_data.json:2:"},
		"vendor data":       {machine{disks: map[string][]byte{"/dev/sr0": drive(t, seed.ConfigDrive{MetaData: []byte("{}"), VendorData: []byte("[1]")})}}, "vendor_data.json: the vendor data must be a string"},
		"broken OVF":        {machine{guest: map[string]string{"guestinfo.ovfEnv": "<Environment xmlns='http://schemas.dmtf.org/ovf/environment/1'>\n<a>"}}, "guestinfo.ovfEnv:2: not valid XML"},
		"other XML":         {machine{guest: map[string]string{"guestinfo.ovfEnv": "<html/>"}}, "not an OVF environment but <html"},
		"URL of other kind": {machine{serial: "ds=nocloud;s=ftp://x/"}, "NoCloud by the DMI serial number: s=ftp://x/ is neither"},
	} {
		md, err := c.m.find(t)
		if fault.Of(err) != fault.Input || !strings.Contains(err.Error(), c.want) || fault.Mend(err) == "" {
			t.Errorf("%s: got %v, %v (mend %q)\nwant %s", name, md, err, fault.Mend(err), c.want)
		}
	}
}

func TestABrokenNetworkConfigurationLeavesTheRestOfTheSeed(t *testing.T) {
	const broken = "version: 2\nethernets:\n  a:\n    dhcp4: perhaps\n    mtu: many\n"
	f := example()
	f.NetworkConfig = []byte(broken)
	inline := example()
	inline.NetworkConfig, inline.MetaData = nil, append(inline.MetaData, "network: {version: 3}\n"...)
	for name, c := range map[string]struct {
		m    machine
		want []string
	}{
		"two mistakes":    {machine{disks: map[string][]byte{"/dev/sr0": noCloud(t, f)}}, []string{"NoCloud (/dev/sr0): network-config:4: dhcp4", "network-config:5: mtu"}},
		"no YAML":         {machine{disks: map[string][]byte{"/dev/sr0": noCloud(t, seed.Files{MetaData: f.MetaData, NetworkConfig: []byte("a: [\n")})}}, []string{"network-config:"}},
		"in meta-data":    {machine{disks: map[string][]byte{"/dev/sr0": noCloud(t, inline)}}, []string{"meta-data, network:1: version"}},
		"OpenStack":       {machine{disks: map[string][]byte{"/dev/sr0": drive(t, seed.ConfigDrive{MetaData: []byte(`{"hostname": "db1"}`), NetworkData: []byte("{\n\"links\": 7}")})}}, []string{"network_data.json:2: links"}},
		"VMware encoding": {machine{guest: map[string]string{"guestinfo.metadata": "local-hostname: db1\nnetwork: '%%'\nnetwork.encoding: base64\n"}}, []string{"guestinfo.metadata: network: "}},
		"OVF encoding":    {machine{guest: map[string]string{"guestinfo.ovfEnv": "<Environment xmlns='http://schemas.dmtf.org/ovf/environment/1'><PropertySection><Property key='hostname' value='db1'/><Property key='network-config' value='H4sIAAAA'/></PropertySection></Environment>"}}, []string{"property network-config: "}},
	} {
		md, err := c.m.find(t)
		if err != nil {
			t.Errorf("%s: the whole seed is refused: %v", name, err)
			continue
		}
		if md.Hostname != "db1" || md.Network != nil || fault.Of(md.NetworkError) != fault.Input || fault.Mend(md.NetworkError) == "" {
			t.Errorf("%s: host name %q, network %+v, error %v", name, md.Hostname, md.Network, md.NetworkError)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(md.NetworkError.Error(), want) {
				t.Errorf("%s: %v\nlacks %s", name, md.NetworkError, want)
			}
		}
	}
}

func TestAFileNetworkConfigWinsOverABrokenOneInMetaData(t *testing.T) {
	f := example()
	f.MetaData = append(f.MetaData, "network: '%%'\nnetwork.encoding: base64\n"...)
	m := machine{disks: map[string][]byte{"/dev/sr0": noCloud(t, f)}}
	if md := m.mustFind(t); md.NetworkError != nil || md.Network == nil {
		t.Errorf("network %+v, error %v", md.Network, md.NetworkError)
	}
}

// relabel makes a CD with the label and without what belongs to it.
func relabel(t *testing.T, label string) []byte {
	disk := image(t, func(w io.Writer) error { return seed.OVFISO(w, seed.OVF{Hostname: "x"}) })
	copy(disk[16*2048+40:16*2048+72], label+strings.Repeat(" ", 32))
	return disk
}

func TestADiskThatCannotBeReadDoesNotHideTheSeed(t *testing.T) {
	broken := relabel(t, "INSTALLER")[:17*2048+10]
	m := machine{disks: map[string][]byte{"/dev/sr0": broken, "/dev/sr1": noCloud(t, example())}}
	md := m.mustFind(t)
	if md.Location != "/dev/sr1" || !warned(md, "/dev/sr0 cannot be read") {
		t.Errorf("%s, warnings %q", md, md.Warnings)
	}
}

func TestPublicKeysInAllTheirForms(t *testing.T) {
	for text, want := range map[string][]string{
		"public-keys: ssh-rsa A":                                    {"ssh-rsa A"},
		"public-keys: |\n  ssh-rsa A\n  # comment\n\n  ssh-rsa B\n": {"ssh-rsa A", "ssh-rsa B"},
		"public-keys: [ssh-rsa A, ssh-rsa B, ssh-rsa A]":            {"ssh-rsa A", "ssh-rsa B"},
		"public_keys: {one: ssh-rsa A, two: [ssh-rsa B]}":           {"ssh-rsa A", "ssh-rsa B"},
		"public-keys: {'0': {openssh-key: ssh-rsa A}}":              {"ssh-rsa A"},
		"public-keys:":            nil,
		"public-keys: [{odd: 1}]": nil,
	} {
		var md Metadata
		if _, err := md.readMeta("meta-data", []byte(text)); err != nil || !reflect.DeepEqual(md.PublicKeys, want) {
			t.Errorf("%s: %q, %v", text, md.PublicKeys, err)
		}
	}
}

func TestHostNamesAreCheckedAndSplit(t *testing.T) {
	for name, want := range map[string][2]string{
		"db1": {"db1", ""}, "db1.example.org": {"db1", "db1.example.org"}, "db1.": {"db1", ""}, "-x": {}, "a_b": {}, "a b": {}, "a..b": {},
		strings.Repeat("x", 64): {}, "$(reboot)": {}, "": {},
	} {
		var md Metadata
		md.setHostname(name)
		if md.Hostname != want[0] || md.FQDN != want[1] {
			t.Errorf("%q: %q %q", name, md.Hostname, md.FQDN)
		}
		if name != "" && want[0] == "" && len(md.Warnings) != 1 {
			t.Errorf("%q: no warning", name)
		}
	}
}

func TestUnknownKeysOfMetaDataAreReportedWithTheirLine(t *testing.T) {
	var md Metadata
	_, err := md.readMeta("meta-data", []byte("instance-id: x\nlocal_hostnam: db1\ndsmode: local\nlocal-hostname: [a]\n"))
	if err != nil || len(md.Warnings) != 2 || !warned(&md, `meta-data:2: key "local_hostnam" is not known`) || !warned(&md, "meta-data:4: local-hostname must be a single value") {
		t.Errorf("%q, %v", md.Warnings, err)
	}
}

func TestDevicesOfTheMachineAreListedCDsFirst(t *testing.T) {
	root := t.TempDir()
	for name, size := range map[string]string{"vda": "100", "vda1": "50", "sr0": "8", "loop0": "100", "sdb": "0", "ram0": "1", "fd0": "8", "dm-0": "8"} {
		dir := filepath.Join(root, "sys/class/block", name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "size"), []byte(size+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	devices, err := listDevices(root)
	var got []string
	for _, d := range devices {
		got = append(got, d.Path)
	}
	if err != nil || !reflect.DeepEqual(got, []string{"/dev/sr0", "/dev/vda", "/dev/vda1"}) {
		t.Errorf("%v, %v", got, err)
	}
}
