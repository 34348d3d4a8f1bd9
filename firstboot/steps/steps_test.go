package steps

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
)

func TestMain(m *testing.M) { nodetest.Main(m) }

const key1 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFl8fpE1MJ5Nf2Xj1kYNfWwG7w0o9oqP8qmT8cB4n0ab ada@example"
const key2 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGhQv4wR3a1TtQ2x7bKkT1b0yq2W0Jm3uXv3m3N2w5cd grace@example"

func apply(t *testing.T, n *nodetest.Node, s Step) {
	t.Helper()
	if err := s.Apply(t.Context(), n.Node); err != nil {
		t.Fatalf("%s: %v", s.Name(), err)
	}
}

// boot applies the steps that a node without systemd can go through.
func boot(t *testing.T, n *nodetest.Node, userData string) error {
	t.Helper()
	n.Give(t, userData)
	var errs []error
	for _, s := range []Step{Bootcmd{}, Hostname{}, Network{}, Resolver{}, HostKeys{}, Clock{}, Locale{}, Certificates{}, Disks{}, Users{}, Files{}, Deferred{Files{Late: true}}, Commands{}} {
		errs = append(errs, s.Apply(t.Context(), n.Node))
	}
	return errors.Join(errs...)
}

func mustBoot(t *testing.T, n *nodetest.Node, userData string) {
	t.Helper()
	if err := boot(t, n, userData); err != nil {
		t.Fatal(err)
	}
}

const everything = `#cloud-config
hostname: lb1
fqdn: lb1.example.org
timezone: Europe/Berlin
locale: C.UTF-8
ntp: {servers: [ntp.example.org], pools: [192.0.2.7]}
manage_resolv_conf: true
resolv_conf: {nameservers: [192.0.2.53], searchdomains: [example.org]}
groups: [ops, "web: [ada]"]
users:
  - default
  - name: ada
    gecos: Ada Lovelace
    groups: [ops, newgroup]
    sudo: "ALL=(ALL) NOPASSWD:ALL"
    ssh_authorized_keys: ["` + key1 + `"]
  - name: grace
    uid: 2001
    shell: /bin/sh
    lock_passwd: false
    passwd: "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/"
ssh_authorized_keys: ["` + key2 + `"]
ssh_pwauth: false
write_files:
  - {path: /etc/motd.d/a, content: "hello\n"}
  - {path: /srv/bin/tool, content: IyEvYmluL3NoCg==, encoding: b64, permissions: '0755', owner: ada:ops}
  - {path: /etc/environment, content: "A=b\n", append: true}
  - {path: /srv/late, content: x, defer: true, owner: grace}
bootcmd: ["echo boot >>/srv/boots"]
runcmd:
  - echo run >>/srv/runs
  - [touch, "/srv/a file"]
`

