package peers

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// street is where the agents of a test live: addresses of the plan lead to
// listeners of the loopback.
type street struct {
	mu     sync.Mutex
	houses map[string]string // host of the plan → address
}

func (s *street) move(host, address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.houses == nil {
		s.houses = map[string]string{}
	}
	s.houses[host] = address
}

func (s *street) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, port, _ := net.SplitHostPort(address)
	if port != fmt.Sprint(plan.APIPort) {
		return nil, fmt.Errorf("dialed port %s", port)
	}
	s.mu.Lock()
	there := s.houses[host]
	s.mu.Unlock()
	if there == "" {
		there = "127.0.0.1:1" // where nobody listens
	}
	return (&net.Dialer{}).DialContext(ctx, network, there)
}

// agent is one of the agents of a test.
type agent struct {
	Task
	node *node.Node
	kept []int64 // generations of plans
}

// agent moves in at the address of a node, on a machine of that id.
func (s *street) agent(t testing.TB, m *member.Member, machine string) *agent {
	t.Helper()
	a := &agent{node: &node.Node{Root: t.TempDir(), Member: m}}
	for path, text := range map[string]string{"/etc/machine-id": machine + "\n", "/proc/sys/kernel/random/boot_id": "boot\n"} {
		if err := os.MkdirAll(filepath.Dir(a.node.Path(path)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(a.node.Path(path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a.Service = New(func() status.Report { return status.Report{State: status.Ready, Role: m.Self.Role} },
		func(p *plan.Plan, _ plan.Signed) error { a.kept = append(a.kept, p.Generation); return nil },
		&actions.Server{Log: &actions.Log{Path: a.node.Path(actions.LogPath)}})
	a.Service.Dial = s.dial
	a.Service.polling = true // the test asks by itself
	a.Service.Listen = func() (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			s.move(m.Self.Address.String(), l.Addr().String())
		}
		return l, err
	}
	life, end := context.WithCancel(context.Background())
	t.Cleanup(end)
	a.Life = life
	return a
}

func (a *agent) apply(t *testing.T) error { return a.Apply(t.Context(), a.node) }

// observe is what the agent says of the cluster.
func (a *agent) observe(t *testing.T) (peers map[string]status.Peer, problem string) {
	t.Helper()
	var c status.Cluster
	err := a.Observe(t.Context(), a.node, &c)
	peers = map[string]status.Peer{}
	for _, p := range c.Peers {
		peers[p.Name] = p
	}
	if err != nil {
		problem = err.Error()
	}
	return peers, problem
}

func TestAgentsFindEachOtherAndTellWhoIsMissing(t *testing.T) {
	c, s := membertest.New(t), &street{}
	one, two := s.agent(t, c.Member(t, "a-db1"), "1"), s.agent(t, c.Member(t, "a-db2"), "2")
	for _, a := range []*agent{one, two, one} {
		if err := a.apply(t); err != nil {
			t.Fatal(err)
		}
	}
	peers, problem := one.observe(t)
	if p := peers["a-db2"]; !p.Answers || p.State != status.Ready || p.Role != "db-replica" || p.Expires.IsZero() {
		t.Errorf("a-db2: %+v", p)
	}
	if p := peers["a-lb1"]; p.Answers || p.Problem != "connection refused" {
		t.Errorf("a-lb1: %+v", p)
	}
	if !strings.HasPrefix(problem, "a-lb1 (127.0.0.3): connection refused, since ") || strings.Contains(problem, "a-db2") {
		t.Errorf("problem: %s", problem)
	}
}

func TestANodeThatWasInMaintenanceMayBeAway(t *testing.T) {
	c, s := membertest.New(t), &street{}
	one, two := s.agent(t, c.Member(t, "a-db1"), "1"), s.agent(t, c.Member(t, "a-db2"), "2")
	state := status.Maintenance
	two.Service.Report = func() status.Report { return status.Report{State: state} }
	away := func(name string) {
		t.Helper()
		s.move("127.0.0.2", "127.0.0.1:1")
		if err := one.apply(t); err != nil {
			t.Fatal(err)
		}
		peers, problem := one.observe(t)
		if p := peers["a-db2"]; p.Answers || p.State != status.State(name) || strings.Contains(problem, "a-db2") != (name == "") {
			t.Errorf("%+v; problem: %s", p, problem)
		}
	}
	if err := two.apply(t); err != nil {
		t.Fatal(err)
	}
	there := s.houses["127.0.0.2"]
	if err := one.apply(t); err != nil {
		t.Fatal(err)
	}
	away("maintenance")
	state = status.Ready // and back again
	s.move("127.0.0.2", there)
	if err := one.apply(t); err != nil {
		t.Fatal(err)
	}
	away("")
}

// impostor answers at a node's address in its own way.
func (s *street) impostor(t *testing.T, host string, config *tls.Config, speak func(net.Conn)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	s.move(host, l.Addr().String())
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				if config != nil {
					conn = tls.Server(conn, config)
				}
				speak(conn)
			}()
		}
	}()
}

func TestWhoeverAnswersWrongIsNamedAndCutOff(t *testing.T) {
	c, other := membertest.New(t), membertest.New(t)
	old := membertest.Since(t, time.Now().AddDate(-3, 0, 0))
	// A certificate of three years ago by the authority of today.
	old.Authority, old.Plan.ID = c.Authority, c.Plan.ID
	shows := func(c *membertest.Cluster, name, purpose string) *tls.Config {
		pair, err := c.Block(t, name).Certificates[purpose].TLS(name)
		if err != nil {
			t.Fatal(err)
		}
		return &tls.Config{Certificates: []tls.Certificate{pair}}
	}
	says := func(text string) func(net.Conn) {
		return func(conn net.Conn) {
			buffer := make([]byte, 4096)
			conn.Read(buffer)
			io.WriteString(conn, text)
		}
	}
	endless := func(conn net.Conn) {
		says("HTTP/1.1 200 OK\r\n\r\n")(conn)
		for block := make([]byte, 64<<10); ; {
			if _, err := conn.Write(block); err != nil {
				return
			}
		}
	}
	trickle := func(conn net.Conn) {
		says("HTTP/1.1 200 OK\r\n\r\n")(conn)
		for range time.Tick(50 * time.Millisecond) {
			if _, err := conn.Write([]byte(" ")); err != nil {
				return
			}
		}
	}
	headers := func(conn net.Conn) {
		says("HTTP/1.1 200 OK\r\n")(conn)
		for {
			if _, err := io.WriteString(conn, "X-Filler: "+strings.Repeat("x", 1000)+"\r\n"); err != nil {
				return
			}
		}
	}
	good := shows(c, "a-db2", member.AgentCert)
	hello := func(h Hello) func(net.Conn) {
		data, _ := json.Marshal(h)
		return says(fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(data), data))
	}
	for want, impostor := range map[string]struct {
		config *tls.Config
		speak  func(net.Conn)
	}{
		"answered something that is no JSON":                       {good, says("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")},
		"answered something that this version does not understand": {good, hello(Hello{Format: 99})},
		"answered something that is no HTTP":                       {good, says("220 mail.example.org ESMTP\r\n")},
		"answered something that is no TLS":                        {nil, says("220 mail.example.org ESMTP\r\n")},
		"answered more than 1 MiB":                                 {good, endless},
		"took longer than 5s to answer":                            {good, trickle},
		"exceeded 16384 bytes":                                     {good, headers},
		"answered with status 500":                                 {good, says("HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")},
		"answered with status 302":                                 {good, says("HTTP/1.1 302 No\r\nLocation: https://example.org/\r\nContent-Length: 0\r\n\r\n")},
		"hung up":                                                  {good, says("")},
		"belongs to another cluster":                               {shows(other, "a-db2", member.AgentCert), says("")},
		"its certificate is not that of an agent":                  {shows(c, "a-db2", member.ServiceCert), says("")},
		`answers as "a-lb1"`:                                       {shows(c, "a-lb1", member.AgentCert), says("")},
		"its certificate expired on ":                              {shows(old, "a-db2", member.AgentCert), says("")},
	} {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			s := &street{}
			s.impostor(t, "127.0.0.2", impostor.config, impostor.speak)
			a := s.agent(t, c.Member(t, "a-db1"), "1")
			if err := a.apply(t); err != nil {
				t.Fatal(err)
			}
			peers, _ := a.observe(t)
			if p := peers["a-db2"]; p.Answers || !strings.Contains(p.Problem, want) {
				t.Errorf("want %q: %+v", want, p)
			}
		})
	}
}

