// Package roletest gives the tests of the role packages a cluster: a plan, the
// members with their certificates and secrets, and nodes on which the real etcd,
// Patroni and PostgreSQL run, as their users, each node in a network namespace of
// its own, joined to the test's by a bridge.
package roletest

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// packages are what the images of a database node and a balancer have; all role packages
// ask for the same, so that they share one tree. libfaketime is the tests' own.
const packages = "curl,etcd-client,etcd-server,haproxy,keepalived,libfaketime,patroni,pgbackrest,postgresql-17,python3-etcd"

// Main is the TestMain of a package that uses Start.
func Main(m *testing.M) { nodetest.Main(m, packages) }

// Plan is a cluster of two sites, a with three database nodes and b, its standby,
// with one.
func Plan() *plan.Plan {
	patroni := plan.Patroni{TTL: 20, LoopWait: 2, RetryTimeout: 3, PrimaryStartTimeout: 15, MaximumLag: 1 << 20}
	postgres := plan.Postgres{Port: 5432, MaxConnections: 50, MaxSlotWALKeep: 1024}
	p := &plan.Plan{
		Format: plan.Format, Cluster: "test", Generation: 1, Domain: "example.internal",
		Sites: []plan.Site{
			{Name: "a", Scope: "test", Consensus: []string{"a-db1", "a-db2", "a-db3"}, Bootstrap: "a-db1", Patroni: patroni, Postgres: postgres},
			{Name: "b", Scope: "test-b", Consensus: []string{"b-db1"}, Bootstrap: "b-db1", StandbyOf: "a", Patroni: patroni, Postgres: postgres},
		},
		Databases: []plan.Database{{Name: "app", Owner: "app"}},
		Clients:   []netip.Prefix{netip.MustParsePrefix("10.77.9.0/24")},
	}
	for i, name := range []string{"a-db1", "a-db2", "a-db3", "b-db1"} {
		role := "db-replica"
		if name[3:] == "db1" {
			role = "db-master"
		}
		address := netip.AddrFrom4([4]byte{10, 77, name[0] - 'a' + 1, byte(11 + i)})
		p.Nodes = append(p.Nodes, plan.Node{Name: name, Role: role, Site: name[:1], Address: address, Addresses: []netip.Prefix{netip.PrefixFrom(address, 24)}})
	}
	return p
}

// Members are all nodes of a plan with their certificates and secrets; the plan
// gets the identity of a new authority.
func Members(t testing.TB, p *plan.Plan) map[string]*member.Member {
	t.Helper()
	now := time.Now()
	authority, err := pki.NewAuthority(pki.ClusterAuthority, p.Cluster, now)
	must(t, err)
	etcd, err := pki.NewAuthority(pki.EtcdAuthority, p.Cluster, now)
	must(t, err)
	p.ID = pki.ID(authority.Cert)
	members := map[string]*member.Member{}
	issuers.Store(p.ID, authorities{authority, etcd})
	for _, n := range p.Nodes {
		m := &member.Member{CA: authority.Cert, Plan: p, Self: n}
		m.Site, err = p.Site(n.Site)
		must(t, err)
		m.Cluster, m.Node = p.Cluster, n.Name
		m.Authority, m.EtcdAuthority = pki.EncodeCertificate(authority.Cert.Raw), pki.EncodeCertificate(etcd.Cert.Raw)
		m.Certificates = issue(t, authorities{authority, etcd}, m)
		if len(p.BackupPeers(n.Name)) > 0 {
			m.Certificates[member.BackupCert], err = authority.Issue(pki.Request{
				Purpose: member.BackupCert, Node: n.Name, Names: []string{n.Name, n.Address.String()}, Addresses: []netip.Addr{n.Address},
			}, now)
			must(t, err)
		}
		m.Secrets = map[string]string{
			plan.SuperuserPassword: "secret-of-postgres", plan.ReplicationPassword: "secret of '\"$replicator", plan.RewindPassword: "secret\\of#rewind",
			plan.Database{Owner: "app"}.PasswordKey(): "secret-of-app",
		}
		if p.Keeps(n.Name) {
			m.Secrets = map[string]string{plan.BackupCipher: "secret-of-backups"}
		}
		members[n.Name] = m
	}
	return members
}