func TestANodeBecomesWhatItsMetadataAsksFor(t *testing.T) {
	n := nodetest.Start(t)
	mustBoot(t, n, strings.Replace(everything, `"web: [ada]"`, "{web: [ada]}", 1))
	for path, want := range map[string]string{
		"/etc/hostname": "lb1\n",
		"/etc/hosts":    "127.0.1.1\tlb1.example.org lb1\n",
		"/etc/timezone": "Europe/Berlin\n",
		"/etc/systemd/timesyncd.conf.d/20-slipway.conf": "NTP=ntp.example.org 192.0.2.7\n",
		"/etc/systemd/resolved.conf.d/20-slipway.conf":  "DNS=192.0.2.53\nDomains=example.org\n",
		"/home/ada/.ssh/authorized_keys":                key1 + "\n",
		"/home/slipway/.ssh/authorized_keys":            key2 + "\n",
		"/etc/sudoers.d/90-slipway-ada":                 "ada ALL=(ALL) NOPASSWD:ALL\n",
		"/etc/ssh/sshd_config.d/05-metadata.conf":       "PasswordAuthentication no\n",
		"/etc/motd.d/a":    "hello\n",
		"/srv/bin/tool":    "#!/bin/sh\n",
		"/etc/environment": "A=b\n",
		"/srv/late":        "x",
		"/srv/boots":       "boot\n",
		"/srv/runs":        "run\n",
		"/srv/a file":      "",
		"/etc/systemd/network/10-slipway-default.network": "DHCP=",
	} {
		if got := n.File(t, path); !strings.Contains(got, want) {
			t.Errorf("%s is %q, want it to hold %q", path, got, want)
		}
	}
	if got := strings.TrimSpace(n.Output(t, "hostname")); got != "lb1" {
		t.Errorf("the kernel's host name is %q", got)
	}
	if got := n.Output(t, "id", "-nG", "ada"); !strings.Contains(got, "ops") || !strings.Contains(got, "newgroup") || !strings.Contains(got, "web") {
		t.Errorf("ada's groups: %q", got)
	}
	if got := n.Output(t, "id", "-u", "grace"); got != "2001\n" {
		t.Errorf("grace's uid: %q", got)
	}
	if got := n.Output(t, "stat", "-c", "%U:%G %a", "/srv/bin/tool", "/home/ada/.ssh", "/home/ada/.ssh/authorized_keys"); got != "ada:ops 755\nada:ada 700\nada:ada 600\n" {
		t.Errorf("owners and modes: %q", got)
	}
	shadow := n.File(t, "/etc/shadow")
	if !strings.Contains(shadow, "grace:$6$saltsalt$") || !strings.Contains(shadow, "ada:!") || !strings.Contains(shadow, "slipway:!") {
		t.Errorf("passwords: %s", shadow)
	}
	n.Output(t, "visudo", "-c")
	if got := n.Output(t, "date", "+%Z"); got != "CET\n" && got != "CEST\n" {
		t.Errorf("time zone: %q", got)
	}
	if len(n.Said.Warnings) > 0 {
		t.Errorf("warnings: %v", n.Said.Warnings)
	}
	if !slices.Equal(n.Said.Logins, []string{"slipway", "ada"}) {
		t.Errorf("logins: %v", n.Said.Logins)
	}
}

func TestASecondBootChangesNothing(t *testing.T) {
	n := nodetest.Start(t)
	config := strings.Replace(everything, `"web: [ada]"`, "{web: [ada]}", 1)
	mustBoot(t, n, config)
	state, passwd := n.File(t, node.KeptPath), n.File(t, "/etc/passwd")
	mustBoot(t, n, config)
	if len(n.Said.Changes) > 0 {
		t.Errorf("the second boot changed: %q", n.Said.Changes)
	}
	if n.File(t, node.KeptPath) != state || n.File(t, "/etc/passwd") != passwd {
		t.Error("state or accounts changed")
	}
	if got := n.File(t, "/srv/runs"); got != "run\n" {
		t.Errorf("runcmd ran again: %q", got)
	}
}

func TestChangedMetadataIsAppliedAtALaterBoot(t *testing.T) {
	n := nodetest.Start(t)
	mustBoot(t, n, "#cloud-config\nhostname: a\nusers: [{name: ada, sudo: 'ALL=(ALL) ALL', ssh_authorized_keys: ['"+key1+"']}]\nruncmd: [echo 1 >>/srv/runs]\ntimezone: Europe/Berlin\n")
	n.Put(t, "/home/ada/.ssh/authorized_keys", key1+"\n# mine\n"+"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKown own\n")
	mustBoot(t, n, "#cloud-config\nhostname: b\nusers: [{name: ada, ssh_authorized_keys: ['"+key2+"']}, bob]\nruncmd: [echo 2 >>/srv/runs]\n")
	if got := n.File(t, "/etc/hostname"); got != "b\n" {
		t.Errorf("host name %q", got)
	}
	keys := n.File(t, "/home/ada/.ssh/authorized_keys")
	if strings.Contains(keys, key1) || !strings.Contains(keys, key2) || !strings.Contains(keys, "own") {
		t.Errorf("the metadata's keys change and her own stay, but there is: %s", keys)
	}
	if n.Exists("/etc/sudoers.d/90-slipway-ada") {
		t.Error("sudo rules that the metadata no longer gives are still there")
	}
	n.Output(t, "id", "bob")
	if got := n.File(t, "/srv/runs"); got != "1\n2\n" {
		t.Errorf("runcmd: %q", got)
	}
	if got := n.File(t, "/etc/timezone"); got != "Etc/UTC\n" {
		t.Errorf("time zone: %q", got)
	}
}

