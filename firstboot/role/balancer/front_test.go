package balancer

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

const address = "127.77.1.10"

// web plays the service of a broker or gateway.
type web struct {
	name string
	mu   sync.Mutex
	well int // what /healthz answers
	die  bool
	stop func()
}

func (s *web) health(code int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.well = code
}

func (s *web) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	well, die := s.well, s.die
	s.mu.Unlock()
	switch r.URL.Path {
	case "/healthz", "/brokers", "/gateways":
		w.WriteHeader(well)
	case "/whoami":
		if die {
			panic(http.ErrAbortHandler)
		}
		if well == http.StatusBadGateway {
			w.WriteHeader(well)
			return
		}
		fmt.Fprintf(w, "%s %s %s", s.name, r.Header.Get("X-Forwarded-For"), r.Header.Get("X-Forwarded-Proto"))
	case "/websockify":
		conn, buffer, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n%s\n", s.name)
		io.Copy(conn, buffer)
	}
}

// serve starts what listens on a port of a node, with the certificate of certified.
func (w *world) serve(name, certified string, port uint16) *web {
	w.t.Helper()
	listener := w.listen(name, certified, port)
	s := &web{name: name, well: http.StatusOK}
	server := &http.Server{Handler: s, ErrorLog: quiet}
	go server.Serve(listener)
	s.stop = func() { server.Close() }
	w.t.Cleanup(s.stop)
	return s
}

func (w *world) listen(name, certified string, port uint16) net.Listener {
	w.t.Helper()
	self, err := w.Member.Plan.Node(name)
	w.must(err)
	pair, err := w.authority.Issue(pki.Request{Purpose: member.ServiceCert, Node: certified, Names: []string{certified}}, time.Now())
	w.must(err)
	certificate, err := pair.TLS(certified)
	w.must(err)
	listener, err := tls.Listen("tcp", netip.AddrPortFrom(self.Address, port).String(), &tls.Config{Certificates: []tls.Certificate{certificate}})
	w.must(err)
	w.t.Cleanup(func() { listener.Close() })
	return listener
}

// echo is a gateway's end of tunnels: it greets with its name, then says again what
// it is told.
func (w *world) echo(name string) (stop func()) {
	listener := w.listen(name, name, tunnelPort)
	var mu sync.Mutex
	var open []net.Conn
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open = append(open, conn)
			mu.Unlock()
			go func() {
				fmt.Fprintln(conn, name)
				io.Copy(conn, conn)
			}()
		}
	}()
	return func() {
		listener.Close()
		mu.Lock()
		defer mu.Unlock()
		for _, c := range open {
			c.Close()
		}
	}
}

// person is somebody with a browser: cookies, and the cluster's authority.
type person struct {
	w       *world
	cookies map[string]string
}

// trust is what a client believes that asks for a name.
func (w *world) trust(name string) *tls.Config {
	return &tls.Config{RootCAs: w.authority.Pool(), ServerName: name}
}

func (p *person) get(url, name string) (int, string, http.Header) {
	p.w.t.Helper()
	client := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: p.w.trust(name), DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	request, err := http.NewRequest(http.MethodGet, url, nil)
	p.w.must(err)
	request.Header.Set("X-Forwarded-For", "192.0.2.66") // a lie
	for name, value := range p.cookies {
		request.AddCookie(&http.Cookie{Name: name, Value: value})
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, err.Error(), nil
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		return 0, err.Error(), nil
	}
	for _, c := range response.Cookies() {
		p.cookies[c.Name] = c.Value
		if !c.Secure || !c.HttpOnly {
			p.w.t.Errorf("the cookie %s may be read by scripts, or sent in clear", c.Name)
		}
	}
	return response.StatusCode, string(body), response.Header
}

// whoami is the broker that answers a person; "" if none does.
func (p *person) whoami() string {
	code, body, _ := p.get("https://"+address+"/whoami", address)
	if code != http.StatusOK {
		return ""
	}
	name, _, _ := strings.Cut(body, " ")
	return name
}

func (w *world) person() *person { return &person{w, map[string]string{}} }

// before begins a balancer before brokers and gateways that are all well.
func before(t *testing.T, change func(*plan.Plan)) (w *world, brokers, gateways []*web) {
	w = begin(t, func(p *plan.Plan) {
		desktops(p)
		if change != nil {
			change(p)
		}
	})
	w.play("a-db1", "a-db1", w.authority, "/primary")
	for _, name := range []string{"a-br1", "a-br2"} {
		brokers = append(brokers, w.serve(name, name, brokerPort))
	}
	for _, name := range []string{"a-gw1", "a-gw2"} {
		gateways = append(gateways, w.serve(name, name, gatewayPort))
	}
	w.converge()
	for _, s := range [][2]string{{"brokers", "a-br1"}, {"brokers", "a-br2"}, {"gateways", "a-gw1"}, {"gateways", "a-gw2"}} {
		w.until(s[1]+" is well", func() bool { return w.check(s[0], s[1]) == "true HTTP 200" })
	}
	return w, brokers, gateways
}

