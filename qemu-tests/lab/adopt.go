package lab

import (
	"context"
	"os"
	"reflect"
	"slices"

	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Adopt takes over a topology that has other nodes than before: those that are new
// get machines, powered off, and those that are gone lose the power and leave. What
// runs of the others runs on. A topology that differs in anything else is refused,
// for then what runs would have to be made anew. Directories of machines that leave
// stay.
func (c *Cluster) Adopt(ctx context.Context, next *topology.Topology) error {
	c.roll.Lock()
	defer c.roll.Unlock()
	if err := sameButNodes(c.topology, next); err != nil {
		return err
	}
	former := map[string]*clusterNode{}
	for _, n := range c.members {
		former[n.node.Name] = n
	}
	cfg := c.cfg
	cfg.Topology = next
	var members []*clusterNode
	for _, n := range next.Nodes {
		if have := former[n.Name]; have != nil {
			members = append(members, have)
			delete(former, n.Name)
			continue
		}
		if err := cfg.hasImage(n.Role); err != nil {
			return err
		}
		if _, err := os.Stat(Seed(cfg.Seeds, n.Name)); err != nil {
			return fault.New(fault.Missing, "the lab runs, and has no seed of the node %s: %w", n.Name, err).
				WithMend("bring it into the cluster: slipway add %s %s", next.Path(), n.Name)
		}
		m, err := New(ctx, cfg.machine(c.network, n))
		if err != nil {
			return err
		}
		members = append(members, &clusterNode{Machine: m, node: n})
	}
	c.network.gateway.SetNames(namesOf(next, c.network.first))
	for _, n := range former {
		n.Crash()
	}
	c.topology, c.members = next, members
	return nil
}

// sameButNodes refuses a topology that differs from another in more than which
// nodes there are.
func sameButNodes(before, next *topology.Topology) error {
	refuse := func(what string) error {
		return fault.New(fault.Failed, "%s has changed since the lab was started: %s", next.Path(), what).
			WithMend("run: slipway down %s, then slipway up; the disks are kept", next.Path())
	}
	for _, n := range next.Nodes {
		if have, ok := before.Node(n.Name); ok && !reflect.DeepEqual(have, n) {
			return refuse("the node " + n.Name + " is another one")
		}
	}
	for _, n := range next.Networks {
		i := slices.IndexFunc(before.Networks, func(o topology.Network) bool { return o.Name == n.Name })
		if i < 0 || !reflect.DeepEqual(before.Networks[i], n) {
			return refuse("the network " + n.Name + " is another one")
		}
		was, err := gatewayAddresses(before, n)
		if err != nil {
			return err
		}
		is, err := gatewayAddresses(next, n)
		if err != nil {
			return err
		}
		if !slices.Equal(was, is) {
			return refuse("the lab's gateway would have other addresses in network " + n.Name)
		}
	}
	left, right := *before, *next
	left.Nodes, right.Nodes, left.Warnings, right.Warnings = nil, nil, nil, nil
	if !reflect.DeepEqual(left, right) {
		return refuse("not only its nodes are others")
	}
	return nil
}
