// Package backup keeps the database's backups and the archive of its WAL, with
// pgBackRest.
//
// In: the plan's backup (where they are kept, when they are made, for how long),
// the node's certificate for backups, the passphrase. Out: pgBackRest's
// configuration and its TLS server on the repository and on databases, the stanza,
// backups by schedule, and what there is of them in the report. Options are those
// of pgBackRest's "Configuration Reference" and "Command Reference", 2.55.
//
// One node makes the backups: the repository, or with S3 the primary. What a
// database itself has to do, archiving and being restored, is in package database.
package backup

import (
	"context"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

const (
	// Unit is pgBackRest's TLS server.
	Unit = "pgbackrest.service"
	// SpoolDir is where WAL waits on its way from or to the archive.
	SpoolDir = "/var/lib/postgresql/spool"

	user       = "postgres"
	configPath = "/etc/pgbackrest/pgbackrest.conf"
	sourcePath = "/etc/pgbackrest/source.conf" // the backups that another cluster made
	pkiDir     = "/etc/pgbackrest/pki"
	ownCA      = pkiDir + "/storage-ca.pem"
	sourceCA   = pkiDir + "/source-ca.pem"
	// The database's, on a database node.
	dataDir       = "/var/lib/postgresql/17/main"
	socket        = "/run/postgresql"
	archiveScript = "/usr/lib/slipway/pgbackrest-archive"
)

// Takes reports whether a node has a part in backups.
func Takes(m *member.Member) bool {
	return m != nil && m.Plan.Backup != nil && (plan.DatabaseRole(m.Self.Role) || m.Plan.Keeps(m.Self.Name))
}

// makes reports whether a node may make backups: the repository, or with S3 any
// database, of which the primary does.
func makes(m *member.Member) bool {
	return Takes(m) && (m.Plan.Keeps(m.Self.Name) || m.Plan.Backup.S3 != nil)
}

// ArchiveCommand is PostgreSQL's archive_command.
func ArchiveCommand(p *plan.Plan) string { return archiveScript + " " + p.Stanza() + " %p" }

// RestoreCommand is PostgreSQL's restore_command: where a replica finds WAL that
// the primary no longer has.
func RestoreCommand(p *plan.Plan) string {
	return `pgbackrest --stanza=` + p.Stanza() + ` archive-get %f "%p"`
}

// Command has pgBackRest do something, as the user that the data belongs to. from is
// the cluster whose backups are meant, "" for this one.
func Command(ctx context.Context, n *node.Node, from string, limit time.Duration, words ...string) (string, error) {
	argv := []string{"setpriv", "--reuid=" + user, "--regid=" + user, "--init-groups", "--", "/usr/bin/pgbackrest"}
	if from == "" {
		argv = append(argv, "--stanza="+n.Member.Plan.Stanza())
	} else {
		argv = append(argv, "--config="+sourcePath, "--stanza="+from)
	}
	return n.Execute(ctx, node.Command{Argv: append(argv, words...), Timeout: limit})
}