// authorities are those of a cluster of Members.
type authorities struct{ cluster, etcd *pki.Authority }

// issuers are the authorities by the plan's ID, for Renewed.
var issuers sync.Map

// Renewed are a member's certificates, made anew by its authorities.
func Renewed(t testing.TB, m *member.Member) map[string]member.Pair {
	t.Helper()
	found, ok := issuers.Load(m.Plan.ID)
	if !ok {
		t.Fatal("the cluster is none of Members")
	}
	return issue(t, found.(authorities), m)
}

func issue(t testing.TB, by authorities, m *member.Member) map[string]member.Pair {
	t.Helper()
	out, n := map[string]member.Pair{}, m.Self
	addresses := []netip.Addr{n.Address, netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1")}
	for _, v := range m.Plan.VIPs {
		addresses = append(addresses, v.Address.Addr())
	}
	for _, purpose := range []string{member.ServiceCert, member.EtcdCert, member.EtcdClient} {
		issuer := by.etcd
		if purpose == member.ServiceCert {
			issuer = by.cluster
		}
		pair, err := issuer.Issue(pki.Request{
			Purpose: purpose, Node: n.Name, Names: []string{n.Name, n.Name + "." + m.Plan.Domain, "localhost"},
			Addresses: addresses,
		}, time.Now())
		must(t, err)
		out[purpose] = pair
	}
	return out
}

// Node is a node whose systemd is played by the test: it starts what is released
// and not held, as a process of the unit's user, and starts it anew when it ends.
type Node struct {
	*nodetest.Node
	t     testing.TB
	under node.Runner
	mu    sync.Mutex
	units map[string]*process
	net   int // a process in the node's network namespace
	// Extra is added to the environment of what is started.
	Extra []string
}

// Start makes a node that is a member, on the bridge that all such nodes of a test share.
func Start(t testing.TB, m *member.Member) *Node {
	t.Helper()
	return StartOn(t, m, nil)
}

// StartOn is Start with a cable of the test's own, which makes the card eth0 in the
// node's network namespace, given as the path of its file (namespaces(7)).
func StartOn(t testing.TB, m *member.Member, cable func(namespace string) error) *Node {
	t.Helper()
	n := &Node{Node: nodetest.Start(t), t: t, units: map[string]*process{}}
	n.network(m.Self, cable)
	n.under, n.Run, n.Member = n.Run, systemd{n}, m
	must(t, os.Mkdir(n.Path("/dev/shm"), 0o1777))
	must(t, os.Chmod(n.Path("/dev/shm"), 0o1777))
	must(t, os.MkdirAll(n.Path("/run/systemd/system"), 0o755))
	// The package makes a database of its own here, in the image it does not.
	n.Output(t, "rm", "-rf", "/var/lib/postgresql/17", "/etc/postgresql")
	n.Output(t, "install", "-d", "-o", "etcd", "-g", "etcd", "-m", "700", "/var/lib/etcd")
	n.Output(t, "install", "-d", "-o", "postgres", "-g", "postgres", "/var/lib/postgresql", "/run/postgresql", "/var/lib/pgbackrest")
	t.Cleanup(n.Crash)
	return n
}

const bridge = "nodes0"

// network gives the node a network namespace with its address, and a cable.
func (n *Node) network(self plan.Node, cable func(namespace string) error) {
	n.t.Helper()
	holder := exec.Command("unshare", "--net", "sleep", "infinity")
	must(n.t, holder.Start())
	n.net = holder.Process.Pid
	n.t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	own, err := os.Readlink("/proc/thread-self/ns/net")
	must(n.t, err)
	for there := own; there == own; { // until unshare(1) has come that far
		there, err = os.Readlink(n.Namespace())
		must(n.t, err)
	}
	if cable == nil {
		cable = n.bridged
	}
	must(n.t, cable(n.Namespace()))
	for _, words := range [][]string{{"link", "set", "lo", "up"}, {"address", "add", self.Address.String() + "/16", "dev", "eth0"}, {"link", "set", "eth0", "up"}} {
		n.command(append(n.inside("ip"), words...)...)
	}
}

// bridged joins the node to the namespace of the test.
func (n *Node) bridged(string) error {
	ip := func(words ...string) { n.command(append([]string{"ip"}, words...)...) }
	if exec.Command("ip", "link", "show", bridge).Run() != nil {
		ip("link", "add", bridge, "type", "bridge")
		ip("address", "add", "10.77.0.1/16", "dev", bridge)
		ip("link", "set", bridge, "up")
	}
	port := fmt.Sprintf("port%d", n.net)
	ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(n.net))
	ip("link", "set", port, "master", bridge, "up")
	n.t.Cleanup(func() { exec.Command("ip", "link", "delete", port).Run() })
	return nil
}