func TestPlainHTTPIsSentToHTTPS(t *testing.T) {
	w, _, _ := before(t, nil)
	code, _, header := w.person().get("http://"+address+"/desktops?of=me", "")
	if code != http.StatusPermanentRedirect || header.Get("Location") != "https://"+address+"/desktops?of=me" {
		t.Errorf("%d to %q", code, header.Get("Location"))
	}
}

func TestAPersonComesBackToTheSameBroker(t *testing.T) {
	w, brokers, _ := before(t, nil)
	reached := map[string]bool{}
	for range 8 {
		p := w.person()
		first := p.whoami()
		reached[first] = true
		for range 4 {
			if again := p.whoami(); again != first {
				t.Errorf("with %s at first, then with %s", first, again)
			}
		}
	}
	if len(reached) != 2 {
		t.Errorf("all people were sent to %v", reached)
	}
	p := w.person()
	first := p.whoami()
	code, body, header := p.get("https://"+address+"/whoami", address)
	if want := first + " 127.0.0.1 https"; code != 200 || body != want || header.Get("Strict-Transport-Security") == "" {
		t.Errorf("the broker heard %q, want %q", body, want)
	}
	for i, b := range brokers {
		if b.name != first {
			continue
		}
		b.stop() // it is gone before any check has seen that
		if got := p.whoami(); got != brokers[1-i].name {
			t.Errorf("without %s the person is with %q", first, got)
		}
	}
}

func TestAQuestionThatABrokerDiesOverIsPutToTheOther(t *testing.T) {
	w, brokers, _ := before(t, nil)
	brokers[0].mu.Lock()
	brokers[0].die = true
	brokers[0].mu.Unlock()
	for range 6 {
		if got := w.person().whoami(); got != "a-br2" {
			t.Errorf("answered by %q", got)
		}
	}
	brokers[0].mu.Lock()
	brokers[0].die = false
	brokers[0].mu.Unlock()
	brokers[0].health(http.StatusBadGateway)
	for range 6 {
		if got := w.person().whoami(); got != "a-br2" {
			t.Errorf("without the program behind a broker's web server: answered by %q", got)
		}
	}
}

func TestOnlyABrokerThatSaysSoIsWell(t *testing.T) {
	w, brokers, _ := before(t, nil)
	brokers[0].health(http.StatusServiceUnavailable)
	w.until("the sick one is seen", func() bool { return w.check("brokers", "a-br1") == "false HTTP 503" })
	for range 4 {
		if got := w.person().whoami(); got != "a-br2" {
			t.Errorf("sent to %q", got)
		}
	}
	brokers[1].health(http.StatusServiceUnavailable)
	w.until("nobody is there", func() bool { return w.check("brokers", "a-br2") == "false HTTP 503" })
	_, err := w.observe()
	if err == nil || !strings.Contains(err.Error(), "no broker takes anybody: a-br1: HTTP 503, a-br2: HTTP 503") {
		t.Errorf("the report: %v", err)
	}
	// No other balancer reaches more, and the databases are behind this address too.
	if err := healthy(t.Context()); err != nil {
		t.Errorf("the address is given up: %v", err)
	}
}

func TestANodeThatCannotShowItsCertificateIsSentNobody(t *testing.T) {
	w := begin(t, desktops)
	w.play("a-db1", "a-db1", w.authority, "/primary")
	w.serve("a-br1", "a-gw1", brokerPort) // a node of the cluster, but another
	w.serve("a-br2", "a-br2", brokerPort)
	w.converge()
	w.until("it is seen", func() bool { return strings.Contains(w.check("brokers", "a-br1"), "the TLS handshake failed") })
	for range 4 {
		if got := w.person().whoami(); got != "a-br2" {
			t.Errorf("sent to %q", got)
		}
	}
}

