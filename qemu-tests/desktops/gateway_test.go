//go:build long

package desktopstest

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/qemu-tests/browser"
)

// gateway boots a gateway.
func (c *cluster) gateway(name string) *machine {
	m := c.machine(name, "gateway")
	m.succeed("root", "useradd", "--system", "--uid", "852", "--user-group", "gateway")
	m.succeed("root", "install", "-d", "-o", "gateway", "-g", "gateway", "-m", "0700", "/var/lib/gateway")
	m.tell(false)
	m.start("gateway-websockify.service")
	m.start("gateway.service")
	return m
}

// desktop boots a desktop.
func (c *cluster) desktop(name string) *machine {
	m := c.machine(name, "desktop")
	for id, user := range map[string]string{"853": "desktop", "854": "desktop-front"} {
		m.succeed("root", "useradd", "--system", "--uid", id, "--user-group", user)
	}
	m.succeed("root", "usermod", "-aG", "desktop", "desktop-front")
	m.succeed("root", "install", "-d", "-o", "desktop", "-g", "desktop", "-m", "0700", "/var/lib/desktop")
	m.tell(false)
	m.start("desktop.service")
	m.start("desktop-session.service")
	m.start("desktop-front.service")
	return m
}

// whole is everything between a person and a desktop.
type whole struct {
	*cluster
	balancers, gateways []*machine
	pc                  *machine
}

