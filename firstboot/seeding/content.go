package seeding

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
)

// content is what a node is told, but for the plan.
type content struct {
	certificates map[string]member.Pair
	secrets      map[string]string
	expires      time.Time
}

// content gets a node's certificates and passwords from the store. issued tells
// whether any certificate is a new one.
func (w *writer) content(n topology.Node) (c content, issued bool, err error) {
	c = content{certificates: map[string]member.Pair{}}
	if c.secrets, err = w.secrets(n); err != nil {
		return c, false, err
	}
	for _, r := range w.requests(n) {
		pair, isNew, err := w.v.Certificate(r, w.o.Renew)
		if err != nil {
			return c, false, err
		}
		cert, err := pki.ParseCertificate(n.Name+", "+r.Purpose, pair.Certificate)
		if err != nil {
			return c, false, err
		}
		if c.expires.IsZero() || cert.NotAfter.Before(c.expires) {
			c.expires = cert.NotAfter
		}
		issued = issued || isNew
		c.certificates[r.Purpose] = pair
	}
	return c, issued, nil
}

const balancer = "balancer"

// requests are the certificates that a node needs: that of its agent, and those
// of the services that its role runs.
func (w *writer) requests(n topology.Node) []pki.Request {
	names := []string{n.Name, "localhost"}
	if w.t.Domain != "" {
		names = append(names, fqdn(w.t, n))
	}
	addresses := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	for _, nic := range n.NICs {
		addresses = append(addresses, nic.Address)
	}
	request := func(purpose string) pki.Request {
		return pki.Request{Purpose: purpose, Node: n.Name, Names: names, Addresses: addresses}
	}
	agent := request(member.AgentCert)
	agent.URI = pki.NodeURI(w.v.ID(), n.Name)
	out := []pki.Request{agent}
	database := plan.DatabaseRole(n.Role)
	if database || n.Role == balancer || plan.ProductRole(n.Role) || w.plan.Mirrors(n.Name) {
		service := request(member.ServiceCert)
		if n.Role == balancer && len(w.plan.With(n.Site, plan.BrokerRole)) > 0 {
			service.Names = append(slices.Clip(service.Names), plan.BrokersName)
		}
		if n.Role == plan.DispatcherRole {
			// Whichever dispatcher is asked, any of them may answer.
			for _, peer := range w.plan.With(n.Site, n.Role) {
				if peer.Name != n.Name {
					service.Names = append(slices.Clip(service.Names), peer.Name, fqdnOf(w.t, peer.Name))
					service.Addresses = append(slices.Clip(service.Addresses), peer.Address)
				}
			}
		}
		for _, v := range w.plan.Answers(n.Name) {
			service.Names = append(slices.Clip(service.Names), v.Names...)
			service.Addresses = append(slices.Clip(service.Addresses), v.Address.Addr())
		}
		out = append(out, service)
	}
	if w.plan.Votes(n.Name) {
		out = append(out, request(member.EtcdCert))
	}
	if database {
		out = append(out, request(member.EtcdClient))
	}
	if len(w.plan.BackupPeers(n.Name)) > 0 {
		backup := request(member.BackupCert)
		// pgBackRest connects by address, so that it needs no DNS, and compares what
		// it connects to with a certificate's DNS names alone.
		for _, a := range addresses {
			backup.Names = append(backup.Names[:len(backup.Names):len(backup.Names)], a.String())
		}
		out = append(out, backup)
	}
	return out
}

// secrets are the passwords that a node needs. All databases of a cluster share
// one set: a standby site replicates with the first site's, and after it is
// promoted its databases are those of the first.
// A product has the password of its own database.
// Whoever makes the backups has their passphrase: the repository, or with S3 the
// databases, which need the storage's keys then. So it is with those that another
// cluster made.
func (w *writer) secrets(n topology.Node) (map[string]string, error) {
	out := map[string]string{}
	database := plan.DatabaseRole(n.Role)
	switch n.Role {
	case plan.BrokerRole:
		out[plan.BrokerAdmin] = w.v.EnsureSecret(plan.BrokerAdmin)
		out[plan.GatewayKey] = w.v.EnsureSecret(plan.GatewayKey)
	case plan.GatewayRole:
		out[plan.GatewayKey] = w.v.EnsureSecret(plan.GatewayKey)
	case balancer:
		if err := w.certificates(n, out); err != nil {
			return nil, err
		}
	}
	b := w.plan.Backup
	s3 := database && b != nil && b.S3 != nil
	for _, name := range Passwords(w.plan, plan.Node{Name: n.Name, Role: n.Role}) {
		out[name] = w.v.EnsureSecret(name)
	}
	if d, ok := w.plan.DatabaseFor(n.Role); ok {
		out[d.PasswordKey()] = w.v.EnsureSecret(d.PasswordKey())
	}
	if w.plan.Keeps(n.Name) || s3 {
		out[plan.BackupCipher] = w.v.EnsureSecret(plan.BackupCipher)
	}
	given := map[string]string{} // by the administrator, and what for
	if s3 {
		given[plan.S3Key], given[plan.S3KeySecret] = "backups are to be kept on S3", "backups are to be kept on S3"
	}
	if b != nil && b.From != nil {
		why := "there are backups of the cluster " + b.From.Cluster + " to restore from"
		if reads := b.Reads(); reads == nil && w.plan.Keeps(n.Name) || reads != nil && database {
			given[plan.SourceCipher] = why
		}
		if b.From.S3 != nil && database {
			given[plan.SourceS3Key], given[plan.SourceS3KeySecret] = why, why
		}
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		value, err := w.v.Secret(name)
		if err != nil {
			return nil, fault.New(fault.Input, "%s, and the store %s has no secret %s", given[name], w.v.Dir(), name).
				WithMend("slipway secret set %s %s < FILE", w.t.Path(), name)
		}
		out[name] = value
	}
	return out, nil
}

