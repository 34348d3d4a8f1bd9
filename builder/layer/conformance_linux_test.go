package layer_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/tree"
	"golang.org/x/sys/unix"
)

// explained are the differences between our base layer and mmdebstrap's tree of
// the same packages, each with its reason. Anything else is a defect.
var explained = []struct {
	path   string
	reason string
}{
	{`^(dev|run|tmp)/`, "mounts of the sandbox; never part of a layer"},
	{`^usr/share/(doc|man|info|locale|lintian|bug|linda|doc-base|help)(/|$)`, "left out by KeepDefault"},
	{`^etc/alternatives/.*\.[0-9]\.gz$|^etc/alternatives/which\.[a-z]{2}1\.gz$`, "links to manuals, which are left out"},
	{`^var/lib/dpkg/alternatives/builtins\.7\.gz$`, "a manual's alternative"},
	{`^etc/dpkg/dpkg\.cfg\.d/slipway$`, "ours: what to leave out later"},
	{`^etc/apt/(sources\.list|apt\.conf\.d/99mmdebstrap)$|^etc/(fstab|hostname|resolv\.conf|\.resolv\.conf\.systemd-resolved\.bak)$`, "written by mmdebstrap, or copied from the host"},
	{`^etc/(passwd|group|shadow|gshadow|subuid|subgid)-$|^etc/\.pwd\.lock$`, "backups and locks"},
	{`^etc/(passwd|group|shadow|gshadow)$`, "ids depend on the order of configuration; names are compared below"},
	{`^etc/machine-id$`, "empty in both; its mode is as systemd makes it"},
	{`^etc/ssh/ssh_host_`, "born on the node"},
	{`^etc/ld\.so\.cache$|^var/cache/ldconfig/`, "its order follows the directory's"},
	{`^etc/systemd/system/timers\.target\.wants/`, "target spelled /lib or /usr/lib, as systemctl found it"},
	{`^var/cache/apt/|^var/lib/apt/|^var/log/(dpkg|alternatives|bootstrap|apt)`, "left by apt and dpkg, which mmdebstrap runs; apt makes them anew"},
	{`^var/cache/debconf/`, "answers are stored in the order of the questions"},
	{`^var/lib/dpkg/(arch|arch-native|available|.*-old|lock.*|triggers/Lock|diversions)$`, "state between runs of dpkg; the order of diversions"},
	{`^var/lib/dpkg/(status|triggers/File)$`, "compared by package and line below"},
	{`^var/lib/dpkg/info/.*\.(list|md5sums)$`, "without the files that are left out"},
	{`^var/lib/systemd/catalog/database$|^var/lib/ucf/.*\.[0-9]$|^var/cache/man/`, "caches and backups"},
}

// node is what counts of a file: its owner by name.
type node struct {
	kind          tree.Kind
	perm          uint32
	owner, target string
	caps, content string
}

func (n node) String() string {
	return fmt.Sprintf("kind %d, mode %o, owner %s, target %q, capabilities %x, content %.16s", n.kind, n.perm, n.owner, n.target, n.caps, n.content)
}

