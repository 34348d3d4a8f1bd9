package profile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

func TestButaneFilesDirectoriesLinksAndTrees(t *testing.T) {
	p := newProject(t)
	p.write("overlays/shared/etc/from-tree", "tree\n")
	p.write("overlays/shared/note", "local\n")
	p.butane(`
storage:
  directories:
    - path: /var/lib/web
      mode: 0750
      user: {name: www-data}
      group: {id: 33}
  files:
    - path: /etc/inline
      mode: 0600
      contents: {inline: "hello\n"}
    - path: /etc/local
      contents: {local: overlays/shared/note}
    - path: /etc/empty
      contents: {source: ""}
    - path: /etc/url
      contents: {source: "data:,a%20b"}
    - path: /etc/packed
      contents: {source: "data:;base64,H4sIAAAAAAAAA8tIzcnJBwCGphA2BQAAAA==", compression: gzip}
    - path: /etc/web.conf
      mode: 0640
      group: {name: www-data}
    - path: /etc/appended
      contents: {inline: "one\n"}
      append: [{inline: "two\n"}]
  links:
    - path: /etc/link
      target: ../run/target
  trees:
    - local: overlays/shared/etc
      path: /etc
`)
	got := p.mustConfig(packages(t, nil))
	for name, want := range map[string]string{
		"etc/inline": "hello\n", "etc/local": "local\n", "etc/empty": "", "etc/url": "a b", "etc/packed": "hello",
		"etc/web.conf": "listen 80\n", "etc/appended": "one\ntwo\n", "etc/from-tree": "tree\n",
	} {
		if data, err := got.ReadFile(name); err != nil || string(data) != want {
			t.Errorf("/%s holds %q, %v; want %q", name, data, err, want)
		}
	}
	for name, want := range map[string]string{
		"var/lib/web":  "d 0750 33:33 /var/lib/web\n",
		"etc/inline":   "f 0600 0:0 /etc/inline\n",
		"etc/web.conf": "f 0640 0:33 /etc/web.conf\n",
		"etc/link":     "l 0777 0:0 /etc/link -> ../run/target\n",
	} {
		if e := got.Get(name); e == nil || line(e) != want {
			t.Errorf("/%s is %v, want %s", name, e, want)
		}
	}
}

func TestButaneChangesTheModeOfAPackagesFile(t *testing.T) {
	p := newProject(t)
	p.butane("storage:\n  files:\n    - path: /usr/bin/tool\n      mode: 0700\n")
	lower := packages(t, map[string]string{"usr/bin/tool": "from the package"})
	got := p.mustConfig(lower)
	if data, err := got.ReadFile("usr/bin/tool"); err != nil || string(data) != "from the package" || got.Get("usr/bin/tool").Perm != 0o700 {
		t.Errorf("it is %q %+v, %v", data, got.Get("usr/bin/tool"), err)
	}
}

func TestButaneUsersStandInThePasswordFilesLocked(t *testing.T) {
	p := newProject(t)
	p.butane(`
passwd:
  groups:
    - {name: ops, gid: 860}
  users:
    - {name: site, uid: 851, system: true, gecos: The site}
    - {name: admin, uid: 1500, groups: [ops]}
    - {name: www-data, groups: [site]}
`)
	got := p.mustConfig(packages(t, nil))
	for name, want := range map[string][]string{
		"etc/passwd":  {"site:x:851:851:The site:/nonexistent:/usr/sbin/nologin", "admin:x:1500:1500::/home/admin:/bin/bash", "www-data:x:33:33:www-data:/var/www:/usr/sbin/nologin"},
		"etc/group":   {"ops:x:860:admin", "site:x:851:www-data", "admin:x:1500:"},
		"etc/shadow":  {"site:!*:19675::::::", "admin:!*:19675::::::", "root:*:19000:0:99999:7:::"},
		"etc/gshadow": {"ops:!::admin", "site:!::www-data"},
	} {
		data, err := got.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range want {
			if !strings.Contains("\n"+string(data), "\n"+l+"\n") {
				t.Errorf("/%s has no line %q:\n%s", name, l, data)
			}
		}
	}
	if e := got.Get("etc/shadow"); e.Perm != 0o640 || e.GID != 42 {
		t.Errorf("/etc/shadow became %s", line(e))
	}
	if e := got.Get("home/admin"); e == nil || line(e) != "d 0700 1500:1500 /home/admin\n" {
		t.Errorf("the home directory is %v", e)
	}
}

