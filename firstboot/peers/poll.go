package peers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/status"
)

const (
	askSoon  = 5 * time.Second // while somebody is missing
	askLater = 15 * time.Second
	atOnce   = 8
	// expirySoon is how long before it a certificate's end is a problem.
	expirySoon = 30 * 24 * time.Hour
)

// Task is the step that brings the node among its peers: it answers and asks
// from then on, until life ends, and is done when all have been asked once and
// none knows another machine of this name.
type Task struct {
	Service *Service
	Life    context.Context
}

// Name implements steps.Step.
func (Task) Name() string { return "peers" }

// Apply implements steps.Step.
func (t Task) Apply(ctx context.Context, n *node.Node) error {
	s := t.Service
	if err := s.use(n); err != nil || n.Member == nil {
		return err
	}
	if err := s.begin(t.Life); err != nil {
		return err
	}
	s.poll(ctx)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.conflict != "":
		return errors.New(s.conflict)
	case slices.Contains(s.self.revoked, n.Member.Serial()) && n.Member.Retired == "":
		return errors.New(member.Superseded) // the next round acts on it
	case s.self.latest > max(n.Member.Plan.Generation, n.Member.Removed):
		// A new round begins. Until then nothing is done by this plan: it may let the
		// node do what the newer one does not.
		return errors.New("a newer plan came, which counts first")
	}
	return nil
}

// Agrees reports whether a node of a site has said, when last asked, that it knows no
// plan that is newer than this node's.
func (s *Service) Agrees(site string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if p.Site == site && p.agreed {
			return true
		}
	}
	return false
}

// begin starts the server and the asking, once.
func (s *Service) begin(life context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.listening {
		if err := s.serve(life); err != nil {
			return err
		}
		s.listening = true
	}
	if !s.polling {
		s.polling = true
		go func() {
			for {
				pause := askLater
				if s.missing() {
					pause = askSoon
				}
				// Nodes that started together shall not ask together for ever.
				pause += rand.N(pause / 4)
				select {
				case <-life.Done():
					return
				case <-time.After(pause):
					s.poll(life)
				}
			}
		}()
	}
	return nil
}

// missing reports whether any peer does not answer.
func (s *Service) missing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.peers {
		if !p.Answers {
			return true
		}
	}
	return s.conflict != ""
}

// poll asks every peer once.
func (s *Service) poll(ctx context.Context) {
	s.mu.Lock()
	self := s.self
	var all []*peer
	for _, p := range s.peers {
		all = append(all, p)
	}
	s.mu.Unlock()
	if self == nil {
		return
	}
	var (
		group    sync.WaitGroup
		mu       sync.Mutex
		conflict string
		places   = make(chan struct{}, atOnce)
	)
	for _, p := range all {
		places <- struct{}{}
		group.Go(func() {
			defer func() { <-places }()
			err := s.meet(ctx, self, p)
			var taken *conflictError
			if errors.As(err, &taken) {
				mu.Lock()
				conflict = fmt.Sprintf("this seed is already in use: %s runs on another machine (machine %s), as %s knows; this one is machine %s",
					self.member.Self.Name, taken.machine, p.Name, self.machine)
				mu.Unlock()
			}
		})
	}
	group.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() == nil && s.self != nil {
		s.conflict = conflict
	}
}

// meet asks one peer, and brings the older of two plans to the newer.
func (s *Service) meet(ctx context.Context, self *identity, p *peer) error {
	data, err := p.client.ask(ctx, http.MethodGet, "/v1/hello", nil, maxAnswer)
	var hello Hello
	if err == nil {
		hello, err = parseHello(data)
	}
	if err == nil && hello.Node != p.Name {
		err = fmt.Errorf("answers as %q", hello.Node)
	}
	if ctx.Err() != nil {
		return nil
	}
	if err == nil {
		if taken := s.claim(p.Name, hello.Machine); taken != "" {
			err = fmt.Errorf("is machine %s, while machine %s has its name", hello.Machine, taken)
		}
	}
	s.note(p, hello, err)
	if err != nil {
		return err
	}
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		p.agreed = err == nil && hello.Generation <= self.latest
	}()
	switch {
	case hello.Generation > self.latest:
		err = s.take(ctx, p)
	case hello.Generation < self.latest:
		err = s.give(ctx, self, p)
	}
	if err != nil && ctx.Err() == nil {
		s.note(p, hello, fmt.Errorf("plan of generation %d: %w", max(hello.Generation, self.latest), err))
	}
	return err
}

// take fetches a peer's newer plan.
func (s *Service) take(ctx context.Context, p *peer) error {
	data, err := p.client.ask(ctx, http.MethodGet, "/v1/plan", nil, maxPlan)
	if err != nil {
		return err
	}
	signed, err := readPlan(strings.NewReader(string(data)))
	if err != nil {
		return err
	}
	_, err = s.offer(signed, actions.Caller{Name: "node " + p.Name, From: p.Address})
	return err
}

// give hands a peer the newer plan.
func (s *Service) give(ctx context.Context, self *identity, p *peer) error {
	data, err := json.Marshal(self.newest)
	if err != nil {
		return err
	}
	_, err = p.client.ask(ctx, http.MethodPut, "/v1/plan", data, maxAnswer)
	return err
}

// note remembers how a peer is.
func (s *Service) note(p *peer, hello Hello, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if answers := err == nil; answers != p.Answers || !p.asked {
		p.Answers, p.asked, p.Since = answers, true, s.Now().UTC().Truncate(time.Second)
	}
	p.agreed = false
	if p.Problem = ""; err == nil {
		p.State, p.Expires = hello.State, hello.Expires
		return
	}
	p.Problem = err.Error()
	if p.State != status.Maintenance { // which is to last, also while the node is off
		p.State = ""
	}
}

// Observe implements steps.Observer.
func (t Task) Observe(_ context.Context, n *node.Node, c *status.Cluster) error {
	s := t.Service
	s.mu.Lock()
	defer s.mu.Unlock()
	var problems []error
	if s.conflict != "" {
		problems = append(problems, errors.New(s.conflict))
	}
	for _, p := range s.peers {
		c.Peers = append(c.Peers, p.Peer)
	}
	slices.SortFunc(c.Peers, func(a, b status.Peer) int { return strings.Compare(a.Name, b.Name) })
	for _, p := range c.Peers {
		if !p.Answers && p.Problem != "" && !c.Excused(p.Name) {
			problems = append(problems, fmt.Errorf("%s (%s): %s, since %s", p.Name, p.Address, p.Problem, p.Since.Format("15:04:05 UTC")))
		}
	}
	return errors.Join(append(problems, ownProblems(n.Member, s.Now())...)...)
}

// ownProblems are those of the node's own membership.
func ownProblems(m *member.Member, now time.Time) (problems []error) {
	if m.Retired != "" {
		problems = append(problems, errors.New(m.Retired))
	} else if m.Removed > 0 {
		problems = append(problems, fmt.Errorf("the plan of generation %d has no node %s any more; it goes on as in generation %d until somebody switches it off", m.Removed, m.Self.Name, m.Plan.Generation))
	}
	switch left := m.Expires.Sub(now); {
	case left <= 0:
		problems = append(problems, fmt.Errorf("a certificate of this node expired on %s: write its seed anew", m.Expires.UTC().Format(time.DateOnly)))
	case left < expirySoon:
		problems = append(problems, fmt.Errorf("a certificate of this node expires on %s: write its seed anew", m.Expires.UTC().Format(time.DateOnly)))
	}
	return problems
}
