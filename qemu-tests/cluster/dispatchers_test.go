//go:build long

package clustertest

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// served is what the service of examples/vdi-dispatchers says of a visit.
type served struct {
	Dispatcher, Replica string
	Session             *struct{ Visits int64 }
}

// visitor is somebody with a browser that keeps cookies, whichever dispatcher it asks:
// all are asked by one name, behind which their addresses stand.
type visitor struct {
	s       *site
	browser map[string]*http.Client // by the dispatcher that it asks
	visits  *int64                  // that the session has had
	outages *outages
}

// outages is what visitors have missed, in seconds.
type outages struct {
	whole  *testing.T // lasts as long as the story
	Usable float64    `json:"power_on_to_page"`
	// By what was done: how long after it each dispatcher took to answer with the session.
	Answers map[string]map[string]float64 `json:"answers"`
	Idle    map[string]idleCost           `json:"idle,omitempty"` // by dispatcher
}

// idleCost is what connections that are idle cost a dispatcher.
type idleCost struct {
	Connections int `json:"connections"`
	Used        int `json:"mib_used"`
	Replica     int `json:"mib_replica"`
}

func (s *site) visitor(o *outages) visitor {
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.Fatal(err)
	}
	v := visitor{s, map[string]*http.Client{}, new(int64), o}
	for _, name := range dispatchers {
		n, err := s.plan.Node(name)
		if err != nil {
			s.Fatal(err)
		}
		v.browser[name] = &http.Client{Jar: jar, Timeout: 30 * time.Second, Transport: &http.Transport{
			// The certificate must be good for whatever dispatcher answers.
			DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return dialTLS(ctx, s, n)
			},
			DisableKeepAlives: true,
		}}
	}
	return v
}

// in is the same visitor, bound to a part of the story.
func (v visitor) in(s *site) visitor {
	v.s = s
	return v
}

// asks visits a dispatcher once.
func (v visitor) asks(ctx context.Context, name string) (a served, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://dispatchers.example.internal/session", nil)
	if err != nil {
		return a, err
	}
	answer, err := v.browser[name].Do(request)
	if err != nil {
		return a, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return a, fmt.Errorf("HTTP %d", answer.StatusCode)
	}
	if err := json.NewDecoder(answer.Body).Decode(&a); err != nil {
		return a, err
	}
	if a.Session == nil {
		return a, fmt.Errorf("%s has no session", a.Dispatcher)
	}
	return a, nil
}

// begins is the first visit, which begins the session.
func (v visitor) begins(name string) {
	v.s.Helper()
	ctx, cancel := context.WithTimeout(v.s.Context(), formTime)
	defer cancel()
	err := keepTrying(ctx, 1, func(ctx context.Context) error { // of two, each would begin a session of its own
		a, err := v.asks(ctx, name)
		if err == nil {
			*v.visits = a.Session.Visits
		}
		return err
	})
	if err != nil {
		v.s.Fatalf("%s does not begin a session: %v\n%s", name, err, v.s.Overview(v.s.plan, v.s.admin).Text(time.Now(), status.Plain))
	}
}

// goesOn visits dispatchers, all at once, until each has answered with the visitor's
// session, and notes how long that took.
func (v visitor) goesOn(what string, names ...string) {
	v.s.Helper()
	began, ctx := time.Now(), v.s.Context()
	ctx, cancel := context.WithTimeout(ctx, formTime)
	defer cancel()
	answers, took, failed := make([]served, len(names)), map[string]float64{}, map[string]error{}
	var mu sync.Mutex
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			err := keepTrying(ctx, triesAtOnce, func(ctx context.Context) error {
				a, err := v.asks(ctx, name)
				mu.Lock()
				defer mu.Unlock()
				if _, done := took[name]; err == nil && !done {
					answers[i], took[name] = a, time.Since(began).Seconds()
				}
				return err
			})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed[name] = err
			}
		})
	}
	all.Wait()
	if len(failed) > 0 {
		v.s.Fatalf("%s: no answer: %v\n%s", what, failed, v.s.Overview(v.s.plan, v.s.admin).Text(time.Now(), status.Plain))
	}
	mu.Lock() // a try that has not yet heard that it is over may still look
	defer mu.Unlock()
	before, seen := *v.visits, map[int64]bool{}
	for i, a := range answers {
		if a.Session.Visits <= before || seen[a.Session.Visits] {
			v.s.Errorf("%s: at %s, served by %s, the session has %d visits after %d", what, names[i], a.Dispatcher, a.Session.Visits, before)
		}
		seen[a.Session.Visits] = true
		*v.visits = max(*v.visits, a.Session.Visits)
		v.s.Logf("%s: %s answers after %.1f s, served by %s", what, names[i], took[names[i]], a.Dispatcher)
	}
	v.outages.Answers[what] = took
	keepFigures(v.outages.whole, "vdi-dispatchers", v.outages)
}

