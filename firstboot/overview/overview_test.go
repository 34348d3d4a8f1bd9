package overview

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// town is a cluster whose agents say what the test wants.
type town struct {
	*membertest.Cluster
	config *tls.Config
	doors  map[string]string // host of the plan → address
}

func build(t *testing.T) *town {
	t.Helper()
	c := membertest.New(t)
	admin, err := c.Authority.IssueAdmin(pki.AdminRead, "tests", c.Begins)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := admin.TLS("admin")
	if err != nil {
		t.Fatal(err)
	}
	return &town{c, &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: c.Authority.Pool()}, map[string]string{}}
}

// says has a node answer with a text.
func (w *town) says(t *testing.T, name, text string) {
	t.Helper()
	pair, err := w.Block(t, name).Certificates[member.AgentCert].TLS(name)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) { rw.Write([]byte(text)) }))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	server.StartTLS()
	t.Cleanup(server.Close)
	node, err := w.Plan.Node(name)
	if err != nil {
		t.Fatal(err)
	}
	w.doors[node.Address.String()] = server.Listener.Addr().String()
}

func (w *town) reports(t *testing.T, name string, r status.Report) {
	t.Helper()
	r.Format = status.Format
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	w.says(t, name, string(text))
}

func (w *town) gather(t *testing.T) Overview {
	return Gather(t.Context(), &w.Plan, w.config, func(ctx context.Context, network, address string) (net.Conn, error) {
		host, _, _ := net.SplitHostPort(address)
		if w.doors[host] == "" {
			return nil, errors.New("nobody is there")
		}
		return (&net.Dialer{}).DialContext(ctx, network, w.doors[host])
	})
}

// well is the report of a node where all is well; a-db1 leads and a-lb1 has the
// address.
func (w *town) well(name string) status.Report {
	lag := int64(0)
	c := &status.Cluster{
		Name: "shop", ID: w.Plan.ID, Node: name, Site: "a", Generation: w.Plan.Generation, Expires: w.Begins.AddDate(2, 0, 0),
		Consensus: &status.Consensus{Quorum: true, Members: []status.ConsensusMember{{Node: "a-db1", Healthy: true, Leader: true}, {Node: "a-db2", Healthy: true}, {Node: "a-lb1", Healthy: true}}},
	}
	switch name {
	case "a-lb1":
		c.VIPs = []status.VIP{{Name: "db", Address: "127.0.0.10/8", Held: true}}
		c.Backends = []status.Backend{{Name: "read-write", Server: "a-db1", Up: true}}
	default:
		c.Database = &status.Database{Scope: "shop-a", SystemID: "7", Members: []status.DatabaseMember{
			{Node: "a-db1", Role: "leader", State: "running", Timeline: 1}, {Node: "a-db2", Role: "quorum_standby", State: "streaming", Timeline: 1, Lag: &lag},
		}}
	}
	return status.Report{State: status.Ready, Role: "test", Cluster: c}
}

func TestAClusterThatIsWellIsATableWithoutAWordMore(t *testing.T) {
	w := build(t)
	for _, name := range []string{"a-db1", "a-db2", "a-lb1"} {
		w.reports(t, name, w.well(name))
	}
	o := w.gather(t)
	if o.ExitCode() != 0 || len(o.Contradictions) != 0 {
		t.Errorf("exit code %d, contradictions %q", o.ExitCode(), o.Contradictions)
	}
	expires := w.Begins.AddDate(2, 0, 0).UTC().Format(time.DateOnly)
	want := strings.ReplaceAll(`NODE   ROLE        SITE  STATE  DATABASE                   VIRTUAL IP  CERTIFICATE
a-db1  db-master   a     ready  leader TL 1                -           EXPIRES
a-db2  db-replica  a     ready  quorum_standby TL 1 lag 0 B  -           EXPIRES
a-lb1  balancer    a     ready  -                          db          EXPIRES

Consensus at site a: quorum, 3 of 3 members healthy, leader a-db1 (as a-db1 says)
`, "EXPIRES", expires)
	squeeze := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	if text := o.Text(time.Now(), status.Plain); !strings.Contains(squeeze(text), squeeze(want)) {
		t.Errorf("got:\n%s\nwant:\n%s", text, want)
	}
	var out bytes.Buffer
	if err := o.WriteJSON(&out); err != nil || !json.Valid(out.Bytes()) {
		t.Errorf("JSON: %v\n%s", err, out.String())
	}
}

func TestWhatCannotBeTrueAtOnceIsSaid(t *testing.T) {
	for want, spoil := range map[string]func(name string, r *status.Report){
		"two leaders of PostgreSQL: a-db1 (as a-db1 says); a-db2 (as a-db2 says)": func(name string, r *status.Report) {
			if name == "a-db2" {
				r.Cluster.Database.Members[0].Role, r.Cluster.Database.Members[1].Role = "replica", "leader"
			}
		},
		"two leaders of etcd": func(name string, r *status.Report) {
			if name == "a-db2" {
				r.Cluster.Consensus.Members[0].Leader, r.Cluster.Consensus.Members[1].Leader = false, true
			}
		},
		"databases of different origin": func(name string, r *status.Report) {
			if name == "a-db2" {
				r.Cluster.Database.SystemID = "8"
			}
		},
		"virtual address db (127.0.0.10) is on no node": func(name string, r *status.Report) { r.Cluster.VIPs = nil },
		"whose HAProxy knows no database that can be written to": func(name string, r *status.Report) {
			r.Cluster.Backends = nil
		},
		"a-db2: the plan in effect is that of generation 0; the newest is 1": func(name string, r *status.Report) {
			if name == "a-db2" {
				r.Cluster.Generation = 0
			}
		},
		"a-db2 has no answer from a-db1, which answers here": func(name string, r *status.Report) {
			if name == "a-db2" {
				r.Cluster.Peers = []status.Peer{{Name: "a-db1", Problem: "no answer"}}
			}
		},
	} {
		w := build(t)
		for _, name := range []string{"a-db1", "a-db2", "a-lb1"} {
			r := w.well(name)
			spoil(name, &r)
			w.reports(t, name, r)
		}
		o := w.gather(t)
		if got := strings.Join(o.Contradictions, "\n"); !strings.Contains(got, want) || len(o.Contradictions) != 1 || o.ExitCode() != 3 {
			t.Errorf("want %q, got %q, exit code %d", want, got, o.ExitCode())
		}
		if !strings.Contains(o.Text(time.Now(), status.Plain), "! "+o.Contradictions[0]) {
			t.Errorf("%q is not in the text", o.Contradictions[0])
		}
	}
}