func everything(t *testing.T) *whole {
	c := newCluster(t)
	w := &whole{cluster: c, balancers: []*machine{c.balancer("lb1", true), c.balancer("lb2", false)}}
	broker := c.broker("br1")
	broker.succeed("broker", "/usr/lib/broker/setup")
	broker.serve()
	w.gateways = []*machine{c.gateway("gw1"), c.gateway("gw2")}
	w.pc = c.desktop("pc1")
	until(t, "the broker serves", func() bool { return c.person().get("/login").code == http.StatusOK })
	for _, g := range w.gateways {
		until(t, g.name+" serves", func() bool { return g.status(10443, "/healthz") == "200" })
	}
	until(t, "the balancer knows the gateways", func() bool {
		conn, err := w.greeting(w.admin().programTicket("pc1"))
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return w
}

// admin is the administrator, logged in.
func (c *cluster) admin() *person {
	c.t.Helper()
	p := c.person()
	if got := p.login("admin", c.secrets[plan.BrokerAdmin]); got.code != http.StatusFound {
		c.t.Fatalf("%d %s", got.code, got.text)
	}
	return p
}

// programTicket is a ticket for a program that is no browser.
func (p *person) programTicket(desktop string) string {
	p.c.t.Helper()
	got := p.submit("/desktops/"+desktop, "tunnel", "1")
	found := regexp.MustCompile(`readonly spellcheck="false">([^<]+)<`).FindStringSubmatch(got.text)
	if found == nil {
		p.c.t.Fatalf("%d %s", got.code, got.text)
	}
	return found[1]
}

// dial opens a TLS connection to a port of the virtual address.
func (c *cluster) dial(port string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	conn, err := tls.DialWithDialer(dialer, "tcp", vip+":"+port, &tls.Config{RootCAs: c.authority.Pool(), ServerName: host})
	if err == nil {
		c.t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(time.Minute))
	}
	return conn, err
}

// greeting opens a tunnel with a ticket and returns what the desktop says first
// (RFC 6143, 7.1.1).
func (c *cluster) greeting(ticket string) (net.Conn, error) {
	conn, err := c.dial("1443")
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(conn, "%s\n", ticket)
	said, err := bufio.NewReader(conn).Peek(12)
	if err != nil || string(said) != "RFB 003.008\n" {
		return nil, fmt.Errorf("the other end said %q: %v", said, err)
	}
	return conn, nil
}

// browser is a person's, who believes the balancers' certificates.
func (w *whole) browser() *browser.Browser {
	var certificates []string
	for _, m := range w.balancers {
		certificates = append(certificates, m.Member.Certificates["service"].Certificate)
	}
	out := ""
	if dir := os.Getenv("SLIPWAY_TEST_OUT"); dir != "" {
		out = filepath.Join(dir, "desktops")
	}
	return browser.Start(w.t, host, map[string]string{"443": vip + ":443", "10443": vip + ":10443"}, out, certificates...)
}

func TestAPersonUsesADesktop(t *testing.T) {
	w := everything(t)
	b := w.browser()
	b.LogIn("admin", w.secrets[plan.BrokerAdmin])
	b.Open("pc1")
	b.SeesDesktop("desktop")

	t.Run("what is typed arrives at the desktop", func(t *testing.T) {
		b := b.In(t)
		b.Does("type", chromedp.Click("canvas", chromedp.ByQuery), chromedp.KeyEvent("echo typed-$((40+2)) >/tmp/typed"+kb.Enter))
		until(t, "it is there", func() bool { data, _ := os.ReadFile(w.pc.Path("/tmp/typed")); return string(data) == "typed-42\n" })
		b.Keep("typed")
	})
	t.Run("when the gateway dies the page opens the desktop again through the other", func(t *testing.T) {
		b := b.In(t)
		for _, g := range w.gateways {
			if g.connections("10443") != "" {
				g.stop("gateway.service", syscall.SIGKILL)
				g.stop("gateway-websockify.service", syscall.SIGKILL)
			}
		}
		b.Does("the loss is seen", chromedp.WaitVisible(`body[data-state="lost"]`, chromedp.ByQuery))
		b.Keep("lost")
		b.SeesDesktop("desktop-again")
		for _, g := range w.gateways {
			if g.runs["gateway.service"] == nil {
				g.start("gateway-websockify.service")
				g.start("gateway.service")
				until(t, g.name+" serves again", func() bool { return g.status(10443, "/healthz") == "200" })
			}
		}
	})
	t.Run("when the balancer dies the page opens the desktop again through the other", func(t *testing.T) {
		b := b.In(t)
		w.balancers[0].cut()
		w.balancers[1].take()
		w.announce()
		// Whoever sits there moves the mouse, which the other balancer knows nothing of.
		b.Does("the loss is seen", chromedp.Click("canvas", chromedp.ByQuery), chromedp.WaitVisible(`body[data-state="lost"]`, chromedp.ByQuery))
		b.SeesDesktop("desktop-other-balancer")
	})
	t.Run("tickets are in no journal", func(t *testing.T) {
		w.refused("no.ticket")
		logs := ""
		for _, g := range w.gateways {
			logs += g.log("gateway.service") + g.log("gateway-websockify.service")
		}
		if !strings.Contains(logs, "token=…") || !strings.Contains(logs, "Token '…'") || regexp.MustCompile(`(token=|Token ')[\w-]`).MatchString(logs) {
			t.Error(logs)
		}
	})
}

func TestTunnels(t *testing.T) {
	w := everything(t)
	admin := w.admin()

	t.Run("a ticket opens a tunnel to its desktop, once", func(t *testing.T) {
		ticket := admin.programTicket("pc1")
		conn, err := w.greeting(ticket)
		must(t, err)
		conn.Close()
		if _, err := w.greeting(ticket); err == nil {
			t.Error("it opens a second one")
		}
	})
	t.Run("nothing else opens one", func(t *testing.T) {
		for _, said := range []string{"no.ticket", "", "{\"}", strings.Repeat("A", 3000), "RFB 003.008"} {
			conn, err := w.dial("1443")
			must(t, err)
			fmt.Fprintf(conn, "%s\n", said)
			if got, _ := io.ReadAll(conn); len(got) > 0 {
				t.Errorf("%.20q was answered %q", said, got)
			}
		}
		w.refused("no.ticket")
	})
	t.Run("a desktop lets gateways in and nobody else", func(t *testing.T) {
		for name, want := range map[string]bool{"gw1": true, "br1": false, "lb1": false} {
			pair, err := w.member(name).Certificates["service"].TLS(name)
			must(t, err)
			got := false
			conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", "10.77.1.51:5900", &tls.Config{RootCAs: w.authority.Pool(), ServerName: "pc1", Certificates: []tls.Certificate{pair}})
			if err == nil {
				conn.SetDeadline(time.Now().Add(30 * time.Second))
				said, _ := bufio.NewReader(conn).Peek(3)
				got = string(said) == "RFB"
				conn.Close()
			}
			if got != want {
				t.Errorf("%s is let in: %v (%v)", name, got, err)
			}
		}
		if conn, err := net.DialTimeout("tcp", "10.77.1.51:5900", 10*time.Second); err == nil {
			conn.SetDeadline(time.Now().Add(30 * time.Second))
			fmt.Fprint(conn, "RFB 003.008\n")
			if said, _ := io.ReadAll(conn); strings.Contains(string(said), "RFB") {
				t.Errorf("without TLS the desktop says %q", said)
			}
			conn.Close()
		}
	})
	t.Run("a gateway that is stopped lets open tunnels go on and takes no new one", func(t *testing.T) {
		busy := func() (list []*machine) {
			for _, g := range w.gateways {
				if g.connections("1443") != "" {
					list = append(list, g)
				}
			}
			return list
		}
		until(t, "the tunnels from before are closed", func() bool { return len(busy()) == 0 })
		conn, err := w.greeting(admin.programTicket("pc1"))
		must(t, err)
		until(t, "the tunnel is seen", func() bool { return len(busy()) == 1 })
		for _, g := range busy() {
			g.signal("gateway.service", syscall.SIGUSR1)
			until(t, "it listens no more", func() bool { return !strings.Contains(g.listening(), ":1443") })
		}
		for range 3 {
			if _, err := w.greeting(admin.programTicket("pc1")); err != nil {
				t.Errorf("a new tunnel: %v", err)
			}
		}
		fmt.Fprint(conn, "RFB 003.008\n")
		if said, err := bufio.NewReader(conn).Peek(2); err != nil || said[1] != 1 {
			t.Errorf("the tunnel from before: %v, %v", said, err)
		}
	})
}

// refused opens a WebSocket with a ticket that is not good.
func (w *whole) refused(ticket string) {
	w.t.Helper()
	conn, err := w.dial("10443")
	must(w.t, err)
	fmt.Fprintf(conn, "GET /websockify?token=%s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: binary\r\n\r\n", ticket, host)
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil && response.StatusCode == http.StatusSwitchingProtocols {
		w.t.Error("a WebSocket without a good ticket is open")
	}
}

// connections are those of the node's service at a port.
func (m *machine) connections(port string) string {
	m.t.Helper()
	out, err := m.outside("ss", "--no-header", "--tcp", "--numeric", "state", "established", "sport", "=", ":"+port)
	must(m.t, err)
	return strings.TrimSpace(out)
}

func (m *machine) listening() string {
	out, err := m.outside("ss", "--no-header", "--tcp", "--numeric", "--listening")
	must(m.t, err)
	return out
}
