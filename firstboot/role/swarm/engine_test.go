package swarm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/agent"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/oci"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

// site is a plan with dispatchers d1, d2, … and a gateway; other has one dispatcher in
// another site.
func site(dispatchers int) *plan.Plan {
	p := roletest.Plan()
	p.Nodes, p.Databases = nil, nil
	p.Swarm = &plan.Swarm{DataPathPort: 4789}
	add := func(name, role, site string, address netip.Addr) {
		p.Nodes = append(p.Nodes, plan.Node{Name: name, Role: role, Site: site, Address: address, Addresses: []netip.Prefix{netip.PrefixFrom(address, 24)}})
	}
	for i := range dispatchers {
		add("d"+strconv.Itoa(i+1), plan.DispatcherRole, "a", netip.AddrFrom4([4]byte{10, 77, 1, byte(41 + i)}))
	}
	add("far", plan.DispatcherRole, "b", netip.MustParseAddr("10.77.2.41"))
	add("gw", plan.GatewayRole, "a", netip.MustParseAddr("10.77.1.61"))
	for i := range p.Sites {
		p.Sites[i].Consensus = nil
	}
	return p
}

// street is the nodes of a test as they hand things to each other.
type street struct {
	mu    sync.Mutex
	nodes map[string]*node.Node
	give  map[string]peers.Offer
	asked map[string]int // by what for
}

type door struct {
	*street
	name string
}

func (s *street) open(n *node.Node) door {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.nodes == nil {
		s.nodes, s.give, s.asked = map[string]*node.Node{}, map[string]peers.Offer{}, map[string]int{}
	}
	s.nodes[n.Member.Self.Name] = n
	delete(s.give, n.Member.Self.Name)
	return door{s, n.Member.Self.Name}
}

func (s *street) leave(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.nodes, name)
}

func (d door) Offer(_ string, give peers.Offer) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.give[d.name] = give
}

func (d door) Take(ctx context.Context, from, _ string, ask url.Values) ([]byte, error) {
	d.mu.Lock()
	n, give, self := d.nodes[from], d.give[from], d.nodes[d.name]
	d.asked[ask.Get("what")]++
	d.mu.Unlock()
	switch {
	case n == nil || self == nil:
		return nil, errors.New("does not answer")
	case give == nil:
		return nil, peers.ErrNothing
	}
	own := *n
	return give(ctx, &own, self.Member.Self, ask)
}

// engine is a node with a real Docker, in a network of its own that a bridge joins to
// the test's.
type engine struct {
	*nodetest.Node
	t      testing.TB
	holder *exec.Cmd // of its network and host name
	docker *exec.Cmd
	done   chan struct{}
	stop   context.CancelFunc // of the agent's task
	task   *Start
}

const bridge = "nodes0"

func run(t testing.TB, argv ...string) string {
	t.Helper()
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v: %s", strings.Join(argv, " "), err, out)
	}
	return string(out)
}

