package operations

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/steps"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
)

const shop = `slipway: 1
name: shop
networks: {lan: {subnet: 192.0.2.0/24}}
databases: [{name: app, owner: app}]
nodes:
  - {name: a-db1, role: db-master, nics: [{network: lan, address: 192.0.2.11}]}
  - {name: a-db2, role: db-replica, nics: [{network: lan, address: 192.0.2.12}]}
  # The witness.
  - {name: a-lb1, role: balancer, nics: [{network: lan, address: 192.0.2.21}]}
`

const third = "  - {name: a-db3, role: db-replica, nics: [{network: lan, address: 192.0.2.13}]}\n"

// town is a cluster of machines with real agents towards the administrator, over
// TLS, and a pretended etcd and Patroni behind them.
type town struct {
	t     *testing.T
	dir   string
	vault *vault.Vault

	mu       sync.Mutex
	machines map[string]*house // by address
	votes    []string          // members of etcd
	known    []string          // members of Patroni
	leader   string
	lazy     bool     // the leader sees to no passwords
	password string   // that replicas need, as the last leader has set it
	did      []string // node: action
}

// house is one with a seed.
type house struct {
	world      *town
	name, id   string
	block      string
	membership *steps.Membership
	node       *node.Node
	service    *peers.Service
	listener   net.Listener
	end        context.CancelFunc

	mu     sync.Mutex
	member *member.Member
}

func newTown(t *testing.T) *town {
	t.Helper()
	w := &town{t: t, dir: t.TempDir(), machines: map[string]*house{}, leader: "a-db1"}
	var err error
	w.vault, err = vault.Open(filepath.Join(w.dir, "store"), vault.Options{Cluster: "shop", Create: true})
	w.must(err)
	t.Cleanup(func() { w.vault.Close() })
	top := w.topology(shop)
	w.seed(top, seeding.Options{})
	for _, n := range top.Nodes {
		w.boot(n.Name, n.Name)
	}
	return w
}

func (w *town) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *town) topology(text string) *topology.Topology {
	w.t.Helper()
	top, mistakes := topology.Parse("cluster.yaml", []byte(text))
	w.must(mistakes.Err())
	return top
}

func (w *town) seed(top *topology.Topology, o seeding.Options) *seeding.Result {
	w.t.Helper()
	o.Formats = []seeding.Format{seeding.NoCloud}
	r, err := seeding.Write(w.t.Context(), top, w.vault, filepath.Join(w.dir, "seeds"), o)
	w.must(err)
	return r
}

// home is the administrator, who reads cluster.yaml anew each time.
func (w *town) home(text string) *Home {
	p, err := w.vault.Plan()
	w.must(err)
	return &Home{
		Topology: w.topology(text), Vault: w.vault, Patience: 30 * time.Second,
		Cluster: &Cluster{Plan: p, Dial: w.dial, TLS: func(right string) (tls.Certificate, *x509.CertPool, error) { return w.vault.AdminTLS(right) }},
		Seed: func(_ context.Context, t *topology.Topology, o seeding.Options) (*seeding.Result, error) {
			return w.seed(t, o), nil
		},
		Instruct: func(n topology.Node) []string {
			w.boot(n.Name, "fresh "+n.Name)
			return []string{"start " + n.Name}
		},
	}
}

func (w *town) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, _ := net.SplitHostPort(address)
	w.mu.Lock()
	m := w.machines[host]
	w.mu.Unlock()
	if m == nil {
		return nil, fmt.Errorf("nobody at %s", host)
	}
	return (&net.Dialer{}).DialContext(ctx, network, m.listener.Addr().String())
}

// boot starts a machine with the seed that its node has now.
func (w *town) boot(name, id string) *house {
	w.t.Helper()
	p, err := w.vault.Plan()
	w.must(err)
	n, err := p.Node(name)
	w.must(err)
	m := &house{world: w, name: name, id: id, block: w.block(name)}
	m.membership = &steps.Membership{Store: member.NewStore(filepath.Join(w.t.TempDir(), "cluster")), Now: time.Now}
	m.node = &node.Node{Root: w.t.TempDir(), Report: silent{}, Run: node.Exec{}}
	for path, text := range map[string]string{"/etc/machine-id": id + "\n", "/proc/sys/kernel/random/boot_id": "boot\n"} {
		w.must(os.MkdirAll(filepath.Dir(m.node.Path(path)), 0o755))
		w.must(os.WriteFile(m.node.Path(path), []byte(text), 0o644))
	}
	m.listener, err = net.Listen("tcp", "127.0.0.1:0")
	w.must(err)
	m.power(n.Address.String())
	w.t.Cleanup(m.off)
	return m
}

