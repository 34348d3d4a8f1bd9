package operations

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/builder/disk"
	"github.com/slipwayhq/slipway/builder/export"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/steps"
	"github.com/slipwayhq/slipway/firstboot/versions"
)

// fleet is a cluster whose agents are real as far as their API and their versions go: TLS on the
// loopback, boot partitions in memory. GRUB, the init and Patroni are played.
type fleet struct {
	*membertest.Cluster
	plan     *plan.Plan
	mu       sync.Mutex
	houses   map[string]string
	machines map[string]*machine
	leader   string
	story    []string
	broken   map[string]bool // nodes on which v2 and later do not come up
	stuck    map[string]bool // nodes on which they are never ready
	slow     int             // looks at a node between the wish that it starts anew and the start
	cuts     int             // connections that are still to be lost
	taken    int64           // bytes that nodes took
}

// machine is a node.
type machine struct {
	w       *fleet
	name    string
	node    *node.Node
	store   *versions.Store
	esp     *memory
	reset   string
	starts  int
	looks   int // at it, since it was last asked to start anew
	resting *node.Maintenance
	since   time.Time
	service *peers.Service
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	return newFleetOf(t, membertest.New(t))
}

func newFleetOf(t *testing.T, c *membertest.Cluster) *fleet {
	t.Helper()
	if len(c.Plan.Nodes) == 3 {
		// A third database, so that one can be in maintenance.
		third := c.Plan.Nodes[1]
		third.Name, third.Address = "a-db3", netip.MustParseAddr("127.0.0.4")
		third.Addresses = []netip.Prefix{netip.PrefixFrom(third.Address, 8)}
		c.Plan.Nodes = append(c.Plan.Nodes, third)
	}
	w := &fleet{Cluster: c, plan: &c.Plan, houses: map[string]string{}, machines: map[string]*machine{}, leader: "a-db1", cuts: 1}
	for _, n := range w.plan.Nodes {
		w.machines[n.Name] = w.machine(t, n)
	}
	return w
}

func (w *fleet) tell(format string, args ...any) {
	w.story = append(w.story, fmt.Sprintf(format, args...))
}

func (w *fleet) told() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.story)
}

var kernel = bytes.Repeat([]byte("kernel "), 100_000)

// disk is an image of a role. Versions differ in their config layer, and in PostgreSQL if asked for.
func (w *fleet) disk(t *testing.T, role, version, postgres string, damage func(name string, b []byte) []byte) *disk.Image {
	t.Helper()
	var files []disk.File
	add := func(name string, b []byte) {
		files = append(files, disk.File{Path: name, Size: int64(len(b)), Src: bytes.NewReader(damage(name, b))})
	}
	m := manifest.Manifest{Format: 1, Version: version, Kernel: "6.12", Role: manifest.Role{Format: 1, Name: role},
		Packages: []manifest.Package{{Name: "postgresql-" + postgres}}}
	config := make([]byte, 300_000)
	rand.NewChaCha8(sha256.Sum256([]byte(role + version + postgres))).Read(config)
	for name, b := range map[string][]byte{"base": bytes.Repeat([]byte("base "), 200_000), "config": config} {
		sum := sha256.Sum256(b)
		l := manifest.Layer{Name: name, Digest: hex.EncodeToString(sum[:]), Size: int64(len(b))}
		m.Layers = append(m.Layers, l)
		add(l.File(), b)
	}
	slices.SortFunc(m.Layers, func(a, b manifest.Layer) int { return strings.Compare(a.Name, b.Name) })
	text, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	env, err := grubenv.Env{Good: version}.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	add("grub/grubenv", env)
	for name, b := range map[string][]byte{
		"manifest.json": text, "vmlinuz": kernel, "initrd": []byte("initrd"), "boot.cfg": []byte("set title=\"" + version + "\"\nset args=\"quiet\"\n"),
	} {
		add("images/"+version+"/"+name, b)
	}
	im, err := disk.Layout(disk.LayoutInput{Size: 64 << 20, ESPSize: 40 << 20, Files: files, Date: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)})
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func sound(_ string, b []byte) []byte { return b }

// releases are images of all roles, of different formats.
func (w *fleet) releases(t *testing.T, version, postgres string) []*Release {
	t.Helper()
	if postgres == "" {
		postgres = "17"
	}
	dir := t.TempDir()
	for role, format := range map[string]string{"balancer": "qcow2", "db-master": "raw", "db-replica": "qcow2"} {
		f, err := os.Create(filepath.Join(dir, role+"."+format))
		if err != nil {
			t.Fatal(err)
		}
		im := w.disk(t, role, version, postgres, sound)
		if format == "raw" {
			err = export.Raw(t.Context(), f, im)
		} else {
			err = export.QCOW2(t.Context(), f, im)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			t.Fatal(err)
		}
	}
	all, err := OpenReleases(t.Context(), dir)
	if err != nil || len(all) != 3 {
		t.Fatal(len(all), err)
	}
	t.Cleanup(func() { CloseReleases(all) })
	return all
}

