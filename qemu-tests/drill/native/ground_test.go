package native

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/balancer"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/firstboot/role/vip"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/drill/checker"
	"github.com/slipwayhq/slipway/qemu-tests/drill/load"
)

func TestMain(m *testing.M) { roletest.Main(m) }

const (
	balancerUnit = "haproxy.service"
	dataDir      = "/var/lib/postgresql"
)

// cluster is databases behind balancers with a virtual address, and a drill's ground.
type cluster struct {
	t      *testing.T
	plan   *plan.Plan
	net    *network
	nodes  map[string]*roletest.Node
	client *http.Client
	etcd   *consensus.Start // keeps its connections from one look to the next
	tls    *tls.Config
}

// form makes a cluster of three databases behind one balancer.
func form(t *testing.T) *cluster {
	t.Helper()
	return formOf(t, behindBalancer(roletest.Plan()))
}

// behindBalancer leaves of a plan the databases of the first site, and puts a balancer
// before them.
func behindBalancer(p *plan.Plan) *plan.Plan {
	front := netip.MustParseAddr("10.77.1.21")
	p.Sites = p.Sites[:1]
	p.Nodes = append(p.Nodes[:3], plan.Node{Name: "a-lb1", Role: "balancer", Site: "a", Address: front, Addresses: []netip.Prefix{netip.PrefixFrom(front, 24)}})
	p.VIPs = []plan.VIP{{Name: "database", Site: "a", Address: netip.MustParsePrefix("10.77.1.10/24"), On: plan.OnBalancers, RouterID: 51, ReadWrite: 5432, ReadOnly: 5433}}
	p.Clients = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}
	return p
}

