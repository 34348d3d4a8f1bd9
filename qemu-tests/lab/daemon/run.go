package daemon

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"math/rand/v2"
	"net/netip"
	"os"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/drill/faults"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
)

// Run is the daemon's life: it takes the place, makes the cluster that the
// Request in it describes, and serves it until ctx ends or somebody says quit.
func Run(ctx context.Context, place Place, log logrus.FieldLogger) (err error) {
	starter := StarterOf()
	defer func() {
		if err != nil {
			starter.Failed(err)
		}
	}()
	release, err := Hold(place)
	if err != nil {
		return err
	}
	defer release()
	request, err := ReadRequest(place)
	if err != nil {
		return fault.New(fault.Usage, "%w", err).WithMend("start the lab with slipway up")
	}
	digest, err := Digest(request.Topology)
	if err != nil {
		return err
	}
	top, err := topology.Load(request.Topology)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cluster, err := lab.NewCluster(ctx, lab.ClusterConfig{Topology: top, Images: request.Images, Seeds: request.Seeds,
		Dir: place.Machines(), CPUs: request.CPUs, Memory: request.Memory,
		Volatile: request.Volatile, Log: log})
	if err != nil {
		return err
	}
	forwards, err := OpenForwards(ctx, place, ForwardsOf(top), cluster.Dial, log)
	if err != nil {
		cluster.Close()
		return err
	}
	about := About{Cluster: top.Name, Topology: request.Topology, Digest: digest}
	return Serve(ctx, place, about, machines{cluster}, forwards, log, starter.Ready)
}

// machines are a cluster's, with the faults of package faults.
type machines struct{ *lab.Cluster }

// Inject implements Lab.
func (m machines) Inject(ctx context.Context, name string, nodes []string) (lasts bool, err error) {
	chosen, err := faults.Named([]string{name})
	if err != nil {
		return false, err
	}
	return chosen[0].Lasts(), chosen[0].Inject(ctx, m.Cluster, nodes, rand.Uint64())
}

// Heal implements Lab.
func (m machines) Heal(ctx context.Context, name string, nodes []string) error {
	chosen, err := faults.Named([]string{name})
	if err != nil {
		return err
	}
	return chosen[0].Heal(ctx, m.Cluster, nodes)
}

// Digest tells one text of a topology file from another: SHA-256, hexadecimal.
func Digest(path string) (string, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fault.New(fault.Input, "topology: %w", err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

// ForwardsOf are the ports at which people and clients find a topology's services: those
// of its virtual addresses, and those of its dispatchers.
func ForwardsOf(t *topology.Topology) []Forward {
	var all []Forward
	p := t.Plan()
	for _, v := range p.VIPs {
		for _, s := range []struct {
			service string
			port    int
		}{{ReadWrite, v.ReadWrite}, {ReadOnly, v.ReadOnly}, {Site, v.HTTPS}, {Gateway, v.Gateway}, {Tunnel, v.Tunnel}} {
			if s.port != 0 {
				all = append(all, Forward{Name: v.Name, Service: s.service,
					Guest: netip.AddrPortFrom(v.Address.Addr(), uint16(s.port)).String()})
			}
		}
	}
	for _, n := range p.Nodes {
		if n.Role == plan.DispatcherRole {
			all = append(all, Forward{Name: n.Name, Service: Site, Guest: netip.AddrPortFrom(n.Address, dispatcherPort).String()})
		}
	}
	return all
}

// Services that are forwarded.
const (
	ReadWrite = "read-write" // the primary
	ReadOnly  = "read-only"  // the replicas
	Site      = "site"       // brokers' pages, or dispatchers'; HTTPS
	Gateway   = "gateway"    // desktops in the browser
	Tunnel    = "tunnel"     // desktops for other programs
)

// dispatcherPort is where dispatchers have their interface (profiles/dispatcher.yaml).
const dispatcherPort = 443
