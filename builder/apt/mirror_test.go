package apt_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/internal/fault"
)

func debian(t *testing.T) *apt.Distribution {
	t.Helper()
	d, err := apt.LoadDistribution("../../profiles/distribution.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestMirrorsComeFromOptionsThenEnvironmentThenTheMachine(t *testing.T) {
	machine := []apt.Source{
		{URI: "https://packages.example.com/apt", Suites: []string{"stable"}},
		{URI: "http://mirror.example.net/debian/", Suites: []string{"bookworm", "bookworm-updates"}},
		{URI: "http://mirror.example.net/debian-security", Suites: []string{"bookworm-security"}},
		{URI: "http://odd.example.net/s", Suites: []string{"trixie-security"}},
	}
	tests := map[string]struct {
		options []string
		env     string
		sources []apt.Source
		want    string
	}{
		"option":          {[]string{"http://a/debian"}, "http://b/debian", machine, "[http://a/debian] [http://a/debian-security]"},
		"file":            {[]string{"file:///srv/debian/"}, "", nil, "[file:///srv/debian] [file:///srv/debian-security]"},
		"sibling given":   {[]string{"http://a/debian-security"}, "", nil, "[http://a/debian] [http://a/debian-security]"},
		"by alias":        {[]string{"main=http://a/x", "security=http://b/y"}, "", nil, "[http://a/x] [http://b/y]"},
		"two mirrors":     {[]string{"http://a/debian", "http://b/debian"}, "", nil, "[http://a/debian http://b/debian] [http://a/debian-security http://b/debian-security]"},
		"environment":     {nil, "http://b/debian,security=http://c/s", machine, "[http://b/debian] [http://b/debian-security http://c/s]"},
		"of the machine":  {nil, "", machine, "[http://mirror.example.net/debian] [http://mirror.example.net/debian-security http://odd.example.net/s]"},
		"cache in middle": {[]string{"http://localhost:3142/mirror.example.net/debian"}, "", nil, "[http://localhost:3142/mirror.example.net/debian] [http://localhost:3142/mirror.example.net/debian-security]"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := apt.Mirrors(debian(t), test.options, test.env, test.sources)
			if err != nil {
				t.Fatal(err)
			}
			if s := fmt.Sprint(got["main"], got["security"]); s != test.want {
				t.Errorf("got  %s\nwant %s", s, test.want)
			}
		})
	}
}

func TestMirrorMistakesAreUsageErrors(t *testing.T) {
	for name, option := range map[string]string{
		"unknown alias":   "updates=http://a/debian",
		"another scheme":  "ftp://a/debian",
		"no scheme":       "mirror/debian",
		"file on a host":  "file://host/debian",
		"sibling unknown": "http://a/my-mirror",
	} {
		if _, err := apt.Mirrors(debian(t), []string{option}, "", nil); fault.Of(err) != fault.Usage {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := apt.Mirrors(debian(t), nil, "", nil); fault.Of(err) != fault.Usage || fault.Mend(err) == "" {
		t.Errorf("nothing known: got %v", err)
	}
}

func TestBothFormatsOfAptSourcesAreRead(t *testing.T) {
	root := t.TempDir()
	write := func(name, content string) {
		path := filepath.Join(root, "etc/apt", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("sources.list", "# comment\ndeb-src http://src/debian trixie main\ndeb [arch=amd64 signed-by=/k.gpg] http://one/debian trixie main # more\n")
	write("sources.list.d/a.list", "deb\thttp://two/debian-security  trixie-security main\n")
	write("sources.list.d/b.sources", "Types: deb deb-src\nURIs: http://three/debian http://four/debian\nSuites: trixie trixie-updates\nComponents: main\n\nEnabled: no\nTypes: deb\nURIs: http://off/debian\nSuites: trixie\n")
	write("sources.list.d/c.bak", "nonsense")
	sources, err := apt.MachineSources(root)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range sources {
		got = append(got, s.URI)
	}
	want := "[http://one/debian http://two/debian-security http://three/debian http://four/debian]"
	if fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
	if apt.MachineAllowsExpired(root) {
		t.Error("allows expired, though nothing says so")
	}
	write("apt.conf.d/99x", "Acquire::Check-Valid-Until \"false\";\n")
	if !apt.MachineAllowsExpired(root) {
		t.Error("the setting was not seen")
	}
	write("sources.list", "deb http://one\n")
	if _, err := apt.MachineSources(root); fault.Of(err) != fault.Input {
		t.Errorf("half a line: got %v", err)
	}
}

func TestAMachineWithoutAptHasNoSources(t *testing.T) {
	if s, err := apt.MachineSources(t.TempDir()); err != nil || len(s) != 0 {
		t.Errorf("got %v, %v", s, err)
	}
}

func TestTheSnapshotServiceIsAskedForTheLocksTime(t *testing.T) {
	got := debian(t).SnapshotLocations(map[string]time.Time{"security": time.Date(2026, 11, 18, 22, 17, 43, 0, time.UTC)})
	if len(got) != 1 || len(got["security"]) != 2 {
		t.Fatalf("got %v", got)
	}
	for i, want := range []string{"archive/debian-security/20261119T041743Z", "archive/debian-security/20261118T221743Z"} {
		if u := got["security"][i]; len(u) < len(want) || u[len(u)-len(want):] != want {
			t.Errorf("got %s, want …/%s", u, want)
		}
	}
}
