//go:build long

package clustertest

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/operations"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/product"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/steps"
	"github.com/slipwayhq/slipway/qemu-tests/browser"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/labtest"
	"github.com/slipwayhq/slipway/qemu-tests/wrk"
)

const (
	people       = "vdi.example.internal"
	settingsPath = "/var/server/server/settings.py"
	backSoon     = 15 * time.Minute // until the service is there again, on emulated machines
)

// thirdBroker joins examples/vdi-pair in the story.
const thirdBroker = `  - name: br3
    role: broker
    nics: [{network: lan, address: 10.77.1.33}]
    size: {cpus: 1, memory: 768MiB}
`

// keys are what is random in the settings.
var keys = regexp.MustCompile(`(?ms)^-----BEGIN .*?^-----END [^\n]*$|^SECRET_KEY = [^\n]*$`)

// vdi is examples/vdi-pair with people at it.
type vdi struct {
	*site
	whole   *testing.T // lasts as long as the story
	seat    *seat
	browser *browser.Browser
	gaps    *gaps
}

// seat is where people sit, once there is something to see: one at a browser, one with a
// program. Both log in once in the story.
type seat struct {
	browser *browser.Browser
	person  *person
	lines   int // that were typed
}

// gaps is what people have missed, by what was killed, in seconds.
type gaps struct {
	Seed   uint64                 `json:"seed"`
	Usable float64                `json:"power_on_to_desktop"`
	Usual  float64                `json:"usual"`  // a ticket and a tunnel while nothing is broken
	Tunnel map[string]float64     `json:"tunnel"` // from the fault until somebody has a new tunnel
	Typed  map[string]float64     `json:"typed"`  // from the fault until what is typed in the browser arrives
	Load   map[string]wrk.Figures `json:"load"`   // as somebody who is logged in
}