// fqdn is a node's whole name, or its short one where there is no domain.
func fqdn(t *topology.Topology, n topology.Node) string { return fqdnOf(t, n.Name) }

func fqdnOf(t *topology.Topology, name string) string {
	if t.Domain == "" {
		return name
	}
	return name + "." + t.Domain
}

// instanceID is a name that no machine of another cluster has. It stays the same
// when the seed changes: a node acts on what its seed says, not on this.
func (w *writer) instanceID(n topology.Node) string { return n.Name + "-" + w.v.ID()[:12] }

// block is the node's block slipway.
func (w *writer) block(n topology.Node, c content) (*member.Block, error) {
	signed, err := w.v.SeedPlan(n.Name)
	if err != nil {
		return nil, err
	}
	b := &member.Block{
		Format: member.Format, Cluster: w.v.Cluster(), Node: n.Name,
		Authority:    pki.EncodeCertificate(w.v.Authority().Raw),
		Certificates: c.certificates, Secrets: c.secrets, Issue: w.v.Issue(n.Name), Plan: signed,
	}
	_, votes := c.certificates[member.EtcdCert]
	if _, asks := c.certificates[member.EtcdClient]; votes || asks {
		b.EtcdAuthority = pki.EncodeCertificate(w.v.EtcdAuthority().Raw)
	}
	return b, nil
}

// cloudConfig is a node's user-data.
type cloudConfig struct {
	Hostname       string   `yaml:"hostname"`
	FQDN           string   `yaml:"fqdn,omitempty"`
	PasswordLogin  bool     `yaml:"ssh_pwauth"`
	DisableRoot    bool     `yaml:"disable_root"`
	NTP            *ntp     `yaml:"ntp,omitempty"`
	Users          []any    `yaml:"users,omitempty"`
	AuthorizedKeys []string `yaml:"ssh_authorized_keys,omitempty"`
}

type ntp struct {
	Enabled bool     `yaml:"enabled"`
	Servers []string `yaml:"servers"`
}

type account struct {
	Name       string   `yaml:"name"`
	Shell      string   `yaml:"shell"`
	Groups     []string `yaml:"groups,omitempty"`
	Sudo       string   `yaml:"sudo,omitempty"`
	LockPasswd bool     `yaml:"lock_passwd"`
	Keys       []string `yaml:"ssh_authorized_keys,omitempty"`
}

// userData is plain cloud-config: names, accounts, time servers.
func (w *writer) userData(n topology.Node) ([]byte, error) {
	c := cloudConfig{Hostname: n.Name, DisableRoot: true}
	if w.t.Domain != "" {
		c.FQDN = fqdn(w.t, n)
	}
	if len(w.t.NTP) > 0 {
		c.NTP = &ntp{Enabled: true, Servers: w.t.NTP}
	}
	if len(w.o.ExtraKeys) > 0 {
		// Keys without a name go to the default user, "slipway".
		c.AuthorizedKeys = w.o.ExtraKeys
		c.Users = append(c.Users, "default")
	}
	for _, u := range w.t.Users {
		a := account{Name: u.Name, Shell: "/bin/bash", LockPasswd: true, Keys: u.Keys}
		if u.Sudo {
			// Nobody has a password here, so sudo can ask for none.
			a.Groups, a.Sudo = []string{"adm", "sudo"}, "ALL=(ALL) NOPASSWD:ALL"
		}
		c.Users = append(c.Users, a)
	}
	text, err := toYAML(c)
	return append([]byte("#cloud-config\n"), text...), err
}

// metaData is NoCloud's meta-data.
func (w *writer) metaData(n topology.Node, b *member.Block) ([]byte, error) {
	return toYAML(struct {
		InstanceID string        `yaml:"instance-id"`
		Hostname   string        `yaml:"local-hostname"`
		Slipway    *member.Block `yaml:"slipway"`
	}{w.instanceID(n), fqdn(w.t, n), b})
}

func toYAML(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if err := encoder.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), encoder.Close()
}
