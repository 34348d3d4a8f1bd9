//go:build long

package clustertest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
)

// TestOrders powers the five nodes of one site on in several orders, each time
// with new disks, and prints how long it took and where the time went. It takes
// the better part of an hour under TCG, so it is no part of make test:
//
//	make long
func TestOrders(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SLIPWAY_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("orders from SLIPWAY_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	names := []string{"db1", "db2", "db3", "lb1", "lb2"}
	stories := []order{{"all at once", nil}, {"the replica first", []string{"db2", "db1", "lb1", "db3", "lb2"}}}
	for i := range 3 {
		shuffled := slices.Clone(names)
		random.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		stories = append(stories, order{fmt.Sprintf("random order %d: %s", i+1, strings.Join(shuffled, " ")), shuffled})
	}
	var took []figures
	for _, o := range stories {
		t.Run(o.name, func(t *testing.T) { took = append(took, o.tell(t)) })
	}
	slices.SortFunc(took, func(a, b figures) int { return int(a.Ready - b.Ready) })
	if len(took) > 0 {
		t.Logf("power-on to cluster ready: min %.0f s, median %.0f s, max %.0f s of %d", took[0].Ready, took[len(took)/2].Ready, took[len(took)-1].Ready, len(took))
	}
	out, err := json.MarshalIndent(took, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(labtest.OutDir(t), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(labtest.OutDir(t), "orders.json")
	if err := os.WriteFile(path, out, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("figures: %s\n%s", path, out)
}

// order is in which order nodes get power: each as soon as the one before it has
// booted, or all at once.
type order struct {
	name  string
	nodes []string
}

// figures are what one bring-up took, in seconds since power-on.
type figures struct {
	Order string                 `json:"order"`
	Ready float64                `json:"ready"` // from the first power-on until all nodes are ready
	Nodes map[string]nodeFigures `json:"nodes"`
}

type nodeFigures struct {
	Kernel    float64 `json:"kernel"`       // and initramfs, until systemd starts
	Agent     float64 `json:"agent_starts"` // its service is started
	Local     float64 `json:"agent_local"`  // it lets network and services start
	Etcd      float64 `json:"etcd,omitempty"`
	Patroni   float64 `json:"patroni,omitempty"` // started; the database comes after
	Ready     float64 `json:"ready"`
	MemoryMiB float64 `json:"guest_memory_mib"` // in use by the guest, without caches
	AgentCPU  float64 `json:"agent_cpu_seconds"`
	IdleCPU   float64 `json:"agent_idle_ms_per_minute"`
}

// emulated are Patroni's times for machines as slow as emulated ones.
const emulated = "{ttl: 30, loop_wait: 10, retry_timeout: 10, primary_start_timeout: 60}"

func (o order) tell(t *testing.T) figures {
	text, err := topology.Starter{
		File: "cluster.yaml", Name: "orders", Subnet: netip.MustParsePrefix("10.77.5.0/24"), Databases: 3, Balancers: 2, Database: "app", RouterID: 51,
		DNS: []netip.Addr{netip.MustParseAddr("10.77.5.1")}, NTP: []string{"10.77.5.1"},
	}.Text()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	text = append(text, "\nroles: {database: {patroni: "+emulated+"}}\n"...)
	if err := os.WriteFile(file, text, 0o644); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, file)
	began := time.Now()
	if o.nodes == nil {
		s.StartAll()
	}
	for _, name := range o.nodes {
		s.Start(name)
		s.Node(name).WaitForGuest()
	}
	s.becomesWhole()
	f := figures{Order: o.name, Ready: time.Since(began).Seconds(), Nodes: map[string]nodeFigures{}}
	s.remembers("written after " + o.name)
	for _, n := range s.plan.Nodes {
		f.Nodes[n.Name] = measure(s, n.Name)
	}
	before := idle(s)
	time.Sleep(time.Minute) // what is measured is a minute of doing nothing
	for name, after := range idle(s) {
		figure := f.Nodes[name]
		figure.IdleCPU = 1000 * (after - before[name])
		f.Nodes[name] = figure
	}
	for _, name := range slices.Sorted(maps.Keys(f.Nodes)) {
		t.Logf("%s: %+v", name, f.Nodes[name])
	}
	return f
}

// measure reads the times that systemd keeps (org.freedesktop.systemd1(5)),
// microseconds of the monotonic clock, which begins with the kernel.
func measure(s *site, name string) nodeFigures {
	m := s.Node(name)
	seconds := func(command string) float64 {
		value, _ := strconv.ParseFloat(strings.TrimSpace(m.Succeed(command)), 64)
		return value / 1e6
	}
	unit := func(unit, property string) float64 {
		return seconds("systemctl show --value --property " + property + " " + unit + " 2>/dev/null || echo 0")
	}
	return nodeFigures{
		Kernel:    seconds("systemctl show --value --property UserspaceTimestampMonotonic"),
		Agent:     unit("slipway-firstboot", "ExecMainStartTimestampMonotonic"),
		Local:     unit("slipway-firstboot", "ActiveEnterTimestampMonotonic"),
		Etcd:      unit("etcd", "ActiveEnterTimestampMonotonic"),
		Patroni:   unit("patroni", "ActiveEnterTimestampMonotonic"),
		Ready:     s.Report(name).BootSecs,
		MemoryMiB: seconds("free --bytes | awk '/^Mem:/ {print $3}'") * 1e6 / (1 << 20),
		AgentCPU:  agentCPU(s, name),
	}
}

func agentCPU(s *site, name string) float64 {
	text := s.Node(name).Succeed("systemctl show --value --property CPUUsageNSec slipway-firstboot")
	value, _ := strconv.ParseFloat(strings.TrimSpace(text), 64)
	return value / 1e9
}

func idle(s *site) map[string]float64 {
	used := map[string]float64{}
	for _, n := range s.plan.Nodes {
		used[n.Name] = agentCPU(s, n.Name)
	}
	return used
}