// Namespace is the file of the node's network namespace.
func (n *Node) Namespace() string { return fmt.Sprintf("/proc/%d/ns/net", n.net) }

// Vanish takes a node off the network for good, so that another one may have its
// address.
func (n *Node) Vanish() {
	n.t.Helper()
	n.Crash()
	n.command("ip", "link", "delete", fmt.Sprintf("port%d", n.net))
}

// Inside is a command line that runs in the node's network.
func (n *Node) Inside(argv ...string) []string { return n.inside(argv...) }

// Link puts the node's cable in or takes it out.
func (n *Node) Link(in bool) {
	n.t.Helper()
	state := map[bool]string{true: "up", false: "down"}[in]
	n.command("ip", "link", "set", fmt.Sprintf("port%d", n.net), state)
}

// inside runs a command line in the node's network.
func (n *Node) inside(argv ...string) []string {
	return append([]string{"nsenter", "--net=" + n.Namespace()}, argv...)
}

func (n *Node) command(argv ...string) {
	n.t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		n.t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

// Overlay lays directories of the project's overlays over the node.
func (n *Node) Overlay(names ...string) {
	n.t.Helper()
	for _, name := range names {
		n.command("cp", "--recursive", "--no-target-directory", filepath.Join("../../../overlays", name), n.Root)
	}
}

// systemd answers systemctl itself and has all else run on the node.
type systemd struct{ node *Node }

// Run implements node.Runner.
func (s systemd) Run(ctx context.Context, c node.Command) (string, error) {
	if c.Argv[0] != "systemctl" {
		return s.node.under.Run(ctx, c)
	}
	unit := c.Argv[len(c.Argv)-1]
	switch {
	case slices.Contains(c.Argv, "start"):
		s.node.StartUnit(unit)
	case slices.Contains(c.Argv, "stop"):
		s.node.StopUnit(unit)
	case slices.Contains(c.Argv, "restart"):
		s.node.StopUnit(unit)
		s.node.StartUnit(unit)
	case slices.Contains(c.Argv, "reload"):
		s.node.reload(unit)
	case slices.Contains(c.Argv, "is-active"):
		if s.node.Running(unit) {
			return "active", nil
		}
		return "inactive", nil
	default:
		return "", fmt.Errorf("the test's systemd cannot %q", c.Argv)
	}
	return "", nil
}

// Running reports whether a unit was started.
func (n *Node) Running(unit string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.units[unit] != nil
}

func (n *Node) reload(unit string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.units[unit]; p != nil {
		p.signal(syscall.SIGHUP)
	}
}

// process is what runs for a unit.
type process struct {
	stop context.CancelFunc
	done chan struct{}
	log  *os.File
	mu   sync.Mutex
	cmd  *exec.Cmd
}

func (p *process) signal(s syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		p.cmd.Process.Signal(s)
	}
}

func (p *process) run(cmd *exec.Cmd) error {
	if err := cmd.Start(); err != nil {
		return err
	}
	p.mu.Lock()
	p.cmd = cmd
	p.mu.Unlock()
	err := cmd.Wait()
	p.mu.Lock()
	p.cmd = nil
	p.mu.Unlock()
	return err
}

