package cloudconfig

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func parse(text string) *UserData {
	return Parse(Document{Name: "user-data", Content: []byte(text)})
}

func TestEveryMistakeIsNamedWithFileLineAndKey(t *testing.T) {
	for text, want := range map[string]string{
		"#cloud-config\nhostnam: x\n":                                    `user-data:2: hostnam: no such cloud-config key; did you mean "hostname"?`,
		"#cloud-config\n\nusers:\n- name: a\n  sudoo: x\n":               `user-data:5: users[0].sudoo: no such cloud-config key; did you mean "sudo"?`,
		"#cloud-config\nzzzzzz: x\n":                                     `user-data:2: zzzzzz: no such cloud-config key; see docs/metadata.md`,
		"#cloud-config\npackages: [vim]\n":                               `user-data:2: packages: not done by a slipway node: an appliance gets its packages when its image is built`,
		"#cloud-config\nruncmd: ls\n":                                    `user-data:2: runcmd: must be a list, but is text`,
		"#cloud-config\nhostname: [a]\n":                                 `user-data:2: hostname: must be text, but is a list`,
		"#cloud-config\npreserve_hostname: maybe\n":                      `user-data:2: preserve_hostname: must be true or false, but is text`,
		"#cloud-config\nwrite_files:\n- path: /a\n  permissions: 644\n":  `user-data:4: write_files[0].permissions: must be octal permission bits in quotes, such as '0644'`,
		"#cloud-config\nhostname: a\nhostname: b\n":                      `user-data:2: hostname: given again in line 3, which is the one that counts`,
		"#cloud-config\nhostname: a\n  b: c\n":                           `user-data:3: not YAML, so nothing in it takes effect`,
		"#cloud-config\nusers:\n\t- x\n":                                 `indent with spaces, not tabs`,
		"#cloud-config\n- a\n":                                           `user-data:2: must be a mapping of keys to values, but is a list`,
		"#cloud-config\nhostname: 'bad name'\n":                          `user-data: hostname: not a host name`,
		"#cloud-config\nwrite_files: [{path: relative}]\n":               `write_files[0].path: must be an absolute path`,
		"#cloud-config\ndisk_setup: {/dev/x: {layout: [60, 60]}}\n":      `the shares add up to 120 per cent`,
		"#cloud-config\nchpasswd: {list: 'nocolon'}\n":                   `every line must be name:password`,
		"#cloud-config\nwrite_files: [{path: /a, source: {uri: 'x'}}]\n": `a node fetches no files from the network`,
		"hello\n":                             `user-data: the first line must be #cloud-config or #!`,
		"## template: jinja\n#cloud-config\n": `a template`,
		"#include\nx\n":                       `fetches no parts from the network`,
		"\x1f\x8bxx":                          `looks like gzip and cannot be unpacked`,
	} {
		u := parse(text)
		var all []string
		for _, f := range u.Findings {
			all = append(all, f.String())
		}
		if len(all) != 1 || !strings.Contains(all[0], want) {
			t.Errorf("%q gave %q, want one that holds %q", text, all, want)
		}
	}
}

func TestAMistakeDoesNotStopTheRest(t *testing.T) {
	u := parse("#cloud-config\nusers: [{name: a, uid: []}, b]\nbogus: 1\nhostname: h\nruncmd: [ls, {x: y}, [a, b]]\n")
	c := u.Config
	if c.Hostname != "h" || len(c.Users.List) != 2 || len(c.Runcmd) != 2 || c.Runcmd[1].Script() != "'a' 'b'" {
		t.Errorf("config: %+v", c)
	}
	if len(u.Findings) != 3 {
		t.Errorf("findings: %v", u.Findings)
	}
}

func TestTheFormsOfAKeyMeanTheSame(t *testing.T) {
	for _, forms := range [][]string{
		{"users: a,b", "users: [a, b]", "users: [{name: a}, {name: b}]", "users: [[a, b]]", "users: {a: {}, b: null}"},
		{"groups: a,b", "groups: [a, b]", "groups: {a: null, b: []}"},
		{"groups: {a: [x, y]}", "groups: [{a: [x, y]}]", "groups: [a: 'x,y']"},
		{"write_files: [{path: /a, permissions: '0644'}]", "write_files: [{path: /a, permissions: 0644}]", "write_files: [{path: /a, permissions: 0o644}]", "write_files: [{path: /a, permissions: '644'}]"},
		{"ssh_pwauth: true", "ssh_pwauth: yes", "ssh_pwauth: 'True'", "ssh_pwauth: 1"},
		{"ca_certs: {trusted: [x]}", "ca-certs: {trusted: [x]}"},
		{"users: [{name: a, sudo: null}]", "users: [{name: a, sudo: false}]", "users: [a]"},
		{"users: [{name: a, ssh_authorized_keys: [k]}]", "users: [{name: a, ssh-authorized-keys: [k]}]", "x: &k [k]\nusers: [{name: a, ssh_authorized_keys: *k}]", "x: &u {name: a}\nusers: [{<<: *u, ssh_authorized_keys: [k]}]"},
	} {
		want := parse("#cloud-config\n" + forms[0] + "\n").Config
		forget(&want)
		for _, form := range forms[1:] {
			got := parse("#cloud-config\n" + form + "\n").Config
			forget(&got)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s and %s differ:\n%+v\n%+v", forms[0], form, want, got)
			}
		}
	}
}

