// Package consensus runs this node's etcd member: the site's database nodes, and
// a witness where there are only two, agree in it on who may write.
//
// In: the plan (who votes), the node's certificates for etcd. Out:
// /etc/default/etcd and the keys in /etc/etcd/pki, a running member that is part
// of a quorum, and its part of the node's report. The settings are those of
// etcd's documentation, "Configuration options"; members are asked through the
// JSON gateway of etcd's API, version 3 ("gRPC gateway").
package consensus

import (
	"regexp"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	// Unit is etcd's.
	Unit = "etcd.service"

	user    = "etcd"
	envPath = "/etc/default/etcd"
	pkiDir  = "/etc/etcd/pki"
	dataDir = "/var/lib/etcd"
)

var scopeForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,127}$`)

// votes reports whether a node runs a member.
func votes(m *member.Member) bool { return m != nil && m.Plan.Votes(m.Self.Name) }

// checkScope keeps a scope, which becomes part of a file name, from leading
// elsewhere.
func checkScope(scope string) error {
	if !scopeForm.MatchString(scope) {
		return fault.New(fault.Input, "the plan's scope %q is not a name of lower-case letters, digits and hyphens", scope)
	}
	return nil
}