var commands = map[string]struct {
	user, env string
	argv      []string
	after     []string // ExecStopPost=, however the process has ended
}{
	"etcd.service":       {user: "etcd", env: "/etc/default/etcd", argv: []string{"/usr/bin/etcd"}},
	"haproxy.service":    {user: "root", argv: []string{"/usr/sbin/haproxy", "-W", "-db", "-f", "/etc/haproxy/haproxy.cfg"}},
	"keepalived.service": {user: "root", argv: []string{"/usr/sbin/keepalived", "--dont-fork", "--vrrp", "--log-console"}, after: []string{"/usr/lib/slipway/vip-drop"}},
	"patroni.service":    {user: "postgres", env: "/var/lib/slipway/database.env", argv: []string{"/usr/lib/slipway/patroni"}},
	// A unit may have no environment file; there is none of this name.
	"pgbackrest.service": {user: "postgres", env: "/etc/default/pgbackrest", argv: []string{"/usr/bin/pgbackrest", "server"}},
}

// StartUnit starts a unit unless it runs or is held.
func (n *Node) StartUnit(unit string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.units[unit] != nil || n.Exists("/run/slipway/hold/"+unit) {
		return
	}
	c := commands[unit]
	ctx, stop := context.WithCancel(context.Background())
	log, err := os.OpenFile(n.Path("/"+unit+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(n.t, err)
	p := &process{stop: stop, done: make(chan struct{}), log: log}
	n.units[unit] = p
	go func() {
		defer close(p.done)
		for ctx.Err() == nil {
			env, _ := os.ReadFile(n.Path(c.env))
			argv := append(n.inside("chroot", "--userspec="+c.user+":"+c.user, n.Root), c.argv...)
			cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
			cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin", "HOME=/", "LC_ALL=C.UTF-8", "PATRONI_NAME=" + n.Member.Self.Name}, n.Extra...)
			for line := range strings.Lines(string(env)) {
				if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
					cmd.Env = append(cmd.Env, unquote(line))
				}
			}
			cmd.Stdout, cmd.Stderr = log, log
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			cmd.WaitDelay = 20 * time.Second
			if err := p.run(cmd); err != nil && ctx.Err() == nil {
				fmt.Fprintf(log, "-- %s ended: %v\n", unit, err)
			}
			if c.after != nil {
				if out, err := n.On(c.after...); err != nil {
					fmt.Fprintf(log, "-- after %s: %v: %s\n", unit, err, out)
				}
			}
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
}

// unquote undoes systemd's double quotes (systemd.exec(5), EnvironmentFile=).
func unquote(line string) string {
	key, value, _ := strings.Cut(line, "=")
	if len(value) >= 2 && value[0] == '"' {
		value = strings.NewReplacer(`\\`, `\`, `\"`, `"`, "\\`", "`", `\$`, `$`).Replace(value[1 : len(value)-1])
	}
	return key + "=" + value
}

// StopUnit stops a unit.
func (n *Node) StopUnit(unit string) {
	n.mu.Lock()
	p := n.units[unit]
	delete(n.units, unit)
	n.mu.Unlock()
	if p != nil {
		p.stop()
		<-p.done
		p.log.Close()
	}
}

// KillUnit kills the process of a unit, which is started again. What it has started goes on.
func (n *Node) KillUnit(unit string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.units[unit].signal(syscall.SIGKILL)
}

// Crash ends all that the test has started, at once; what those have started themselves
// ends with the test's process namespace.
func (n *Node) Crash() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for unit, p := range n.units {
		p.stop()
		p.signal(syscall.SIGKILL)
		<-p.done
		delete(n.units, unit)
	}
}

// On runs a program of the node in the node's own network.
func (n *Node) On(argv ...string) (string, error) {
	words := n.inside(append([]string{"chroot", n.Root}, argv...)...)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	return string(out), err
}

// Log is the end of what a unit wrote.
func (n *Node) Log(unit string) string {
	data, _ := os.ReadFile(n.Path("/" + unit + ".log"))
	return string(bytes.ToValidUTF8(data[max(0, len(data)-4000):], nil))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
