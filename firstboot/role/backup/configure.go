package backup

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Configure writes pgBackRest's configuration and keys. It needs no network and
// starts nothing.
type Configure struct{}

// Name implements steps.Step.
func (Configure) Name() string { return "backup-setup" }

// Apply implements steps.Step.
func (Configure) Apply(ctx context.Context, n *node.Node) error {
	m := n.Member
	if !Takes(m) {
		if m == nil || !n.Exists(configPath) {
			return nil
		}
		// The plan asks for no backups any more.
		if _, err := n.Ensure(configPath, 0o600, ""); err != nil {
			return err
		}
		return n.Nudge(ctx, "stop", Unit)
	}
	keys := false
	if len(m.Plan.BackupPeers(m.Self.Name)) > 0 {
		pair, ok := m.Certificates[member.BackupCert]
		if !ok {
			return fault.New(fault.Input, "%s has a part in backups, and its seed lacks a certificate for that", m.Self.Name).
				WithMend("write the node's seed anew: slipway seed")
		}
		for name, content := range map[string]string{"ca.pem": m.Authority, "backup.pem": pair.Both()} {
			changed, err := n.EnsureFor(user, pkiDir+"/"+name, 0o600, content)
			if err != nil {
				return err
			}
			keys = keys || changed // which the server reads when it is told to, and not before
		}
	}
	text, err := render(m)
	if err != nil {
		return err
	}
	if changed, err := n.EnsureFor(user, configPath, 0o600, text); err != nil || !changed && !keys {
		return err
	}
	return n.Nudge(ctx, "reload", Unit)
}

// options is a file of pgBackRest's: sections with lines of option=value.
type options struct{ strings.Builder }

func (o *options) set(name, value string) { fmt.Fprintf(o, "%s=%s\n", name, value) }

// render is pgbackrest.conf.
func render(m *member.Member) (string, error) {
	var o options
	p := m.Plan
	b := p.Backup
	o.WriteString("# Written by the slipway agent from the cluster's plan (pgBackRest, \"Configuration\n# Reference\"). Edits are lost at the next boot.\n[global]\n")
	o.set("log-level-file", "off") // to the journal, which bounds and rotates
	o.set("lock-path", socket+"/pgbackrest")
	o.set("compress-type", "zst")
	// A host that is gone must not keep the others waiting for a minute.
	o.set("io-timeout", "20")
	o.set("process-max", "2")
	if peers := p.BackupPeers(m.Self.Name); len(peers) > 0 {
		o.set("tls-server-address", "*")
		o.set("tls-server-port", strconv.Itoa(plan.BackupPort))
		o.set("tls-server-ca-file", pkiDir+"/ca.pem")
		o.set("tls-server-cert-file", pkiDir+"/backup.pem")
		o.set("tls-server-key-file", pkiDir+"/backup.pem")
		for _, peer := range peers {
			o.set("tls-server-auth", peer.Name+"="+p.Stanza())
		}
	}
	switch {
	case p.Keeps(m.Self.Name):
		o.set("repo1-path", "/var/lib/pgbackrest")
	case b.S3 != nil:
		if err := o.s3(m); err != nil {
			return "", err
		}
	default:
		keeper, err := p.Node(b.Repository)
		if err != nil {
			return "", err
		}
		o.host("repo1", keeper)
	}
	if makes(m) {
		passphrase := m.Secrets[plan.BackupCipher]
		if err := secret(plan.BackupCipher, passphrase); err != nil {
			return "", err
		}
		o.set("repo1-cipher-type", "aes-256-cbc")
		o.set("repo1-cipher-pass", passphrase)
		o.set("repo1-retention-full", strconv.Itoa(b.KeepFull))
		o.set("repo1-retention-diff", strconv.Itoa(b.KeepDiff))
		// Small files together in one, of large ones only the parts that changed.
		o.set("repo1-bundle", "y")
		o.set("repo1-block", "y")
		// A backup begins with a checkpoint of its own, not with the next one.
		o.set("start-fast", "y")
	}
	if plan.DatabaseRole(m.Self.Role) {
		o.set("archive-async", "y")
		o.set("spool-path", "/var/lib/postgresql/spool")
		o.set("archive-push-queue-max", strconv.Itoa(b.WALQueue)+"MiB")
		o.set("archive-get-queue-max", "128MiB")
	}
	fmt.Fprintf(&o, "\n[%s]\n", p.Stanza())
	if p.Keeps(m.Self.Name) {
		for i, n := range p.AllDatabases() {
			pg := "pg" + strconv.Itoa(i+1)
			o.host(pg, n)
			o.database(pg, p, n)
		}
	} else {
		o.database("pg1", p, m.Self)
	}
	return o.String(), nil
}

// host is how another node's pgBackRest is reached.
func (o *options) host(prefix string, n plan.Node) {
	o.set(prefix+"-host", n.Address.String())
	o.set(prefix+"-host-type", "tls")
	o.set(prefix+"-host-port", strconv.Itoa(plan.BackupPort))
	o.set(prefix+"-host-ca-file", pkiDir+"/ca.pem")
	o.set(prefix+"-host-cert-file", pkiDir+"/backup.pem")
	o.set(prefix+"-host-key-file", pkiDir+"/backup.pem")
}

// database is where a database node has its data.
func (o *options) database(prefix string, p *plan.Plan, n plan.Node) {
	o.set(prefix+"-path", dataDir)
	o.set(prefix+"-socket-path", socket)
	if site, err := p.Site(n.Site); err == nil {
		o.set(prefix+"-port", strconv.Itoa(site.Postgres.Port))
	}
}

// s3 is how storage is reached.
func (o *options) s3(m *member.Member) error {
	s := m.Plan.Backup.S3
	for _, name := range []string{plan.S3Key, plan.S3KeySecret} {
		if err := secret(name, m.Secrets[name]); err != nil {
			return err
		}
	}
	o.set("repo1-type", "s3")
	o.set("repo1-path", s.Path)
	o.set("repo1-s3-endpoint", s.Endpoint)
	o.set("repo1-s3-bucket", s.Bucket)
	o.set("repo1-s3-region", s.Region)
	o.set("repo1-s3-uri-style", s.Style)
	o.set("repo1-s3-key", m.Secrets[plan.S3Key])
	o.set("repo1-s3-key-secret", m.Secrets[plan.S3KeySecret])
	return nil
}

// secret refuses what would not be one value of one line.
func secret(name, value string) error {
	if value == "" || value != strings.TrimSpace(value) || strings.ContainsAny(value, "\n\r\x00") {
		return fault.New(fault.Input, "the seed's secret %s is missing, or is not one line", name).WithMend("write the node's seed anew: slipway seed")
	}
	return nil
}
