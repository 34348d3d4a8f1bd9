package balancer

import (
	_ "embed"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

//go:embed front.cfg.tmpl
var frontTemplate string

const (
	// frontDir holds the certificates that brokers and gateways are shown behind.
	frontDir = "/etc/haproxy/front"
	// clusterCertificate is the one of the cluster's authority.
	clusterCertificate = frontDir + "/cluster.pem"
)

// front is what stands before brokers and gateways.
type front struct {
	HTTP, HTTPS, Gateway, Tunnel []bind
	Brokers, Gateways            []server
	// Others are the other balancers of the site, who tell what they reach.
	Others []server
	// Seen is where this one tells.
	Seen netip.AddrPort
	// Secure is what follows the host's name in the redirection of HTTP.
	Secure string
	// Sessions is how many people and tunnels there may be at a time.
	Sessions int
}

// bind is a port that HAProxy listens on.
type bind struct {
	netip.AddrPort
	Certificates []string // files, the one for whoever names no host first
}

// Ports of the nodes behind, see profiles/.
const (
	brokerPort  = 443
	gatewayPort = 10443
	tunnelPort  = 1443
	// frontSessions is how many people and tunnels a balancer bears at a time. Each
	// takes two connections and some 50 KiB with TLS on both sides.
	frontSessions = 8000
)

// settleFront reads out of the plan what stands before brokers and gateways; nil
// where there are none.
func settleFront(m *member.Member) *front {
	f := &front{Sessions: frontSessions, Seen: netip.AddrPortFrom(m.Self.Address, plan.FrontPort)}
	at := func(nodes []plan.Node, port uint16) (list []server) {
		for _, n := range nodes {
			list = append(list, server{n.Name, netip.AddrPortFrom(n.Address, port)})
		}
		return list
	}
	f.Brokers = at(m.Plan.With(m.Site.Name, plan.BrokerRole), brokerPort)
	f.Gateways = at(m.Plan.With(m.Site.Name, plan.GatewayRole), gatewayPort)
	f.Others = slices.DeleteFunc(at(m.Plan.Balancers(m.Site.Name), plan.FrontPort), func(s server) bool { return s.Name == m.Self.Name })
	for _, v := range m.Plan.HeldBy(m.Self.Name) {
		for _, p := range []struct {
			port int
			into *[]bind
			tls  bool
		}{{v.HTTP, &f.HTTP, false}, {v.HTTPS, &f.HTTPS, true}, {v.Gateway, &f.Gateway, true}, {v.Tunnel, &f.Tunnel, true}} {
			for _, address := range []netip.Addr{v.Address.Addr(), m.Self.Address} {
				b := bind{AddrPort: netip.AddrPortFrom(address, uint16(p.port))}
				if p.port == 0 || slices.ContainsFunc(*p.into, func(o bind) bool { return o.AddrPort == b.AddrPort }) {
					continue
				}
				if p.tls && v.Certificate {
					b.Certificates = append(b.Certificates, ownCertificate(v))
				}
				if p.tls {
					b.Certificates = append(b.Certificates, clusterCertificate)
				}
				*p.into = append(*p.into, b)
			}
		}
		if v.HTTPS != 0 && v.HTTPS != 443 && f.Secure == "" {
			f.Secure = ":" + strconv.Itoa(v.HTTPS)
		}
	}
	if len(f.HTTPS)+len(f.Gateway)+len(f.Tunnel) == 0 {
		return nil
	}
	return f
}

func ownCertificate(v plan.VIP) string { return frontDir + "/" + v.Name + ".pem" }

// material is what HAProxy's configuration refers to: files by their paths.
func material(m *member.Member, f *front) (map[string]string, error) {
	files := map[string]string{authorityPath: m.Authority}
	if f == nil {
		return files, nil
	}
	pair, ok := m.Certificates[member.ServiceCert]
	if !ok {
		return nil, fault.New(fault.Input, "%s stands before brokers or gateways, and its seed lacks a certificate for that", m.Self.Name).
			WithMend("write the node's seed anew: slipway seed")
	}
	files[clusterCertificate] = join(pair.Certificate, pair.Key)
	for _, v := range m.Plan.HeldBy(m.Self.Name) {
		if !v.Certificate {
			continue
		}
		own := m.Secrets[v.CertificateKey()]
		if own == "" {
			return nil, fault.New(fault.Input, "the virtual address %s has a certificate of its own, and the seed of %s lacks it", v.Name, m.Self.Name).
				WithMend("write the node's seed anew: slipway seed")
		}
		files[ownCertificate(v)] = own
	}
	return files, nil
}

func join(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(strings.TrimRight(p, "\n") + "\n")
	}
	return b.String()
}

// place writes the files that a configuration refers to. It reports whether that was
// a change, and returns what puts back what was there before.
func place(n *node.Node, files map[string]string) (changed bool, back func() error, err error) {
	former := map[string]string{}
	back = func() (err error) {
		for path, text := range former {
			_, ensureErr := n.Ensure(path, mode(path), text)
			err = errors.Join(err, ensureErr)
		}
		return err
	}
	for path, text := range files {
		was, err := n.Read(path)
		if err != nil {
			return changed, back, err
		}
		former[path] = string(was)
		wrote, err := n.Ensure(path, mode(path), text)
		if err != nil {
			return changed, back, err
		}
		changed = changed || wrote
	}
	return changed, back, nil
}

// mode is that of a file: the authority's certificate is public.
func mode(path string) os.FileMode {
	if path == authorityPath {
		return 0o644
	}
	return 0o600
}

// tidy removes keys that nothing refers to any more.
func tidy(n *node.Node, files map[string]string) error {
	entries, err := os.ReadDir(n.Path(frontDir))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		path := filepath.Join(frontDir, e.Name())
		if _, ok := files[path]; !ok {
			if _, removeErr := n.Ensure(path, 0, ""); removeErr != nil {
				err = errors.Join(err, removeErr)
			}
		}
	}
	return err
}

// judgeFront says what is wrong with the services that this balancer stands before.
func judgeFront(list []status.Backend, f *front) error {
	if f == nil {
		return nil
	}
	var problems []error
	for _, group := range []struct {
		name, one string
		wanted    bool
	}{{"brokers", "broker", len(f.Brokers) > 0}, {"gateways", "gateway", len(f.Gateways) > 0}} {
		var why []string
		up := false
		for _, b := range list {
			if b.Name == group.name {
				up = up || b.Up
				why = append(why, b.Server+": "+b.Check)
			}
		}
		if group.wanted && !up {
			problems = append(problems, errors.New("no "+group.one+" takes anybody: "+strings.Join(why, ", ")))
		}
	}
	return errors.Join(problems...)
}

// shown are the servers that a report is about: each once, and no balancers.
func shown(list []status.Backend) []status.Backend {
	return slices.DeleteFunc(list, func(b status.Backend) bool {
		return b.Name == "leader" || strings.HasPrefix(b.Server, leaderPrefix) || b.Name == "tunnels" || strings.HasSuffix(b.Name, elsewhere)
	})
}

// elsewhere ends the names of the backends by which balancers ask each other.
const elsewhere = "-elsewhere"
