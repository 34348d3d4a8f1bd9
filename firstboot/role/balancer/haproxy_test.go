package balancer

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/nodetest"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// world is a balancer with a real HAProxy, and database nodes that are played.
type world struct {
	*nodetest.Node
	t         *testing.T
	authority *pki.Authority
	haproxy   *exec.Cmd
	waits     chan string
}

// begin makes a node on which "systemctl start" starts HAProxy itself.
func begin(t *testing.T, change func(*plan.Plan)) *world {
	t.Helper()
	w := &world{Node: nodetest.Start(t), t: t, waits: make(chan string, 1000)}
	w.Member, w.authority = site(t, change)
	w.Node.Node.Run, w.Node.Node.Report = systemd{w.Run, w}, story{w.Said, w.waits}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	w.Output(t, "install", "-d", "-o", "haproxy", "-g", "haproxy", "/run/haproxy", "/run/systemd/system")
	if err := (Configure{}).Apply(t.Context(), w.Node.Node); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.stop)
	return w
}

// story passes on what a step waits for.
type story struct {
	*nodetest.Said
	waits chan string
}

func (s story) Waiting(what string) {
	select {
	case s.waits <- what:
	default:
	}
}

// systemd plays systemctl for one unit.
type systemd struct {
	node.Runner
	w *world
}

func (s systemd) Run(ctx context.Context, c node.Command) (string, error) {
	if c.Argv[0] != "systemctl" {
		return s.Runner.Run(ctx, c)
	}
	if !slices.Contains(c.Argv, unit) {
		return "", fmt.Errorf("systemctl of another unit: %v", c.Argv)
	}
	switch {
	case slices.Contains(c.Argv, "is-active") && s.w.haproxy != nil:
		return "active\n", nil
	case slices.Contains(c.Argv, "start") && s.w.haproxy == nil:
		return "", s.w.start()
	case slices.Contains(c.Argv, "reload"):
		return "", s.w.haproxy.Process.Signal(syscall.SIGUSR2)
	}
	return "", nil
}

func (w *world) start() error {
	w.haproxy = exec.Command("chroot", w.Root, "haproxy", "-W", "-db", "-f", configPath)
	log, err := os.Create(w.t.TempDir() + "/log")
	if err != nil {
		return err
	}
	w.haproxy.Stdout, w.haproxy.Stderr = log, log
	w.t.Cleanup(func() {
		if text, err := os.ReadFile(log.Name()); err == nil && w.t.Failed() {
			w.t.Logf("haproxy: %s", text)
		}
	})
	return w.haproxy.Start()
}

func (w *world) stop() {
	if w.haproxy != nil {
		w.haproxy.Process.Signal(syscall.SIGTERM)
		w.haproxy.Wait()
	}
}

// database plays Patroni and PostgreSQL of a node. PostgreSQL greets with the
// node's name and then says again what it is told.
type database struct {
	mu    sync.Mutex
	says  map[string]bool // paths that are answered 200
	takes time.Duration   // the way to the node and back
}

// far has answers of the node take long on the way.
func (d *database) far(takes time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.takes = takes
}

// greet is the node's part of a TLS handshake. It comes after TCP's, which nobody
// plays: so it lasts for both.
func (d *database) greet(*tls.ClientHelloInfo) (*tls.Config, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	time.Sleep(2 * d.takes)
	return nil, nil
}

func (d *database) say(paths ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.says = map[string]bool{}
	for _, p := range paths {
		d.says[p] = true
	}
}

