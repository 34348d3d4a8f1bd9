package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
)

// ClusterConfig describes a cluster of machines. Topology, Images, Seeds and Dir
// must be given.
type ClusterConfig struct {
	Topology *topology.Topology
	Images   string // directory with an image for each role, ROLE.qcow2
	Seeds    string // directory with a seed for each node, NODE.nocloud.iso
	Dir      string // the machines' directories are made in it
	// CPUs that a machine has; default 1, whatever the topology says: under TCG more of them are
	// slower as soon as the host has fewer than the guests together, and see accel.go.
	CPUs int
	// Memory of machines whose size the topology leaves open, bytes; default 1 GiB.
	Memory int64
	// Volatile gives the machines' disks a write cache that a power cut empties, and Tear lets it
	// take only a part of that, by chance (see VM).
	Volatile bool
	Tear     uint64
	// Adjust may change a machine before it is made.
	Adjust func(topology.Node, *VM)
	Log    logrus.FieldLogger // default: logrus's standard logger
}

const (
	clusterMemory = 1 << 30
	clusterDisk   = 8 << 30 // of nodes whose size the topology leaves open; it takes room only where it is written
)

// Cluster is the machines of a topology, each powered on or off, on the switch
// that connects them. Its methods may be called from several goroutines.
type Cluster struct {
	cfg     ClusterConfig
	log     logrus.FieldLogger
	network *network

	roll     sync.Mutex // held while the roll changes, or is read
	topology *topology.Topology
	members  []*clusterNode // in the topology's order

	mu      sync.Mutex
	severed map[[2]string]bool // from, to
}

// clusterNode is a machine and what the host knows of it.
type clusterNode struct {
	*Machine
	node topology.Node

	power sync.Mutex // held while the power is switched on, or off in good order
	shot  sync.Mutex // held while the screen is taken

	mu      sync.Mutex
	on      bool // when it was last looked at
	since   time.Time
	blocked bool
}

// NewCluster makes all machines, powered off, and their network.
func NewCluster(ctx context.Context, cfg ClusterConfig) (*Cluster, error) {
	if cfg.Log == nil {
		cfg.Log = logrus.StandardLogger()
	}
	if cfg.CPUs == 0 {
		cfg.CPUs = 1
	}
	if cfg.Memory == 0 {
		cfg.Memory = clusterMemory
	}
	if err := cfg.check(); err != nil {
		return nil, err
	}
	network, err := newNetwork(cfg.Topology, cfg.Log)
	if err != nil {
		return nil, err
	}
	c := &Cluster{cfg: cfg, topology: cfg.Topology, log: cfg.Log, network: network}
	for _, n := range cfg.Topology.Nodes {
		m, err := New(ctx, cfg.machine(network, n))
		if err != nil {
			c.Close()
			return nil, err
		}
		c.members = append(c.members, &clusterNode{Machine: m, node: n})
	}
	return c, nil
}

// Image is the image file of a role in a directory of images.
func Image(images, role string) string { return filepath.Join(images, role+".qcow2") }

// Seed is the seed of a node in a directory of seeds, as "slipway seed" names it.
func Seed(seeds, node string) string { return filepath.Join(seeds, node+".nocloud.iso") }

// check names all images and seeds that are missing, before anything is made.
func (cfg ClusterConfig) check() error {
	for _, role := range Roles(cfg.Topology) {
		if err := cfg.hasImage(role); err != nil {
			return err
		}
	}
	for _, n := range cfg.Topology.Nodes {
		if _, err := os.Stat(Seed(cfg.Seeds, n.Name)); err != nil {
			return fault.New(fault.Missing, "no seed of the node %s: %w", n.Name, err).WithMend("run: slipway seed %s", cfg.Topology.Path())
		}
	}
	return nil
}

func (cfg ClusterConfig) hasImage(role string) error {
	if _, err := os.Stat(Image(cfg.Images, role)); err != nil {
		return fault.New(fault.Missing, "no image of the role %s: %w", role, err).WithMend("run: slipway build %s", role)
	}
	return nil
}

// Roles are the roles of a topology's nodes, each once, sorted.
func Roles(t *topology.Topology) []string {
	var roles []string
	for _, n := range t.Nodes {
		roles = append(roles, n.Role)
	}
	slices.Sort(roles)
	return slices.Compact(roles)
}

func (cfg ClusterConfig) machine(network *network, n topology.Node) VM {
	vm := VM{
		Name: n.Name, Image: Image(cfg.Images, n.Role), Format: "qcow2", Dir: filepath.Join(cfg.Dir, n.Name),
		Seeds: []string{Seed(cfg.Seeds, n.Name)}, CPUs: cfg.CPUs, WideAtomics: true,
		Memory: cfg.Memory, DiskSize: clusterDisk, NICs: network.cards(n), Log: cfg.Log,
		Volatile: cfg.Volatile, Tear: cfg.Tear,
	}
	if n.Size.Memory != 0 {
		vm.Memory = int64(n.Size.Memory)
	}
	if n.Size.Disk != 0 {
		vm.DiskSize = int64(n.Size.Disk)
	}
	if cfg.Adjust != nil {
		cfg.Adjust(n, &vm)
	}
	return vm
}

