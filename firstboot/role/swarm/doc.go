// Package swarm makes the dispatchers of a site the managers of one Docker Swarm and
// has it run the product's services.
//
// In: the plan (who the dispatchers are, swarm parameters), the images of the
// appliance (manifest.ImagesDir), the product's Compose file, and what the agents of
// the other dispatchers say. Out: images in Docker, a swarm with all dispatchers as
// managers, rotated tokens, services, and its part of the node's report. Docker is
// asked through its API ("Docker Engine API v1.45", the one of Docker 26), over its
// socket: tokens then stand in no command line. docs/dispatcher.md tells how a swarm
// comes up and what it bears.
package swarm

import (
	"net"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

const (
	offerName = "swarm"
	port      = 2377 // of Swarm's management
	stackName = "product"

	// Overlay networks take their addresses from what is kept for measurements (RFC
	// 2544, appendix C.2.2), so that none is one of the site's. Docker's own choice,
	// 10.0.0.0/8, is in use nearly everywhere.
	overlayPool = "198.18.0.0/16"
	overlaySize = 24

	// Labels of the swarm itself: which members the tokens were rotated for, and which
	// stack was deployed.
	membersLabel = "slipway.members"
	stackLabel   = "slipway.stack"
)

// applies reports whether a node is a manager of a swarm.
func applies(n *node.Node) bool {
	return n.Member != nil && n.Member.Self.Role == plan.DispatcherRole && n.Member.Plan.Swarm != nil
}

// managers are the dispatchers of the node's site, by name, this one too.
func managers(n *node.Node) []plan.Node {
	return n.Member.Plan.With(n.Member.Self.Site, plan.DispatcherRole)
}

// others are the managers but for this node.
func others(n *node.Node) []plan.Node {
	var out []plan.Node
	for _, m := range managers(n) {
		if m.Name != n.Member.Self.Name {
			out = append(out, m)
		}
	}
	return out
}

// address is where a manager answers the others.
func address(n plan.Node) string {
	return net.JoinHostPort(n.Address.String(), strconv.Itoa(port))
}

// is reports whether a member of the swarm is, or was, a node of the plan.
func (m Member) is(n plan.Node) bool {
	host, _, _ := strings.Cut(m.Description.Hostname, ".")
	return host == n.Name
}