// newEngine makes a machine; its Docker does not run yet.
func newEngine(t testing.TB, m *member.Member) *engine {
	t.Helper()
	e := &engine{Node: nodetest.Start(t), t: t}
	e.Member, e.Seed = m, &node.Seed{}
	e.Role = &manifest.Role{Name: m.Self.Role}
	for _, dir := range []string{"/sys", "/run", "/var/lib/docker", "/var/lib/containerd", "/dev/shm", "/dev/pts", "/etc/docker"} {
		if err := os.MkdirAll(e.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount := func(source, dir, kind string, flags uintptr) {
		if err := unix.Mount(source, e.Path(dir), kind, flags, ""); err != nil {
			t.Fatalf("%s: %v", dir, err)
		}
		t.Cleanup(func() { unix.Unmount(e.Path(dir), unix.MNT_DETACH) })
	}
	mount("/sys", "/sys", "", unix.MS_BIND|unix.MS_REC)
	for _, dir := range []string{"/run", "/var/lib/docker", "/var/lib/containerd"} {
		mount("tmpfs", dir, "tmpfs", 0)
	}
	config, err := os.ReadFile("../../../overlays/dispatcher/etc/docker/daemon.json")
	if err != nil {
		t.Fatal(err)
	}
	// There is no journal, and no Internet to translate addresses for.
	text := strings.Replace(string(config), `"log-driver": "journald"`, `"log-driver": "json-file", "iptables": false, "ip6tables": false, "bridge": "none"`, 1)
	e.Put(t, "/etc/docker/daemon.json", text)
	if exec.Command("ip", "link", "show", bridge).Run() != nil {
		run(t, "ip", "link", "add", bridge, "type", "bridge")
		run(t, "ip", "address", "add", "10.77.0.1/16", "dev", bridge)
		run(t, "ip", "link", "set", bridge, "up")
	}
	e.network()
	return e
}

// network gives the machine its network and host name.
func (e *engine) network() {
	e.t.Helper()
	e.holder = exec.Command("unshare", "--net", "--uts", "sleep", "infinity")
	if err := e.holder.Start(); err != nil {
		e.t.Fatal(err)
	}
	e.t.Cleanup(e.crash)
	own, _ := os.Readlink("/proc/self/ns/uts")
	for there := own; there == own || there == ""; { // until unshare(1) has come that far
		there, _ = os.Readlink(fmt.Sprintf("/proc/%d/ns/uts", e.holder.Process.Pid))
	}
	pid := strconv.Itoa(e.holder.Process.Pid)
	run(e.t, "ip", "link", "add", "port"+pid, "type", "veth", "peer", "name", "eth0", "netns", pid)
	run(e.t, "ip", "link", "set", "port"+pid, "master", bridge, "up")
	for _, argv := range [][]string{
		{"hostname", e.Member.Self.Name}, {"ip", "link", "set", "lo", "up"},
		{"ip", "address", "add", e.Member.Self.Address.String() + "/16", "dev", "eth0"}, {"ip", "link", "set", "eth0", "up"},
		{"ip", "route", "add", "default", "via", "10.77.0.1"},
	} {
		run(e.t, e.inside(argv...)...)
	}
}

func (e *engine) inside(argv ...string) []string {
	pid := strconv.Itoa(e.holder.Process.Pid)
	return append([]string{"nsenter", "--net=/proc/" + pid + "/ns/net", "--uts=/proc/" + pid + "/ns/uts"}, argv...)
}

// power starts Docker.
func (e *engine) power() {
	e.t.Helper()
	log, err := os.OpenFile(e.Path("/docker.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		e.t.Fatal(err)
	}
	argv := e.inside("chroot", e.Root, "dockerd")
	e.docker, e.done = exec.Command(argv[0], argv[1:]...), make(chan struct{})
	e.docker.Env = []string{"PATH=/usr/sbin:/usr/bin", "HOME=/root"}
	e.docker.Stdout, e.docker.Stderr = log, log
	e.docker.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := e.docker.Start(); err != nil {
		e.t.Fatal(err)
	}
	go func(c *exec.Cmd, done chan struct{}) { c.Wait(); log.Close(); close(done) }(e.docker, e.done)
}

// halt stops Docker as a shutdown does.
func (e *engine) halt() {
	e.t.Helper()
	e.docker.Process.Signal(syscall.SIGTERM)
	<-e.done
	e.docker = nil
}

// crash takes the machine away: its agent, its Docker with all that runs, its network.
func (e *engine) crash() {
	e.rest()
	if e.holder == nil {
		return
	}
	exec.Command("ip", "link", "delete", "port"+strconv.Itoa(e.holder.Process.Pid)).Run()
	if e.docker != nil {
		// All that is in its network ends: Docker, containerd, containers.
		links, _ := filepath.Glob("/proc/[0-9]*/ns/net")
		there, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", e.holder.Process.Pid))
		for _, link := range links {
			if at, err := os.Readlink(link); err == nil && at == there {
				if pid, err := strconv.Atoi(strings.Split(link, "/")[2]); err == nil && pid != e.holder.Process.Pid {
					syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		<-e.done
		e.docker = nil
	}
	e.holder.Process.Kill()
	e.holder.Wait()
	e.holder = nil
}

// work has the agent's task do its part until rest.
func (e *engine) work(s *street) {
	ctx, stop := context.WithCancel(e.t.Context())
	e.stop, e.task = stop, &Start{Peers: s.open(e.Node.Node)}
	go e.task.Apply(ctx, e.Node.Node)
}

func (e *engine) rest() {
	if e.stop != nil {
		e.stop()
		e.stop = nil
	}
}

// ask has the node's docker command say something.
func (e *engine) ask(argv ...string) (string, error) {
	words := e.inside(append([]string{"chroot", e.Root, "docker"}, argv...)...)
	out, err := exec.Command(words[0], words[1:]...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// wait is until what holds, with a deadline that nobody should meet.
func wait(t testing.TB, what string, holds func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(3 * time.Minute); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		if err = holds(); err == nil {
			return
		}
	}
	t.Fatalf("%s: %v", what, err)
}

// appliance gives nodes an image of the test's program and the Compose file that runs
// it, as the builder lays them into an appliance. It returns the image's digest.
func appliance(t testing.TB, engines ...*engine) (digest string) {
	t.Helper()
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const pkg = "./firstboot/role/swarm/testdata/hello"
	program, err := agent.Compile(t.Context(), "../../..", pkg, c)
	if err != nil {
		t.Fatal(err)
	}
	if digest, err = oci.Program(c, pkg, program, 1700000000); err != nil {
		t.Fatal(err)
	}
	tree, err := oci.Tree(c, []oci.Named{{Name: "acme/hello:1", Digest: digest}}, 1700000000)
	if err != nil {
		t.Fatal(err)
	}
	stack, err := os.ReadFile("testdata/hello.yml")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range engines {
		for _, f := range tree.Sorted() {
			if f.Open == nil {
				continue
			}
			in, err := f.Open()
			if err != nil {
				t.Fatal(err)
			}
			to := e.Path("/" + f.Path)
			os.MkdirAll(filepath.Dir(to), 0o755)
			out, err := os.Create(to)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := out.ReadFrom(in); err != nil {
				t.Fatal(err)
			}
			in.Close()
			out.Close()
		}
		e.Put(t, "/usr/lib/hello.yml", string(stack))
		e.Role.Product.Stack = "/usr/lib/hello.yml"
	}
	return digest
}
