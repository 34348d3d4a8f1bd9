// Package database runs PostgreSQL under Patroni on a database node.
//
// In: the plan (which sites and nodes there are, who makes the database, the
// times and parameters), the node's certificate and the cluster's passwords. Out:
// Patroni's configuration, a member of the site's database cluster that leads or
// streams, the plan's databases with their owners, and the node's part of the
// report. Settings are those of Patroni's documentation, "YAML Configuration
// Settings" and "Dynamic Configuration Settings", and of PostgreSQL's, "Server
// Configuration".
//
// Patroni decides who leads. This package decides whether Patroni may start at
// all: never on data that is not known to be this cluster's.
package database

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

const (
	// Unit is Patroni's.
	Unit = "patroni.service"

	user        = "postgres"
	version     = "17"
	baseDir     = "/var/lib/postgresql"
	dataDir     = baseDir + "/" + version + "/main"
	binDir      = "/usr/lib/postgresql/" + version + "/bin"
	configPath  = "/etc/patroni/conf.d/30-cluster.yml"
	pkiDir      = "/etc/patroni/pki"
	secretsPath = "/var/lib/slipway/database.env"
	recordPath  = "/var/lib/slipway/database.json"
)

// Roles that Patroni makes for itself.
const (
	superuser  = "postgres"
	replicator = "replicator"
	rewinder   = "rewind"
)

// runs reports whether a node runs PostgreSQL as part of a cluster.
func runs(m *member.Member) bool { return m != nil && plan.DatabaseRole(m.Self.Role) }

// rest is where a node's Patroni answers.
func rest(n plan.Node) string {
	return "https://" + netip.AddrPortFrom(n.Address, plan.PatroniPort).String()
}

// restPassword is what Patroni's members and patronictl show each other, beside a
// certificate, before something is changed: the authority also vouches for
// administrators who may only look. It follows from the superuser's password,
// which exactly the database nodes have.
func restPassword(m *member.Member) string {
	h := hmac.New(sha256.New, []byte(m.Secrets[plan.SuperuserPassword]))
	h.Write([]byte("slipway patroni rest api"))
	return hex.EncodeToString(h.Sum(nil))[:40]
}