func TestAUserTheMetadataNoLongerNamesIsLockedAndKeepsFiles(t *testing.T) {
	n := nodetest.Start(t)
	mustBoot(t, n, "#cloud-config\nusers: [{name: ada, ssh_authorized_keys: ['"+key1+"']}, bob]\n")
	mustBoot(t, n, "#cloud-config\nusers: [bob]\n")
	if got := n.Output(t, "chage", "-l", "-i", "ada"); !strings.Contains(got, "1970-01-02") {
		t.Errorf("ada's account has not expired: %s", got)
	}
	if got := n.File(t, "/home/ada/.ssh/authorized_keys"); strings.Contains(got, key1) {
		t.Error("ada's key is still there")
	}
	mustBoot(t, n, "#cloud-config\nusers: [bob]\n")
	if len(n.Said.Changes) > 0 {
		t.Errorf("locked again: %q", n.Said.Changes)
	}
	mustBoot(t, n, "#cloud-config\nusers: [{name: ada, ssh_authorized_keys: ['"+key1+"']}, bob]\n")
	if got := n.Output(t, "chage", "-l", "-i", "ada"); strings.Contains(got, "1970-01-02") {
		t.Errorf("ada is back in the metadata and still locked out: %s", got)
	}
}

func TestRootIsNeverLocked(t *testing.T) {
	n := nodetest.Start(t)
	mustBoot(t, n, "#cloud-config\ndisable_root: false\nssh_authorized_keys: ['"+key1+"']\n")
	if got := n.File(t, "/root/.ssh/authorized_keys"); !strings.Contains(got, key1) {
		t.Errorf("root's keys: %q", got)
	}
	mustBoot(t, n, "#cloud-config\nusers: []\n")
	if got := n.Output(t, "chage", "-l", "-i", "root"); strings.Contains(got, "1970-01-02") {
		t.Error("root has been locked")
	}
	if got := n.File(t, "/root/.ssh/authorized_keys"); strings.Contains(got, key1) {
		t.Error("root's key from the metadata is still there")
	}
}

func TestANewVersionGivesUsersTheirFormerNumbers(t *testing.T) {
	old := nodetest.Start(t)
	config := "#cloud-config\ngroups: [ops]\nusers: [zoe, {name: ada, groups: ops}]\n"
	mustBoot(t, old, config)
	want := old.Output(t, "id", "ada")
	// The next version starts from the image's own /etc; the state partition goes on.
	fresh := nodetest.Start(t)
	fresh.Put(t, node.KeptPath, old.File(t, node.KeptPath))
	mustBoot(t, fresh, "#cloud-config\ngroups: [ops]\nusers: [new, {name: ada, groups: ops}]\n")
	if got := fresh.Output(t, "id", "ada"); got != want {
		t.Errorf("ada was %s and is now %s", want, got)
	}
	if got := fresh.Output(t, "id", "-u", "new"); strings.TrimSpace(got) == strings.TrimSpace(old.Output(t, "id", "-u", "zoe")) {
		t.Error("a new user got the number of a former one, whose files are still there")
	}
}