// asks is a client with the certificate of anybody.
func (s *street) asks(t *testing.T, cert *tls.Certificate) *http.Client {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true}
	if cert != nil {
		config.Certificates = []tls.Certificate{*cert}
	}
	transport := &http.Transport{TLSClientConfig: config, DialContext: s.dial}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

func TestTheAPIAnswersThoseOfTheClusterAlone(t *testing.T) {
	c, other, s := membertest.New(t), membertest.New(t), &street{}
	a := s.agent(t, c.Member(t, "a-db1"), "1")
	if err := a.apply(t); err != nil {
		t.Fatal(err)
	}
	pair := func(p pki.Pair, err error) *tls.Certificate {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		cert, err := p.TLS("test")
		if err != nil {
			t.Fatal(err)
		}
		return &cert
	}
	of := func(c *membertest.Cluster, purpose string) *tls.Certificate {
		return pair(c.Block(t, "a-db2").Certificates[purpose], nil)
	}
	for _, q := range []struct {
		who    string
		cert   *tls.Certificate
		method string
		path   string
		status int // 0: no connection
	}{
		{"a node", of(c, member.AgentCert), "GET", "/v1/hello", 200},
		{"a node", of(c, member.AgentCert), "GET", "/v1/status", 200},
		{"a node", of(c, member.AgentCert), "GET", "/v1/plan", 200},
		{"a node", of(c, member.AgentCert), "PUT", "/v1/plan", 400},
		{"a node", of(c, member.AgentCert), "POST", "/v1/status", 405},
		{"an administrator", pair(c.Authority.IssueAdmin(pki.AdminRead, "tests", c.Begins)), "GET", "/v1/status", 200},
		{"an administrator", pair(c.Authority.IssueAdmin(pki.AdminRead, "tests", c.Begins)), "PUT", "/v1/plan", 403},
		{"somebody with another right", pair(c.Authority.IssueAdmin(pki.AdminWrite, "tests", c.Begins)), "GET", "/v1/status", 403},
		{"a database", of(c, member.ServiceCert), "GET", "/v1/status", 403},
		{"another cluster", of(other, member.AgentCert), "GET", "/v1/status", 0},
		{"an etcd member", of(c, member.EtcdCert), "GET", "/v1/status", 0},
		{"anybody", nil, "GET", "/v1/status", 0},
	} {
		request, err := http.NewRequest(q.method, "https://127.0.0.1:7420"+q.path, strings.NewReader("{"))
		if err != nil {
			t.Fatal(err)
		}
		response, err := s.asks(t, q.cert).Do(request)
		switch {
		case err != nil && q.status != 0:
			t.Errorf("%s, %s %s: %v", q.who, q.method, q.path, err)
		case err == nil && response.StatusCode != q.status:
			t.Errorf("%s, %s %s: status %d, want %d", q.who, q.method, q.path, response.StatusCode, q.status)
		}
		if err == nil {
			body, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if strings.Contains(string(body), "correct-horse") || strings.Contains(string(body), "PRIVATE KEY") {
				t.Errorf("%s %s tells a secret", q.method, q.path)
			}
		}
	}
}