// TestVDIPair tells the story of examples/vdi-pair, in a browser: from the power
// switch to the pixels of a desktop, and through the loss of each service and of each
// machine. SLIPWAY_SEED repeats an order of power-on.
func TestVDIPair(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SLIPWAY_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	random := rand.New(rand.NewPCG(seed, 0))
	v := &vdi{site: newSite(t, example(t, "vdi-pair")), whole: t, seat: &seat{}, gaps: &gaps{
		Seed: seed, Tunnel: map[string]float64{}, Typed: map[string]float64{}, Load: map[string]wrk.Figures{},
	}}
	t.Logf("SLIPWAY_SEED=%d", seed)

	v.part(t, "powered on in any order, the brokers first and both at once, a person opens a desktop", func(t *testing.T, v *vdi) {
		var others []string
		for _, n := range v.plan.Nodes {
			if n.Role != plan.BrokerRole {
				others = append(others, n.Name)
			}
		}
		random.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
		t.Logf("the order: br1 and br2, then %v", others)
		began := time.Now()
		v.Start("br1", "br2")
		for _, name := range others {
			for _, before := range v.Lab().Nodes() {
				if before.On {
					v.Node(before.Name).WaitForGuest() // the next one comes when these have long been up
				}
			}
			v.Start(name)
		}
		v.becomesWhole()
		t.Logf("whole after %.0f s", time.Since(began).Seconds())
		v.seat.browser = v.sit()
		v.browser = v.seat.browser.In(t)
		v.browser.LogIn("admin", v.secrets[plan.BrokerAdmin])
		v.browser.Open("pc1")
		v.browser.SeesDesktop("vdi-desktop")
		v.gaps.Usable = time.Since(began).Seconds()
		t.Logf("from the power switch to a desktop: %.0f s", v.gaps.Usable)
		v.seat.person = newPerson(v)
		v.soon("log in", 1, func(ctx context.Context) error { return v.seat.person.login(ctx, "admin", v.secrets[plan.BrokerAdmin]) })
		usual := time.Now()
		v.tunnel().Close()
		v.gaps.Usual = time.Since(usual).Seconds()
		v.types("nothing", time.Now())
	})
	v.part(t, "set-up ran once, and the brokers differ in their names alone", func(t *testing.T, v *vdi) {
		v.isSetUpOnce()
		one, two := v.Node("br1").ReadFile(settingsPath), v.Node("br2").ReadFile(settingsPath)
		if one != two || !strings.Contains(one, "BEGIN PRIVATE KEY") {
			t.Error("the settings differ, or lack their keys")
		}
		for _, name := range []string{"br1", "br2"} {
			if got := strings.TrimSpace(v.Node(name).Succeed("hostname")); got != name {
				t.Errorf("%s calls itself %s", name, got)
			}
			if strings.Contains(keys.ReplaceAllString(one, ""), name) {
				t.Errorf("the settings name %s", name)
			}
		}
	})
	v.part(t, "what an administrator changes on one broker reaches the other", func(t *testing.T, v *vdi) {
		v.Node("br1").Succeed("sed -i 's/^TICKET_SECONDS = .*/TICKET_SECONDS = 45/' " + settingsPath)
		v.act("br1", "share", product.ShareArgs{Path: settingsPath})
		v.Node("br2").WaitUntilSucceeds("grep -qx 'TICKET_SECONDS = 45' " + settingsPath)
		v.comesBack("a setting is changed")
	})
	// Each program, then each machine.
	for _, c := range []struct {
		program string
		of      choice
	}{
		{"websockify", on("gw1")}, {"haproxy", on("gw2")}, {"gunicorn", on("br1")}, {"nginx", on("br2")}, {"haproxy", on("lb1")},
		{"etcd", on("lb1")}, {"etcd", on("db1")}, {"etcd", on("db2")}, {agentProgram, on("br1")}, {agentProgram, on("lb1")},
		{"Xtigervnc", on("pc1")}, {"haproxy", on("pc1")}, {"session", on("pc1")},
		{"keepalived", theHolder}, {"postgres", thePrimary}, {"patroni", thePrimary},
	} {
		v.part(t, c.program+" of "+c.of.name+" is killed, and the desktop comes back", func(t *testing.T, v *vdi) {
			node := c.of.node(v.becomesWhole())
			v.Node(node).Kill(c.program)
			v.comesBack(c.program + " of " + node)
			v.browser.SeesDesktop("vdi-" + c.program + "-" + node)
			v.becomesWhole()
		})
	}
	for _, name := range []string{"gw1", "br1", "lb1", "db1", "gw2", "br2", "lb2", "db2"} {
		v.part(t, "without "+name+" the desktop comes back", func(t *testing.T, v *vdi) {
			v.Crash(name)
			v.comesBack("the power of " + name)
			v.browser.SeesDesktop("vdi-without-" + name)
			v.Start(name)
			v.becomesWhole()
		})
	}
	v.part(t, "a desktop that lost its power comes back when it has it again", func(t *testing.T, v *vdi) {
		v.Crash("pc1")
		v.Start("pc1")
		v.comesBack("the power of pc1")
		v.browser.SeesDesktop("vdi-pc1-again")
		v.becomesWhole()
	})
	v.part(t, "a broker is lost under load, and sessions are held", func(t *testing.T, v *vdi) {
		home := v.answers()
		address := v.forward(net.JoinHostPort(v.plan.VIPs[0].Address.Addr().String(), "443"))
		ask := wrk.Load{URL: "https://" + address + "/desktops", Host: people, Cookies: v.seat.person.cookies(), Connections: 2, For: 2 * time.Minute}
		ends := wrk.Start(t, ask)
		time.Sleep(ask.For / 4) // a quarter of the time all is well
		v.Crash(home)
		v.gaps.Load["while "+home+" is lost"] = ends()
		ask.For = time.Minute
		v.gaps.Load["afterwards"] = wrk.Start(t, ask)()
		t.Logf("%+v", v.gaps.Load)
		for when, f := range v.gaps.Load {
			// That the broker is away for a moment is what the figures tell.
			if f.Good == 0 || f.LoggedOut > 0 {
				t.Errorf("%s %d answers were the page, %d wanted a login", when, f.Good, f.LoggedOut)
			}
		}
		v.keep()
		v.Start(home)
		v.becomesWhole()
	})
	v.part(t, "a gateway in maintenance keeps who is there and is sent nobody new", func(t *testing.T, v *vdi) {
		conn := v.tunnel()
		busy := "gw1"
		if !strings.Contains(v.Node(busy).Succeed("ss -Htn state established sport = :1443"), ":1443") {
			busy = "gw2"
		}
		v.act(busy, "maintenance", steps.MaintenanceArgs{On: true})
		v.waits("send nobody new to "+busy, func(o overview.Overview) bool { return v.drains(o, busy) == 2 })
		for range 4 {
			v.tunnel().Close()
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprint(conn, "RFB 003.008\n")
		if said, err := bufio.NewReader(conn).Peek(2); err != nil || said[1] != 1 {
			t.Errorf("the tunnel from before: %v, %v", said, err)
		}
		v.act(busy, "maintenance", steps.MaintenanceArgs{})
		v.becomesWhole()
	})
	v.part(t, "a broker that is added later serves with the same settings", func(t *testing.T, v *vdi) {
		v.adds(thirdBroker)
		v.Start("br3")
		v.becomesWhole()
		v.isSetUpOnce()
		if v.Node("br3").ReadFile(settingsPath) != v.Node("br1").ReadFile(settingsPath) {
			t.Error("its settings differ")
		}
		v.Crash("br1", "br2")
		v.comesBack("both brokers from before")
		if got := v.answers(); got != "br3" {
			t.Errorf("answered by %s", got)
		}
		v.Start("br1", "br2")
		v.becomesWhole()
	})
	v.part(t, "all lose their power at once, and the session goes on afterwards", func(t *testing.T, v *vdi) {
		v.Crash()
		v.StartAll()
		v.becomesWhole()
		v.comesBack("the power of all")
		v.browser.SeesDesktop("vdi-after-all")
	})
}

// TestABrokerIsAddedToTheLab takes the third broker in, of which nothing is booted.
func TestABrokerIsAddedToTheLab(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(images.Env, dir)
	for _, role := range images.Roles() {
		if out, err := exec.Command("qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(dir, role+".qcow2"), "1M").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	s := newSite(t, example(t, "vdi-pair"))
	s.part(t, "from a part of the story", func(t *testing.T, s *site) {
		s.adds(thirdBroker)
		if _, err := s.plan.Node("br3"); err != nil {
			t.Error(err)
		}
		if s.Node("br3") == nil {
			t.Error("it has no machine")
		}
	})
	s.Node("br3") // nor is it forgotten afterwards
}

// isSetUpOnce looks into the database: one set-up is done, and it has made one person.
func (v *vdi) isSetUpOnce() {
	v.Helper()
	if got := v.query(v.readWrite(), "select count(*) from slipway.setup where role = 'broker' and done is not null"); got != "1" {
		v.Errorf("%s set-ups are done", got)
	}
	if got := v.query(v.readWrite(), "select count(*) from auth_user"); got != "1" {
		v.Errorf("there are %s people", got)
	}
}

// part is a part of the story.
func (v *vdi) part(t *testing.T, name string, tell func(t *testing.T, v *vdi)) {
	t.Helper()
	v.site.part(t, name, func(t *testing.T, s *site) {
		in := &vdi{site: s, whole: v.whole, seat: v.seat, gaps: v.gaps}
		if v.seat.browser != nil {
			in.browser = v.seat.browser.In(t)
		}
		tell(t, in)
	})
}

// sit starts the browser. It comes into the cluster's network through the lab.
func (v *vdi) sit() *browser.Browser {
	v.Helper()
	address := v.plan.VIPs[0].Address.Addr().String()
	routes := map[string]string{}
	for _, port := range []string{"443", "10443"} {
		routes[port] = v.forward(net.JoinHostPort(address, port))
	}
	var shown []string
	for _, n := range v.plan.Balancers(v.plan.Sites[0].Name) {
		ctx, cancel := context.WithTimeout(v.Life(), time.Minute)
		raw, err := v.Lab().Dial(ctx, net.JoinHostPort(n.Address.String(), "443"))
		if err != nil {
			v.Fatal(err)
		}
		conn := tls.Client(raw, &tls.Config{RootCAs: v.authority, ServerName: people})
		if err := conn.HandshakeContext(ctx); err != nil {
			v.Fatal(err)
		}
		shown = append(shown, pki.EncodeCertificate(conn.ConnectionState().PeerCertificates[0].Raw))
		conn.Close()
		cancel()
	}
	return browser.Start(v.whole, people, routes, filepath.Join(labtest.OutDir(v.whole), "vdi-pair"), shown...)
}

// forward leads a port of this computer into the cluster.
func (v *vdi) forward(to string) string {
	v.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		v.Fatal(err)
	}
	v.whole.Cleanup(func() { listener.Close() })
	lab := v.Lab()
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				ctx, cancel := context.WithTimeout(v.Life(), 20*time.Second)
				inner, err := lab.Dial(ctx, to)
				cancel()
				if err != nil {
					return
				}
				defer inner.Close()
				go func() { io.Copy(inner, conn); inner.Close() }()
				io.Copy(conn, inner)
			}()
		}
	}()
	return listener.Addr().String()
}

