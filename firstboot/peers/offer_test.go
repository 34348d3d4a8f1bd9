package peers

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

func TestANodeTakesWhatAnotherOffersToItAndNothingElse(t *testing.T) {
	c, s := membertest.New(t), &street{}
	one, two, three := s.agent(t, c.Member(t, "a-db1"), "1"), s.agent(t, c.Member(t, "a-db2"), "2"), s.agent(t, c.Member(t, "a-lb1"), "3")
	for _, a := range []*agent{one, two, three, one, two} {
		if err := a.apply(t); err != nil {
			t.Fatal(err)
		}
	}
	take := func(a *agent, name string, ask url.Values) (string, error) {
		data, err := a.Service.Take(t.Context(), "a-db1", name, ask)
		return string(data), err
	}
	if _, err := take(two, "token", nil); !errors.Is(err, ErrNothing) {
		t.Errorf("before it is offered: %v", err)
	}
	one.Service.Offer("token", func(_ context.Context, self *node.Node, to plan.Node, ask url.Values) ([]byte, error) {
		switch {
		case to.Name != "a-db2":
			return nil, ErrNotForYou
		case ask.Get("what") == "fire":
			return nil, errors.New("the token is 4711")
		case ask.Get("what") == "much":
			return make([]byte, maxAnswer+1), nil
		}
		return []byte(self.Member.Self.Name + " to " + to.Name + ": " + ask.Get("what")), nil
	})
	if got, err := take(two, "token", url.Values{"what": {"a & b"}}); err != nil || got != "a-db1 to a-db2: a & b" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := take(three, "token", nil); !errors.Is(err, ErrNotForYou) {
		t.Errorf("another node: %q, %v", got, err)
	}
	for _, what := range []string{"fire", "much"} {
		if got, err := take(two, "token", url.Values{"what": {what}}); err == nil || strings.Contains(err.Error(), "4711") {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	for _, name := range []string{"../plan", "", "Token"} {
		if _, err := take(two, name, nil); err == nil {
			t.Errorf("%q was asked for", name)
		}
	}
	if _, err := two.Service.Take(t.Context(), "nobody", "token", nil); err == nil {
		t.Error("a node that is not was asked")
	}
}

func TestAdministratorsAreOfferedNothing(t *testing.T) {
	s := setStage(t)
	s.agent.Service.Offer("token", func(context.Context, *node.Node, plan.Node, url.Values) ([]byte, error) { return []byte("secret"), nil })
	for _, right := range []string{pki.AdminRead, pki.AdminWrite} {
		if data, err := s.admin(t, right).ask(t.Context(), http.MethodGet, "/v1/offers/token", nil, maxAnswer); err == nil {
			t.Errorf("%s got %q", right, data)
		}
	}
}