var dispatchers = []string{"d1", "d2", "d3"}

func but(lost string) (left []string) {
	for _, name := range dispatchers {
		if name != lost {
			left = append(left, name)
		}
	}
	return left
}

// TestVDIDispatchers tells the story of examples/vdi-dispatchers: a service on three
// Swarm managers, its sessions in a PostgreSQL of two nodes.
func TestVDIDispatchers(t *testing.T) {
	s := newSite(t, example(t, "vdi-dispatchers"))
	began := time.Now()
	somebody := s.visitor(&outages{whole: t, Answers: map[string]map[string]float64{}})

	s.part(t, "powered on in the worst order, the last one first, they form one swarm", func(t *testing.T, s *site) {
		v := somebody.in(s)
		for _, name := range []string{"d3", "d2", "db2"} {
			s.Start(name)
			s.Node(name).WaitForGuest() // the next one comes when this one has long been up
		}
		s.Start("d1")
		s.Start("db1")
		s.becomesWhole()
		v.begins("d1")
		v.goesOn("power-on", dispatchers...)
		v.outages.Usable = time.Since(began).Seconds()
		t.Logf("from power-on to a page at every dispatcher: %.0f s", v.outages.Usable)
		ids := map[string]bool{}
		for _, name := range dispatchers {
			ids[s.Node(name).Succeed("docker info --format '{{.Swarm.Cluster.ID}} {{.Swarm.Managers}}'")] = true
		}
		if len(ids) != 1 {
			t.Errorf("there are several swarms: %v", ids)
		}
	})
	s.part(t, "images come from the appliance, by digest, and no token lets anybody in", func(t *testing.T, s *site) {
		image := s.Node("d1").Succeed("docker service inspect product_service --format '{{.Spec.TaskTemplate.ContainerSpec.Image}}'")
		if !strings.HasPrefix(strings.TrimSpace(image), "slipway/dispatcher@sha256:") {
			t.Errorf("the service runs %s", image)
		}
		for _, name := range dispatchers {
			// The guest agent logs this very command, which must not match; and grep reads
			// to the end, for journalctl would fail if its reader left. Docker's own program, among the
			// layers, has the beginning of every token in it.
			s.Node(name).MustFail("grep -Ersq --exclude-dir=layers --exclude-dir=state 'SWMTK[N]-1-[0-9a-z]{10}' /var/log /etc /var/lib/slipway /run/slipway || journalctl --no-pager | grep -E 'SWMTK[N]-1-[0-9a-z]{10}' >/dev/null")
		}
		label := s.Node("d1").Succeed(`docker info --format '{{index .Swarm.Cluster.Spec.Labels "slipway.members"}}'`)
		if strings.TrimSpace(label) == "" {
			t.Error("the tokens were never rotated")
		}
	})
	s.part(t, "no two machines are alike", func(t *testing.T, s *site) {
		for _, what := range []string{"cat /etc/machine-id", "cat /var/lib/slipway/ssh/ssh_host_ed25519_key.pub", "docker info --format '{{.ID}}'"} {
			seen := map[string]string{}
			for _, name := range dispatchers {
				value := s.Node(name).Succeed(what)
				if other, ok := seen[value]; ok {
					t.Errorf("%s: %s and %s have the same", what, other, name)
				}
				seen[value] = name
			}
		}
	})
	for _, name := range []string{"d1", "d2", "d3", "db1", "db2"} {
		s.part(t, "the loss of "+name+" keeps the service and its sessions", func(t *testing.T, s *site) {
			v := somebody.in(s)
			s.Crash(name)
			v.goesOn("the power of "+name, but(name)...)
			s.Start(name)
			s.becomesWhole()
			v.goesOn("the return of "+name, dispatchers...)
		})
	}
	// Each program of a dispatcher, one of which has a vote, and of a database.
	for _, c := range []struct {
		program string
		of      choice
	}{
		{"service", on("d2")}, {"dockerd", on("d2")}, {"containerd", on("d2")}, {agentProgram, on("d2")},
		{"etcd", on("d1")}, {"etcd", on("db1")}, {"etcd", on("db2")}, {agentProgram, on("db1")},
		{"postgres", thePrimary}, {"patroni", thePrimary}, {"keepalived", theHolder},
	} {
		s.part(t, "the loss of "+c.program+" of "+c.of.name+" is mended by itself", func(t *testing.T, s *site) {
			v := somebody.in(s)
			at := c.of.node(s.becomesWhole())
			s.Node(at).Kill(c.program)
			v.goesOn(c.program+" of "+at, dispatchers...)
			s.becomesWhole()
			v.goesOn("whole again after "+c.program+" of "+at, dispatchers...)
		})
	}
	s.part(t, "each dispatcher bears 2000 idle connections", func(t *testing.T, s *site) { bearsIdle(t, somebody.in(s), 2000) })
	s.part(t, "all lose their power at once and form the same swarm again", func(t *testing.T, s *site) {
		v := somebody.in(s)
		before := s.Node("d1").Succeed("docker info --format '{{.Swarm.Cluster.ID}}'")
		s.Crash()
		s.StartAll()
		v.goesOn("the power of all", dispatchers...)
		s.waits("have a primary behind the virtual address", func(o overview.Overview) bool { return primary(o) != "" && holder(o) == primary(o) })
		s.becomesWhole()
		v.goesOn("whole again after the power of all", dispatchers...)
		if after := s.Node("d1").Succeed("docker info --format '{{.Swarm.Cluster.ID}}'"); after != before {
			t.Error("it is another swarm")
		}
	})
}