// endless is a body without end that counts what was taken of it.
type endless struct{ taken atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.taken.Add(int64(len(p)))
	return len(p), nil
}

func TestANodeThatSendsGigabytesIsCutOff(t *testing.T) {
	c, s := membertest.New(t), &street{}
	a := s.agent(t, c.Member(t, "a-db1"), "1")
	if err := a.apply(t); err != nil {
		t.Fatal(err)
	}
	cert, err := pki.Pair(c.Block(t, "a-db2").Certificates[member.AgentCert]).TLS("a-db2")
	if err != nil {
		t.Fatal(err)
	}
	body := &endless{}
	request, err := http.NewRequest(http.MethodPut, "https://127.0.0.1:7420/v1/plan", body)
	if err != nil {
		t.Fatal(err)
	}
	// The answer may be lost, since the connection ends while the body is still being sent.
	if response, err := s.asks(t, &cert).Do(request); err == nil {
		response.Body.Close()
		if response.StatusCode != http.StatusBadRequest {
			t.Errorf("status %d", response.StatusCode)
		}
	}
	const buffers = 16 << 20 // of both sides' sockets
	if taken := body.taken.Load(); taken < maxPlan || taken > maxPlan+buffers {
		t.Errorf("it took %d bytes; the limit is %d", taken, maxPlan)
	}
	if len(a.kept) != 0 {
		t.Errorf("kept: %v", a.kept)
	}
}

func TestANewerPlanReachesThoseWhoHaveNotHeardOfIt(t *testing.T) {
	for _, first := range []string{"the one that knows it asks", "the one that does not asks"} {
		c, s := membertest.New(t), &street{}
		old := s.agent(t, c.Member(t, "a-db1"), "1")
		c.Plan.Generation = 7
		knows := s.agent(t, c.Member(t, "a-db2"), "2")
		order := []*agent{old, knows}
		if first == "the one that does not asks" {
			order = []*agent{knows, old}
		}
		for i, a := range order {
			// Whoever hears of a newer plan does nothing more by the older one.
			err, outdated := a.apply(t), i == 1 && a == old
			if outdated != (err != nil) || outdated && !strings.Contains(err.Error(), "a newer plan came") {
				t.Fatal(err)
			}
		}
		if old.Service.Agrees("a") {
			t.Error("a node that has just heard of a newer plan takes the others for agreeing")
		}
		if asks := order[1]; asks == knows && !asks.Service.Agrees("a") || asks.Service.Agrees("b") {
			t.Error("who has handed on the newest plan is not agreed with, or a site that is not there agrees")
		}
		if len(old.kept) != 1 || old.kept[0] != 7 || len(knows.kept) != 0 {
			t.Errorf("%s: kept %v, %v", first, old.kept, knows.kept)
		}
		if p, _ := order[1].observe(t); len(p) == 0 {
			t.Error("no peers")
		}
	}
}

