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
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
)

// served is what the service of examples/vdi-dispatchers says of a visit.
type served struct {
	Dispatcher, Replica string
	Session             *struct{ Visits int }
}

// visitor is somebody with a browser that keeps cookies, whichever dispatcher it asks:
// all are asked by one name, behind which their addresses stand.
type visitor struct {
	s      *site
	client *http.Client
	at     *string // the address that the name stands for now
}

func (s *site) visitor() visitor {
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.Fatal(err)
	}
	at := new(string)
	return visitor{s, &http.Client{Jar: jar, Timeout: 30 * time.Second, Transport: &http.Transport{
		// The certificate must be good for whatever dispatcher answers.
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			conn, err := s.Lab().Dial(ctx, net.JoinHostPort(*at, "443"))
			if err != nil {
				return nil, err
			}
			secure := tls.Client(conn, &tls.Config{RootCAs: s.authority, ServerName: *at})
			if err := secure.HandshakeContext(ctx); err != nil {
				conn.Close()
				return nil, err
			}
			return secure, nil
		},
		DisableKeepAlives: true,
	}}, at}
}

// visits asks a dispatcher once.
func (v visitor) visits(name string) (a served, err error) {
	n, err := v.s.plan.Node(name)
	if err != nil {
		return a, err
	}
	*v.at = n.Address.String()
	answer, err := v.client.Get("https://dispatchers.example.internal/session")
	if err != nil {
		return a, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return a, fmt.Errorf("HTTP %d", answer.StatusCode)
	}
	return a, json.NewDecoder(answer.Body).Decode(&a)
}

