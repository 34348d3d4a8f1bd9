package profile

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// line describes an entry: kind, mode, owner, path, and target or size.
func line(e *tree.Entry) string {
	switch e.Kind {
	case tree.Dir:
		return fmt.Sprintf("d %04o %d:%d /%s\n", e.Perm, e.UID, e.GID, strings.TrimPrefix(e.Path, "."))
	case tree.Symlink:
		return fmt.Sprintf("l %04o %d:%d /%s -> %s\n", e.Perm, e.UID, e.GID, e.Path, e.Target)
	case tree.Char:
		return fmt.Sprintf("c %04o %d:%d /%s %d:%d\n", e.Perm, e.UID, e.GID, e.Path, e.Major, e.Minor)
	}
	return fmt.Sprintf("f %04o %d:%d /%s\n", e.Perm, e.UID, e.GID, e.Path)
}

// debian is a stand-in for the package layers: the units that the profiles
// enable, with the [Install] sections that trixie's packages have, and the users
// that their maintainer scripts make.
func debian(t *testing.T) *tree.Tree {
	const multiUser = "[Install]\nWantedBy=multi-user.target\n"
	units := map[string]string{
		"ssh.service":               multiUser + "Alias=sshd.service\n",
		"systemd-networkd.service":  multiUser + "Also=systemd-networkd.socket\nAlias=dbus-org.freedesktop.network1.service\n",
		"systemd-networkd.socket":   "[Install]\nWantedBy=sockets.target\n",
		"systemd-resolved.service":  "[Install]\nWantedBy=sysinit.target\nAlias=dbus-org.freedesktop.resolve1.service\n",
		"systemd-timesyncd.service": "[Install]\nWantedBy=sysinit.target\nAlias=dbus-org.freedesktop.timesync1.service\n",
		"nftables.service":          "[Install]\nWantedBy=sysinit.target\n",
		"getty@.service":            "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n",
		"fstrim.timer":              "[Install]\nWantedBy=timers.target\n",
		"docker.socket":             "[Install]\nWantedBy=sockets.target\n",
	}
	for _, name := range []string{"etcd", "patroni", "pgbackrest", "keepalived", "haproxy", "nginx", "containerd", "docker"} {
		units[name+".service"] = multiUser
	}
	files := map[string]string{
		"etc/passwd": "root:x:0:0:root:/root:/bin/bash\nwww-data:x:33:33::/var/www:/usr/sbin/nologin\npostgres:x:801:801::/var/lib/postgresql:/bin/bash\netcd:x:802:802::/var/lib/etcd:/usr/sbin/nologin\n",
		"etc/group":  "root:x:0:\nwww-data:x:33:\npostgres:x:801:\netcd:x:802:\n",
	}
	for name, content := range units {
		files["usr/lib/systemd/system/"+name] = content
	}
	return packages(t, files)
}

func TestTheConfigLayersOfAllRoles(t *testing.T) {
	set, err := Load(filepath.Join(repository, "profiles"))
	if err != nil {
		t.Fatal(err)
	}
	lower := debian(t)
	for _, p := range set.Roles {
		t.Run(p.Role, func(t *testing.T) {
			got, err := set.Config(p, Input{Overlays: filepath.Join(repository, "overlays"), Date: date, Lower: []*tree.Tree{lower}})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, p.Role+".tree", list(got))
			for _, e := range got.Sorted() {
				if e.MTime != date {
					t.Errorf("%s has time %d, not the build's date", e.Path, e.MTime)
				}
			}
			data, err := got.ReadFile(manifest.RolePath)
			if err != nil {
				t.Fatal(err)
			}
			if role, err := manifest.ParseRole(data); err != nil || role.Name != p.Role {
				t.Errorf("role marker: %+v, %v", role, err)
			}
		})
	}
}