func TestAnAddressOnTwoNodesIsSaid(t *testing.T) {
	w := build(t)
	second := w.Plan.Nodes[2]
	second.Name, second.Address = "a-lb2", second.Address.Next()
	w.Plan.Nodes = append(w.Plan.Nodes, second)
	for _, name := range []string{"a-db1", "a-db2", "a-lb1"} {
		w.reports(t, name, w.well(name))
	}
	w.reports(t, "a-lb2", w.well("a-lb1"))
	if o := w.gather(t); len(o.Contradictions) != 1 || !strings.Contains(o.Contradictions[0], "is on 2 nodes at once: a-lb1, a-lb2") {
		t.Errorf("%q", o.Contradictions)
	}
}

func TestAnAddressOfAStandbySiteMayBeNowhere(t *testing.T) {
	for name, c := range map[string]struct {
		change func(p *plan.Plan)
		want   string
	}{
		"the standby's own":           {func(p *plan.Plan) { p.VIPs[0].Site = "b" }, ""},
		"one that moves, at its site": {func(p *plan.Plan) { p.VIPs[0].Sites = []string{"a", "b"} }, "virtual address db (127.0.0.10) is on no node"},
	} {
		w := build(t)
		far, s := w.Plan.Nodes[0], w.Plan.Sites[0]
		far.Name, far.Site, far.Address = "b-db1", "b", far.Address.Next().Next().Next().Next()
		s.Name, s.StandbyOf, s.Scope, s.Consensus = "b", "a", "shop-b", nil
		w.Plan.Nodes, w.Plan.Sites = append(w.Plan.Nodes, far), append(w.Plan.Sites, s)
		w.Plan.VIPs[0].On, w.Plan.VIPs[0].ReadOnly = plan.OnDatabases, 0
		c.change(&w.Plan)
		for _, name := range []string{"a-db1", "a-db2", "a-lb1"} {
			r := w.well(name)
			r.Cluster.VIPs = nil
			w.reports(t, name, r)
		}
		r := w.well("b-db1")
		r.Cluster.Site, r.Cluster.Consensus = "b", nil
		r.Cluster.Database = &status.Database{Scope: "shop-b", SystemID: "7", Standby: true, Members: []status.DatabaseMember{{Node: "b-db1", Role: "standby_leader", State: "running", Timeline: 1}}}
		w.reports(t, "b-db1", r)
		if o := w.gather(t); strings.Join(o.Contradictions, "; ") != c.want {
			t.Errorf("%s: %q", name, o.Contradictions)
		}
		// It is with the standby's leader.
		r.Cluster.VIPs = []status.VIP{{Name: "db", Address: "127.0.0.10/8", Held: true}}
		w.reports(t, "b-db1", r)
		want := "is on b-db1, which is not the primary"
		if w.Plan.VIPs[0].Moves() {
			want = "is on b-db1 at site b; by the plan site a takes the writes"
		}
		if o := w.gather(t); len(o.Contradictions) != 1 || !strings.Contains(o.Contradictions[0], want) {
			t.Errorf("%s: %q", name, o.Contradictions)
		}
	}
}

func TestWhoDoesNotAnswerRightIsSaidInItsRow(t *testing.T) {
	w, other := build(t), build(t)
	w.reports(t, "a-db1", other.well("a-db1"))
	w.says(t, "a-db2", "garbage")
	o := w.gather(t)
	if o.ExitCode() != 6 {
		t.Errorf("exit code %d", o.ExitCode())
	}
	text := o.Text(time.Now(), status.Plain)
	for _, want := range []string{"127.0.0.1: answered for another cluster", "127.0.0.2: answered something that is no report", "127.0.0.3: nobody is there"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	r := w.well("a-db1")
	r.State = status.Converging
	r.Steps = []status.Step{{Name: "consensus", State: status.Running, WaitingFor: "no quorum\x1b[2J"}}
	w.reports(t, "a-db1", r)
	if text := w.gather(t).Text(time.Now(), status.Plain); !strings.Contains(text, "consensus: no quorum") || strings.Contains(text, "\x1b") {
		t.Errorf("got:\n%q", text)
	}
}

func FuzzReport(f *testing.F) {
	f.Add([]byte(`{"format":1,"state":"ready","cluster":{"id":"x","vips":[{"name":"db","held":true}],"database":{"members":[{"node":"a","lag_bytes":1}]}}}`))
	f.Add([]byte(`{"format":1,"steps":[{"state":"running","waiting_for":"x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		n := Node{Name: "a-db1"}
		n.Report, n.Problem = parseReport(data, "x")
		if (n.Report == nil) == (n.Problem == "") {
			t.Error("neither a report nor a problem, or both")
		}
		n.row(time.Now())
		for _, note := range n.notes() {
			if len(note) > 1000 {
				t.Error("a note of any length")
			}
		}
	})
}
