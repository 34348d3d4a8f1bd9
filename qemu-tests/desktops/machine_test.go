//go:build long

package desktopstest

import (
	"bytes"
	"fmt"
	"net"
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

	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/topology"
)

const (
	project = "../.."
	bridge  = "vdi0"
	self    = "10.77.1.1/24" // of the test itself
)

// cluster is that of examples/vdi-pair, with its nodes' certificates and secrets.
type cluster struct {
	t         *testing.T
	topology  *topology.Topology
	profiles  *profile.Set
	plan      *plan.Plan
	authority *pki.Authority
	secrets   map[string]string
	db        *machine // with the database
	first     *machine // the balancer with the virtual address
	machines  []*machine
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	top, err := topology.Load(project + "/examples/vdi-pair/cluster.yaml")
	must(t, err)
	authority, err := pki.NewAuthority(pki.ClusterAuthority, top.Name, time.Now())
	must(t, err)
	profiles, err := profile.Load(project + "/profiles")
	must(t, err)
	c := &cluster{t: t, topology: top, profiles: profiles, plan: top.Plan(), authority: authority, secrets: map[string]string{
		plan.BrokerAdmin: "first-administrator-7", plan.GatewayKey: "gateways-are-known-by-this",
		plan.Database{Owner: "broker"}.PasswordKey(): "database:of\\brokers",
	}}
	c.plan.ID, c.plan.Generation = pki.ID(authority.Cert), 1
	for _, words := range [][]string{{"link", "add", bridge, "type", "bridge"}, {"address", "add", self, "dev", bridge}, {"link", "set", bridge, "up"}, {"link", "set", "lo", "up"}} {
		if out, err := exec.Command("ip", words...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v: %s", words, err, out)
		}
	}
	t.Cleanup(func() { exec.Command("ip", "link", "delete", bridge).Run() })
	return c
}

// member is a node's part, as its seed has it.
func (c *cluster) member(name string) *member.Member {
	c.t.Helper()
	n, err := c.plan.Node(name)
	must(c.t, err)
	pair, err := c.authority.Pair()
	must(c.t, err)
	m := &member.Member{CA: c.authority.Cert, Plan: c.plan, Self: n, Site: c.plan.Sites[0]}
	m.Cluster, m.Node, m.Authority = c.plan.Cluster, name, pair.Certificate
	m.Certificates, m.Secrets = map[string]member.Pair{}, map[string]string{}
	request := pki.Request{Purpose: member.ServiceCert, Node: name, Names: []string{name, name + "." + c.plan.Domain, "localhost"}, Addresses: []netip.Addr{n.Address, netip.MustParseAddr("127.0.0.1")}}
	for _, v := range c.plan.Answers(name) {
		request.Names, request.Addresses = append(request.Names, v.Names...), append(request.Addresses, v.Address.Addr())
	}
	switch n.Role {
	case "balancer":
		request.Names = append(request.Names, plan.BrokersName)
	case plan.BrokerRole:
		m.Secrets = c.secrets
	case plan.GatewayRole:
		m.Secrets[plan.GatewayKey] = c.secrets[plan.GatewayKey]
	}
	m.Certificates[member.ServiceCert], err = c.authority.Issue(request, time.Now())
	must(c.t, err)
	return m
}

// machine is a node with a network stack of its own, on which the units of its
// image run as systemd would run them.
type machine struct {
	*nodetest.Node
	cluster *cluster
	t       *testing.T
	name    string
	net     int // a process in its network namespace
	mu      sync.Mutex
	runs    map[string]*exec.Cmd
}