func TestUnitsAreEnabledAsSystemctlWould(t *testing.T) {
	p := newProject(t)
	p.butane(`
systemd:
  units:
    - name: own.service
      enabled: true
      contents: |
        [Service]
        ExecStart=/bin/true
        [Install]
        WantedBy=multi-user.target \
          other.target
        RequiredBy=needs.target
        Alias=alias.service
        Also=friend.socket
    - name: worker@blue.service
      enabled: true
    - name: tty@.service
      enabled: true
    - name: packaged.service
      enabled: true
      dropins:
        - name: 10-x.conf
          contents: |
            [Service]
            Restart=always
    - name: unwanted.service
      enabled: false
    - name: never.service
      mask: true
`)
	lower := packages(t, map[string]string{
		"usr/lib/systemd/system/friend.socket":    "[Install]\nWantedBy=ignored.target\nWantedBy=\nWantedBy=sockets.target\n",
		"usr/lib/systemd/system/worker@.service":  "[Install]\nWantedBy=%i.target\n",
		"usr/lib/systemd/system/tty@.service":     "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n",
		"usr/lib/systemd/system/packaged.service": "[Install]\nUpheldBy=multi-user.target\n",
		"usr/lib/systemd/system/unwanted.service": "[Install]\nWantedBy=multi-user.target absent.target\n",
	})
	if err := lower.Put(&tree.Entry{Path: "etc/systemd/system/multi-user.target.wants/unwanted.service", Kind: tree.Symlink, Target: "x"}); err != nil {
		t.Fatal(err)
	}
	got := p.mustConfig(lower)
	var units strings.Builder
	for _, e := range got.Sorted() {
		if e.Kind != tree.Dir && strings.HasPrefix(e.Path, "etc/systemd/system/") {
			units.WriteString(line(e))
		}
	}
	golden(t, "units.tree", units.String())
}