// memory is a boot partition.
type memory struct {
	mu      sync.Mutex
	content []byte
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return bytes.NewReader(m.content).ReadAt(p, off)
}

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return copy(m.content[off:], p), nil
}
func (m *memory) Sync() error  { return nil }
func (m *memory) Size() int64  { return int64(len(m.content)) }
func (m *memory) Forget()      {}
func (m *memory) Close() error { return nil }

// machine powers on a node with version v1.
func (w *fleet) machine(t *testing.T, n plan.Node) *machine {
	t.Helper()
	im := w.disk(t, n.Role, "v1", "17", sound)
	m := &machine{w: w, name: n.Name, esp: &memory{content: make([]byte, 40<<20)}, since: time.Now()}
	if _, err := im.ReadAt(m.esp.content, 2<<20); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	block, err := grubenv.Env{Good: "v1"}.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"/usr/bin/mount": "", "/usr/bin/systemd-run": "", versions.EnvPath: string(block), bootfacts.StateDir + "/x": "", "/var/lib/slipway/x": "",
		"/etc/machine-id": n.Name, "/proc/sys/kernel/random/boot_id": "boot",
	} {
		full := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.node = &node.Node{Root: root, Run: m, Role: &manifest.Role{Name: n.Role}, Member: w.Member(t, n.Name)}
	m.on("v1", false)
	m.service = peers.New(m.report, func(*plan.Plan, plan.Signed) error { return nil },
		&actions.Server{Log: &actions.Log{Path: m.node.Path(actions.LogPath)}, Actions: m.actions()})
	m.service.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody asks") }
	m.service.Receive = func(ctx context.Context, sha256 string, offset int64, r io.Reader) (int64, error) {
		have, err := m.current().Receive(ctx, sha256, offset, r)
		w.mu.Lock()
		w.taken += max(have-offset, 0)
		w.mu.Unlock()
		return have, err
	}
	m.service.Listen = func() (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			w.houses[n.Address.String()] = l.Addr().String()
		}
		return l, err
	}
	life, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	if err := (peers.Task{Service: m.service, Life: life}).Apply(t.Context(), m.node); err != nil {
		t.Fatal(err)
	}
	return m
}

// on is the start of a version's agent.
func (m *machine) on(version string, trial bool) {
	n := *m.node
	n.Boot = bootfacts.Facts{Format: 1, Version: version, ESP: "/dev/vda2", Trial: trial}
	m.node = &n
	m.store = versions.New(m.node, func() (versions.Partition, error) { return m.esp, nil })
	m.since = time.Now()
}

// start names the present start of the machine.
func (m *machine) start() string { return fmt.Sprintf("%s-%d", m.name, m.starts) }

func (m *machine) current() *versions.Store {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.store
}

// actions are the node's, and what Patroni would do.
func (m *machine) actions() []actions.Action {
	var list []actions.Action
	for i, a := range m.store.Actions(func() {}) {
		a.Run = func(ctx context.Context, e *actions.Env, args json.RawMessage) (any, error) {
			return m.current().Actions(func() {})[i].Run(ctx, e, args)
		}
		list = append(list, a)
	}
	list = append(list, actions.Action{Name: steps.Maintenance.Name, Run: func(_ context.Context, _ *actions.Env, args json.RawMessage) (any, error) {
		var a steps.MaintenanceArgs
		if err := actions.Decode(args, &a); err != nil {
			return nil, err
		}
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		if m.resting = nil; a.On {
			m.resting = &node.Maintenance{By: "ann@desk", Start: m.start()}
		}
		m.since = time.Now() // its state is another
		m.w.tell("%s maintenance %v", m.name, a.On)
		return nil, nil
	}})
	return append(list, actions.Action{Name: database.Switchover.Name, Run: func(_ context.Context, _ *actions.Env, args json.RawMessage) (any, error) {
		var a database.SwitchoverArgs
		if err := actions.Decode(args, &a); err != nil {
			return nil, err
		}
		m.w.mu.Lock()
		defer m.w.mu.Unlock()
		m.w.leader = a.Candidate
		m.w.tell("%s leads", a.Candidate)
		return database.SwitchoverResult{Leader: a.Candidate, Changed: true}, nil
	}})
}

