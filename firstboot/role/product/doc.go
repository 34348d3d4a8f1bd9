// Package product does for the product of a role what its profile asks for: tells
// it of the cluster, sets it up once, gives all nodes of the role the same shared
// files, lets its units start, and asks it whether it serves.
//
// In: the role marker's product (manifest.Product), the plan, the node's
// certificate and the password of its database. Out: files in /etc/slipway/product,
// a row in the product's database that says that it was set up, shared files with a
// record of which version they are (/var/lib/slipway/shared.json). docs/payload.md
// is the vendor's side of it.
package product

import (
	"path"
	"slices"
	"strconv"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// Dir holds what the product is told.
const Dir = "/etc/slipway/product"

const (
	envPath    = Dir + "/env"
	pgpassPath = Dir + "/pgpass"
	caPath     = Dir + "/ca.pem"
	certPath   = Dir + "/certificate.pem"
	keyPath    = Dir + "/key.pem"

	setupSeconds = 600
	sharedMode   = 0o640
)

// of is the product of a node's role.
func of(n *node.Node) manifest.Product { return n.Role.Product }

// idle reports whether the role has nothing for the agent to do.
func idle(p manifest.Product) bool {
	return len(p.Units) == 0 && len(p.Setup.Command) == 0 && len(p.Shared) == 0 && p.Health.URL == "" && p.Stack == ""
}

// user runs the product.
func user(p manifest.Product) string {
	if p.User == "" {
		return "root"
	}
	return p.User
}

// alike are the other nodes that have the product's shared files, those of the own
// site first.
func alike(m *member.Member) []plan.Node {
	var near, far []plan.Node
	for _, n := range m.Plan.Peers(m.Self.Name) {
		switch {
		case n.Role != m.Self.Role:
		case n.Site == m.Self.Site:
			near = append(near, n)
		default:
			far = append(far, n)
		}
	}
	return append(near, far...)
}

// file is a shared file by its path.
func file(p manifest.Product, name string) (manifest.SharedFile, bool) {
	i := slices.IndexFunc(p.Shared, func(f manifest.SharedFile) bool { return f.Path == name })
	if i < 0 || path.Clean(name) != name {
		return manifest.SharedFile{}, false
	}
	return p.Shared[i], true
}

// owner and mode are a shared file's.
func owner(p manifest.Product, f manifest.SharedFile) string {
	if f.User == "" {
		return user(p)
	}
	return f.User
}

func mode(f manifest.SharedFile) uint32 {
	if bits, err := strconv.ParseUint(f.Mode, 8, 12); err == nil {
		return uint32(bits)
	}
	return sharedMode
}