// machine boots a node with the overlays and users of its role.
func (c *cluster) machine(name string, overlays ...string) *machine {
	c.t.Helper()
	m := &machine{Node: nodetest.Start(c.t), cluster: c, t: c.t, name: name, runs: map[string]*exec.Cmd{}}
	m.Member = c.member(name)
	if p, err := c.profiles.Role(m.Member.Self.Role); err == nil {
		marker := c.profiles.Marker(p)
		m.Role = &marker
	}
	holder := exec.Command("unshare", "--net", "--uts", "sh", "-c", "hostname "+name+"; exec sleep infinity")
	must(c.t, holder.Start())
	m.net = holder.Process.Pid
	c.t.Cleanup(func() { holder.Process.Kill(); holder.Wait() })
	until(c.t, "a network of its own", func() bool {
		own, _ := os.Readlink("/proc/self/ns/net")
		its, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", m.net))
		return its != "" && its != own
	})
	port := "port-" + name
	m.command("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", strconv.Itoa(m.net))
	c.t.Cleanup(func() { exec.Command("ip", "link", "delete", port).Run() })
	m.command("ip", "link", "set", port, "master", bridge, "up")
	for _, words := range []string{"link set lo up", "address add " + m.Member.Self.Addresses[0].String() + " dev eth0", "link set eth0 up"} {
		m.command(append(m.inside("ip"), strings.Fields(words)...)...)
	}
	for _, overlay := range overlays {
		m.command("cp", "-a", "--no-preserve=ownership", filepath.Join(project, "overlays", overlay)+"/.", m.Root)
	}
	for _, dir := range []string{"/dev/shm", "/tmp", "/tmp/.X11-unix"} {
		must(c.t, os.MkdirAll(m.Path(dir), 0o1777))
		must(c.t, os.Chmod(m.Path(dir), 0o1777|os.ModeSticky))
	}
	must(c.t, os.MkdirAll(m.Path("/dev/pts"), 0o755))
	m.command("mount", "-t", "devpts", "-o", "newinstance,ptmxmode=0666", "devpts", m.Path("/dev/pts"))
	must(c.t, os.Symlink("pts/ptmx", m.Path("/dev/ptmx")))
	must(c.t, os.WriteFile(m.Path("/dev/tty"), nil, 0o644)) // which xterm wants
	m.command("mount", "--bind", "/dev/tty", m.Path("/dev/tty"))
	m.Put(c.t, "/etc/hostname", name+"\n")
	m.journal()
	c.machines = append(c.machines, m)
	c.t.Cleanup(m.off)
	return m
}

// journal takes what programs log, as journald does, and keeps nothing.
func (m *machine) journal() {
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.Path("/dev/log"), Net: "unixgram"})
	must(m.t, err)
	must(m.t, os.Chmod(m.Path("/dev/log"), 0o666))
	m.t.Cleanup(func() { conn.Close() })
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			if _, err := conn.Read(buffer); err != nil {
				return
			}
		}
	}()
}

// inside runs a command line in the machine's network and under its name.
func (m *machine) inside(argv ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(m.net), "--net", "--uts"}, argv...)
}

func (m *machine) command(argv ...string) {
	m.t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
}

// outside runs a program of the computer in the machine's network.
func (m *machine) outside(argv ...string) (string, error) {
	words := m.inside(argv...)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	return string(out), err
}

// announce has everybody on the network forget where the virtual address was, which the
// new holder's announcement does (RFC 5227, 3).
func (c *cluster) announce() {
	exec.Command("ip", "neigh", "flush", "dev", bridge).Run()
	for _, m := range c.machines {
		m.outside("ip", "neigh", "flush", "dev", "eth0")
	}
}

// as runs a program on the machine as a user.
func (m *machine) as(user string, env []string, argv ...string) *exec.Cmd {
	words := m.inside(append([]string{"chroot", "--userspec=" + user + ":" + user, m.Root}, argv...)...)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Env = append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/"}, env...)
	return cmd
}