// block is a node's part as its seed has it now.
func (w *town) block(name string) string {
	w.t.Helper()
	p, err := w.vault.Plan()
	w.must(err)
	c, err := seeding.Credentials(w.topologyOf(p), w.vault, name)
	w.must(err)
	signed, err := w.vault.SignedPlan()
	w.must(err)
	text, err := yaml.Marshal(member.Block{
		Format: member.Format, Cluster: "shop", Node: name, Authority: pemOf(w.vault), EtcdAuthority: c.EtcdAuthority,
		Certificates: c.Certificates, Secrets: c.Secrets, Issue: c.Issue, Plan: signed,
	})
	w.must(err)
	return string(text)
}

// topologyOf is the topology that a plan was made from.
func (w *town) topologyOf(p *plan.Plan) *topology.Topology {
	w.t.Helper()
	for _, text := range []string{shop, shop + third} {
		if top := w.topology(text); len(top.Nodes) == len(p.Nodes) {
			return top
		}
	}
	w.t.Fatal("no such topology")
	return nil
}

func (m *house) power(address string) {
	ctx, end := context.WithCancel(context.Background())
	m.end = end
	m.round()
	act := &actions.Server{
		Log:     &actions.Log{Path: m.node.Path(actions.LogPath)},
		Again:   func(string) { m.round(); m.use(ctx) },
		Actions: []actions.Action{steps.Take(m.membership), m.pretend("retire"), m.pretend("expel"), m.pretend("forget"), m.pretend("switchover")},
	}
	m.service = peers.New(m.report, func(p *plan.Plan, signed plan.Signed) error {
		err := m.membership.Store.SavePlan(p, signed)
		go func() { m.round(); m.use(ctx) }()
		return err
	}, act)
	m.service.Listen = func() (net.Listener, error) { return m.listener, nil }
	m.service.Dial = m.world.dial
	m.world.mu.Lock()
	m.world.machines[address] = m
	m.world.mu.Unlock()
	m.use(ctx)
}

func (m *house) off() {
	m.end()
	m.world.mu.Lock()
	defer m.world.mu.Unlock()
	for address, there := range m.world.machines {
		if there == m {
			delete(m.world.machines, address)
		}
	}
}

// round finds out who the machine is, as the first steps of its agent do, and takes
// its part in the pretended etcd and Patroni.
func (m *house) round() {
	w := m.world
	now, err := member.Parse(m.block, time.Now())
	w.must(err)
	newer, err := m.membership.Store.Credentials()
	w.must(err)
	now, err = now.With(newer, time.Now())
	w.must(err)
	kept, err := m.membership.Store.Load()
	w.must(err)
	if kept != nil {
		now, err = now.Upgrade(kept)
		w.must(err)
	} else {
		w.must(m.membership.Store.Save(member.Kept{ID: now.Plan.ID, Cluster: "shop", Node: m.name, Machine: m.id, Block: m.block, Plan: &now.Block.Plan}))
	}
	retired, err := m.membership.Store.Retirement()
	w.must(err)
	now.Retire(retired)
	m.mu.Lock()
	m.member = now
	m.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Retired != "" {
		return
	}
	if now.Plan.Votes(m.name) && !slices.Contains(w.votes, m.name) && now.Removed == 0 {
		if _, ok := now.Certificates[member.EtcdCert]; ok {
			w.votes = append(w.votes, m.name)
		}
	}
	if plan.DatabaseRole(now.Self.Role) && !slices.Contains(w.known, m.name) {
		w.known = append(w.known, m.name)
	}
}

func (m *house) use(ctx context.Context) {
	m.mu.Lock()
	n := *m.node
	n.Member = m.member
	m.mu.Unlock()
	peers.Task{Service: m.service, Life: ctx}.Apply(ctx, &n)
}