// TestTheBaseLayerIsWhatMmdebstrapMakes holds the whole method against the real
// thing: the same packages, installed by apt and dpkg in mmdebstrap.
func TestTheBaseLayerIsWhatMmdebstrapMakes(t *testing.T) {
	need(t, "mmdebstrap", "mmdebstrap")
	if os.Geteuid() != 0 {
		t.Fatal("mmdebstrap needs root for a tree with true owners: run this test as root")
	}
	b := sharedBase(t)
	theirs := filepath.Join(t.TempDir(), "tree")
	var names []string
	for _, d := range b.debs {
		names = append(names, d.Name)
	}
	cmd := exec.Command("mmdebstrap", "--variant=custom", "--mode=root", "--format=directory", "--include="+strings.Join(names, ","),
		"--aptopt=APT::Install-Recommends \"false\"", suite, theirs, "deb [trusted=yes] "+mirror(t)+" "+suite+" main")
	cmd.Env = append(os.Environ(), fmt.Sprintf("SOURCE_DATE_EPOCH=%d", date))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mmdebstrap: %v\n%s", err, out)
	}
	ours, real := nodes(t, b.dir, true), nodes(t, theirs, false)
	all := map[string]bool{}
	for p := range ours {
		all[p] = true
	}
	for p := range real {
		all[p] = true
	}
	var paths []string
	for p := range all {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	for _, p := range paths {
		a, inOurs := ours[p]
		r, inReal := real[p]
		switch {
		case a == r || isExplained(p):
		case !inOurs:
			t.Errorf("/%s is missing: %v", p, r)
		case !inReal:
			t.Errorf("/%s is too much: %v", p, a)
		default:
			t.Errorf("/%s differs:\n  ours %v\n  real %v", p, a, r)
		}
	}
	for _, file := range []string{"etc/passwd", "etc/group"} {
		a, r := accounts(t, filepath.Join(b.dir, file)), accounts(t, filepath.Join(theirs, file))
		for _, d := range difference(a, r) {
			t.Errorf("/%s: %s", file, d)
		}
	}
	for _, d := range difference(lines(t, b.dir, "var/lib/dpkg/triggers/File"), lines(t, theirs, "var/lib/dpkg/triggers/File")) {
		t.Errorf("file triggers: %s", d)
	}
	for _, d := range difference(stanzas(t, b.dir), stanzas(t, theirs)) {
		t.Errorf("dpkg's status: %s", d)
	}
}

func isExplained(p string) bool {
	for _, e := range explained {
		if regexp.MustCompile(e.path).MatchString(p) {
			return true
		}
	}
	return false
}

// nodes reads a tree: ours with recorded owners, or a real one.
func nodes(t *testing.T, dir string, recorded bool) map[string]node {
	t.Helper()
	users, groups := ids(t, dir, "etc/passwd"), ids(t, dir, "etc/group")
	out := map[string]node{}
	for _, e := range read(t, dir, layer.FromDirOptions{Skip: func(p string) bool { return p == "dev" }}).Sorted() {
		n := node{kind: e.Kind, perm: e.Perm, target: e.Target, caps: string(e.Xattrs["security.capability"])}
		uid, gid := e.UID, e.GID
		if !recorded {
			var st unix.Stat_t
			name := filepath.Join(dir, e.Path)
			if err := unix.Lstat(name, &st); err != nil {
				t.Fatal(err)
			}
			uid, gid = st.Uid, st.Gid
			caps := make([]byte, 64)
			if size, err := unix.Lgetxattr(name, "security.capability", caps); err == nil {
				n.caps = string(caps[:size])
			}
		}
		n.owner = users[fmt.Sprint(uid)] + ":" + groups[fmt.Sprint(gid)]
		if e.Kind == tree.Regular {
			// By name: a hard link has no Open of its own.
			content, err := os.ReadFile(filepath.Join(dir, e.Path))
			if err != nil {
				t.Fatal(err)
			}
			n.content = fmt.Sprintf("%x", sha256.Sum256(content))
		}
		out[e.Path] = n
	}
	return out
}

// ids maps the numbers of /etc/passwd or /etc/group to names.
func ids(t *testing.T, dir, file string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, line := range lines(t, dir, file) {
		if fields := strings.Split(line, ":"); len(fields) > 2 {
			out[fields[2]] = fields[0]
		}
	}
	return out
}

// accounts are the lines of a file of accounts without their numbers.
func accounts(t *testing.T, file string) []string {
	t.Helper()
	var out []string
	for _, line := range lines(t, filepath.Dir(file), filepath.Base(file)) {
		fields := strings.Split(line, ":")
		fields[2] = ""
		if len(fields) > 4 {
			fields[3] = ""
		}
		out = append(out, strings.Join(fields, ":"))
	}
	return out
}

func lines(t *testing.T, dir, file string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// stanzas are dpkg's records of packages, whole.
func stanzas(t *testing.T, dir string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "var/lib/dpkg/status"))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, s := range bytes.Split(bytes.TrimSpace(b), []byte("\n\n")) {
		out = append(out, string(s))
	}
	return out
}
