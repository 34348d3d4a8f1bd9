package peers

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// Offer hands something that this node has to another node of the cluster: self is
// this node, to is the one that asks, and asks how. What it hands over may be secret,
// so an offer looks at who asks; it says no with an error, of which the other learns
// nothing but ErrNotForYou, or that there is nothing now.
type Offer func(ctx context.Context, self *node.Node, to plan.Node, ask url.Values) ([]byte, error)

// ErrNotForYou is an offer's answer to a node that may not have it.
var ErrNotForYou = errors.New("is not for this node")

// ErrNothing is the answer to a node that asks for what there is not now, or not yet.
var ErrNothing = errors.New("has nothing of the kind now")

// Offers are what tasks of this node hand to others, and take from them.
type Offers interface {
	// Offer has this node hand something to others that ask for it by name, in place of
	// what had the name before.
	Offer(name string, give Offer)
	// Take asks a node for something that it offers. Its error is in words that
	// follow the node's name.
	Take(ctx context.Context, from, name string, ask url.Values) ([]byte, error)
}

var offerName = regexp.MustCompile(`^[a-z][a-z-]{0,31}$`)

// Offer implements Offers.
func (s *Service) Offer(name string, give Offer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.offers == nil {
		s.offers = map[string]Offer{}
	}
	s.offers[name] = give
}

// Take implements Offers.
func (s *Service) Take(ctx context.Context, from, name string, ask url.Values) ([]byte, error) {
	s.mu.Lock()
	p := s.peers[from]
	s.mu.Unlock()
	if p == nil || !offerName.MatchString(name) {
		return nil, errNobody
	}
	path := "/v1/offers/" + name
	if len(ask) > 0 {
		path += "?" + ask.Encode()
	}
	data, err := p.client.ask(ctx, http.MethodGet, path, nil, maxAnswer)
	var status *statusError
	switch {
	case !errors.As(err, &status):
		return data, err
	case status.code == http.StatusForbidden:
		return nil, ErrNotForYou
	case status.code == http.StatusNotFound:
		return nil, ErrNothing
	}
	return nil, err
}

// hand answers GET /v1/offers/NAME.
func (s *Service) hand(w http.ResponseWriter, r *http.Request, self *identity, by caller) {
	s.mu.Lock()
	give := s.offers[r.PathValue("name")]
	s.mu.Unlock()
	to, err := self.member.Plan.Node(by.Node)
	if err != nil {
		refuse(w, http.StatusForbidden, refusal{Error: ErrNotForYou.Error()})
		return
	}
	var data []byte
	if err = ErrNothing; give != nil {
		own := self.node
		data, err = give(r.Context(), &own, to, r.URL.Query())
	}
	switch {
	case err == nil && len(data) > maxAnswer:
		refuse(w, http.StatusInternalServerError, refusal{Error: fmt.Sprintf("it is longer than %d bytes", maxAnswer)})
	case err == nil:
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(data)
	case errors.Is(err, ErrNotForYou):
		refuse(w, http.StatusForbidden, refusal{Error: ErrNotForYou.Error()})
	case errors.Is(err, ErrNothing):
		refuse(w, http.StatusNotFound, refusal{Error: ErrNothing.Error()})
	default:
		refuse(w, http.StatusServiceUnavailable, refusal{Error: "it cannot be had at the moment"})
	}
}