// Run implements node.Runner: a start anew is GRUB's choice, the init's, and the agent's confirmation.
func (m *machine) Run(_ context.Context, c node.Command) (string, error) {
	if c.Argv[0] != "systemd-run" {
		return "", nil
	}
	m.w.mu.Lock()
	m.looks = 0
	m.w.mu.Unlock()
	go func() {
		// It takes a while, in which somebody looks.
		for seen := false; !seen; time.Sleep(5 * time.Millisecond) {
			m.w.mu.Lock()
			if seen = m.looks > m.w.slow; seen {
				m.restart()
			}
			m.w.mu.Unlock()
		}
	}()
	return "", nil
}

func (m *machine) restart() {
	m.reset = ""
	m.starts++
	if text, err := os.ReadFile(m.node.Path(bootfacts.ResetPath)); err == nil {
		var asked bootfacts.Reset
		if json.Unmarshal(text, &asked) == nil {
			m.reset = map[bool]string{true: "data", false: "system"}[asked.Data]
		}
		os.Remove(m.node.Path(bootfacts.ResetPath))
	}
	env, err := versions.ReadEnv(m.node)
	if err != nil {
		panic(err)
	}
	version := env.Good
	if env.Try != "" && env.Tries > 0 {
		version = env.Try
		if env.Tries = grubenv.Tries - 1; m.w.broken[m.name] {
			version, env.Tries = env.Good, 0
		}
	}
	trial := env.OnTrial(version)
	if trial && !m.w.stuck[m.name] {
		env, trial = env.Confirm(version), false
	}
	if err := versions.WriteEnv(context.Background(), m.node, env); err != nil {
		panic(err)
	}
	m.w.tell("%s starts %s", m.name, version)
	m.on(version, trial)
}

// report is what the agent says.
func (m *machine) report() status.Report {
	w := m.w
	w.mu.Lock()
	defer w.mu.Unlock()
	m.looks++
	list, err := m.store.List()
	if err != nil {
		panic(err)
	}
	lag := int64(0)
	d := &status.Database{Scope: "shop-a"}
	for _, name := range []string{"a-db1", "a-db2", "a-db3"} {
		v := status.DatabaseMember{Node: name, Role: "sync_standby", State: "streaming", Timeline: 1, Lag: &lag}
		if name == w.leader {
			v.Role, v.State = "leader", "running"
		}
		v.NoFailover = w.machines[name].resting != nil
		d.Members = append(d.Members, v)
	}
	etcd := &status.Consensus{Quorum: true}
	for _, name := range w.plan.Sites[0].Consensus {
		etcd.Members = append(etcd.Members, status.ConsensusMember{Node: name, Healthy: true})
	}
	c := &status.Cluster{Name: w.plan.Cluster, ID: w.plan.ID, Node: m.name, Site: "a", Database: d, Consensus: etcd}
	if m.name == "a-lb1" {
		c.Database, c.VIPs = nil, []status.VIP{{Name: "db", Address: "127.0.0.10", Held: true}}
		c.Backends = []status.Backend{{Name: "read-write", Server: w.leader, Up: true}}
	}
	r := status.Report{Format: status.Format, State: status.Ready, Since: m.since, Role: m.node.Role.Name, Version: m.node.Boot.Version,
		Trial: m.node.Boot.Trial, Versions: list, Cluster: c, Reset: m.reset, Start: m.start()}
	if r.Maintenance = m.resting; m.resting != nil {
		r.State = status.Maintenance
	}
	if m.node.Boot.Trial {
		r.State = status.Converging
		r.Steps = []status.Step{{Name: "role", State: status.Running, WaitingFor: "waits for ever"}}
	}
	return r
}

// cluster is the way there for an administrator.
func (w *fleet) cluster(t *testing.T) *Cluster {
	return &Cluster{Plan: w.plan, Dial: w.dial, TLS: func(right string) (tls.Certificate, *x509.CertPool, error) {
		pair, err := w.Authority.IssueAdmin(right, "ann@desk", w.Begins)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := pair.TLS("admin")
		return cert, w.Authority.Pool(), err
	}}
}

func (w *fleet) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, network, w.houses[host])
	return &fragile{Conn: conn, w: w}, err
}

// fragile is a connection that is lost after many bytes, if one is still to be.
type fragile struct {
	net.Conn
	w *fleet
	n int
}

func (f *fragile) Write(b []byte) (int, error) {
	if f.n += len(b); f.n > 150_000 {
		f.w.mu.Lock()
		cut := f.w.cuts > 0
		if cut {
			f.w.cuts--
		}
		f.w.mu.Unlock()
		if cut {
			f.Conn.Close()
			return 0, net.ErrClosed
		}
	}
	return f.Conn.Write(b)
}
