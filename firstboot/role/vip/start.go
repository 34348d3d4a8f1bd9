package vip

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Start lets keepalived start and waits until each address is where it belongs:
// here, or with another of its holders.
type Start struct{}

func (Start) Name() string { return "vip" }

const pause = 2 * time.Second

// Apply implements steps.Step.
func (Start) Apply(ctx context.Context, n *node.Node) error {
	if !applies(n) {
		return nil
	}
	configured := false
	for {
		if n.Maintenance() != nil {
			n.Waiting("")
			return Yield(ctx, n)
		}
		err := error(nil)
		if !configured {
			err = start(ctx, n)
			configured = err == nil
		}
		if err == nil {
			err = settled(ctx, n)
		}
		if err == nil {
			n.Waiting("")
			return nil
		}
		// A plan or a configuration that is wrong does not get right by waiting.
		if !configured && !errors.Is(err, errNoCard) {
			return err
		}
		n.Waiting("%v", err)
		if !node.Sleep(ctx, pause) {
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// Yield gives all addresses of the node up and keeps it from taking one. keepalived
// tells the other holders that it ends (RFC 9568, section 6.4.3), so they need not
// find out.
func Yield(ctx context.Context, n *node.Node) error {
	if !applies(n) {
		return nil
	}
	if err := n.Hold(Unit); err != nil {
		return err
	}
	return n.Nudge(ctx, "stop", Unit)
}

// Resume lets the node hold addresses again. It takes none from a node that serves.
func Resume(ctx context.Context, n *node.Node) error {
	if !applies(n) {
		return nil
	}
	return start(ctx, n)
}

func applies(n *node.Node) bool {
	return n.Member != nil && len(n.Member.Plan.HeldBy(n.Member.Self.Name)) > 0
}

// start writes the configuration, if keepalived accepts it, and starts it.
func start(ctx context.Context, n *node.Node) error {
	config, err := render(n.Member, findCard)
	if err != nil {
		return err
	}
	now, err := n.Read(configPath)
	if err != nil {
		return err
	}
	if string(now) != config {
		if err := judge(ctx, n, config); err != nil {
			return err
		}
		if _, err := n.Ensure(configPath, 0o644, config); err != nil {
			return err
		}
		if err := n.Nudge(ctx, "reload", Unit); err != nil {
			return err
		}
	}
	return n.Release(ctx, Unit)
}

// judge has keepalived itself check a configuration.
func judge(ctx context.Context, n *node.Node, config string) error {
	if _, err := n.Write(candidatePath, 0o644, []byte(config)); err != nil {
		return err
	}
	_, err := n.Command(ctx, "keepalived", "--vrrp", "--config-test", "--use-file", candidatePath)
	if _, removeErr := n.Remove(candidatePath); err == nil {
		err = removeErr
	}
	if err != nil {
		return fault.New(fault.Input, "keepalived refuses the configuration made from the cluster's plan; the one in place stays: %w", err).
			WithMend("check the virtual addresses in cluster.yaml")
	}
	return nil
}

// settled says what is not as it should be once keepalived runs, or nil.
func settled(ctx context.Context, n *node.Node) error {
	reports, err := look(ctx, n)
	if err != nil {
		return err
	}
	for i, v := range n.Member.Plan.HeldBy(n.Member.Self.Name) {
		switch r := reports[i]; {
		case r.Held:
		case r.Problem != "" && mayBeElsewhere(n.Member, v):
		case r.Problem != "":
			return fmt.Errorf("virtual address %s cannot come here: %s", r.Name, r.Problem)
		case !answers(ctx, v):
			return fmt.Errorf("virtual address %s (%s) is neither here nor does another node answer there", r.Name, r.Address)
		}
	}
	return nil
}

// mayBeElsewhere reports whether it is in order that a node cannot hold an address: it
// is not the primary, or its site is not the one that takes the writes.
func mayBeElsewhere(m *member.Member, v plan.VIP) bool {
	return v.On == plan.OnDatabases || m.Plan.SiteOf(v) != m.Site.Name
}

// answers reports whether a virtual address that is elsewhere is served.
func answers(ctx context.Context, v plan.VIP) bool {
	d := net.Dialer{Timeout: 2 * time.Second}
	conn, err := d.DialContext(ctx, "tcp", net.JoinHostPort(v.Address.Addr().String(), strconv.Itoa(v.ReadWrite)))
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// Observe reports which addresses are here; its error is what keeps keepalived
// from doing its work. That a database node is not the primary is not an error.
func (Start) Observe(ctx context.Context, n *node.Node, c *status.Cluster) error {
	if !applies(n) {
		return nil
	}
	reports, err := look(ctx, n)
	c.VIPs = reports
	if err != nil || n.Maintenance() != nil {
		return err
	}
	for i, v := range n.Member.Plan.HeldBy(n.Member.Self.Name) {
		if r := reports[i]; r.Problem != "" && !mayBeElsewhere(n.Member, v) {
			return fmt.Errorf("virtual address %s cannot come here: %s", r.Name, r.Problem)
		}
	}
	return nil
}

// look tells of each address whether it is here, and if not, why it could not be.
func look(ctx context.Context, n *node.Node) ([]status.VIP, error) {
	here, err := addresses()
	if err != nil {
		return nil, err
	}
	running := run(ctx, n)
	maintenance := n.Maintenance() != nil
	if maintenance {
		running = nil
	}
	reports := []status.VIP{}
	for _, v := range n.Member.Plan.HeldBy(n.Member.Self.Name) {
		r := status.VIP{Name: v.Name, Address: v.Address.Addr().String()}
		_, r.Held = here[v.Address.Addr()]
		if maintenance {
			r.Problem = "this node is in maintenance"
		} else if running != nil {
			r.Problem = running.Error()
		} else if err := ask(ctx, n, question(n.Member, v)); err != nil {
			r.Problem = err.Error()
		}
		reports = append(reports, r)
	}
	return reports, running
}

// run says why keepalived does not run, or nil.
func run(ctx context.Context, n *node.Node) error {
	list, err := n.Units.Units(ctx, []string{Unit})
	switch {
	case err != nil:
		return err
	case len(list) != 1 || list[0].Active != "active" && list[0].Active != "reloading":
		return errors.New(Unit + " does not run")
	}
	return nil
}

// ask puts a check's question as the check does, and says why the answer is no.
func ask(ctx context.Context, n *node.Node, c check) error {
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pki.Pool(n.Member.CA)}}
	defer transport.CloseIdleConnections()
	client := http.Client{Transport: transport, Timeout: 5 * time.Second}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("check %s: %w", c.Name, err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return nil
	}
	if c.CA != "" {
		return fmt.Errorf("this node is not the primary (Patroni answers HTTP %d)", response.StatusCode)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, 200))
	if err != nil {
		return fmt.Errorf("check %s: %w", c.Name, err)
	}
	return errors.New(strings.TrimSpace(string(text)))
}

// errNoCard is a network card that has not come up yet.
var errNoCard = errors.New("no network card has this address yet")

// findCard is the network card that has an address now.
func findCard(a netip.Addr) (string, error) {
	here, err := addresses()
	if err != nil {
		return "", err
	}
	name, ok := here[a]
	if !ok {
		return "", fmt.Errorf("%s: %w", a, errNoCard)
	}
	return name, nil
}

// addresses are those of the node, with their network cards.
func addresses() (map[netip.Addr]string, error) {
	cards, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	here := map[netip.Addr]string{}
	for _, c := range cards {
		list, err := c.Addrs()
		if err != nil {
			return nil, err
		}
		for _, a := range list {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				here[p.Addr().Unmap()] = c.Name
			}
		}
	}
	return here, nil
}
