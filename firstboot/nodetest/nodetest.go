// Package nodetest gives tests a node to configure: a real Debian root file
// system under an overlay of its own, in namespaces of its own, so that the
// real useradd, visudo, nft and ssh-keygen run and nothing of the machine is
// touched.
package nodetest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/cloudconfig"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/units"
)

const (
	suite    = "trixie"
	packages = "adduser,ca-certificates,cloud-init,dosfstools,e2fsprogs,fdisk,iproute2,mount,nftables,openssh-server,passwd,sudo,systemd,systemd-resolved,systemd-timesyncd,tzdata,udev"
	treeEnv  = "SLIPWAY_NODETEST_TREE"
	needed   = "mmdebstrap uidmap"
)

// Main is the TestMain of a package that uses Start: it makes the Debian tree
// once and runs the tests again inside fresh namespaces, as their root. The tree
// has the packages named in more, beside those that every test gets.
func Main(m *testing.M, more ...string) {
	if os.Getenv(treeEnv) != "" {
		os.Exit(m.Run())
	}
	tree, err := tree(strings.Join(append([]string{packages}, more...), ","))
	if err != nil {
		fmt.Fprintf(os.Stderr, "FAIL: these tests need a Debian tree: %v\n  apt-get install %s\n", err, needed)
		os.Exit(1)
	}
	argv := namespace("--mount", "--uts", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")
	self, err := os.Executable()
	if err != nil {
		self = os.Args[0]
	}
	// The shell is process 1 of the namespace and takes leave of processes whose
	// parents are gone, as systemd does on a node: Patroni waits until a PostgreSQL
	// that it has not started itself is no more, not even as a zombie.
	argv = append(argv, "sh", "-c", `"$@"; exit $?`, "sh", self)
	cmd := exec.Command("unshare", append(argv, os.Args[1:]...)...)
	cmd.Env = append(os.Environ(), treeEnv+"="+tree)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() < 0 {
			fmt.Fprintln(os.Stderr, "FAIL: unshare:", err)
		}
		os.Exit(1)
	}
	os.Exit(0)
}

// tree makes the Debian tree in the user's cache, once for its list of packages.
func tree(packages string) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte("tar " + suite + packages))
	dir := filepath.Join(cache, "slipway", "test-trees", suite+"-"+hex.EncodeToString(sum[:6]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return "", err
	}
	// Test binaries of several packages run at once; one of them makes the tree.
	lock, err := os.OpenFile(dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", err
	}
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	mirror, err := mirror()
	if err != nil {
		return "", err
	}
	fresh := dir + ".new"
	// mmdebstrap numbers an ordinary user's tree in its own way; a tar file of it
	// has the true owners, which unpack to those of the namespace of the tests.
	unpack := append(namespace("--mount"), "sh", "-c", `rm -rf "$1" && mkdir "$1" && tar -xp --numeric-owner --exclude="./dev/*" -C "$1"`, "sh", fresh)
	bootstrap := exec.Command("mmdebstrap", "--variant=essential", "--include="+packages, "--aptopt=APT::Install-Recommends \"false\"", suite, "-", mirror)
	tar := exec.Command("unshare", unpack...)
	var said, tarSaid bytes.Buffer
	bootstrap.Stderr, tar.Stderr = &said, &tarSaid
	if tar.Stdin, err = bootstrap.StdoutPipe(); err != nil {
		return "", err
	}
	if err := tar.Start(); err != nil {
		return "", fmt.Errorf("unshare: %w", err)
	}
	if err := bootstrap.Run(); err != nil {
		return "", fmt.Errorf("mmdebstrap: %w: %s", err, said.Bytes()[max(0, said.Len()-2000):])
	}
	if err := tar.Wait(); err != nil {
		return "", fmt.Errorf("unpacking the tree: %w: %s", err, tarSaid.Bytes()[max(0, tarSaid.Len()-2000):])
	}
	return dir, os.Rename(fresh, dir)
}

// namespace is how unshare(1) makes the caller root over all user numbers.
func namespace(more ...string) []string {
	if os.Geteuid() == 0 {
		return more
	}
	return append([]string{"--user", "--map-root-user", "--map-auto"}, more...)
}

// mirror is the archive that the machine itself uses.
func mirror() (string, error) {
	sources, err := apt.MachineSources("/")
	if err != nil {
		return "", err
	}
	for _, s := range sources {
		u, err := url.Parse(s.URI)
		if err == nil && strings.HasSuffix(strings.TrimRight(u.Path, "/"), "/debian") {
			return s.URI, nil
		}
	}
	return "", fmt.Errorf("the machine's apt sources name no Debian archive")
}