func TestABadSudoRuleStopsNothingElse(t *testing.T) {
	n := nodetest.Start(t)
	err := boot(t, n, "#cloud-config\nusers:\n  - name: ada\n    sudo: 'ALL=(ALL) NOPASWD:ALL'\n    ssh_authorized_keys: ['"+key1+"']\n  - bob\nwrite_files: [{path: /srv/x, content: y}]\n")
	if err == nil || !strings.Contains(err.Error(), "user ada (user-data:3)") || !strings.Contains(err.Error(), "sudo") {
		t.Errorf("error: %v", err)
	}
	n.Output(t, "visudo", "-c")
	n.Output(t, "id", "bob")
	if n.File(t, "/srv/x") != "y" || !strings.Contains(n.File(t, "/home/ada/.ssh/authorized_keys"), key1) {
		t.Error("what came after the bad rule is missing")
	}
}

func TestNoKeysAndNoPasswordMeansNoDefaultUser(t *testing.T) {
	n := nodetest.Start(t)
	mustBoot(t, n, "#cloud-config\nhostname: x\n")
	if strings.Contains(n.File(t, "/etc/passwd"), "\nslipway:") {
		t.Error("there is an account that nobody asked for")
	}
	for _, line := range strings.Split(strings.TrimSpace(n.File(t, "/etc/shadow")), "\n") {
		if p := strings.Split(line, ":")[1]; p != "*" && !strings.HasPrefix(p, "!") {
			t.Errorf("an account has a password: %s", line)
		}
	}
}

func TestAPasswordIsSetOnceAndKeepsOutOfSight(t *testing.T) {
	n := nodetest.Start(t)
	config := "#cloud-config\npassword: s3cret-word\nchpasswd: {expire: false}\n"
	mustBoot(t, n, config)
	entry := func() string {
		for _, line := range strings.Split(n.File(t, "/etc/shadow"), "\n") {
			if strings.HasPrefix(line, DefaultUser+":") {
				return line
			}
		}
		return ""
	}
	first := entry()
	if !strings.HasPrefix(first, DefaultUser+":$") {
		t.Fatalf("no password was set: %q", first)
	}
	if strings.Contains(n.File(t, node.KeptPath)+n.File(t, node.LocalPath)+strings.Join(n.Said.Changes, ""), "s3cret") {
		t.Error("the password can be read in a state or a report")
	}
	mustBoot(t, n, config)
	if entry() != first {
		t.Error("the second boot set the password again")
	}
	for _, path := range []string{node.KeptPath, node.LocalPath} {
		info, err := os.Stat(n.Path(path))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}
}

func TestHostKeysAreBornOnceAndAHalfMadeOneIsMadeAgain(t *testing.T) {
	n := nodetest.Start(t)
	n.Give(t, "#cloud-config\n")
	apply(t, n, HostKeys{})
	born := n.Said.Keys
	if len(born) != 2 {
		t.Fatalf("host keys: %v", born)
	}
	n.Reopen(t)
	apply(t, n, HostKeys{})
	if !slices.Equal(n.Said.Keys, born) || len(n.Said.Changes) > 0 {
		t.Errorf("host keys changed: %v, %v", n.Said.Keys, n.Said.Changes)
	}
	if err := os.Truncate(n.Path(keyFile("ecdsa")), 40); err != nil {
		t.Fatal(err)
	}
	n.Reopen(t)
	apply(t, n, HostKeys{})
	if len(n.Said.Changes) != 1 || n.Said.Keys[0] != born[0] {
		t.Errorf("after damage to one key: %v, %v", n.Said.Changes, n.Said.Keys)
	}
	info, err := os.Stat(n.Path(keyFile("ed25519")))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("private key: %v, %v", info.Mode(), err)
	}
}