func TestAPlanThatSomebodyChangedGoesNowhere(t *testing.T) {
	c, s := membertest.New(t), &street{}
	a := s.agent(t, c.Member(t, "a-db1"), "1")
	if err := a.apply(t); err != nil {
		t.Fatal(err)
	}
	c.Plan.Generation = 9
	signed := c.Signed(t)
	tampered := plan.Signed{Plan: []byte(strings.Replace(string(signed.Plan), "a-lb1", "a-lb9", -1)), Signature: signed.Signature}
	if newer, err := a.Service.offer(tampered, actions.Caller{}); newer || err == nil {
		t.Errorf("taken: %v, %v", newer, err)
	}
	other := membertest.New(t)
	other.Plan.Generation = 9
	if newer, err := a.Service.offer(other.Signed(t), actions.Caller{}); newer || err == nil {
		t.Errorf("another cluster's taken: %v, %v", newer, err)
	}
	if len(a.kept) != 0 {
		t.Errorf("kept: %v", a.kept)
	}
	if newer, err := a.Service.offer(signed, actions.Caller{}); !newer || err != nil || len(a.kept) != 1 {
		t.Errorf("the true one: %v, %v, kept %v", newer, err, a.kept)
	}
	if newer, err := a.Service.offer(signed, actions.Caller{}); newer || err != nil || len(a.kept) != 1 {
		t.Errorf("the same again: %v, %v, kept %v", newer, err, a.kept)
	}
}

func TestTheSecondMachineWithOneSeedIsRefusedUntilTheFirstIsGone(t *testing.T) {
	c, s := membertest.New(t), &street{}
	witness, first, clone := s.agent(t, c.Member(t, "a-lb1"), "w"), s.agent(t, c.Member(t, "a-db1"), "1"), s.agent(t, c.Member(t, "a-db1"), "2")
	now := time.Now()
	witness.Service.Now = func() time.Time { return now }
	for _, a := range []*agent{witness, first} {
		if err := a.apply(t); err != nil {
			t.Fatal(err)
		}
	}
	clone.Service.Listen = func() (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") }
	err := clone.apply(t)
	if err == nil || !strings.Contains(err.Error(), "already in use: a-db1 runs on another machine") || !strings.Contains(err.Error(), "as a-lb1 knows") {
		t.Fatalf("the clone: %v", err)
	}
	if err := first.apply(t); err != nil {
		t.Errorf("the first machine: %v", err)
	}
	now = now.Add(alive + time.Second)
	if err := clone.apply(t); err != nil {
		t.Errorf("after the first machine was silent: %v", err)
	}
}

func TestWhoIsRemovedOrAboutToExpireSaysSo(t *testing.T) {
	c, s := membertest.New(t), &street{}
	m := *c.Member(t, "a-db1")
	m.Removed = 5
	a := s.agent(t, &m, "1")
	if err := a.apply(t); err != nil {
		t.Fatal(err)
	}
	a.Service.Now = func() time.Time { return m.Expires.AddDate(0, 0, -20) }
	_, problem := a.observe(t)
	for _, want := range []string{"plan of generation 5 has no node a-db1", "a certificate of this node expires on"} {
		if !strings.Contains(problem, want) {
			t.Errorf("no %q in %q", want, problem)
		}
	}
}

func TestNobodyTakesAllConnections(t *testing.T) {
	c, s := membertest.New(t), &street{}
	a := s.agent(t, c.Member(t, "a-db1"), "1")
	if err := a.apply(t); err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	for range maxFromOne {
		conn, err := s.dial(t.Context(), "tcp", "127.0.0.1:7420")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		open = append(open, conn)
	}
	conn, err := s.dial(t.Context(), "tcp", "127.0.0.1:7420")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("connection %d: %v", len(open)+1, err)
	}
}

func FuzzHello(f *testing.F) {
	f.Add([]byte(`{"format":1,"node":"a-db1","machine":"0102","boot":"b","generation":3,"state":"ready","certificate_expires":"2028-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if h, err := parseHello(data); err == nil && len(h.Node) > 255 {
			t.Error("too long a name")
		}
	})
}

func FuzzPlan(f *testing.F) {
	c := membertest.New(f)
	data, err := json.Marshal(c.Signed(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data))
	f.Fuzz(func(t *testing.T, text string) {
		signed, err := readPlan(strings.NewReader(text))
		if err != nil {
			return
		}
		if p, err := signed.Open(c.Authority.Cert); err == nil && p.ID != c.Plan.ID {
			t.Error("a plan of another cluster counts")
		}
	})
}