// succeed runs a program on the machine and returns what it says.
func (m *machine) succeed(user string, argv ...string) string {
	m.t.Helper()
	out, err := m.as(user, nil, argv...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("%s: %s: %v: %s", m.name, strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// unit is what a unit file of an overlay says.
type unit map[string][]string

func readUnit(t testing.TB, text string) unit {
	u := unit{}
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		key, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && key[0] != '#' && key[0] != '[' {
			if value == "" {
				delete(u, key) // resets a list
				continue
			}
			u[key] = append(u[key], value)
		}
	}
	return u
}

func (u unit) one(key, otherwise string) string {
	if len(u[key]) == 0 {
		return otherwise
	}
	return u[key][len(u[key])-1]
}

// start runs a unit as systemd does (systemd.service(5)): its directories, its
// environment, what comes before it, and itself.
func (m *machine) start(name string) {
	m.t.Helper()
	text := ""
	for _, path := range []string{"/usr/lib/systemd/system/" + name, "/usr/lib/systemd/system/" + name + ".d/10-slipway.conf"} {
		if data, err := os.ReadFile(m.Path(path)); err == nil {
			text += string(data) + "\n"
		}
	}
	u := readUnit(m.t, text)
	user := u.one("User", "root")
	env := []string{"MAINPID=0"}
	for _, line := range u["Environment"] {
		env = append(env, strings.Fields(line)...)
	}
	for _, file := range u["EnvironmentFile"] {
		data, _ := os.ReadFile(m.Path(strings.TrimPrefix(file, "-")))
		for line := range strings.Lines(string(data)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			env = append(env, key+"="+strings.NewReplacer(`\\`, `\`, `\"`, `"`).Replace(strings.Trim(value, `"`)))
		}
	}
	if dir := u.one("RuntimeDirectory", ""); dir != "" {
		mode := u.one("RuntimeDirectoryMode", "0755")
		m.succeed("root", "install", "-d", "-o", user, "-g", user, "-m", mode, "/run/"+dir)
		env = append(env, "RUNTIME_DIRECTORY=/run/"+dir)
	}
	log, err := os.OpenFile(m.Path("/"+name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	must(m.t, err)
	for _, before := range u["ExecStartPre"] {
		cmd := m.as(user, env, words(strings.TrimPrefix(before, "-"), m.name)...)
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Run(); err != nil && before[0] != '-' {
			m.t.Fatalf("%s: %s: %v: %s", m.name, before, err, m.log(name))
		}
	}
	cmd := m.as(user, env, words(u.one("ExecStart", ""), m.name)...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(m.t, cmd.Start())
	m.mu.Lock()
	m.runs[name] = cmd
	m.mu.Unlock()
}

// reload has a unit take up what has changed, as systemd does.
func (m *machine) reload(name string) {
	m.t.Helper()
	text := ""
	for _, path := range []string{"/usr/lib/systemd/system/" + name, "/usr/lib/systemd/system/" + name + ".d/10-slipway.conf"} {
		if data, err := os.ReadFile(m.Path(path)); err == nil {
			text += string(data) + "\n"
		}
	}
	u := readUnit(m.t, text)
	m.mu.Lock()
	pid := strconv.Itoa(m.runs[name].Process.Pid)
	m.mu.Unlock()
	for _, line := range u["ExecReload"] {
		argv := words(strings.ReplaceAll(strings.TrimPrefix(line, "-"), "$MAINPID", pid), m.name)
		cmd := m.as(u.one("User", "root"), []string{"RUNTIME_DIRECTORY=/run/" + u.one("RuntimeDirectory", "")}, argv...)
		if out, err := cmd.CombinedOutput(); err != nil && line[0] != '-' {
			m.t.Fatalf("%s: %s: %v: %s", m.name, line, err, out)
		}
	}
}

// words splits a command line of a unit.
func words(line, host string) []string {
	var out []string
	for i, part := range strings.Split(line, "'") {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	for i, w := range out {
		out[i] = strings.ReplaceAll(w, "%H", host)
	}
	return out
}

// stop ends a unit by a signal and waits for it.
func (m *machine) stop(name string, with syscall.Signal) {
	m.mu.Lock()
	cmd := m.runs[name]
	delete(m.runs, name)
	m.mu.Unlock()
	if cmd == nil {
		return
	}
	syscall.Kill(-cmd.Process.Pid, with)
	cmd.Wait()
}

// signal sends a unit's first process a signal.
func (m *machine) signal(name string, s syscall.Signal) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.runs[name].Process.Signal(s)
}

// off cuts the machine's power.
func (m *machine) off() {
	m.mu.Lock()
	names := []string{}
	for name := range m.runs {
		names = append(names, name)
	}
	m.mu.Unlock()
	for _, name := range names {
		m.stop(name, syscall.SIGKILL)
	}
	if m.t.Failed() {
		slices.Sort(names)
		for _, name := range names {
			m.t.Logf("%s: %s: %s", m.name, name, m.log(name))
		}
	}
}

// cut takes the machine off the network, as a cut cable or lost power does.
func (m *machine) cut() { m.command("ip", "link", "set", "port-"+m.name, "down") }

// log is the end of what a unit wrote.
func (m *machine) log(name string) string {
	data, _ := os.ReadFile(m.Path("/" + name + ".log"))
	return string(bytes.ToValidUTF8(data[max(0, len(data)-3000):], nil))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// until waits for a condition.
func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.After(90 * time.Second)
	for !is() {
		select {
		case <-deadline:
			t.Fatalf("never: %s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