// Topology is what the cluster was made from.
func (c *Cluster) Topology() *topology.Topology {
	c.roll.Lock()
	defer c.roll.Unlock()
	return c.topology
}

// all are the nodes of the moment.
func (c *Cluster) all() []*clusterNode {
	c.roll.Lock()
	defer c.roll.Unlock()
	return slices.Clone(c.members)
}

// Node is the machine of a node.
func (c *Cluster) Node(name string) (*Machine, error) {
	n, err := c.node(name)
	if err != nil {
		return nil, err
	}
	return n.Machine, nil
}

func (c *Cluster) node(name string) (*clusterNode, error) {
	for _, n := range c.all() {
		if n.node.Name == name {
			return n, nil
		}
	}
	return nil, fault.New(fault.Usage, "cluster %s has no node %q", c.Topology().Name, name)
}

// named are the nodes with these names, or all without any.
func (c *Cluster) named(names []string) ([]*clusterNode, error) {
	if len(names) == 0 {
		return c.all(), nil
	}
	var nodes []*clusterNode
	for _, name := range names {
		n, err := c.node(name)
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, n)
	}
	return nodes, nil
}

// Nodes is what the host knows of all nodes, in the topology's order.
func (c *Cluster) Nodes() []NodeState {
	all := c.all()
	states := make([]NodeState, len(all))
	for i, n := range all {
		states[i] = n.state()
	}
	return states
}

func (n *clusterNode) state() NodeState {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.look()
	return NodeState{Name: n.node.Name, Role: n.node.Role, Site: n.node.Site, Address: n.node.Address(),
		On: n.on, Since: n.since, Blocked: n.blocked, PID: n.PID(), Dir: n.Dir()}
}

// look notes whether the machine has power. A guest may end it by itself, which
// nobody tells.
func (n *clusterNode) look() {
	if on := n.Running(); on != n.on {
		n.on, n.since = on, time.Now()
	}
}

// StartAll powers on all machines that are off, at the same time.
func (c *Cluster) StartAll(ctx context.Context) error {
	_, err := c.Start(ctx)
	return err
}

// Start powers on those of the named machines, or of all, that are off, and says
// which. They are killed when ctx ends.
func (c *Cluster) Start(ctx context.Context, names ...string) (started []string, err error) {
	return c.each(names, func(n *clusterNode) (bool, error) {
		n.power.Lock()
		defer n.power.Unlock()
		if n.Running() {
			return false, nil
		}
		n.Crash() // what is left of a machine that ended by itself
		// Its disk may have been removed to begin anew.
		if err := prepare(ctx, n.vm); err != nil {
			return false, fmt.Errorf("machine %s: %w", n.Name(), err)
		}
		return true, n.PowerOn(ctx)
	})
}

// Shutdown has the named guests, or all, power off, and cuts the power of those
// that have not when ctx ends. It says which had power, and which lost it so.
func (c *Cluster) Shutdown(ctx context.Context, names ...string) (stopped, forced []string, err error) {
	var mu sync.Mutex
	stopped, err = c.each(names, func(n *clusterNode) (bool, error) {
		n.power.Lock()
		defer n.power.Unlock()
		if !n.Running() {
			return false, nil
		}
		if err := n.Shutdown(ctx); err != nil && n.Running() {
			c.log.Debugf("shutting down %s: %v", n.Name(), err)
			n.Crash()
			mu.Lock()
			forced = append(forced, n.Name())
			mu.Unlock()
		}
		return true, nil
	})
	slices.Sort(forced)
	return stopped, forced, err
}

// Crash cuts the power of the named machines, or of all, and says which had it.
func (c *Cluster) Crash(names ...string) (stopped []string, err error) {
	return c.each(names, func(n *clusterNode) (bool, error) {
		was := n.Running()
		n.Crash()
		return was, nil
	})
}

// each does something to nodes at the same time and says for which of them it
// was true, in the topology's order.
func (c *Cluster) each(names []string, do func(*clusterNode) (bool, error)) ([]string, error) {
	nodes, err := c.named(names)
	if err != nil {
		return nil, err
	}
	did, errs := make([]bool, len(nodes)), make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() {
			did[i], errs[i] = do(n)
			n.state()
		})
	}
	wg.Wait()
	changed := []string{}
	for i, n := range nodes {
		if did[i] && errs[i] == nil {
			changed = append(changed, n.node.Name)
		}
	}
	return changed, errors.Join(errs...)
}

// Close cuts the power of all machines and ends their network. The directories
// stay.
func (c *Cluster) Close() {
	c.Crash()
	c.network.close()
}