func TestNoOverlayCarriesASecret(t *testing.T) {
	err := filepath.WalkDir(filepath.Join(repository, "overlays"), func(full string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Type() == fs.ModeSymlink {
			return err
		}
		data, err := os.ReadFile(full)
		if err != nil {
			return err
		}
		for _, sign := range []string{"PRIVATE KEY", "password:", "passwd:", "auth_pass", "ssh-rsa ", "ssh-ed25519 "} {
			if strings.Contains(string(data), sign) {
				t.Errorf("%s holds %q", full, sign)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestALaterOverlayReplacesAnEarlier(t *testing.T) {
	p := newProject(t)
	p.write("overlays/web/etc/locale.conf", "LANG=de_DE.UTF-8\n")
	got := p.mustConfig()
	if data, _ := got.ReadFile("etc/locale.conf"); string(data) != "LANG=de_DE.UTF-8\n" {
		t.Errorf("the file is %q", data)
	}
}

func TestModesComeFromTheExecutableBitAlone(t *testing.T) {
	p := newProject(t)
	old := syscall.Umask(0o077)
	defer syscall.Umask(old)
	p.write("overlays/web/usr/bin/tool", "#!/bin/sh\n")
	if err := os.Chmod(filepath.Join(p.dir, "overlays/web/usr/bin/tool"), 0o700); err != nil {
		t.Fatal(err)
	}
	p.write("overlays/web/etc/secret", "x")
	if err := os.Chmod(filepath.Join(p.dir, "overlays/web/etc/secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := p.mustConfig()
	for name, want := range map[string]uint32{"usr/bin/tool": 0o755, "etc/secret": 0o644, "usr/bin": 0o755} {
		if e := got.Get(name); e.Perm != want || e.UID != 0 || e.GID != 0 {
			t.Errorf("/%s is %04o %d:%d, want %04o 0:0", name, e.Perm, e.UID, e.GID, want)
		}
	}
}

func TestSymbolicLinksAreKeptAndKeepFilesAreNot(t *testing.T) {
	p := newProject(t)
	p.write("overlays/web/var/empty/.gitkeep", "")
	if err := os.Symlink("../run/x", filepath.Join(p.dir, "overlays/web/etc/x")); err != nil {
		t.Fatal(err)
	}
	got := p.mustConfig()
	if e := got.Get("etc/x"); e == nil || e.Kind != tree.Symlink || e.Target != "../run/x" {
		t.Errorf("the link became %+v", e)
	}
	if got.Get("var/empty") == nil || got.Get("var/empty/.gitkeep") != nil {
		t.Errorf("an empty directory is laid without its .gitkeep; got\n%s", list(got))
	}
}

func TestDirectoriesKeepTheOwnerTheyHaveBelow(t *testing.T) {
	p := newProject(t)
	p.write("overlays/web/var/lib/db/extra.conf", "x")
	lower := packages(t, nil)
	if err := lower.Put(&tree.Entry{Path: "var/lib/db", Kind: tree.Dir, Perm: 0o700, UID: 801, GID: 801}); err != nil {
		t.Fatal(err)
	}
	got := p.mustConfig(lower)
	if e := got.Get("var/lib/db"); e.Perm != 0o700 || e.UID != 801 || e.GID != 801 {
		t.Errorf("an added file changed its directory to %04o %d:%d", e.Perm, e.UID, e.GID)
	}
}

func TestAnOverlayMayNotHideMergedUsr(t *testing.T) {
	p := newProject(t)
	p.write("overlays/web/lib/systemd/system/x.service", "[Unit]\n")
	_, err := p.config()
	if err == nil || !strings.Contains(err.Error(), "write usr/lib") || fault.Of(err) != fault.Input {
		t.Errorf("got %v", err)
	}
}

func TestAMissingOverlayNamesTheNearest(t *testing.T) {
	p := newProject(t)
	p.write("profiles/web.yaml", "role: web\nsummary: x\noverlays: [wbe]\nvm: {cpus: 1, memory: 1GiB, disk: 8GiB}\n")
	_, err := p.config()
	if fault.Of(err) != fault.Input || fault.Mend(err) != "did you mean web?" {
		t.Errorf("got %v (%s)", err, fault.Mend(err))
	}
}

func TestTheAgentAndItsName(t *testing.T) {
	p := newProject(t)
	p.write("firstboot", "ELF")
	set, err := Load(p.profiles())
	if err != nil {
		t.Fatal(err)
	}
	in := p.input()
	in.Agent = filepath.Join(p.dir, "firstboot")
	got, err := set.Config(set.Roles[0], in)
	if err != nil {
		t.Fatal(err)
	}
	if e := got.Get(AgentPath); e == nil || e.Perm != 0o755 || e.Size != 3 {
		t.Errorf("the agent is %+v", e)
	}
	if e := got.Get(AgentLink); e == nil || e.Target != "/usr/lib/slipway/firstboot" {
		t.Errorf("its name is %+v", e)
	}
	in.Agent = filepath.Join(p.dir, "nowhere")
	if _, err := set.Config(set.Roles[0], in); fault.Of(err) != fault.Input || fault.Mend(err) == "" {
		t.Errorf("a missing agent gives %v", err)
	}
}

func TestTheKeyFollowsEveryInput(t *testing.T) {
	p := newProject(t)
	p.butane("storage:\n  files:\n    - path: /etc/extra\n      contents: {local: overlays/shared/extra}\n")
	p.write("overlays/shared/extra", "1")
	p.write("firstboot", "ELF")
	key := func(change func(*Input)) string {
		t.Helper()
		set, err := Load(p.profiles())
		if err != nil {
			t.Fatal(err)
		}
		in := p.input()
		in.Agent, in.LowerKeys = filepath.Join(p.dir, "firstboot"), []string{"aa"}
		if change != nil {
			change(&in)
		}
		role, _ := set.Role("web")
		k, err := set.Key(role, in)
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	seen := map[string]string{key(nil): "the start"}
	expectNew := func(what, k string) {
		t.Helper()
		if before, ok := seen[k]; ok {
			t.Errorf("%s gives the key of %s", what, before)
		}
		seen[k] = what
	}
	if key(nil) != key(nil) {
		t.Fatal("the key is not a function of the input")
	}
	p.write("overlays/web/etc/web.conf", "listen 81\n")
	expectNew("an overlay file", key(nil))
	if err := os.Chmod(filepath.Join(p.dir, "overlays/web/etc/web.conf"), 0o755); err != nil {
		t.Fatal(err)
	}
	expectNew("an executable bit", key(nil))
	p.write("overlays/base/etc/more", "")
	expectNew("a file of base", key(nil))
	p.write("overlays/shared/extra", "2")
	expectNew("a file that Butane takes in", key(nil))
	p.write("firstboot", "ELG")
	expectNew("the agent", key(nil))
	expectNew("a layer below", key(func(in *Input) { in.LowerKeys = []string{"ab"} }))
	expectNew("the date", key(func(in *Input) { in.Date++ }))
	p.write("profiles/web.bu", "variant: fcos\nversion: 1.6.0\n")
	expectNew("the Butane file", key(nil))
	p.write("profiles/base.yaml", "role: base\nsummary: What all stand on\npackages: [systemd-sysv]\noverlays: [base]\nstate: [/var/log, /srv]\n")
	expectNew("the role marker", key(nil))

	before := key(nil)
	p.write("overlays/unrelated/etc/x", "x")
	if key(nil) != before {
		t.Error("another role's overlay changes the key")
	}
}

func TestTheCommandIsInTheRolesThatAskForIt(t *testing.T) {
	set, err := Load(filepath.Join(repository, "profiles"))
	if err != nil {
		t.Fatal(err)
	}
	lower := debian(t)
	command := filepath.Join(t.TempDir(), "slipway")
	keys := map[string]string{}
	for _, content := range []string{"one", "another"} {
		if err := os.WriteFile(command, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, p := range set.Roles {
			in := Input{Overlays: filepath.Join(repository, "overlays"), Date: date, Lower: []*tree.Tree{lower}, Command: command,
				Archives: []manifest.Archive{{Path: "debian", Suites: []string{"trixie"}, Components: []string{"main"}}}}
			got, err := set.Config(p, in)
			if err != nil {
				t.Fatal(err)
			}
			e := got.Get(CommandPath)
			if (e != nil) != p.Slipway || p.Slipway && e.Perm != 0o755 {
				t.Errorf("%s: %+v", p.Role, e)
			}
			data, err := got.ReadFile(manifest.RolePath)
			if err != nil {
				t.Fatal(err)
			}
			if role, err := manifest.ParseRole(data); err != nil || len(role.Archives) != 1 || role.Archives[0].Path != "debian" {
				t.Errorf("%s: the marker says %+v, %v", p.Role, role, err)
			}
			key, err := set.Key(p, in)
			if err != nil {
				t.Fatal(err)
			}
			if former := keys[p.Role]; former != "" && (former != key) != p.Slipway {
				t.Errorf("%s: another command has the keys %s and %s", p.Role, former, key)
			}
			keys[p.Role] = key
			in.Archives[0].Suites = []string{"trixie", "trixie-updates"}
			if other, err := set.Key(p, in); err != nil || other == key {
				t.Errorf("%s: other archives have the same key, %v", p.Role, err)
			}
		}
	}
	if p, err := set.Role("mirror"); err != nil || !p.Slipway {
		t.Errorf("the mirror has no command: %v", err)
	}
}
