package product

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/status"
)

const (
	pause = 3 * time.Second
	// syncAgain is how often the others are asked for newer shared files.
	syncAgain = 15 * time.Second
)

// Start has the product set up, brings the shared files, lets its units start, and
// keeps the shared files the newest as long as the round lasts.
type Start struct {
	Peers peers.Offers

	mu      sync.Mutex
	trouble error // of keeping the shared files the newest
}

// Name implements steps.Step.
func (*Start) Name() string { return "product" }

// Apply implements steps.Step.
func (s *Start) Apply(ctx context.Context, n *node.Node) error {
	p := of(n)
	if idle(p) || n.Member == nil && n.Seed == nil {
		return nil // nobody has said yet whether this is a cluster's node
	}
	if n.Member != nil && len(p.Shared) > 0 {
		s.Peers.Offer(offerName, give)
	}
	if len(p.Setup.Command) > 0 {
		g := guard(alone{n})
		if n.Member != nil {
			r, err := dial(n)
			if err != nil {
				return err
			}
			g = r
		}
		if _, err := setUp(ctx, n, g); err != nil {
			return err
		}
	}
	if n.Member != nil && len(p.Shared) > 0 {
		if err := s.complete(ctx, n); err != nil {
			return err
		}
	}
	for _, unit := range p.Units {
		if !n.Held(unit) {
			continue
		}
		if err := n.Release(ctx, unit); err != nil {
			return err
		}
	}
	for {
		err := healthy(ctx, question(n))
		if err == nil {
			break
		}
		n.Waiting("%v", err)
		if !node.Sleep(ctx, pause) {
			return ctx.Err()
		}
	}
	n.Waiting("")
	if n.Member != nil && len(p.Shared) > 0 {
		own := *n
		go s.follow(ctx, &own)
	}
	return nil
}

// complete waits until all shared files are there.
func (s *Start) complete(ctx context.Context, n *node.Node) error {
	for {
		missing, err := take(ctx, n, s.Peers)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			n.Waiting("%v", err)
		case len(missing) == 0:
			return nil
		default:
			n.Waiting("shared files: %s", strings.Join(missing, "; "))
		}
		if !node.Sleep(ctx, pause) {
			return ctx.Err()
		}
	}
}

// follow takes newer versions of the shared files until ctx ends.
func (s *Start) follow(ctx context.Context, n *node.Node) {
	for node.Sleep(ctx, syncAgain) {
		_, err := take(ctx, n, s.Peers)
		s.mu.Lock()
		s.trouble = err
		s.mu.Unlock()
	}
}

// Observe implements steps.Observer.
func (s *Start) Observe(ctx context.Context, n *node.Node, _ *status.Cluster) error {
	p := of(n)
	if idle(p) {
		return nil
	}
	s.mu.Lock()
	wrong := []error{s.trouble}
	s.mu.Unlock()
	paths, err := edited(n)
	wrong = append(wrong, err)
	for _, path := range paths {
		wrong = append(wrong, fmt.Errorf("%s was edited on this node; to have it on all: slipway share %s %s", path, n.Member.Self.Name, path))
	}
	held := false
	for _, unit := range p.Units {
		held = held || n.Held(unit)
	}
	if !held {
		wrong = append(wrong, healthy(ctx, question(n)))
	}
	return errors.Join(wrong...)
}

// asker asks the node itself. Whoever answers at the loopback address is the node, so
// its certificate proves nothing more.
var asker = &http.Client{
	Timeout:       5 * time.Second,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport: &http.Transport{
		Proxy: nil, DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
		},
	},
}

// question is where this node is asked whether it serves: nowhere, if it stands alone
// and its product runs on a swarm, which only a cluster has.
func question(n *node.Node) string {
	p := of(n)
	if n.Member == nil && p.Stack != "" {
		return ""
	}
	return p.Health.URL
}

// healthy asks the product whether it serves; "" is not asked.
func healthy(ctx context.Context, address string) error {
	if address == "" {
		return nil
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return err
	}
	answer, err := asker.Do(request)
	if err != nil {
		if inner := errors.Unwrap(err); inner != nil {
			err = inner
		}
		return fmt.Errorf("the product does not answer at %s: %w", address, err)
	}
	answer.Body.Close()
	if answer.StatusCode < 200 || answer.StatusCode >= 400 {
		return fmt.Errorf("the product says at %s that it does not serve: HTTP %d", address, answer.StatusCode)
	}
	return nil
}