// formOf makes the cluster of a plan and waits until all nodes have their parts in it.
func formOf(t *testing.T, p *plan.Plan) *cluster {
	t.Helper()
	c := &cluster{t: t, plan: p, net: newNetwork(t), nodes: map[string]*roletest.Node{}, etcd: &consensus.Start{}}
	members := roletest.Members(t, p)
	// Whose health it is matters, not who says so.
	c.client = &http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	c.tls = &tls.Config{RootCAs: pki.Pool(members[p.Nodes[0].Name].CA), MinVersion: tls.VersionTLS12}
	for _, n := range p.Nodes {
		if n.Role == "balancer" {
			c.nodes[n.Name] = c.balance(members[n.Name])
		} else {
			c.nodes[n.Name] = bootDatabase(t, c.net, members[n.Name])
		}
	}
	ctx, stop := context.WithTimeout(t.Context(), 3*time.Minute)
	defer stop()
	var group sync.WaitGroup
	for name, n := range c.nodes {
		group.Go(func() {
			err := (&consensus.Start{}).Apply(ctx, n.Node.Node)
			if err == nil {
				err = (&database.Start{}).Apply(ctx, n.Node.Node)
			}
			if err != nil {
				t.Errorf("%s: %v\n%s", name, err, n.Log(database.Unit))
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return c
}

// balance starts a balancer that may hold the virtual address.
func (c *cluster) balance(m *member.Member) *roletest.Node {
	c.t.Helper()
	n := c.net.start(m)
	n.Overlay("balancer", "vip")
	n.Output(c.t, "install", "-d", "-o", "haproxy", "-g", "haproxy", "/run/haproxy")
	n.Output(c.t, "useradd", "--system", "--user-group", "keepalived_script")
	ctx := c.t.Context()
	err := tune(n)
	if err == nil {
		err = balancer.Configure{}.Apply(ctx, n.Node.Node)
	}
	if err == nil {
		err = vip.Configure{}.Apply(ctx, n.Node.Node)
	}
	if err == nil {
		n.StartUnit(balancerUnit)
		// It looks for the card with the node's address.
		err = inside(n.Namespace(), func() error { return vip.Resume(ctx, n.Node.Node) })
	}
	if err != nil {
		c.t.Fatalf("%s: %v", m.Self.Name, err)
	}
	return n
}

// tune sets what the image says of the network's parameters (sysctl.d(5)); the others are
// this machine's too.
func tune(n *roletest.Node) error {
	own, err := filepath.Glob(n.Path("/usr/lib/sysctl.d/70-*.conf"))
	if err != nil {
		return err
	}
	return inside(n.Namespace(), func() error {
		for _, file := range append(own, "../../../overlays/base/usr/lib/sysctl.d/60-slipway.conf") {
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			for line := range strings.Lines(string(text)) {
				key, value, _ := strings.Cut(line, "=")
				if !strings.HasPrefix(key, "net.") {
					continue
				}
				if err := os.WriteFile("/proc/sys/"+strings.ReplaceAll(strings.TrimSpace(key), ".", "/"), []byte(strings.TrimSpace(value)), 0); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func bootDatabase(t *testing.T, net *network, m *member.Member) *roletest.Node {
	t.Helper()
	n := net.start(m)
	// It has no more room than this.
	if err := unix.Mount("tmpfs", n.Path(dataDir), "tmpfs", 0, "size=1g"); err != nil {
		t.Fatal(err)
	}
	n.Output(t, "chown", "postgres:postgres", dataDir)
	n.Overlay("database")
	n.Output(t, "ln", "-s", "/usr/lib/slipway/patroni", "/usr/local/bin/patronictl")
	// There is no watchdog in a namespace.
	n.Put(t, "/etc/patroni/conf.d/90-test.yml", "watchdog: {mode: \"off\"}\n")
	n.Output(t, "chown", "-R", "root:postgres", "/etc/patroni")
	err := tune(n)
	if err == nil {
		err = n.Hold(database.Unit)
	}
	if err == nil {
		err = consensus.Configure{}.Apply(t.Context(), n.Node.Node)
	}
	if err == nil {
		err = database.Configure{}.Apply(t.Context(), n.Node.Node)
	}
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// units are what runs on a node, in the order in which it starts.
func (c *cluster) units(name string) []string {
	for _, n := range c.plan.Nodes {
		if n.Name == name && n.Role == "balancer" {
			return []string{balancerUnit, vip.Unit}
		}
	}
	return []string{consensus.Unit, database.Unit}
}

// each does something to nodes, at the same time.
func (c *cluster) each(names []string, do func(name string)) {
	var group sync.WaitGroup
	for _, name := range names {
		group.Go(func() { do(name) })
	}
	group.Wait()
}

// databases are the nodes of the site that serves.
func (c *cluster) databases() (names []string) {
	for _, n := range c.plan.DatabaseNodes("a") {
		names = append(names, n.Name)
	}
	return names
}

// set changes the running cluster's configuration.
func (c *cluster) set(words ...string) {
	c.t.Helper()
	c.nodes["a-db1"].Output(c.t, append([]string{"/usr/local/bin/patronictl", "edit-config", "--force", "--quiet"}, words...)...)
}

// observe looks after every database as its agent does, who above all keeps whoever leads
// PostgreSQL from leading etcd too.
func (c *cluster) observe(ctx context.Context) {
	for _, name := range c.databases() {
		go func() {
			n, etcd, postgres := c.nodes[name].Node.Node, &consensus.Start{}, &database.Start{}
			for pause := rand.N(10 * time.Second); ; pause = 10 * time.Second {
				select {
				case <-time.After(pause):
				case <-ctx.Done():
					return
				}
				limited, stop := context.WithTimeout(ctx, 10*time.Second)
				var seen status.Cluster
				_ = etcd.Observe(limited, n, &seen) // what is wrong with a node that is down is no concern here
				_ = postgres.Observe(limited, n, &seen)
				stop()
			}
		}()
	}
}

// Nodes implements drill.Ground.
func (c *cluster) Nodes() (names []string) {
	for _, n := range c.plan.Nodes {
		names = append(names, n.Name)
	}
	return names
}

// VIPs implements drill.Ground.
func (c *cluster) VIPs() []string { return []string{c.plan.VIPs[0].Name} }

// Watch implements drill.Ground.
func (c *cluster) Watch(seen func(vip, node string)) (stop func()) {
	v := c.plan.VIPs[0]
	return c.net.sw.Witness(v.Address.Addr(), func(_ time.Time, port string) {
		node, _, _ := strings.Cut(port, "/")
		seen(v.Name, node)
	})
}

// Look implements drill.Ground: what each Patroni says of itself, which voters of etcd are
// well, and which balancer has the virtual address and a way to the primary.
func (c *cluster) Look(ctx context.Context) checker.Sample {
	var lock sync.Mutex
	s := checker.Sample{Holders: map[string][]string{}, Writable: map[string][]string{}}
	note := func(list *[]string, text string) {
		lock.Lock()
		defer lock.Unlock()
		*list = append(*list, text)
	}
	var group sync.WaitGroup
	group.Go(func() {
		limited, stop := context.WithTimeout(ctx, 2*time.Second)
		defer stop()
		if err := c.etcd.Observe(limited, c.nodes[c.databases()[0]].Node.Node, &status.Cluster{}); err != nil {
			note(&s.Problems, "etcd: "+err.Error())
		}
	})
	var holders, writable []string
	for _, n := range c.plan.Nodes {
		group.Go(func() {
			if n.Role == "balancer" {
				holds, reaches, err := c.balances(ctx, n)
				if err != nil {
					note(&s.Silent, n.Name)
					return
				}
				if holds {
					note(&holders, n.Name)
				}
				if reaches {
					note(&writable, n.Name)
				} else {
					note(&s.Problems, n.Name+" does not reach the primary")
				}
				return
			}
			switch said, err := c.patroni(ctx, n); {
			case err != nil:
				note(&s.Silent, n.Name)
			case said.Role == "primary" && said.State == "running":
				note(&s.Primaries, n.Name)
			case said.Role == "primary" || said.Replication != "streaming":
				note(&s.Problems, fmt.Sprintf("%s is %s, %s, %s", n.Name, said.Role, said.State, said.Replication))
			}
		})
	}
	group.Wait()
	v := c.plan.VIPs[0].Name
	s.Holders[v], s.Writable[v] = holders, writable
	s.Whole = len(s.Primaries) == 1 && len(holders) == 1 && len(s.Silent) == 0 && len(s.Problems) == 0
	return s
}

// balances asks a balancer, on the way that clients take, whether it is there at all.
func (c *cluster) balances(ctx context.Context, n plan.Node) (holds, reaches bool, err error) {
	d := net.Dialer{Timeout: time.Second}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(n.Address.String(), strconv.Itoa(c.plan.VIPs[0].ReadWrite)))
	if err != nil {
		return false, false, err
	}
	conn.Close()
	has, err := c.nodes[n.Name].On("ip", "-oneline", "address", "show", "to", c.plan.VIPs[0].Address.Addr().String())
	if err != nil {
		return false, false, err
	}
	_, no := c.nodes[n.Name].On("curl", "--silent", "--fail", "--max-time", "1", "--output", "/dev/null", "http://127.0.0.1:8404/healthz")
	return has != "", no == nil, nil
}

// self is what a Patroni says of itself (Patroni documentation, "Patroni REST API", GET /patroni).
type self struct {
	State       string `json:"state"`
	Role        string `json:"role"`
	Replication string `json:"replication_state"`
}

func (c *cluster) patroni(ctx context.Context, n plan.Node) (said self, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("https://%s:%d/patroni", n.Address, plan.PatroniPort), nil)
	if err != nil {
		return said, err
	}
	answer, err := c.client.Do(request)
	if err != nil {
		return said, err
	}
	defer answer.Body.Close()
	return said, json.NewDecoder(answer.Body).Decode(&said)
}

func (c *cluster) load() load.Config {
	virtual := netip.AddrPortFrom(c.plan.VIPs[0].Address.Addr(), 5432).String()
	cfg := load.Config{Dial: dial, TLS: c.tls, Database: "app", User: "app", Password: "secret-of-app", Address: virtual, Direct: map[string]string{}, Every: 100 * time.Millisecond, DirectEvery: time.Second}
	for name, n := range c.nodes {
		if slices.Contains(c.units(name), database.Unit) {
			cfg.Direct[name] = netip.AddrPortFrom(n.Member.Self.Address, 5432).String()
		}
	}
	return cfg
}

func dial(ctx context.Context, _, to string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "tcp", to)
}

// drill runs rounds, and leaves its history where the test's output is.
func (c *cluster) drill(cfg drill.Config) *drill.Result {
	c.t.Helper()
	file, err := os.Create(filepath.Join(c.t.TempDir(), "history.jsonl"))
	if err != nil {
		c.t.Fatal(err)
	}
	defer file.Close()
	log := logrus.New()
	log.SetOutput(testLog{c.t})
	cfg.Cluster, cfg.Ground, cfg.Load, cfg.History, cfg.Log = c.plan.Cluster, c, c.load(), file, log
	cfg.Recover, cfg.Settle, cfg.Look = 2*time.Minute, 5*time.Second, time.Second
	result, err := drill.Run(c.t.Context(), cfg)
	if err != nil {
		c.t.Fatal(err)
	}
	return result
}

type testLog struct{ t *testing.T }

func (l testLog) Write(text []byte) (int, error) {
	l.t.Log(strings.TrimSpace(string(text)))
	return len(text), nil
}

// processes are those that run on a node and whose command line has a word.
func (c *cluster) processes(name, word string) (pids []int) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		c.t.Error(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		root, _ := os.Readlink(fmt.Sprintf("/proc/%d/root", pid))
		line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		// One that has ended has no command line.
		if root == c.nodes[name].Root && strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), word) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killAll kills a node's processes whose command line has the word, until there are none.
func (c *cluster) killAll(name, word string) {
	for left := c.processes(name, word); len(left) > 0; left = c.processes(name, word) {
		for _, pid := range left {
			end(pid)
		}
	}
}
