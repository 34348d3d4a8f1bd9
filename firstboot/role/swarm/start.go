package swarm

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/firstboot/status"
)

const (
	pause     = 2 * time.Second
	tendAgain = 5 * time.Second
)

// Start brings the images into Docker and this node into the swarm, and tends the
// swarm as long as the round lasts.
type Start struct {
	Peers peers.Offers

	mu      sync.Mutex
	trouble error // of tending
}

// Name implements steps.Step.
func (*Start) Name() string { return "swarm" }

// Apply implements steps.Step.
func (s *Start) Apply(ctx context.Context, n *node.Node) error {
	if !applies(n) {
		return nil
	}
	s.Peers.Offer(offerName, give)
	d := dial(n)
	defer d.close()
	for _, do := range []func() (bool, error){
		func() (bool, error) { err := bring(ctx, n, d); return err == nil, err },
		func() (bool, error) { return enter(ctx, n, d, s.Peers) },
	} {
		for {
			done, err := do()
			if done {
				break
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			n.Waiting("%v", err)
			if !node.Sleep(ctx, pause) {
				return ctx.Err()
			}
		}
	}
	n.Waiting("")
	own := *n
	go s.follow(ctx, &own)
	return nil
}

// follow tends the swarm, and brings this node back into it, until ctx ends.
func (s *Start) follow(ctx context.Context, n *node.Node) {
	d := dial(n)
	defer d.close()
	for ctx.Err() == nil {
		in, err := enter(ctx, n, d, s.Peers)
		if in {
			err = tend(ctx, n, d, s.Peers)
		}
		s.mu.Lock()
		s.trouble = err
		s.mu.Unlock()
		node.Sleep(ctx, tendAgain)
	}
}

// Observe implements steps.Observer.
func (s *Start) Observe(ctx context.Context, n *node.Node, _ *status.Cluster) error {
	if !applies(n) {
		return nil
	}
	s.mu.Lock()
	wrong := []error{s.trouble}
	s.mu.Unlock()
	d := dial(n)
	defer d.close()
	own, err := d.local(ctx)
	if err == nil && own.manages() {
		wrong = append(wrong, judge(ctx, n, d)...)
	}
	return errors.Join(append(wrong, err)...)
}