// report is what the agent says.
func (m *house) report() status.Report {
	m.mu.Lock()
	now := m.member
	m.mu.Unlock()
	w := m.world
	w.mu.Lock()
	defer w.mu.Unlock()
	c := steps.Describe(now)
	if now.Plan.Votes(m.name) && now.Removed == 0 {
		c.Consensus = &status.Consensus{Quorum: true}
		for _, name := range now.Site.Consensus {
			c.Consensus.Members = append(c.Consensus.Members, status.ConsensusMember{Node: name, Healthy: slices.Contains(w.votes, name) && w.answers(now.Plan, name)})
		}
		for _, name := range w.votes {
			if !slices.Contains(now.Site.Consensus, name) {
				c.Consensus.Strangers = append(c.Consensus.Strangers, name)
			}
		}
	}
	if plan.DatabaseRole(now.Self.Role) {
		c.Database = &status.Database{Scope: now.Site.Scope}
		if m.name == w.leader && !w.lazy {
			w.password = now.Secrets[plan.ReplicationPassword]
			c.Database.Furnished = &now.Issue
		}
		for _, name := range w.known {
			lag := int64(0)
			one := status.DatabaseMember{Node: name, Role: "sync_standby", State: "streaming", Lag: &lag}
			if name == w.leader {
				one = status.DatabaseMember{Node: name, Role: "leader", State: "running"}
			} else if !w.answers(now.Plan, name) {
				one.State = "stopped"
			} else if !w.getsIn(now.Plan, name) {
				one.State = "running"
			}
			c.Database.Members = append(c.Database.Members, one)
		}
	}
	state := status.Ready
	_, keys := now.Certificates[member.EtcdCert]
	switch {
	case now.Retired != "":
		state = status.Removed
	case now.Plan.Votes(m.name) && now.Removed == 0 && !keys:
		state = status.Converging // it does not get on
	}
	return status.Report{Format: status.Format, State: state, Role: now.Self.Role, Cluster: c}
}

// answers reports whether a node's machine has power. The world's lock is held.
func (w *town) answers(p *plan.Plan, name string) bool {
	n, err := p.Node(name)
	return err == nil && w.machines[n.Address.String()] != nil
}

// getsIn reports whether a node has the password that replicas need. The world's lock
// is held.
func (w *town) getsIn(p *plan.Plan, name string) bool {
	n, err := p.Node(name)
	if err != nil {
		return false
	}
	m := w.machines[n.Address.String()]
	m.mu.Lock()
	defer m.mu.Unlock()
	return w.password == "" || m.member.Secrets[plan.ReplicationPassword] == w.password
}

// pretend is an action that changes the pretended etcd and Patroni alone.
func (m *house) pretend(name string) actions.Action {
	return actions.Action{Name: name, Run: func(_ context.Context, e *actions.Env, args json.RawMessage) (any, error) {
		w := m.world
		var a struct{ Node, Candidate string }
		json.Unmarshal(args, &a)
		w.mu.Lock()
		drop := func(list []string) []string {
			return slices.DeleteFunc(slices.Clone(list), func(n string) bool { return n == a.Node })
		}
		switch name {
		case "expel":
			w.votes = drop(w.votes)
		case "forget":
			w.known = drop(w.known)
		case "switchover":
			w.leader = a.Candidate
		}
		w.did = append(w.did, strings.TrimSpace(m.name+": "+name+" "+a.Node+a.Candidate))
		w.mu.Unlock()
		if name == "retire" {
			err := m.membership.Store.SaveRetirement(member.Retirement{Cluster: e.Node.Member.Plan.ID, Node: m.name, Generation: max(e.Node.Member.Plan.Generation, e.Node.Member.Removed)})
			e.Again("retired")
			return nil, err
		}
		return nil, nil
	}}
}

type silent struct{}

func (silent) Waiting(string)         {}
func (silent) Changed(string)         {}
func (silent) Warn(node.Warning)      {}
func (silent) Say(string)             {}
func (silent) HostKey(string, string) {}
func (silent) Login(string)           {}

// run does an operation without asking; breakAt ends it before that step.
func (w *town) run(h *Home, prepare Prepare, breakAt string) (*Result, error) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	r := &Runner{Cluster: h.Cluster, Pause: 50 * time.Millisecond, Agree: func(context.Context, string) error { return nil }, Say: func(line string) {
		w.t.Log(line)
		if breakAt != "" && strings.HasPrefix(line, breakAt) {
			cancel()
		}
	}}
	return r.Run(ctx, func(ctx context.Context, now overviewOf) (*Operation, error) {
		op, err := prepare(ctx, now)
		if op != nil {
			op.Patience = 20 * time.Second
		}
		return op, err
	})
}