// comesBack measures how long people are without a desktop after a fault: one, who is
// logged in, with a program that opens a tunnel again and again, and the one at the
// browser, who types until it arrives.
func (v *vdi) comesBack(fault string) {
	v.Helper()
	began := time.Now()
	v.soon("get to a desktop after "+fault, triesAtOnce, func(ctx context.Context) error {
		conn, err := v.open(ctx)
		if err == nil {
			conn.Close()
		}
		return err
	})
	v.gaps.Tunnel[fault] = time.Since(began).Seconds()
	v.Logf("%s: a new tunnel after %.1f s", fault, v.gaps.Tunnel[fault])
	v.types(fault, began)
}

// soon does what may not be possible right now, again and again, at most so many at once.
func (v *vdi) soon(what string, most int, try func(context.Context) error) {
	v.Helper()
	ctx, cancel := context.WithTimeout(v.Life(), backSoon)
	defer cancel()
	if err := keepTrying(ctx, most, try); err != nil {
		v.Fatalf("nobody can %s: %v", what, err)
	}
}

// answers is the broker that answers the person.
func (v *vdi) answers() (name string) {
	v.Helper()
	v.soon("see a page", 1, func(ctx context.Context) (err error) {
		name, err = v.seat.person.broker(ctx)
		return err
	})
	return name
}

