// Package steps holds what the agent does to a node, in order. A step brings one
// part of the node to what the metadata asks for: it compares, changes only
// what differs, and so can be applied at every boot and after a power cut at
// any point. Without metadata each step does what suits a node that nobody has
// said anything about.
//
// A step that fails does not stop the ones after it.
package steps

import (
	"context"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/role/backup"
	"github.com/slipwayhq/slipway/firstboot/role/balancer"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
	"github.com/slipwayhq/slipway/firstboot/role/database"
	"github.com/slipwayhq/slipway/firstboot/role/mirror"
	"github.com/slipwayhq/slipway/firstboot/role/product"
	"github.com/slipwayhq/slipway/firstboot/role/vip"
)

// Longest is what a single step before the network may take at most.
const Longest = mkfsLimit + 5*time.Minute

// Step is one part of a node's configuration.
type Step interface {
	// Name is a word for reports.
	Name() string
	// Apply brings the node to what its metadata asks for. It reports what it
	// waits for and what it changes to n.
	Apply(ctx context.Context, n *node.Node) error
}

// Local are the steps that need no network: they come before the node's
// network and services start, so that nothing ever starts on a node that is
// configured by half, nor without a firewall.
func Local(find Finder, membership *Membership) []Step {
	return []Step{
		Datasource{find},   //  1 what is asked for
		membership,         //  2 which node of which cluster this is
		Retire{},           //    and whether it was taken out
		Bootcmd{},          //  3 commands for every boot
		Hostname{},         //  4 host name
		Probe{},            //  5 who has the node's addresses
		Network{},          //  6 network cards, addresses, routes
		Resolver{},         //  7 name servers for the whole node
		Firewall{},         //  8 default deny, and the role's ports
		HostKeys{},         //  9 ssh host keys, born here
		Clock{},            // 10 time zone, time servers
		Locale{},           // 11 language, keyboard
		Certificates{},     // 12 certificate authorities
		Disks{},            // 13 partitions, file systems, mounts, swap
		Users{},            // 14 groups, users, keys, passwords, sudo
		Files{Late: false}, // 15 write_files

		consensus.Configure{}, // 16 the etcd member's files
		database.Configure{},  // 17 Patroni's
		backup.Configure{},    // 18 pgBackRest's
		balancer.Configure{},  // 19 HAProxy's
		vip.Configure{},       // 20 keepalived's
		product.Configure{},   // 21 what the product is told
		mirror.Configure{},    // 22 apt's, Docker's, and the mirror's own
	}
}

// Online are the steps for a node whose network and services start. The tasks of
// a cluster (see Cluster) run beside them.
func Online(confirm Confirmer) []Step {
	return []Step{
		Deferred{Files{Late: true}}, // 22 write_files with defer
		Commands{},                  // 23 scripts and runcmd, once
		Role{},                      // 24 the role's services
		confirm,                     // 25 this version is good
		Final{},                     // 26 final_message, power_state
	}
}
