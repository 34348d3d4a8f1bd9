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
		for _, path := range []string{configPath, sourcePath} {
			if !n.Exists(path) {
				continue
			}
			if _, err := n.Ensure(path, 0o600, ""); err != nil {
				return err
			}
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
	if err := storageAuthorities(n); err != nil {
		return err
	}
	if err := configureSource(n); err != nil {
		return err
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

// storageAuthorities writes those that stand behind the certificates of storage.
func storageAuthorities(n *node.Node) error {
	b := n.Member.Plan.Backup
	for path, s := range map[string]*plan.S3{ownCA: b.S3, sourceCA: b.Reads()} {
		if s == nil || s.CA == "" || !plan.DatabaseRole(n.Member.Self.Role) {
			continue
		}
		if _, err := n.EnsureFor(user, path, 0o600, s.CA); err != nil {
			return err
		}
	}
	return nil
}

// configureSource writes how a database reads the backups that another cluster
// made. It is a file of its own, which is named when it is meant: nothing else reads
// or writes there.
func configureSource(n *node.Node) error {
	m := n.Member
	if m.Plan.Backup.From == nil || !plan.DatabaseRole(m.Self.Role) {
		if !n.Exists(sourcePath) {
			return nil
		}
		_, err := n.Ensure(sourcePath, 0o600, "")
		return err
	}
	text, err := renderSource(m)
	if err != nil {
		return err
	}
	_, err = n.EnsureFor(user, sourcePath, 0o600, text)
	return err
}

// options is a file of pgBackRest's: sections with lines of option=value.
type options struct{ strings.Builder }

func (o *options) set(name, value string) { fmt.Fprintf(o, "%s=%s\n", name, value) }

// render is pgbackrest.conf.
func render(m *member.Member) (string, error) {
	var o options
	p := m.Plan
	b := p.Backup
	o.begin()
	o.set("compress-type", "zst")
	if peers := p.BackupPeers(m.Self.Name); len(peers) > 0 {
		o.set("tls-server-address", "*")
		o.set("tls-server-port", strconv.Itoa(plan.BackupPort))
		o.set("tls-server-ca-file", pkiDir+"/ca.pem")
		o.set("tls-server-cert-file", pkiDir+"/backup.pem")
		o.set("tls-server-key-file", pkiDir+"/backup.pem")
		stanzas := p.Stanza()
		if p.Keeps(m.Self.Name) && b.From != nil && b.Reads() == nil {
			stanzas += "," + b.From.Cluster
		}
		for _, peer := range peers {
			o.set("tls-server-auth", peer.Name+"="+stanzas)
		}
	}
	switch {
	case p.Keeps(m.Self.Name):
		o.set("repo1-path", "/var/lib/pgbackrest")
	case b.S3 != nil:
		if err := o.s3(m, b.S3, ownCA, plan.S3Key, plan.S3KeySecret); err != nil {
			return "", err
		}
	default:
		if err := o.keeper(p); err != nil {
			return "", err
		}
	}
	if makes(m) {
		o.set("repo1-cipher-type", "aes-256-cbc")
		if err := o.passphrase(m, plan.BackupCipher); err != nil {
			return "", err
		}
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
		o.set("spool-path", SpoolDir)
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
		if b.From != nil && b.Reads() == nil {
			fmt.Fprintf(&o, "\n[%s]\n", b.From.Cluster)
			if err := o.passphrase(m, plan.SourceCipher); err != nil {
				return "", err
			}
		}
	} else {
		o.database("pg1", p, m.Self)
	}
	return o.String(), nil
}

// renderSource is pgBackRest's configuration for the backups of another cluster, on
// a database.
func renderSource(m *member.Member) (string, error) {
	var o options
	b := m.Plan.Backup
	o.begin()
	o.set("archive-async", "y")
	o.set("spool-path", SpoolDir)
	o.set("archive-get-queue-max", "128MiB")
	var err error
	switch {
	case b.From.S3 != nil:
		err = o.s3(m, b.From.S3, sourceCA, plan.SourceS3Key, plan.SourceS3KeySecret)
	case b.S3 != nil:
		err = o.s3(m, b.S3, sourceCA, plan.S3Key, plan.S3KeySecret)
	default:
		err = o.keeper(m.Plan)
	}
	if err == nil && b.Reads() != nil {
		o.set("repo1-cipher-type", "aes-256-cbc")
		err = o.passphrase(m, plan.SourceCipher)
	}
	if err != nil {
		return "", err
	}
	fmt.Fprintf(&o, "\n[%s]\n", b.From.Cluster)
	o.database("pg1", m.Plan, m.Self)
	return o.String(), nil
}

// begin is what each file begins with.
func (o *options) begin() {
	o.WriteString("# Written by the slipway agent from the cluster's plan (pgBackRest, \"Configuration\n# Reference\"). Edits are lost at the next boot.\n[global]\n")
	o.set("log-level-file", "off") // to the journal, which bounds and rotates
	o.set("lock-path", socket+"/pgbackrest")
	// A host that is gone must not keep the others waiting for a minute.
	o.set("io-timeout", "20")
	o.set("process-max", "2")
}

// passphrase is what the repository is encrypted with.
func (o *options) passphrase(m *member.Member, name string) error {
	if err := secret(name, m.Secrets[name]); err != nil {
		return err
	}
	o.set("repo1-cipher-pass", m.Secrets[name])
	return nil
}

// keeper is how the repository is reached.
func (o *options) keeper(p *plan.Plan) error {
	keeper, err := p.Node(p.Backup.Repository)
	if err != nil {
		return err
	}
	o.host("repo1", keeper)
	return nil
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
func (o *options) s3(m *member.Member, s *plan.S3, ca, key, keySecret string) error {
	for _, name := range []string{key, keySecret} {
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
	if s.CA != "" {
		o.set("repo1-storage-ca-file", ca)
	}
	o.set("repo1-s3-key", m.Secrets[key])
	o.set("repo1-s3-key-secret", m.Secrets[keySecret])
	return nil
}

// secret refuses what would not be one value of one line.
func secret(name, value string) error {
	if value == "" || value != strings.TrimSpace(value) || strings.ContainsAny(value, "\n\r\x00") {
		return fault.New(fault.Input, "the seed's secret %s is missing, or is not one line", name).WithMend("write the node's seed anew: slipway seed")
	}
	return nil
}