// types has the person at the browser type until it arrives at the desktop, and go back
// to the list where the page does not get there by itself.
func (v *vdi) types(fault string, began time.Time) {
	v.Helper()
	v.seat.lines++
	file := fmt.Sprintf("/tmp/typed-%d", v.seat.lines)
	for {
		err := v.browser.Types("touch " + file)
		if err == nil {
			ctx, cancel := context.WithTimeout(v.Life(), 30*time.Second)
			_, err = v.Node("pc1").Lab().Succeed(ctx, "for i in $(seq 20); do test -e "+file+" && exit 0; sleep 0.5; done; exit 1")
			cancel()
		} else if again := v.browser.OpensAgain("pc1"); again != nil {
			err = fmt.Errorf("%w; and then: %w", err, again)
		}
		if err == nil {
			v.gaps.Typed[fault] = time.Since(began).Seconds()
			v.Logf("%s: what is typed arrives after %.1f s", fault, v.gaps.Typed[fault])
			v.keep()
			return
		}
		if time.Since(began) > backSoon {
			v.browser.Keep("vdi-stuck")
			v.Fatalf("%s: nothing that is typed arrives: %v", fault, err)
		}
	}
}

// tunnel is a connection to the desktop, greeted.
func (v *vdi) tunnel() net.Conn {
	v.Helper()
	conn, err := v.open(v.Life())
	if err != nil {
		v.Fatal(err)
	}
	v.Cleanup(func() { conn.Close() })
	return conn
}

// open opens a tunnel to pc1 for the person who is logged in.
func (v *vdi) open(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	ticket, err := v.seat.person.ticket(ctx, "pc1")
	if err != nil {
		return nil, err
	}
	address := net.JoinHostPort(v.plan.VIPs[0].Address.Addr().String(), strconv.Itoa(v.plan.VIPs[0].Tunnel))
	raw, err := v.Lab().Dial(ctx, address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, &tls.Config{RootCAs: v.authority, ServerName: people})
	conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(conn, "%s\n", ticket)
	said := make([]byte, 12)
	if _, err := io.ReadFull(conn, said); err != nil || string(said) != "RFB 003.008\n" {
		conn.Close()
		return nil, fmt.Errorf("the desktop said %q: %w", said, err)
	}
	return conn, conn.SetDeadline(time.Time{})
}

// drains is how many balancers keep who is on a node and send nobody new there.
func (v *vdi) drains(o overview.Overview, node string) (count int) {
	for _, n := range v.plan.Balancers(v.plan.Sites[0].Name) {
		if c := o.Word(n.Name); c != nil && slices.ContainsFunc(c.Backends, func(b status.Backend) bool {
			return b.Name == "gateways" && b.Server == node && b.Check == "takes nobody new"
		}) {
			count++
		}
	}
	return count
}

// act has an agent do something.
func (v *vdi) act(node, action string, args any) {
	v.Helper()
	cluster := &operations.Cluster{
		Plan: v.plan, Dial: func(ctx context.Context, _, address string) (net.Conn, error) { return v.Lab().Dial(ctx, address) },
		TLS: func(right string) (tls.Certificate, *x509.CertPool, error) { return v.ground().Admin(right) },
	}
	if err := cluster.Act(v.Life(), node, action, args, nil, func(line string) { v.Log(line) }); err != nil {
		v.Fatal(err)
	}
}

// keep writes the figures of the moment down.
func (v *vdi) keep() { keepFigures(v.whole, "vdi-pair", v.gaps) }