func (d *database) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.URL.Path == "/replica" && r.URL.Query().Get("lag") != "1048576" {
		w.WriteHeader(http.StatusBadRequest)
	} else if !d.says[r.URL.Path] {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

// play starts a database node whose certificate is for certified.
func (w *world) play(name, certified string, authority *pki.Authority, says ...string) *database {
	w.t.Helper()
	self, err := w.Member.Plan.Node(name)
	w.must(err)
	pair, err := authority.Issue(pki.Request{Purpose: member.ServiceCert, Node: certified, Names: []string{certified}, Addresses: []netip.Addr{self.Address}}, time.Now())
	w.must(err)
	certificate, err := pair.TLS(certified)
	w.must(err)
	d := &database{}
	d.say(says...)
	rest, err := tls.Listen("tcp", netip.AddrPortFrom(self.Address, 8008).String(), &tls.Config{Certificates: []tls.Certificate{certificate}, GetConfigForClient: d.greet})
	w.must(err)
	patroni := &http.Server{Handler: d, ErrorLog: quiet}
	go patroni.Serve(rest)
	w.t.Cleanup(func() { patroni.Close() })
	postgres, err := net.Listen("tcp", netip.AddrPortFrom(self.Address, 5432).String())
	w.must(err)
	w.t.Cleanup(func() { postgres.Close() })
	go func() {
		for {
			conn, err := postgres.Accept()
			if err != nil {
				return
			}
			w.t.Cleanup(func() { conn.Close() })
			fmt.Fprintln(conn, name)
			go io.Copy(conn, conn)
		}
	}()
	return d
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// converge applies Start and returns when it is done.
func (w *world) converge() {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	w.must(Start{}.Apply(ctx, w.Node.Node))
}

// session opens a session and tells which node it reached; "" if none.
func (w *world) session(address string) (reached string, s *bufio.ReadWriter) {
	w.t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return "", nil
	}
	w.t.Cleanup(func() { conn.Close() })
	w.must(conn.SetDeadline(time.Now().Add(time.Minute)))
	s = bufio.NewReadWriter(bufio.NewReader(conn), bufio.NewWriter(conn))
	line, _ := s.ReadString('\n')
	return strings.TrimSpace(line), s
}

// until waits for a condition.
func (w *world) until(what string, is func() bool) {
	w.t.Helper()
	deadline := time.After(time.Minute)
	for !is() {
		select {
		case <-deadline:
			c, err := w.observe()
			w.t.Fatalf("never: %s; %+v, %v", what, c.Backends, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (w *world) observe() (*status.Cluster, error) {
	c := &status.Cluster{}
	err := Start{}.Observe(w.t.Context(), w.Node.Node, c)
	return c, err
}

// check is what the report says of a server.
func (w *world) check(backend, server string) string {
	c, _ := w.observe()
	for _, b := range c.Backends {
		if b.Name == backend && b.Server == server {
			return fmt.Sprintf("%t %s", b.Up, b.Check)
		}
	}
	return "not there"
}

const (
	readWrite = "127.77.1.10:5432"
	readOnly  = "127.77.1.10:5433"
	ownWrite  = "127.77.1.21:5432"
)

func TestSessionsFollowThePrimary(t *testing.T) {
	w := begin(t, nil)
	first := w.play("a-db1", "a-db1", w.authority, "/primary", "/leader")
	second := w.play("a-db2", "a-db2", w.authority, "/replica")
	w.play("a-db3", "a-db3", w.authority)
	w.converge()
	w.until("a-db2 is the one replica", func() bool {
		return w.check("read-only", "a-db2") == "true HTTP 200" && w.check("read-only", "a-db3") == "false HTTP 503" && w.check("read-only", "a-db1") == "false HTTP 503"
	})
	for address, want := range map[string]string{readWrite: "a-db1", ownWrite: "a-db1", readOnly: "a-db2"} {
		if got, _ := w.session(address); got != want {
			t.Errorf("%s leads to %q, not to %s", address, got, want)
		}
	}
	_, session := w.session(readWrite)

	first.say("/replica")
	second.say("/primary", "/leader")
	if more, err := session.ReadString('\n'); err == nil {
		t.Errorf("the session with the former primary goes on: %q", more)
	}
	w.until("a-db2 takes writes", func() bool { got, _ := w.session(readWrite); return got == "a-db2" })
	w.until("a-db1 is read from", func() bool { got, _ := w.session(readOnly); return got == "a-db1" })
	if _, err := w.observe(); err != nil {
		t.Errorf("after the move: %v", err)
	}
}

func TestAPrimaryWhoseAnswersTakeLongOnTheWayIsServed(t *testing.T) {
	w := begin(t, nil)
	w.play("a-db1", "a-db1", w.authority, "/primary", "/leader").far(550 * time.Millisecond)
	w.converge()
	if got, _ := w.session(readWrite); got != "a-db1" {
		t.Errorf("%q, not a-db1", got)
	}
}

func TestWithoutReplicasThePrimaryIsReadFrom(t *testing.T) {
	w := begin(t, nil)
	only := w.play("a-db1", "a-db1", w.authority, "/primary")
	w.converge()
	w.until("the primary answers reads", func() bool { got, _ := w.session(readOnly); return got == "a-db1" })

	only.say()
	w.until("the balancer is given up", func() bool { return healthy(t.Context()) != nil })
	_, err := w.observe()
	if err == nil || !strings.Contains(err.Error(), "no database node says that it is the primary: a-db1: HTTP 503, a-db2: no connection") {
		t.Errorf("the report: %v", err)
	}
}

func TestTheWaitForAPrimaryNamesEachNodesReason(t *testing.T) {
	w := begin(t, nil)
	other, err := pki.NewAuthority("cluster", "other", time.Now())
	w.must(err)
	w.play("a-db1", "a-db1", other, "/primary")       // not of this cluster
	w.play("a-db2", "a-db3", w.authority, "/primary") // another node of it
	last := w.play("a-db3", "a-db3", w.authority)     // itself, no primary
	done := make(chan error)
	go func() { done <- Start{}.Apply(t.Context(), w.Node.Node) }()
	for said, heard := "", []string{}; !strings.Contains(said, "a-db1: the TLS handshake failed") || !strings.Contains(said, "a-db2: the TLS handshake failed") || !strings.Contains(said, "a-db3: HTTP 503"); {
		select {
		case said = <-w.waits:
			heard = append(heard, said)
		case err := <-done:
			t.Fatalf("done: %v", err)
		case <-time.After(time.Minute):
			t.Fatalf("heard only %q", slices.Compact(heard))
		}
	}
	last.say("/primary")
	w.must(<-done)
	if got, _ := w.session(readWrite); got != "a-db3" {
		t.Errorf("the session is with %q", got)
	}
}

func TestNobodyIsSentToEitherOfTwoPrimaries(t *testing.T) {
	w := begin(t, nil)
	w.play("a-db1", "a-db1", w.authority, "/primary")
	second := w.play("a-db2", "a-db2", w.authority, "/replica")
	w.converge()
	second.say("/primary")
	w.until("both pass for the primary", func() bool { return w.check("read-write", "a-db2") == "true HTTP 200" })
	for range 4 {
		if got, _ := w.session(readWrite); got != "" {
			t.Errorf("a session with %s", got)
		}
	}
	if _, err := w.observe(); err == nil || !strings.Contains(err.Error(), "2 database nodes pass for the primary") {
		t.Errorf("the report: %v", err)
	}
}

func TestAStandbySiteIsReadFromAndTakesWritesOncePromoted(t *testing.T) {
	w := begin(t, variants["a standby"])
	leader := w.play("a-db1", "a-db1", w.authority, "/leader", "/standby-leader")
	w.converge()
	w.until("the standby leader answers reads", func() bool { got, _ := w.session(readOnly); return got == "a-db1" })
	w.until("nobody takes writes", func() bool { return w.check("read-write", "a-db1") == "false HTTP 503" })
	if got, _ := w.session(readWrite); got != "" {
		t.Errorf("a session for writing with %s", got)
	}
	if c, err := w.observe(); err != nil || len(c.Backends) != 6 {
		t.Errorf("the report: %+v, %v", c.Backends, err)
	}
	// An address that moves between sites is not to come here yet; one that stays is.
	w.until("it serves as a standby", func() bool { return asked(t, "/healthz") == http.StatusOK })
	if got := asked(t, "/writes"); got != http.StatusServiceUnavailable {
		t.Errorf("a standby site is asked whether the writes are there: HTTP %d", got)
	}
	leader.say("/leader", "/primary")
	w.until("the promoted leader takes writes", func() bool { got, _ := w.session(readWrite); return got == "a-db1" })
	w.Member.Plan.Sites[0].StandbyOf, w.Member.Site.StandbyOf = "", ""
	w.must(Configure{}.Apply(t.Context(), w.Node.Node))
	w.until("the writes are here", func() bool { return asked(t, "/writes") == http.StatusOK })
	leader.say()
	w.until("it reaches no database", func() bool {
		return asked(t, "/writes") == http.StatusServiceUnavailable && asked(t, "/healthz") == http.StatusServiceUnavailable
	})
}

// asked is what keepalived is answered.
func asked(t *testing.T, path string) int {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	response, err := (&http.Client{Transport: transport, Timeout: 5 * time.Second}).Get("http://127.0.0.1:8404" + path)
	if err != nil {
		return 0
	}
	response.Body.Close()
	return response.StatusCode
}

func TestAChangedPlanIsTakenUpWithoutEndingSessions(t *testing.T) {
	w := begin(t, nil)
	w.play("a-db1", "a-db1", w.authority, "/primary")
	w.converge()
	_, session := w.session(readWrite)
	w.Member.Plan.VIPs[0].ReadWrite = 6432
	w.must(Configure{}.Apply(t.Context(), w.Node.Node))
	w.until("the primary is behind it", func() bool { got, _ := w.session("127.77.1.10:6432"); return got == "a-db1" })
	fmt.Fprintln(session, "still there")
	w.must(session.Flush())
	if said, err := session.ReadString('\n'); said != "still there\n" {
		t.Errorf("the session from before: %q, %v", said, err)
	}
}