// bearsIdle opens connections to each dispatcher, leaves them idle, and sees that all
// answer once more.
func bearsIdle(t *testing.T, v visitor, each int) {
	s := v.s
	var open []net.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	failed := 0
	// A database that is late for 6000 handshakes at once is no lost connection: the
	// connection answers, and is asked again.
	var late atomic.Int64
	ask := func(c net.Conn) error {
		c.SetDeadline(time.Now().Add(2 * time.Minute))
		for {
			code, err := asksHealth(c)
			if err != nil || code == http.StatusOK {
				return err
			}
			if code != http.StatusServiceUnavailable {
				return fmt.Errorf("HTTP %d", code)
			}
			late.Add(1)
			time.Sleep(askAgain)
		}
	}
	for _, name := range dispatchers {
		n, err := s.plan.Node(name)
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var all sync.WaitGroup
		gate := make(chan struct{}, 20)
		for range each {
			gate <- struct{}{}
			all.Go(func() {
				defer func() { <-gate }()
				ctx, cancel := context.WithTimeout(s.Context(), 2*time.Minute)
				defer cancel()
				c, err := dialTLS(ctx, s, n)
				if err == nil {
					err = ask(c)
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil {
					if failed++; failed < 5 {
						t.Logf("%s: %v", name, err)
					}
					return
				}
				open = append(open, c)
			})
		}
		all.Wait()
	}
	v.outages.Idle = map[string]idleCost{}
	for _, name := range dispatchers {
		number := func(command string) int {
			t.Helper()
			n, err := strconv.Atoi(strings.TrimSpace(s.Node(name).Succeed(command)))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
		cost := idleCost{
			Connections: each,
			Used:        number("awk '/MemTotal/ {t = $2} /MemAvailable/ {print int((t - $2) / 1024)}' /proc/meminfo"),
			Replica:     number("ps -C service -o rss= | awk '{s += $1} END {print int(s / 1024)}'"),
		}
		v.outages.Idle[name] = cost
		t.Logf("%s: %+v", name, cost)
		if cost.Replica == 0 || cost.Replica > 512 {
			t.Errorf("%s: the replica takes %d MiB", name, cost.Replica)
		}
	}
	keepFigures(v.outages.whole, "vdi-dispatchers", v.outages)
	again := 0
	for _, c := range open {
		if ask(c) != nil {
			again++
		}
	}
	t.Logf("%d connections: %d could not be opened, %d were lost while idle; %d times the database was late", 3*each, failed, again, late.Load())
	if failed > 0 || again > 0 {
		t.Error("connections were lost")
	}
}

// asksHealth asks once over a connection that stays open.
func asksHealth(c net.Conn) (code int, err error) {
	if _, err := fmt.Fprint(c, "GET /health HTTP/1.1\r\nHost: dispatchers.example.internal\r\n\r\n"); err != nil {
		return 0, err
	}
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	_, err = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode, err
}

// dialTLS connects to a node's port 443, which must prove that it is the node's.
func dialTLS(ctx context.Context, s *site, n plan.Node) (net.Conn, error) {
	conn, err := s.Lab().Dial(ctx, net.JoinHostPort(n.Address.String(), "443"))
	if err != nil {
		return nil, err
	}
	secure := tls.Client(conn, &tls.Config{RootCAs: s.authority, ServerName: n.Address.String()})
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return secure, nil
}
