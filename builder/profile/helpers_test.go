package profile

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/slipwayhq/slipway/builder/tree"
)

// record writes golden files anew. The test then fails, so that nobody commits a
// run that checked nothing.
var record = flag.Bool("record", false, "write the golden files anew, and fail")

const date = 1_700_000_000

// project is a directory with profiles/ and overlays/, as a user would keep it.
type project struct {
	t   *testing.T
	dir string
}

// newProject holds a base, tools and one role "web" with overlay "web".
func newProject(t *testing.T) project {
	p := project{t, t.TempDir()}
	p.write("profiles/base.yaml", "role: base\nsummary: What all stand on\npackages: [systemd-sysv]\noverlays: [base]\nstate: [/var/log]\n")
	p.write("profiles/tools.yaml", "role: tools\nsummary: What the build runs\npackages: [grub-common]\n")
	p.write("profiles/web.yaml", "role: web\nsummary: A web server\npackages: [nginx]\noverlays: [web]\nvm: {cpus: 2, memory: 4GiB, disk: 30GiB}\n")
	p.write("overlays/base/etc/locale.conf", "LANG=C.UTF-8\n")
	p.write("overlays/web/etc/web.conf", "listen 80\n")
	return p
}

func (p project) write(name, content string) {
	p.t.Helper()
	full := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// butane gives the role web a Butane file with the given sections.
func (p project) butane(sections string) {
	p.write("profiles/web.yaml", "role: web\nsummary: A web server\noverlays: [web]\nbutane: web.bu\nvm: {cpus: 2, memory: 4GiB, disk: 30GiB}\n")
	p.write("profiles/web.bu", "variant: fcos\nversion: 1.6.0\n"+sections)
}

func (p project) profiles() string { return filepath.Join(p.dir, "profiles") }

func (p project) input(lower ...*tree.Tree) Input {
	return Input{Overlays: filepath.Join(p.dir, "overlays"), Date: date, Lower: lower}
}

// config makes the config layer of the role web.
func (p project) config(lower ...*tree.Tree) (*tree.Tree, error) {
	set, err := Load(p.profiles())
	if err != nil {
		return nil, err
	}
	role, err := set.Role("web")
	if err != nil {
		return nil, err
	}
	return set.Config(role, p.input(lower...))
}

func (p project) mustConfig(lower ...*tree.Tree) *tree.Tree {
	p.t.Helper()
	t, err := p.config(lower...)
	if err != nil {
		p.t.Fatal(err)
	}
	return t
}

// packages is a package layer: the account databases and a few files.
func packages(t *testing.T, files map[string]string) *tree.Tree {
	t.Helper()
	out := tree.New()
	for name, content := range map[string]string{
		"etc/passwd":  "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33:www-data:/var/www:/usr/sbin/nologin\n",
		"etc/group":   "root:x:0:\nshadow:x:42:\nwww-data:x:33:\n",
		"etc/gshadow": "root:*::\nshadow:*::\nwww-data:*::\n",
	} {
		putFile(t, out, name, 0o644, content)
	}
	putFile(t, out, "etc/shadow", 0o640, "root:*:19000:0:99999:7:::\nwww-data:*:19000:0:99999:7:::\n")
	out.Get("etc/shadow").GID = 42
	for name, content := range files {
		putFile(t, out, name, 0o644, content)
	}
	return out
}

func putFile(t *testing.T, to *tree.Tree, name string, perm uint32, content string) {
	t.Helper()
	if err := to.PutFile(name, perm, date, []byte(content)); err != nil {
		t.Fatal(err)
	}
}

// list writes a tree as text, one line an entry.
func list(t *tree.Tree) string {
	var b strings.Builder
	for _, e := range t.Sorted() {
		b.WriteString(line(e))
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "golden", name)
	if *record {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Errorf("recorded %s; run again without -record", file)
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s differs (-want +got), go test -record writes it anew:\n%s", file, diff)
	}
}
