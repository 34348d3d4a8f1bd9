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
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
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

// address stands for the virtual one: connections to it go to the primary, as a
// balancer has them go. The databases' certificates are good for it.
const address = "127.0.0.1:5432"

// cluster is three databases, and a drill's ground.
type cluster struct {
	t      *testing.T
	plan   *plan.Plan
	nodes  map[string]*roletest.Node
	leads  map[string]*atomic.Bool // who says that it is the primary
	client *http.Client
	tls    *tls.Config
}

// form makes a cluster and waits until all nodes have their parts in it.
func form(t *testing.T) *cluster {
	t.Helper()
	return formOf(t, roletest.Plan())
}

// formOf makes a cluster of the first site's databases, and has a balancer look at them.
func formOf(t *testing.T, p *plan.Plan) *cluster {
	t.Helper()
	p.Sites, p.Nodes = p.Sites[:1], p.Nodes[:3]
	p.Clients = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}
	c := &cluster{t: t, plan: p, nodes: map[string]*roletest.Node{}, leads: map[string]*atomic.Bool{}}
	members := roletest.Members(t, p)
	// Whose health it is matters, not who says so.
	c.client = &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	for _, n := range p.Nodes {
		m := members[n.Name]
		c.tls = &tls.Config{RootCAs: pki.Pool(m.CA), MinVersion: tls.VersionTLS12}
		c.nodes[n.Name] = boot(t, m)
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
	c.balance()
	return c
}

// balance asks every node whether it is the primary, as a balancer does: again and again,
// each at a moment of its own.
func (c *cluster) balance() {
	every := time.Duration(balancer.Interval(c.plan.Sites[0].Patroni)) * time.Second
	for _, n := range c.plan.Nodes {
		leads := &atomic.Bool{}
		c.leads[n.Name] = leads
		go func() {
			for pause := rand.N(every); ; pause = every {
				select {
				case <-time.After(pause):
				case <-c.t.Context().Done():
					return
				}
				answer, err := c.client.Get(fmt.Sprintf("https://%s:%d/primary", n.Address, plan.PatroniPort))
				if err == nil {
					answer.Body.Close()
				}
				leads.Store(err == nil && answer.StatusCode == http.StatusOK)
			}
		}()
	}
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
	for _, n := range c.plan.Nodes {
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
	for _, n := range c.plan.Nodes {
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
	s.Whole = len(s.Primaries) == 1 && streaming == len(c.plan.Nodes)-1
	return s
}

// dial connects to a database, or as a balancer does: to the one node that calls itself
// the primary, and to nobody while more than one do.
func (c *cluster) dial(ctx context.Context, node, to string) (net.Conn, error) {
	if node == "" {
		var primaries []netip.Addr
		for _, n := range c.plan.Nodes {
			if c.leads[n.Name].Load() {
				primaries = append(primaries, n.Address)
			}
		}
		if len(primaries) != 1 {
			return nil, syscall.ECONNREFUSED
		}
		to = netip.AddrPortFrom(primaries[0], 5432).String()
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", to)
}

func (c *cluster) load() load.Config {
	cfg := load.Config{Dial: c.dial, TLS: c.tls, Database: "app", User: "app", Password: "secret-of-app", Address: address, Direct: map[string]string{}, Every: 100 * time.Millisecond, DirectEvery: time.Second}
	for _, n := range c.plan.Nodes {
		cfg.Direct[n.Name] = netip.AddrPortFrom(n.Address, 5432).String()
	}
	return cfg
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
