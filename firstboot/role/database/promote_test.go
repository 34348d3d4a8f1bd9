package database

import (
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/fault"
)

// loopback is down in a network namespace that is new.
func loopback(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// answers has something else answer as a node's Patroni.
func answers(t *testing.T, m *member.Member, handler http.HandlerFunc) {
	t.Helper()
	loopback(t)
	pair := m.Certificates[member.ServiceCert]
	cert, err := tls.X509KeyPair([]byte(pair.Certificate), []byte(pair.Key))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(handler)
	s.Listener.Close()
	if s.Listener, err = net.Listen("tcp", netip.AddrPortFrom(m.Self.Address, plan.PatroniPort).String()); err != nil {
		t.Fatal(err)
	}
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.StartTLS()
	t.Cleanup(s.Close)
}

func TestAChangeThatAnotherCameBeforeIsSentAgain(t *testing.T) {
	for _, c := range []struct {
		story          string
		refusals, code int
		asked          int
		wrong          string
	}{
		{"nobody else changes it", 0, 0, 1, ""},
		{"somebody did thrice", 3, http.StatusConflict, 4, ""},
		{"somebody does all the time", 100, http.StatusConflict, 1 + patchAgain, "HTTP 409"},
		{"there is no configuration", 1, http.StatusServiceUnavailable, 1, "HTTP 503"},
	} {
		t.Run(c.story, func(t *testing.T) {
			m := membertest.New(t).Member(t, "a-db1")
			var asked []string
			answers(t, m, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				asked = append(asked, r.Method+" "+r.URL.Path+" "+string(body))
				if len(asked) <= c.refusals {
					w.WriteHeader(c.code)
				}
			})
			rest, err := dial(m)
			if err != nil {
				t.Fatal(err)
			}
			defer rest.mtls.Close()
			err = rest.patchConfig(t.Context(), tree{"pause": true})
			if c.wrong == "" && err != nil || c.wrong != "" && (err == nil || !strings.Contains(err.Error(), c.wrong)) {
				t.Error(err)
			}
			if len(asked) != c.asked || slices.ContainsFunc(asked, func(s string) bool { return s != `PATCH /config {"pause":true}` }) {
				t.Errorf("asked %q", asked)
			}
		})
	}
}

func TestASiteIsNotPromotedFromATimelineThatPatroniDoesNotTell(t *testing.T) {
	m := membertest.New(t).Member(t, "a-db1")
	for _, timeline := range []any{nil, 3} {
		t.Run("", func(t *testing.T) {
			var change tree
			answers(t, m, func(w http.ResponseWriter, r *http.Request) {
				switch r.Method + " " + r.URL.Path {
				case "GET /config":
					json.NewEncoder(w).Encode(tree{"standby_cluster": tree{"host": "192.0.2.1"}})
				case "GET /patroni":
					json.NewEncoder(w).Encode(tree{"role": standby, "state": "running", "timeline": timeline})
				case "PATCH /config":
					json.NewDecoder(r.Body).Decode(&change)
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			})
			e := actions.NewEnv(node.Node{Root: t.TempDir(), Member: m}, actions.Caller{Name: "ann@desk"}, nil, func(string) {})
			_, err := promoteSite(t.Context(), e, PromoteSiteArgs{})
			if timeline == nil {
				if fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "on which timeline") || fault.Mend(err) == "" || change != nil {
					t.Errorf("%v; Patroni was told %v", err, change)
				}
				return
			}
			if mark, _ := change[markKey].(tree); mark["timeline"] != 3.0 {
				t.Errorf("Patroni was told %v, %v", change, err)
			}
		})
	}
}

func TestALostSiteIsLookedForAtEachOfItsNodes(t *testing.T) {
	loopback(t)
	p := &membertest.New(t).Plan
	if got := probe(t.Context(), p, "a"); len(got.Answers) > 0 || len(got.Databases) > 0 {
		t.Errorf("of a site that is off: %+v", got)
	}
	for _, at := range []string{"127.0.0.2:5432", "127.0.0.3:7420"} {
		l, err := net.Listen("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
	}
	got := probe(t.Context(), p, "a")
	if !slices.Equal(got.Answers, []string{"PostgreSQL of a-db2 (127.0.0.2:5432)", "the agent of a-lb1 (127.0.0.3:7420)"}) || !slices.Equal(got.Databases, []string{"a-db2"}) {
		t.Errorf("%+v", got)
	}
	if got := probe(t.Context(), p, "b"); len(got.Answers) > 0 {
		t.Errorf("of another site: %+v", got)
	}
}