func TestMaintenanceKeepsWhoIsThereAndSendsNobodyNew(t *testing.T) {
	w, _, gateways := before(t, nil)
	conn, greeting := w.upgrade()
	if greeting == "" {
		t.Fatal("no tunnel")
	}
	for _, g := range gateways {
		if g.name == greeting {
			g.health(http.StatusNotFound)
		}
	}
	w.until("it drains", func() bool { return w.check("gateways", greeting) == "false takes nobody new" })
	for range 4 {
		if _, got := w.upgrade(); got == greeting || got == "" {
			t.Errorf("somebody new was sent to %q", got)
		}
	}
	fmt.Fprintln(conn, "still there")
	if line, err := conn.ReadString('\n'); line != "still there\n" {
		t.Errorf("the tunnel from before: %q, %v", line, err)
	}
}

type stream struct {
	net.Conn
	*bufio.Reader
}

func (s stream) Read(b []byte) (int, error) { return s.Reader.Read(b) }

// upgrade opens a tunnel as browsers do and tells which gateway it leads to.
func (w *world) upgrade() (stream, string) {
	w.t.Helper()
	conn, err := tls.Dial("tcp", address+":10443", w.trust(address))
	w.must(err)
	w.t.Cleanup(func() { conn.Close() })
	w.must(conn.SetDeadline(time.Now().Add(time.Minute)))
	fmt.Fprintf(conn, "GET /websockify HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n", address)
	r := bufio.NewReader(conn)
	response, err := http.ReadResponse(r, nil)
	if err != nil || response.StatusCode != http.StatusSwitchingProtocols {
		return stream{}, ""
	}
	name, _ := r.ReadString('\n')
	return stream{conn, r}, strings.TrimSpace(name)
}

func TestATunnelLeadsToAGatewayAndBreaksWhenThatDies(t *testing.T) {
	w, _, gateways := before(t, nil)
	stops := map[string]func(){"a-gw1": w.echo("a-gw1"), "a-gw2": w.echo("a-gw2")}
	open := func() (stream, string) {
		conn, err := tls.Dial("tcp", address+":1443", w.trust(address))
		w.must(err)
		t.Cleanup(func() { conn.Close() })
		w.must(conn.SetDeadline(time.Now().Add(time.Minute)))
		r := bufio.NewReader(conn)
		name, _ := r.ReadString('\n')
		return stream{conn, r}, strings.TrimSpace(name)
	}
	conn, name := open()
	fmt.Fprintln(conn, "hello")
	if line, err := conn.ReadString('\n'); line != "hello\n" {
		t.Fatalf("%q, %v", line, err)
	}
	for _, g := range gateways {
		if g.name == name { // the node answers no more, and says nothing on the tunnel
			g.stop()
		}
	}
	if line, err := conn.ReadString('\n'); err == nil {
		t.Errorf("the tunnel to a dead gateway goes on: %q", line)
	}
	stops[name]()
	if _, again := open(); again == name || again == "" {
		t.Errorf("after the loss of %s a tunnel leads to %q", name, again)
	}
}

func TestPeopleAreShownTheAdministratorsCertificate(t *testing.T) {
	w, _, _ := before(t, func(p *plan.Plan) { p.VIPs[0].Certificate = true })
	for _, port := range []string{"443", "10443", "1443"} {
		for _, name := range []string{ownName, plan.BrokersName} {
			conn, err := tls.Dial("tcp", address+":"+port, w.trust(name))
			if err != nil {
				t.Errorf("port %s as %s: %v", port, name, err)
				continue
			}
			conn.Close()
		}
		// Whoever names no host is a browser with the address in its line.
		conn, err := tls.Dial("tcp", address+":"+port, &tls.Config{InsecureSkipVerify: true})
		w.must(err)
		if got := conn.ConnectionState().PeerCertificates[0].Subject.CommonName; got != ownName {
			t.Errorf("port %s without a name: the certificate of %s", port, got)
		}
		conn.Close()
	}
}

func TestWhoReachesLessThanTheOtherGivesTheAddressAway(t *testing.T) {
	w, brokers, gateways := before(t, nil)
	w.serve("a-lb2", "a-lb2", plan.FrontPort) // it reaches everything
	for _, c := range []struct {
		these []*web
		name  string
	}{{brokers, "broker"}, {gateways, "gateway"}} {
		w.until("the address may be here", func() bool { return healthy(t.Context()) == nil })
		for _, s := range c.these {
			s.health(http.StatusServiceUnavailable)
		}
		w.until("the address is given away for want of a "+c.name, func() bool {
			err := healthy(t.Context())
			return err != nil && strings.Contains(err.Error(), "this balancer reaches no "+c.name+", and another one does")
		})
		for _, s := range c.these {
			s.health(http.StatusOK)
		}
	}
	// And it tells the other what it reaches itself.
	code, _, _ := w.person().get("https://127.77.1.21:8405/brokers", "a-lb1")
	if code != http.StatusOK {
		t.Errorf("it tells the other balancer %d", code)
	}
}