func TestWhatAnImageCannotHoldIsRefusedAtItsPlace(t *testing.T) {
	for name, c := range map[string]struct{ butane, want, mend string }{
		"unknown key":          {"storag:\n  files: []\n", "web.bu:3:1: storag: this field is not known", "did you mean storage?"},
		"unknown in file":      {"storage:\n  files:\n    - pth: /x\n", "web.bu:5:7: storage.files[0].pth", "did you mean path?"},
		"password":             {"passwd:\n  users:\n    - {name: x, password_hash: y}\n", "web.bu:5:17: passwd.users[0].password_hash", "no image carries a password"},
		"key":                  {"passwd:\n  users:\n    - {name: x, ssh_authorized_keys: [y]}\n", "ssh_authorized_keys", "no image carries a key"},
		"disks":                {"storage:\n  disks: []\n", "web.bu:4:3: storage.disks: this cannot stand", "the builder's"},
		"filesystems":          {"storage:\n  filesystems: []\n", "storage.filesystems", "init makes"},
		"kernel arguments":     {"kernel_arguments:\n  should_exist: [x]\n", "web.bu:3:1: kernel_arguments", "command line"},
		"ignition":             {"ignition:\n  config: {}\n", "ignition", "put the content here"},
		"boot device":          {"boot_device:\n  layout: x86_64\n", "boot_device: this field is not known", "docs/formats.md"},
		"http":                 {"storage:\n  files:\n    - path: /x\n      contents: {source: \"https://example.org/x\"}\n", "contents from https", "put the file beside"},
		"relative path":        {"storage:\n  files:\n    - path: x\n      contents: {inline: y}\n", "web.bu:5:13: storage.files.0.path", "Butane"},
		"file missing":         {"storage:\n  files:\n    - path: /x\n      contents: {local: nope}\n", "storage.files.0.contents.local", "Butane"},
		"escape":               {"storage:\n  files:\n    - path: /x\n      contents: {local: ../../etc/passwd}\n", "storage.files.0.contents.local", "Butane"},
		"overlay twice":        {"storage:\n  files:\n    - path: /etc/web.conf\n      contents: {inline: y}\n", "web.bu:5:13: storage.files[0].path: /etc/web.conf is there already", "overwrite: true"},
		"no such file":         {"storage:\n  files:\n    - path: /etc/nope\n      mode: 0600\n", "/etc/nope does not exist", "give contents"},
		"unknown owner":        {"storage:\n  directories:\n    - path: /x\n      user: {name: www-dat}\n", "there is no user \"www-dat\"", "did you mean www-data?"},
		"hard link":            {"storage:\n  links:\n    - {path: /x, target: /etc/web.conf, hard: true}\n", "hard links cannot cross", "symbolic"},
		"user without uid":     {"passwd:\n  users:\n    - name: x\n", "web.bu:5:7: passwd.users[0]: user x needs a uid", "must not move"},
		"uid taken":            {"passwd:\n  users:\n    - {name: x, uid: 33}\n", "uid 33 is user www-data already", ""},
		"group of packages":    {"passwd:\n  groups:\n    - {name: www-data, gid: 34}\n", "has gid 33 already", ""},
		"user of packages":     {"passwd:\n  users:\n    - {name: www-data, shell: /bin/sh}\n", "is there already with uid 33", "join groups"},
		"shell injection":      {"passwd:\n  users:\n    - {name: x, uid: 900, gecos: \"a:b\"}\n", "cannot stand in /etc/passwd", ""},
		"unknown unit":         {"systemd:\n  units:\n    - {name: nope.service, enabled: true}\n", "web.bu:5:14: systemd.units[0].name: there is no unit nope.service", "add the package"},
		"no install":           {"systemd:\n  units:\n    - {name: x.service, enabled: true, contents: \"[Service]\\n\"}\n", "has no install section", "Butane"},
		"packaged, no install": {"systemd:\n  units:\n    - {name: static.service, enabled: true}\n", "has no [Install] section", "mask: true"},
		"masked, enabled":      {"systemd:\n  units:\n    - {name: x.service, enabled: true, mask: true}\n", "both masked and enabled", ""},
		"bare template":        {"systemd:\n  units:\n    - {name: x@.service, enabled: true, contents: \"[Install]\\nWantedBy=a.target\\n\"}\n", "without DefaultInstance", "name an instance"},
		"install specifier":    {"systemd:\n  units:\n    - {name: x.service, enabled: true, contents: \"[Install]\\nWantedBy=%m.target\\n\"}\n", "cannot be resolved at build time", ""},
		"merged usr":           {"storage:\n  files:\n    - path: /bin/x\n      contents: {inline: y}\n", "/bin is a symbolic link", ""},
		"file over link":       {"storage:\n  links:\n    - {path: /l, target: x}\n  directories:\n    - path: /l\n", "storage.links.0: duplicate entry", ""},
		"alias":                {"storage: &s\n  files: []\nsystemd: *s\n", "aliases are not followed", "write the value out"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProject(t)
			p.butane(c.butane)
			_, err := p.config(packages(t, map[string]string{"usr/lib/systemd/system/static.service": "[Service]\n"}))
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

func TestAnotherVariantOrVersionIsRefused(t *testing.T) {
	for _, head := range []string{"variant: openshift\nversion: 4.20.0\n", "variant: fcos\nversion: 9.9.9\n", "variant: fcos\n", "version: 1.6.0\n", "variant: fcos\nversion: 1.7.0-experimental\n"} {
		p := newProject(t)
		p.butane("")
		p.write("profiles/web.bu", head)
		if _, err := p.config(); fault.Of(err) != fault.Input || fault.Mend(err) == "" {
			t.Errorf("%q gives %v (%s)", head, err, fault.Mend(err))
		}
	}
	p := newProject(t)
	p.butane("")
	p.write("profiles/web.bu", "variant: flatcar\nversion: 1.1.0\nstorage:\n  files:\n    - path: /etc/x\n      contents: {inline: y}\n")
	if got := p.mustConfig(); got.Get("etc/x") == nil {
		t.Error("the Flatcar variant is not applied")
	}
}

func FuzzButane(f *testing.F) {
	files, _ := filepath.Glob(filepath.Join(repository, "profiles", "*.bu"))
	for _, name := range files {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte("variant: fcos\nversion: 1.6.0\npasswd:\n  users: [{name: x, uid: -1}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p := newProject(t)
		p.butane("")
		p.write("profiles/web.bu", string(data))
		if _, err := p.config(packages(t, nil)); err != nil && fault.Of(err) != fault.Input {
			t.Errorf("class %v: %v", fault.Of(err), err)
		}
	})
}

func FuzzInstallSection(f *testing.F) {
	f.Add("[Install]\nWantedBy=multi-user.target\nAlias=a.service\n", "x@y.service")
	f.Fuzz(func(t *testing.T, content, unit string) {
		links, err := parseInstall(content).links(unit, "/f")
		for _, l := range links {
			if err == nil && strings.Count(l.name, "/") > 1 && !strings.Contains(unit, "/") {
				t.Errorf("link %q leaves its directory", l.name)
			}
		}
	})
}