func TestTheFirewallOpensTheRolesPortsAndNoOther(t *testing.T) {
	n := nodetest.Start(t,
		manifest.Port{Port: "22", Proto: "tcp", From: "any", Why: "ssh"},
		manifest.Port{Port: "7000-7100", Proto: "udp", From: "any", Why: "tunnels"},
		manifest.Port{Port: "5432", Proto: "tcp", From: "cluster", Why: "PostgreSQL"},
		manifest.Port{Proto: "vrrp", From: "cluster", Why: "virtual IP"})
	policy, err := os.ReadFile("../../overlays/base/usr/lib/slipway/nftables.conf")
	if err != nil {
		t.Fatal(err)
	}
	n.Put(t, policyPath, string(policy))
	for range 2 { // the second time replaces the first
		apply(t, n, Firewall{})
	}
	rules := n.Output(t, "nft", "list", "table", "inet", "slipway")
	for _, want := range []string{"policy drop", "elements = { 22 }", "7000-7100", "elements = { 5432 }", "elements = { 112 }"} {
		if !strings.Contains(strings.ReplaceAll(rules, "{ vrrp }", "{ 112 }"), want) {
			t.Errorf("the kernel's rules lack %q:\n%s", want, rules)
		}
	}
	n.Role.Ports = []manifest.Port{{Port: "80;accept", Proto: "tcp", From: "any"}}
	if err := (Firewall{}).Apply(t.Context(), n.Node); err == nil {
		t.Error("a port that is none was taken")
	}
}

func TestAFileSomebodyChangedStaysUntilItsEntryChanges(t *testing.T) {
	n := nodetest.Start(t)
	config := "#cloud-config\nwrite_files: [{path: /etc/x, content: one}, {path: /etc/y, content: \"more\\n\", append: true}]\n"
	n.Put(t, "/etc/y", "some\n")
	mustBoot(t, n, config)
	n.Put(t, "/etc/x", "mine")
	mustBoot(t, n, config)
	if got := n.File(t, "/etc/x"); got != "mine" {
		t.Errorf("/etc/x is %q", got)
	}
	// A power cut after the file and before its record.
	if err := os.Remove(n.Path(node.LocalPath)); err != nil {
		t.Fatal(err)
	}
	mustBoot(t, n, config)
	if got := n.File(t, "/etc/y"); got != "some\nmore\n" {
		t.Errorf("appended twice: %q", got)
	}
	mustBoot(t, n, strings.Replace(config, "one", "two", 1))
	if got := n.File(t, "/etc/x"); got != "two" {
		t.Errorf("/etc/x is %q", got)
	}
}

