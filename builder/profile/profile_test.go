package profile

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/internal/fault"
)

// repository is the project's own root, whose profiles are the real input.
const repository = "../.."

func TestTheRepositorysProfilesLoad(t *testing.T) {
	set, err := Load(filepath.Join(repository, "profiles"))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"balancer", "broker", "db-master", "db-replica", "desktop", "dispatcher", "gateway", "mirror", "repository"}
	if got := set.Names(); !slices.Equal(got, want) {
		t.Errorf("roles are %v, want %v", got, want)
	}
	for _, p := range set.Roles {
		// The repository's port is opened by the plan, to databases alone.
		if len(p.Services) == 0 || len(p.Ports) == 0 && p.Role != "repository" {
			t.Errorf("%s has no services or no ports", p.Role)
		}
		if p.VM != (VM{CPUs: 2, Memory: 4 * GiB, Disk: 30 * GiB}) {
			t.Errorf("%s asks for %+v, not for 2 CPUs, 4 GiB and 30 GiB", p.Role, p.VM)
		}
	}
}

func TestMasterAndReplicaShareAPackageLayer(t *testing.T) {
	set, err := Load(filepath.Join(repository, "profiles"))
	if err != nil {
		t.Fatal(err)
	}
	master, _ := set.Role("db-master")
	replica, _ := set.Role("db-replica")
	if !slices.Equal(master.Packages, replica.Packages) {
		t.Errorf("packages differ: %v and %v", master.Packages, replica.Packages)
	}
	for name, content := range master.Preseed {
		if replica.Preseed[name] != content {
			t.Errorf("preseed %s differs", name)
		}
	}
}

func TestTheMarkerHoldsBasesFactsToo(t *testing.T) {
	set, err := Load(filepath.Join(repository, "profiles"))
	if err != nil {
		t.Fatal(err)
	}
	p, _ := set.Role("broker")
	m := set.Marker(p)
	if !slices.Contains(m.State, "/var/lib/slipway") || !slices.Contains(m.State, "/var/server") {
		t.Errorf("state is %v", m.State)
	}
	if m.Ports[0].Port != "22" || m.Ports[len(m.Ports)-1].Port != "443" {
		t.Errorf("ports are %v", m.Ports)
	}
}