// forget clears what tells where something stands, and empty lists from absent ones.
func forget(c *Config) {
	for i := range c.Users.List {
		c.Users.List[i].Where = Place{}
	}
	for i := range c.Groups {
		if len(c.Groups[i].Members) == 0 {
			c.Groups[i].Members = nil
		}
	}
}

func TestPartsOfAMessageAddUp(t *testing.T) {
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	fmt.Fprint(z, `Content-Type: multipart/mixed; boundary="=="
MIME-Version: 1.0

--==
Content-Type: text/cloud-config
Content-Disposition: attachment; filename="a.cfg"

hostname: a
timezone: UTC
--==
Content-Type: text/x-shellscript; charset="utf-8"
Content-Transfer-Encoding: base64
Content-Disposition: attachment; filename="hello.sh"

IyEvYmluL3NoCmVjaG8gaGkK
--==
Content-Type: text/cloud-boothook

#cloud-boothook
echo boot
--==
Content-Type: text/plain

#cloud-config
hostname: b
bogus: 1
--==--
`)
	z.Close()
	u := Parse(
		Document{Name: "vendor-data", Content: []byte("#cloud-config\ntimezone: Europe/Berlin\nlocale: C.UTF-8\n")},
		Document{Name: "user-data", Content: packed.Bytes()})
	if u.Config.Hostname != "b" || u.Config.Timezone != "UTC" || u.Config.Locale.Text != "C.UTF-8" {
		t.Errorf("config: %+v", u.Config)
	}
	if len(u.Scripts) != 2 || u.Scripts[0].Name != "hello.sh" || string(u.Scripts[0].Content) != "#!/bin/sh\necho hi\n" ||
		!u.Scripts[1].EveryBoot || string(u.Scripts[1].Content) != "#!/bin/sh\necho boot" {
		t.Errorf("scripts: %+v", u.Scripts)
	}
	if len(u.Findings) != 1 || !strings.HasPrefix(u.Findings[0].String(), "user-data, part 4:3: bogus") {
		t.Errorf("findings: %v", u.Findings)
	}
}

func TestAnArchiveIsReadAsItsParts(t *testing.T) {
	u := parse("#cloud-config-archive\n- |\n  #cloud-config\n  hostname: a\n- type: text/x-shellscript\n  filename: s\n  content: |\n    #!/bin/sh\n    true\n")
	if u.Config.Hostname != "a" || len(u.Scripts) != 1 || u.Scripts[0].Name != "s" || len(u.Findings) > 0 {
		t.Errorf("%+v", u)
	}
}

func TestAScriptAloneIsUserData(t *testing.T) {
	u := parse("#!/bin/sh\necho\n")
	if len(u.Scripts) != 1 || u.Scripts[0].EveryBoot || len(u.Findings) > 0 {
		t.Errorf("%+v", u)
	}
}

func TestAliasesCannotMultiplyWithoutEnd(t *testing.T) {
	var b strings.Builder
	b.WriteString("#cloud-config\na0: &a0 [x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		fmt.Fprintf(&b, "a%d: &a%d [*a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d, *a%d]\n", i, i, i-1, i-1, i-1, i-1, i-1, i-1, i-1, i-1)
	}
	b.WriteString("runcmd: *a11\nusers: *a11\nmounts: *a11\n")
	u := parse(b.String())
	if len(u.Findings) == 0 {
		t.Error("nothing was reported")
	}
}

func TestNoFindingHoldsAValue(t *testing.T) {
	u := parse("#cloud-config\npassword: [s3cret]\nchpasswd: s3cret\nusers: [{name: a, passwd: {s3: s3cret}, uid: s3cret}]\nssh_keys: [s3cret]\nwrite_files: [{path: s3cret, permissions: s3cret, content: [s3cret]}]\nmounts: s3cret\nswap: s3cret\nntp: s3cret\n")
	for _, f := range u.Findings {
		if strings.Contains(f.String(), "s3cret") {
			t.Errorf("%s", f)
		}
	}
	if len(u.Findings) < 8 {
		t.Errorf("only %d findings: %v", len(u.Findings), u.Findings)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"#cloud-config\nusers: [default, {name: a, groups: {b: }}]\n",
		"#cloud-config\na: &a [*a]\nruncmd: *a\n",
		"#cloud-config\nx: &x {<<: *x}\n<<: [*x, *x]\n",
		"#cloud-config-archive\n- {type: a, content: '#!'}\n",
		"Content-Type: multipart/mixed; boundary=x\n\n--x\nContent-Type: multipart/mixed; boundary=y\n\n--y\n\n--y--\n--x--\n",
		"\x1f\x8b\x08", "#cloud-boothook", "#!", "From x\nMIME-Version: 1\n\n",
		"#cloud-config\ndisk_setup: {a: {layout: [[1, 2], 3, []]}}\nmounts: [[a], []]\nmount_default_fields: [~, a]\nchpasswd: {list: 'a:b'}\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		u := Parse(Document{Name: "user-data", Content: data})
		for _, finding := range u.Findings {
			if finding.String() == "" || finding.Line < 0 {
				t.Errorf("%#v", finding)
			}
		}
	})
}
