package native

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/balancer"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/drill/checker"
	"github.com/slipwayhq/slipway/qemu-tests/drill/load"
)

func TestMain(m *testing.M) { roletest.Main(m) }

// cluster is three databases behind a balancer, and a drill's ground.
type cluster struct {
	t      *testing.T
	plan   *plan.Plan
	nodes  map[string]*roletest.Node // the databases
	client *http.Client
	tls    *tls.Config
}

// form makes a cluster and waits until all nodes have their parts in it.
func form(t *testing.T) *cluster {
	t.Helper()
	return formOf(t, roletest.Plan())
}

// formOf makes a cluster of the first site's databases, with a balancer before them.
func formOf(t *testing.T, p *plan.Plan) *cluster {
	t.Helper()
	front := netip.MustParseAddr("10.77.1.21")
	p.Sites = p.Sites[:1]
	p.Nodes = append(p.Nodes[:3], plan.Node{Name: "a-lb1", Role: "balancer", Site: "a", Address: front, Addresses: []netip.Prefix{netip.PrefixFrom(front, 24)}})
	p.VIPs = []plan.VIP{{Name: "database", Site: "a", Address: netip.MustParsePrefix("10.77.1.10/24"), On: plan.OnBalancers, RouterID: 51, ReadWrite: 5432, ReadOnly: 5433}}
	p.Clients = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}
	c := &cluster{t: t, plan: p, nodes: map[string]*roletest.Node{}}
	members := roletest.Members(t, p)
	// Whose health it is matters, not who says so.
	c.client = &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	c.tls = &tls.Config{RootCAs: pki.Pool(members["a-lb1"].CA), MinVersion: tls.VersionTLS12}
	for _, n := range p.DatabaseNodes("a") {
		c.nodes[n.Name] = boot(t, members[n.Name])
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
	c.balance(members["a-lb1"])
	return c
}

// balance starts the balancer. The virtual address is there for good: keepalived has no
// other node to give it to.
func (c *cluster) balance(m *member.Member) {
	c.t.Helper()
	n := roletest.Start(c.t, m)
	n.Output(c.t, "install", "-d", "-o", "haproxy", "-g", "haproxy", "/run/haproxy")
	if out, err := n.On("ip", "address", "add", m.Plan.VIPs[0].Address.Addr().String()+"/16", "dev", "eth0"); err != nil {
		c.t.Fatalf("%v: %s", err, out)
	}
	if err := (balancer.Configure{}).Apply(c.t.Context(), n.Node.Node); err != nil {
		c.t.Fatal(err)
	}
	n.StartUnit("haproxy.service")
}

func boot(t *testing.T, m *member.Member) *roletest.Node {
	t.Helper()
	n := roletest.Start(t, m)
	n.Overlay("database")
	n.Output(t, "ln", "-s", "/usr/lib/slipway/patroni", "/usr/local/bin/patronictl")
	// There is no watchdog in a namespace.
	n.Put(t, "/etc/patroni/conf.d/90-test.yml", "watchdog: {mode: \"off\"}\n")
	n.Output(t, "chown", "-R", "root:postgres", "/etc/patroni")
	err := n.Hold(database.Unit)
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

// set changes the running cluster's configuration.
func (c *cluster) set(words ...string) {
	c.t.Helper()
	c.nodes["a-db1"].Output(c.t, append([]string{"/usr/local/bin/patronictl", "edit-config", "--force", "--quiet"}, words...)...)
}

// Nodes implements drill.Ground.
func (c *cluster) Nodes() (names []string) {
	for _, n := range c.plan.DatabaseNodes("a") {
		names = append(names, n.Name)
	}
	return names
}

// VIPs implements drill.Ground.
func (c *cluster) VIPs() []string { return nil }

// Watch implements drill.Ground: there is no switch that sees frames.
func (c *cluster) Watch(func(vip, node string)) (stop func()) { return func() {} }

// Look implements drill.Ground: what each Patroni says of itself.
func (c *cluster) Look(ctx context.Context) checker.Sample {
	s := checker.Sample{}
	streaming := 0
	for _, n := range c.plan.DatabaseNodes("a") {
		var said struct {
			State       string `json:"state"`
			Role        string `json:"role"`
			Replication string `json:"replication_state"`
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("https://%s:%d/patroni", n.Address, plan.PatroniPort), nil)
		if err != nil {
			c.t.Error(err)
			return s
		}
		answer, err := c.client.Do(request)
		if err == nil {
			err = json.NewDecoder(answer.Body).Decode(&said)
			answer.Body.Close()
		}
		switch {
		case err != nil:
			s.Silent = append(s.Silent, n.Name)
		case said.Role == "primary" && said.State == "running":
			s.Primaries = append(s.Primaries, n.Name)
		case said.Role == "replica" && said.Replication == "streaming":
			streaming++
		default:
			s.Problems = append(s.Problems, fmt.Sprintf("%s is %s, %s, %s", n.Name, said.Role, said.State, said.Replication))
		}
	}
	s.Whole = len(s.Primaries) == 1 && streaming == len(c.nodes)-1
	return s
}

func (c *cluster) load() load.Config {
	virtual := netip.AddrPortFrom(c.plan.VIPs[0].Address.Addr(), 5432).String()
	cfg := load.Config{Dial: dial, TLS: c.tls, Database: "app", User: "app", Password: "secret-of-app", Address: virtual, Direct: map[string]string{}, Every: 100 * time.Millisecond, DirectEvery: time.Second}
	for name, n := range c.nodes {
		cfg.Direct[name] = netip.AddrPortFrom(n.Member.Self.Address, 5432).String()
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
	cfg.Cluster, cfg.Ground, cfg.Load, cfg.History, cfg.Log = "test", c, c.load(), file, log
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

// processes are those that run on a node and whose command line begins with a word.
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