func TestAnUnknownRoleNamesTheKnownOnesAndTheNearest(t *testing.T) {
	set, err := Load(filepath.Join(repository, "profiles"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = set.Role("db-mastr")
	if err == nil || !strings.Contains(err.Error(), "balancer, broker, db-master") {
		t.Errorf("the error is %v", err)
	}
	if fault.Of(err) != fault.Input || fault.Mend(err) != "did you mean db-master?" {
		t.Errorf("class %v, mend %q", fault.Of(err), fault.Mend(err))
	}
}

func TestAWrongProfileIsRefusedAtItsPlace(t *testing.T) {
	const head = "role: web\nsummary: A web server\n"
	const vm = "vm: {cpus: 2, memory: 4GiB, disk: 30GiB}\n"
	for name, c := range map[string]struct{ yaml, want, mend string }{
		"unknown field":     {head + "pakages: [nginx]\n", "web.yaml:3:1: pakages: this field is not known", "did you mean packages?"},
		"unknown in vm":     {head + "vm: {cpu: 2}\n", "web.yaml:3:6: vm.cpu: this field is not known", "did you mean cpus?"},
		"nothing near":      {head + "zzz: 1\n", "web.yaml:3:1: zzz: this field is not known", "the fields here are"},
		"given twice":       {head + "summary: again\n", "web.yaml:3:1: summary: given twice, first in line 2", "keep one"},
		"list wanted":       {head + "packages: nginx\n", "web.yaml:3:11: packages: a list is wanted", ""},
		"number wanted":     {head + "vm: {cpus: many}\n", "web.yaml:3:12: vm.cpus: a whole number is wanted", ""},
		"no unit":           {head + "vm: {cpus: 2, memory: 4096, disk: 30GiB}\n", "web.yaml:3:23: vm.memory: \"4096\" has no known unit", ""},
		"decimal unit":      {head + "vm: {cpus: 2, memory: 4GB, disk: 30GiB}\n", "web.yaml:3:23: vm.memory:", ""},
		"small disk":        {head + "vm: {cpus: 2, memory: 4GiB, disk: 1GiB}\n", "web.yaml:3:35: vm.disk: 1GiB is too small", ""},
		"no machine":        {head, "vm.cpus: 0 is not", ""},
		"other name":        {"role: wbe\nsummary: x\n", "web.yaml:1:7: role: \"wbe\" stands in a file named web.yaml", "one name"},
		"no summary":        {"role: web\n" + vm, "summary: one line that says", ""},
		"package twice":     {head + "packages:\n  - nginx\n  - nginx\n" + vm, "web.yaml:5:5: packages[1]: nginx is listed twice", "remove one"},
		"package name":      {head + "packages: [Nginx]\n" + vm, "packages[0]: \"Nginx\" is not a Debian package name", ""},
		"package in base":   {head + "packages: [systemd-sysv]\n" + vm, "systemd-sysv is in", "remove it from the role"},
		"service suffix":    {head + "services: [nginx]\n" + vm, "services[0]: \"nginx\" is not a systemd unit", ""},
		"state relative":    {head + "state: [var/lib]\n" + vm, "web.yaml:3:9: state[0]", ""},
		"state overlaps":    {head + "state: [/var/lib, /var/lib/x]\n" + vm, "state[1]: /var/lib/x and /var/lib overlap", "keep the outer"},
		"port range":        {head + "ports: [{port: \"70000\", proto: tcp, from: any, why: x}]\n" + vm, "web.yaml:3:16: ports[0].port: \"70000\" is not a port", ""},
		"port backwards":    {head + "ports: [{port: \"20-10\", proto: tcp, from: any, why: x}]\n" + vm, "ports[0].port", ""},
		"port protocol":     {head + "ports: [{port: \"1\", proto: sctp, from: any, why: x}]\n" + vm, "ports[0].proto: \"sctp\" is not", ""},
		"port audience":     {head + "ports: [{port: \"1\", proto: tcp, from: all, why: x}]\n" + vm, "ports[0].from: \"all\" is not", ""},
		"port unexplained":  {head + "ports: [{port: \"1\", proto: tcp, from: any}]\n" + vm, "ports[0].why", ""},
		"butane elsewhere":  {head + "butane: ../x.bu\n" + vm, "butane: \"../x.bu\" is not the name of a .bu file", ""},
		"preseed relative":  {head + "preseed: {etc/x: y}\n" + vm, "preseed: \"etc/x\" is not a clean absolute path", ""},
		"preseed traversal": {head + "preseed: {/etc/../x: y}\n" + vm, "preseed: \"/etc/../x\" is not a clean", ""},
		"broken yaml":       {"role: [web\n", "web.yaml: line", "mend the YAML"},
		"not a mapping":     {"- web\n", "web.yaml:1: this is not a mapping", ""},
		"no value":          {head + "butane:\n" + vm, "web.yaml:3:8: butane: there is no value", "remove the field"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProject(t)
			p.write("profiles/web.yaml", c.yaml)
			_, err := Load(p.profiles())
			if err == nil {
				t.Fatal("it was accepted")
			}
			if !strings.Contains(err.Error(), c.want) || !strings.Contains(fault.Mend(err), c.mend) {
				t.Errorf("got  %v (%s)\nwant %s (%s)", err, fault.Mend(err), c.want, c.mend)
			}
			if fault.Of(err) != fault.Input {
				t.Errorf("class is %v, want input", fault.Of(err))
			}
		})
	}
}

func TestADirectoryWithoutProfilesSaysWhatToDo(t *testing.T) {
	_, err := Load(t.TempDir())
	if fault.Of(err) != fault.Input || fault.Mend(err) == "" {
		t.Errorf("got %v (%s)", err, fault.Mend(err))
	}
	p := newProject(t)
	if err := os.Remove(filepath.Join(p.profiles(), "base.yaml")); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(p.profiles()); err == nil || !strings.Contains(err.Error(), "no base.yaml") {
		t.Errorf("got %v", err)
	}
}

func TestTheDistributionIsNotAProfile(t *testing.T) {
	p := newProject(t)
	p.write("profiles/"+DistributionFile, "suite: trixie\n")
	if _, err := Load(p.profiles()); err != nil {
		t.Error(err)
	}
}

func TestSizesKeepTheirTextForm(t *testing.T) {
	for text, want := range map[string]Size{"4GiB": 4 * GiB, "30 GiB": 30 * GiB, "512MiB": 512 * MiB, "1TiB": TiB, "7B": 7, "0B": 0} {
		got, err := ParseSize(text)
		if err != nil || got != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", text, got, err, want)
		}
		if again, err := ParseSize(got.String()); err != nil || again != got {
			t.Errorf("%q writes as %q, which reads as %d, %v", text, got, again, err)
		}
	}
	for _, text := range []string{"", "4", "4G", "4GB", "-4GiB", "4.5GiB", "GiB", "9999999999TiB", "4GiBGiB"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", text, got)
		}
	}
}

func FuzzProfile(f *testing.F) {
	files, _ := filepath.Glob(filepath.Join(repository, "profiles", "*.yaml"))
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("a: &a [*a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if p, err := parse("web.yaml", data); err == nil && p.Role != "web" {
			t.Errorf("a profile named %q was accepted as web", p.Role)
		} else if err != nil && fault.Of(err) != fault.Input {
			t.Errorf("class %v: %v", fault.Of(err), err)
		}
	})
}
