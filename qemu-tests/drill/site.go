package drill

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"path/filepath"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/crypto/ssh"

	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/drill/load"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
)

// SiteConfig is what a fresh cluster for a drill is made from.
type SiteConfig struct {
	Topology *topology.Topology
	Images   string // directory with ROLE.qcow2
	Dir      string // for the store, the seeds and the machines
	CPUs     int    // of each machine
	Memory   int64  // of machines whose size the topology leaves open
	Log      logrus.FieldLogger
}

// Site is a cluster that was made for a drill, with its clients' means.
type Site struct {
	*Lab
	Clients load.Config
	log     logrus.FieldLogger
	vault   *vault.Vault
	close   []func()
}

// NewSite seeds a topology with a store and a key of its own and makes its machines,
// powered off, with disks that a power cut empties of what was not flushed.
func NewSite(ctx context.Context, cfg SiteConfig) (s *Site, err error) {
	s = &Site{log: cfg.Log}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if s.vault, err = vault.Open(filepath.Join(cfg.Dir, "store"), vault.Options{Cluster: cfg.Topology.Name, Create: true}); err != nil {
		return s, err
	}
	s.close = append(s.close, func() { s.vault.Close() })
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return s, err
	}
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		return s, err
	}
	seeds := filepath.Join(cfg.Dir, "seeds")
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey()))) + " drill-of-" + cfg.Topology.Name
	if _, err := seeding.Write(ctx, cfg.Topology, s.vault, seeds, seeding.Options{Formats: []seeding.Format{seeding.NoCloud}, ExtraKeys: []string{line}}); err != nil {
		return s, err
	}
	p, err := s.vault.Plan()
	if err != nil {
		return s, err
	}
	cluster, err := lab.NewCluster(ctx, lab.ClusterConfig{
		Topology: cfg.Topology, Images: cfg.Images, Seeds: seeds, Dir: filepath.Join(cfg.Dir, "machines"),
		CPUs: cfg.CPUs, Memory: cfg.Memory, Volatile: true, Log: cfg.Log,
	})
	if err != nil {
		return s, err
	}
	s.close = append(s.close, cluster.Close)
	s.Lab = &Lab{Cluster: cluster, Plan: p, Key: key, Admin: s.vault.AdminTLS}
	if len(p.Databases) == 0 {
		return s, fault.New(fault.Usage, "cluster %s has no database for clients to work on", p.Cluster).WithMend("add databases to the topology; docs/topology.md explains them")
	}
	password, err := s.vault.Secret(p.Databases[0].PasswordKey())
	if err != nil {
		return s, err
	}
	clients, closeClients, err := s.Lab.Clients(pki.Pool(s.vault.Authority()), password)
	if err != nil {
		return s, err
	}
	s.Clients, s.close = clients, append(s.close, closeClients)
	return s, nil
}

// formTime is long enough for a cluster of emulated machines on two processors.
const formTime = 40 * time.Minute

// Form gives all machines power and waits until they say that they are ready. They
// have it until Close, whatever becomes of ctx. Those that the others live on come
// first: where six emulated machines share two processors, a primary whose replicas
// clone it while all others boot is late to renew its key, and its watchdog resets it.
func (s *Site) Form(ctx context.Context, limit time.Duration) error {
	if limit == 0 {
		limit = formTime
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	lasting := context.WithoutCancel(ctx)
	if first := foundation(s.Plan); len(first) > 0 {
		if _, err := s.Cluster.Start(lasting, first...); err != nil {
			return err
		}
		// Should they need one of the others after all, it comes late and not never.
		head, cancel := context.WithTimeout(bounded, limit/2)
		err := s.Cluster.WaitUntilUp(head, first...)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			s.log.Debugf("the others get power although %v", err)
		}
	}
	if err := s.Cluster.StartAll(lasting); err != nil {
		return err
	}
	err := s.Cluster.WaitUntilReady(bounded)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// foundation are the nodes that hold the data and the votes of the site that serves.
func foundation(p *plan.Plan) (names []string) {
	site := p.WritableSite()
	for _, n := range p.Nodes {
		if n.Site == site && (plan.DatabaseRole(n.Role) || p.Votes(n.Name)) {
			names = append(names, n.Name)
		}
	}
	return names
}

// Close cuts the power of all machines. The directory stays.
func (s *Site) Close() {
	for i := len(s.close) - 1; i >= 0; i-- {
		s.close[i]()
	}
	s.close = nil
}
