package lab

import (
	"context"
	"errors"

	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/ether"
)

// What can be done to the network between the nodes of a cluster. All of it is by
// name, and so outlives the power of the nodes. Machines keep their carrier; see
// Machine.Unplug for what takes that away.

// Block cuts a node off the network: neither the other nodes nor the outside
// hear of it, while it keeps its carrier.
func (c *Cluster) Block(name string) error { return c.setBlocked(name, true) }

// Unblock ends Block.
func (c *Cluster) Unblock(name string) error { return c.setBlocked(name, false) }

func (c *Cluster) setBlocked(name string, blocked bool) error {
	n, err := c.node(name)
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	c.network.block(name, blocked)
	n.blocked = blocked
	return nil
}

// Partition parts groups of nodes from each other: what a node sends reaches no
// node of another group, on no way. Nodes that are in no group, and the outside,
// reach all and are reached by all. It takes the place of an earlier Partition
// and Sever.
func (c *Cluster) Partition(groups ...[]string) error {
	in := map[string]int{}
	for i, group := range groups {
		if _, err := c.known(group); err != nil {
			return err
		}
		for _, name := range group {
			if j, twice := in[name]; twice && j != i {
				return fault.New(fault.Usage, "node %s cannot be in two parts of the network", name)
			}
			in[name] = i
		}
	}
	c.Rejoin()
	for a, i := range in {
		for b, j := range in {
			if i != j {
				c.sever(a, b)
			}
		}
	}
	return nil
}

// Sever makes the network deaf in one direction: what the one nodes send does not
// reach the others, on no way, while those are still heard.
func (c *Cluster) Sever(from, to []string) error {
	for _, names := range [][]string{from, to} {
		if _, err := c.known(names); err != nil {
			return err
		}
	}
	for _, a := range from {
		for _, b := range to {
			if a != b {
				c.sever(a, b)
			}
		}
	}
	return nil
}

func (c *Cluster) sever(from, to string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.severed == nil {
		c.severed = map[[2]string]bool{}
	}
	c.severed[[2]string{from, to}] = true
	c.network.sw.Block(from, to)
}

// Rejoin ends Partition and Sever.
func (c *Cluster) Rejoin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for path := range c.severed {
		c.network.sw.Unblock(path[0], path[1])
	}
	c.severed = nil
}

// Impair delays or loses what a node sends, and what is sent to it, in place of
// what was set for the node before: a round trip to it takes twice the delay
// longer.
func (c *Cluster) Impair(name string, p ether.Path) error {
	if _, err := c.node(name); err != nil {
		return err
	}
	c.network.sw.Impair(name, ether.Any, p)
	c.network.sw.Impair(ether.Any, name, p)
	return nil
}

// Mend ends Impair.
func (c *Cluster) Mend(name string) error { return c.Impair(name, ether.Path{}) }

// Heal ends all faults, of the network and of the machines (Machine.Heal). It
// gives nobody power.
func (c *Cluster) Heal(ctx context.Context) error {
	c.Rejoin()
	var errs []error
	for _, n := range c.all() {
		errs = append(errs, c.Unblock(n.node.Name), c.Mend(n.node.Name))
	}
	_, err := c.each(nil, func(n *clusterNode) (bool, error) { return true, n.Heal(ctx) })
	return errors.Join(append(errs, err)...)
}

// known are the nodes with these names, which may be none.
func (c *Cluster) known(names []string) ([]*clusterNode, error) {
	if len(names) == 0 {
		return nil, nil
	}
	return c.named(names)
}