func TestDisksWithContentAreLeftAloneAndOverwrittenOnce(t *testing.T) {
	n := nodetest.Start(t)
	image := func(name string) {
		if err := os.WriteFile(n.Path("/dev/"+name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(n.Path("/dev/"+name), 16<<20); err != nil {
			t.Fatal(err)
		}
	}
	label := func(name string) string {
		return strings.TrimSpace(n.Output(t, "blkid", "-p", "-o", "value", "-s", "LABEL", "/dev/"+name))
	}
	image("data")
	n.Give(t, "#cloud-config\nfs_setup: [{device: /dev/data, filesystem: ext4, label: first}]\n")
	apply(t, n, Disks{})
	if got := label("data"); got != "first" {
		t.Fatalf("label %q", got)
	}
	n.Give(t, "#cloud-config\nfs_setup: [{device: /dev/data, filesystem: vfat, label: SECOND}]\n")
	apply(t, n, Disks{})
	if got := label("data"); got != "first" || !n.Said.Warned("overwrite: true") {
		t.Errorf("a file system was overwritten: %q, %v", got, n.Said.Warnings)
	}
	force := "#cloud-config\nfs_setup: [{device: data, filesystem: ext4, label: third, overwrite: true}]\n"
	n.Give(t, force)
	apply(t, n, Disks{})
	if got := label("data"); got != "third" {
		t.Errorf("label %q", got)
	}
	n.Output(t, "tune2fs", "-L", "precious", "/dev/data")
	n.Give(t, force)
	apply(t, n, Disks{})
	if got := label("data"); got != "precious" {
		t.Errorf("overwritten at the next boot: %q", got)
	}

	image("disk")
	n.Give(t, "#cloud-config\ndisk_setup: {/dev/disk: {table_type: gpt, layout: true}}\n")
	apply(t, n, Disks{})
	if got := n.Output(t, "sfdisk", "--dump", "/dev/disk"); !strings.Contains(got, "label: gpt") || !strings.Contains(got, "size=") {
		t.Errorf("partition table: %s", got)
	}
}

func TestMountsStandInFstabOnceAndLeaveWithTheMetadata(t *testing.T) {
	n := nodetest.Start(t)
	n.Put(t, "/etc/fstab", "# mine\nLABEL=x /x ext4 defaults 0 2\n")
	config := "#cloud-config\nmounts: [[tmpfs, /srv/scratch, tmpfs, 'size=1M']]\n"
	for range 2 {
		n.Give(t, config)
		apply(t, n, Disks{})
	}
	if got := n.File(t, "/etc/fstab"); strings.Count(got, "/srv/scratch") != 1 || !strings.Contains(got, "# mine\nLABEL=x") {
		t.Errorf("fstab: %s", got)
	}
	n.Output(t, "mountpoint", "/srv/scratch")
	n.Output(t, "umount", "/srv/scratch")
	n.Give(t, "#cloud-config\n")
	apply(t, n, Disks{})
	if got := n.File(t, "/etc/fstab"); strings.Contains(got, "scratch") || !strings.Contains(got, "LABEL=x") {
		t.Errorf("fstab: %s", got)
	}
}

func TestACommandThatFailsIsReportedAndItsOutputStaysWithRoot(t *testing.T) {
	n := nodetest.Start(t)
	for range 2 {
		err := boot(t, n, "#cloud-config\nruncmd: ['echo top-secret; exit 3']\n")
		if err == nil || !strings.Contains(err.Error(), "runcmd") || strings.Contains(err.Error(), "secret") {
			t.Fatalf("error: %v", err)
		}
	}
	if got := strings.Count(n.File(t, CommandLog), "top-secret\n"); got != 1 {
		t.Errorf("it ran %d times", got)
	}
	info, err := os.Stat(n.Path(CommandLog))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%s: %v %v", CommandLog, info.Mode(), err)
	}
}

func TestACommandThatHangsIsStoppedWithItsChildren(t *testing.T) {
	n := nodetest.Start(t)
	_, err := n.Execute(t.Context(), node.Command{Argv: []string{"sh", "-c", "sleep 1000 & echo $!; wait"}, Timeout: 300e6})
	if err == nil || !strings.Contains(err.Error(), "took longer than") {
		t.Fatal(err)
	}
	var failed *node.CommandError
	if !errors.As(err, &failed) {
		t.Fatal(err)
	}
	if out := n.Output(t, "sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"); strings.Contains(out, "sleep 1000") {
		t.Error("a child goes on")
	}
}

func TestWithoutMetadataNobodyLosesAccess(t *testing.T) {
	n := nodetest.Start(t)
	mustBoot(t, n, "#cloud-config\nssh_authorized_keys: ['"+key1+"']\n")
	n.Reopen(t)
	n.Seed = nil
	if err := (Users{}).Apply(context.Background(), n.Node); err != nil {
		t.Fatal(err)
	}
	if got := n.File(t, "/home/slipway/.ssh/authorized_keys"); !strings.Contains(got, key1) {
		t.Errorf("keys: %q", got)
	}
}

func TestAnAuthorizedKeysFileThatIsALinkIsNotFollowed(t *testing.T) {
	n := nodetest.Start(t)
	mustBoot(t, n, "#cloud-config\nusers: [{name: ada, ssh_authorized_keys: ['"+key1+"']}]\n")
	n.Put(t, "/etc/victim", "keep")
	keys := n.Path("/home/ada/.ssh/authorized_keys")
	if err := errors.Join(os.Remove(keys), os.Symlink("/etc/victim", keys)); err != nil {
		t.Fatal(err)
	}
	mustBoot(t, n, "#cloud-config\nusers: [{name: ada, ssh_authorized_keys: ['"+key2+"']}]\n")
	if got := n.File(t, "/etc/victim"); got != "keep" {
		t.Errorf("/etc/victim is now %q", got)
	}
	if info, err := os.Stat(n.Path("/etc/victim")); err != nil || info.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Error("the victim changed hands")
	}
}