// goesOn visits dispatchers until each has answered once with the visitor's session,
// and tells how long that took.
func (v visitor) goesOn(what string, names ...string) {
	v.s.Helper()
	began, before := time.Now(), 0
	for _, name := range names {
		for {
			a, err := v.visits(name)
			if err == nil && a.Session != nil {
				if a.Session.Visits <= before {
					v.s.Errorf("%s: at %s, served by %s, the session has %d visits after %d", what, name, a.Dispatcher, a.Session.Visits, before)
				}
				before = a.Session.Visits
				break
			}
			if time.Since(began) > formTime {
				v.s.Fatalf("%s: %s does not answer: %v\n%s", what, name, err, v.s.Overview(v.s.plan, v.s.admin).Text(time.Now(), status.Plain))
			}
			time.Sleep(askAgain)
		}
	}
	v.s.Logf("%s: %s answer after %.0f s", what, strings.Join(names, ", "), time.Since(began).Seconds())
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

	s.part(t, "powered on in the worst order, the last one first, they form one swarm", func(t *testing.T, s *site) {
		for _, name := range []string{"d3", "d2", "db2", "d1", "db1"} {
			s.Start(name)
		}
		s.becomesWhole()
		s.visitor().goesOn("after power-on", dispatchers...)
		t.Logf("from power-on to a page at every dispatcher: %.0f s", time.Since(began).Seconds())
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
			s.Node(name).MustFail("grep -rqs SWMTKN /var/log /etc /var/lib/slipway /run/slipway || journalctl --no-pager | grep -q SWMTKN")
		}
		label := s.Node("d1").Succeed(`docker info --format '{{index .Swarm.Cluster.Spec.Labels "slipway.members"}}'`)
		if strings.TrimSpace(label) == "" {
			t.Error("the tokens were never rotated")
		}
	})
	s.part(t, "no two machines are alike", func(t *testing.T, s *site) {
		for _, what := range []string{"cat /etc/machine-id", "cat /etc/ssh/ssh_host_ed25519_key.pub", "docker info --format '{{.ID}}'"} {
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
	v := s.visitor()
	for _, name := range dispatchers {
		s.part(t, "the loss of "+name+" keeps the service and its sessions", func(t *testing.T, s *site) {
			v := visitor{s, v.client, v.at}
			v.goesOn("before the loss of "+name, dispatchers...)
			s.Crash(name)
			v.goesOn("after the loss of "+name, but(name)...)
			s.Start(name)
			s.becomesWhole()
			v.goesOn("after the return of "+name, name)
		})
	}
	for _, name := range []string{"db1", "db2"} {
		s.part(t, "the loss of "+name+" keeps the service and its sessions", func(t *testing.T, s *site) {
			v := visitor{s, v.client, v.at}
			v.goesOn("before the loss of "+name, dispatchers...)
			s.Crash(name)
			v.goesOn("after the loss of "+name, dispatchers...)
			s.Start(name)
			s.becomesWhole()
		})
	}
	for _, program := range []string{"service", "dockerd", "containerd"} {
		s.part(t, "the loss of "+program+" on a dispatcher is mended there", func(t *testing.T, s *site) {
			v := visitor{s, v.client, v.at}
			s.Node("d2").Kill(program)
			v.goesOn(program+" killed on d2, the others", but("d2")...)
			s.becomesWhole()
			v.goesOn(program+" killed on d2, all", dispatchers...)
		})
	}
	s.part(t, "the writable database's loss of its processes moves the address", func(t *testing.T, s *site) {
		v := visitor{s, v.client, v.at}
		for _, program := range []string{"postgres", "keepalived"} {
			at := primary(s.becomesWhole())
			s.Node(at).Kill(program)
			v.goesOn(program+" killed on "+at, dispatchers...)
		}
		s.becomesWhole()
	})
	s.part(t, "each dispatcher bears 2000 idle connections", func(t *testing.T, s *site) { bearsIdle(t, s, 2000) })
	s.part(t, "all lose their power at once and form the same swarm again", func(t *testing.T, s *site) {
		v := visitor{s, v.client, v.at}
		before := s.Node("d1").Succeed("docker info --format '{{.Swarm.Cluster.ID}}'")
		s.Crash()
		s.StartAll()
		s.waits("have a primary behind the virtual address", func(o overview.Overview) bool { return primary(o) != "" && holder(o) == primary(o) })
		s.becomesWhole()
		v.goesOn("after the power cut", dispatchers...)
		if after := s.Node("d1").Succeed("docker info --format '{{.Swarm.Cluster.ID}}'"); after != before {
			t.Error("it is another swarm")
		}
	})
}

// bearsIdle opens connections to each dispatcher, leaves them idle, and sees that all
// answer once more.
func bearsIdle(t *testing.T, s *site, each int) {
	var open []*tls.Conn
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	failed := 0
	ask := func(c *tls.Conn) error {
		c.SetDeadline(time.Now().Add(2 * time.Minute))
		if _, err := fmt.Fprint(c, "GET /health HTTP/1.1\r\nHost: dispatchers.example.internal\r\n\r\n"); err != nil {
			return err
		}
		answer, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			return fmt.Errorf("HTTP %d", answer.StatusCode)
		}
		_, err = io.Copy(io.Discard, answer.Body)
		return err
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
				c, err := idleConnection(s, n)
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
	for _, name := range dispatchers {
		used := strings.TrimSpace(s.Node(name).Succeed("awk '/MemTotal/ {t = $2} /MemAvailable/ {print int((t - $2) / 1024)}' /proc/meminfo"))
		rss := strings.TrimSpace(s.Node(name).Succeed("ps -C service -o rss= | awk '{s += $1} END {print int(s / 1024)}'"))
		t.Logf("%s with %d idle connections to each dispatcher: %s MiB in use, %s MiB by the replica", name, each, used, rss)
		if mib, err := strconv.Atoi(rss); err != nil || mib > 512 {
			t.Errorf("%s: the replica takes %s MiB", name, rss)
		}
	}
	again := 0
	for _, c := range open {
		if ask(c) != nil {
			again++
		}
	}
	t.Logf("%d connections: %d could not be opened, %d were lost while idle", 3*each, failed, again)
	if failed > 0 || again > 0 {
		t.Error("connections were lost")
	}
}

func idleConnection(s *site, n plan.Node) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(s.Context(), 2*time.Minute)
	defer cancel()
	conn, err := s.Lab().Dial(ctx, net.JoinHostPort(n.Address.String(), "443"))
	if err != nil {
		return nil, err
	}
	secure := tls.Client(conn, &tls.Config{RootCAs: s.authority, ServerName: n.Address.String()})
	return secure, secure.HandshakeContext(ctx)
}
