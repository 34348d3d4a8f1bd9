package drill

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/drill/checker"
	"github.com/slipwayhq/slipway/qemu-tests/drill/load"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
)

// Lab is a cluster of machines in the lab, as a drill's ground.
type Lab struct {
	Cluster *lab.Cluster
	Plan    *plan.Plan
	// Admin makes a certificate with a right to ask the agents with, and names the
	// cluster's authority (package vault). Each is good for a short time.
	Admin func(right string) (tls.Certificate, *x509.CertPool, error)
	// Key opens the nodes' SSH servers.
	Key ssh.Signer
}

// loopback is where a database is found on its own node. Its certificate is good for
// that (seeding).
const loopback = "127.0.0.1"

// Clients are what package load is given for the first database of the plan, and
// what is to be closed after the drill.
func (l *Lab) Clients(authority *x509.CertPool, password string) (load.Config, func(), error) {
	site, err := schedule.Serving(l.Plan)
	if err != nil {
		return load.Config{}, nil, err
	}
	if len(l.Plan.Databases) == 0 || !slices.ContainsFunc(l.Plan.VIPs, func(v plan.VIP) bool { return l.Plan.SiteOf(v) == site }) {
		return load.Config{}, nil, fault.New(fault.Usage, "cluster %s needs a database and a virtual address at site %s, for clients to work on", l.Plan.Cluster, site).
			WithMend("add vips and databases to the topology; docs/topology.md explains them")
	}
	vip := l.Plan.VIPs[slices.IndexFunc(l.Plan.VIPs, func(v plan.VIP) bool { return l.Plan.SiteOf(v) == site })]
	tunnels := &tunnels{dial: l.Cluster.Dial, key: l.Key}
	cfg := load.Config{
		TLS: &tls.Config{RootCAs: authority, MinVersion: tls.VersionTLS12}, Database: l.Plan.Databases[0].Name, User: l.Plan.Databases[0].Owner, Password: password,
		Address: net.JoinHostPort(vip.Address.Addr().String(), strconv.Itoa(vip.ReadWrite)), Direct: map[string]string{},
		// Half as often as natively: six emulated machines on two processors have little to spare.
		Every: 500 * time.Millisecond, DirectEvery: 4 * time.Second,
		Dial: func(ctx context.Context, node, address string) (net.Conn, error) {
			if node == "" {
				return l.Cluster.Dial(ctx, address)
			}
			n, err := l.Plan.Node(node)
			if err != nil {
				return nil, err
			}
			return tunnels.connect(ctx, net.JoinHostPort(n.Address.String(), "22"), address)
		},
	}
	// The standbys of other sites too: what they hold counts, and they may accept nothing.
	for _, s := range l.Plan.Sites {
		for _, n := range l.Plan.DatabaseNodes(s.Name) {
			cfg.Direct[n.Name] = net.JoinHostPort(loopback, strconv.Itoa(s.Postgres.Port))
		}
	}
	return cfg, tunnels.close, nil
}

// Operations is the cluster as its administrator reaches it.
func (l *Lab) Operations() *operations.Cluster {
	return &operations.Cluster{
		Plan: l.Plan, TLS: l.Admin,
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) { return l.Cluster.Dial(ctx, address) },
	}
}

// Nodes implements Ground.
func (l *Lab) Nodes() (names []string) {
	for _, n := range l.Plan.Nodes {
		names = append(names, n.Name)
	}
	return names
}

// VIPs implements Ground.
func (l *Lab) VIPs() (names []string) {
	for _, v := range l.Plan.VIPs {
		names = append(names, v.Name)
	}
	return names
}

// Look implements Ground.
func (l *Lab) Look(ctx context.Context) checker.Sample {
	cert, authorities, err := l.Admin(pki.AdminRead)
	if err != nil {
		return checker.Sample{Problems: []string{err.Error()}}
	}
	config := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: authorities}
	return sample(l.Plan, l.Cluster.Overview(ctx, l.Plan, config))
}

// Watch implements Ground.
func (l *Lab) Watch(seen func(vip, node string)) (stop func()) {
	var stops []func()
	for _, v := range l.Plan.VIPs {
		stops = append(stops, l.Cluster.Witness(v.Address.Addr(), func(node string) { seen(v.Name, node) }))
	}
	return func() {
		for _, stop := range stops {
			stop()
		}
	}
}

// sample takes from an overview what a drill goes by.
func sample(p *plan.Plan, o overview.Overview) checker.Sample {
	s := checker.Sample{Holders: map[string][]string{}, Writable: map[string][]string{}, Whole: o.ExitCode() == 0, Problems: o.Contradictions}
	for _, n := range o.Nodes {
		if n.Report == nil {
			s.Silent = append(s.Silent, n.Name)
			continue
		}
		if code := n.Report.State.ExitCode(); code != 0 {
			s.Problems = append(s.Problems, n.Name+" is "+lab.Progress(n.Report))
		}
		c := n.Report.Cluster
		if c == nil {
			continue
		}
		leads := false
		if c.Database != nil {
			for _, m := range c.Database.Members {
				leads = leads || m.Node == n.Name && m.Role == "leader" && m.State == "running"
			}
		}
		if leads {
			s.Primaries = append(s.Primaries, n.Name)
		}
		reaches := slices.ContainsFunc(c.Backends, func(b status.Backend) bool { return b.Name == "read-write" && b.Up })
		for _, v := range p.HeldBy(n.Name) {
			for _, held := range c.VIPs {
				if held.Name == v.Name && held.Held {
					s.Holders[v.Name] = append(s.Holders[v.Name], n.Name)
				}
			}
			if leads && v.On == plan.OnDatabases || reaches && v.On == plan.OnBalancers {
				s.Writable[v.Name] = append(s.Writable[v.Name], n.Name)
			}
		}
	}
	return s
}