// Node is a node to configure, with what its steps said.
type Node struct {
	*node.Node
	Said *Said
}

// Start makes a node of the given role without metadata.
func Start(t testing.TB, ports ...manifest.Port) *Node {
	t.Helper()
	base := t.TempDir()
	root := base + "/root"
	must(t, os.Mkdir(root, 0o755))
	// A tmpfs, since the temporary directory may be on an overlay already.
	must(t, unix.Mount("tmpfs", base, "tmpfs", 0, "mode=0755"))
	t.Cleanup(func() { unix.Unmount(base, unix.MNT_DETACH) })
	for _, dir := range []string{root, base + "/upper", base + "/work"} {
		must(t, os.MkdirAll(dir, 0o755))
	}
	must(t, unix.Mount("overlay", root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work,userxattr", os.Getenv(treeEnv), base, base)))
	t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
	must(t, unix.Mount("/proc", root+"/proc", "", unix.MS_BIND|unix.MS_REC, ""))
	// A /dev of its own: tests put disk images there, and no disk of the machine is
	// in reach.
	must(t, unix.Mount("tmpfs", root+"/dev", "tmpfs", 0, "mode=0755"))
	for _, device := range []string{"null", "zero", "full", "random", "urandom"} {
		must(t, os.WriteFile(root+"/dev/"+device, nil, 0o644))
		must(t, unix.Mount("/dev/"+device, root+"/dev/"+device, "", unix.MS_BIND, ""))
	}
	n := &Node{Said: &Said{}}
	n.Node = &node.Node{
		Root: root, Run: node.Exec{Prefix: []string{"chroot", root}},
		Role: &manifest.Role{Format: 1, Name: "balancer", Summary: "for tests", Ports: ports},
		User: &cloudconfig.UserData{}, Report: n.Said,
	}
	n.Units = units.Systemctl{Run: n.Command}
	n.Reopen(t)
	return n
}

// Reopen reads both states from disk, as a boot does.
func (n *Node) Reopen(t testing.TB) {
	t.Helper()
	var err error
	n.Kept, err = node.OpenState(n.Node, node.KeptPath)
	must(t, err)
	n.Local, err = node.OpenState(n.Node, node.LocalPath)
	must(t, err)
	n.Said.Reset()
}

// Give hands the node metadata with this user-data, as a boot does.
func (n *Node) Give(t testing.TB, userData string) {
	t.Helper()
	n.Reopen(t)
	n.Seed = &node.Seed{Source: "test", Documents: []cloudconfig.Document{{Name: "user-data", Content: []byte(userData)}}}
	n.User = cloudconfig.Parse(n.Seed.Documents...)
}

// File is a file of the node.
func (n *Node) File(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(n.Path(path))
	must(t, err)
	return string(data)
}

// Put writes a file of the node.
func (n *Node) Put(t testing.TB, path, content string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(n.Path(path)), 0o755))
	must(t, os.WriteFile(n.Path(path), []byte(content), 0o644))
}

// Output runs a program on the node.
func (n *Node) Output(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := n.Run.Run(t.Context(), node.Command{Argv: argv, Timeout: 5 * time.Minute})
	must(t, err)
	return out
}

// Said is what steps said; it implements node.Reporter.
type Said struct {
	mu       sync.Mutex
	Changes  []string
	Warnings []node.Warning
	Keys     []string
	Logins   []string
	Waits    []string
	Lines    []string
}

// Reset forgets it all.
func (s *Said) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Changes, s.Warnings, s.Keys, s.Logins, s.Waits, s.Lines = nil, nil, nil, nil, nil, nil
}

// Waiting implements node.Reporter.
func (s *Said) Waiting(what string) { s.add(&s.Waits, what) }

// Changed implements node.Reporter.
func (s *Said) Changed(what string) { s.add(&s.Changes, what) }

// Say implements node.Reporter.
func (s *Said) Say(line string) { s.add(&s.Lines, line) }

// HostKey implements node.Reporter.
func (s *Said) HostKey(kind, fingerprint string) { s.add(&s.Keys, kind+" "+fingerprint) }

// Login implements node.Reporter.
func (s *Said) Login(user string) { s.add(&s.Logins, user) }

func (s *Said) add(list *[]string, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*list = append(*list, text)
}

// Warn implements node.Reporter.
func (s *Said) Warn(w node.Warning) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Warnings = append(s.Warnings, w)
}

// Warned reports whether a warning holds the text.
func (s *Said) Warned(text string) bool {
	var all bytes.Buffer
	for _, w := range s.Warnings {
		all.WriteString(w.String() + "\n")
	}
	return strings.Contains(all.String(), text)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
