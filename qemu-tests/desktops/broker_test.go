//go:build long

package desktopstest

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/plan"
)

// person is somebody with a browser that knows cookies and forms, and no scripts.
type person struct {
	c    *cluster
	http *http.Client
}

// person comes to the virtual address by the name that people type.
func (c *cluster) person() *person {
	jar, err := cookiejar.New(nil)
	must(c.t, err)
	return &person{c, &http.Client{
		Jar: jar, Timeout: 30 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: c.authority.Pool()}, DisableKeepAlives: true,
			Dial: func(network, address string) (net.Conn, error) {
				return net.DialTimeout(network, strings.Replace(address, host, vip, 1), 5*time.Second)
			},
		},
	}}
}

// page is an answer.
type page struct {
	code   int
	text   string
	header http.Header
}

func (p *person) do(method, path string, form url.Values) page {
	p.c.t.Helper()
	request, err := http.NewRequest(method, "https://"+host+path, strings.NewReader(form.Encode()))
	must(p.c.t, err)
	if form != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.Header.Set("Referer", "https://"+host+path)
	}
	response, err := p.http.Do(request)
	if err != nil {
		return page{text: err.Error()}
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		return page{text: err.Error()}
	}
	return page{response.StatusCode, string(text), response.Header}
}

func (p *person) get(path string) page { return p.do(http.MethodGet, path, nil) }

var token = regexp.MustCompile(`name="csrfmiddlewaretoken" value="([^"]+)"`)

// submit fills in the form of a page.
func (p *person) submit(path string, fields ...string) page {
	p.c.t.Helper()
	form := url.Values{}
	if found := token.FindStringSubmatch(p.get(path).text); found != nil {
		form.Set("csrfmiddlewaretoken", found[1])
	}
	for i := 0; i < len(fields); i += 2 {
		form.Add(fields[i], fields[i+1])
	}
	return p.do(http.MethodPost, path, form)
}

func (p *person) login(name, password string) page {
	return p.submit("/login", "username", name, "password", password)
}

// answeredBy is the broker that a page came from.
var answeredBy = regexp.MustCompile(`Answered by ([a-z0-9]+)\.`)

func (p *person) broker() string {
	found := answeredBy.FindStringSubmatch(p.get("/desktops").text)
	if found == nil {
		return ""
	}
	return found[1]
}

// redeem asks as a gateway does.
func (c *cluster) redeem(key, ticket string) (int, string) {
	c.t.Helper()
	body, err := json.Marshal(map[string]string{"ticket": ticket})
	must(c.t, err)
	request, err := http.NewRequest(http.MethodPost, "https://"+plan.BrokersName+"/api/redeem", bytes.NewReader(body))
	must(c.t, err)
	request.Header.Set("Authorization", "Bearer "+key)
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: c.authority.Pool()}, DisableKeepAlives: true,
		Dial: func(network, _ string) (net.Conn, error) { return net.DialTimeout(network, vip+":443", 5*time.Second) },
	}}
	response, err := client.Do(request)
	must(c.t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	must(c.t, err)
	return response.StatusCode, string(text)
}

// ticket has a person ask for a desktop and returns what leads to it.
func (p *person) ticket(desktop string) string {
	p.c.t.Helper()
	answer := p.submit("/desktops/" + desktop)
	where, err := url.Parse(answer.header.Get("Location"))
	if answer.code != http.StatusSeeOther || err != nil {
		p.c.t.Fatalf("%d to %q: %s", answer.code, answer.header.Get("Location"), answer.text)
	}
	if got := where.Host + where.Path; got != host+":10443/desktop.html" || where.RawQuery != "" {
		p.c.t.Errorf("led to %s", where)
	}
	values, err := url.ParseQuery(where.Fragment)
	must(p.c.t, err)
	return values.Get("ticket")
}

// site is a database, a balancer and two brokers, the first of which was set up.
func site(t *testing.T) (c *cluster, first, second *machine) {
	c = newCluster(t)
	c.db = c.database("db1")
	c.first = c.balancer("lb1", true)
	first, second = c.broker("br1"), c.broker("br2")
	// As the agent does: until it has succeeded once.
	until(t, "set-up is done", func() bool { return first.as("broker", nil, "/usr/lib/broker/setup").Run() == nil })
	second.adopt(first)
	first.serve()
	second.serve()
	for _, name := range []string{"br1", "br2"} {
		until(t, name+" serves", func() bool {
			for range 4 {
				p := c.person()
				p.login("admin", c.secrets[plan.BrokerAdmin])
				if p.broker() == name {
					return true
				}
			}
			return false
		})
	}
	return c, first, second
}

func TestBrokers(t *testing.T) {
	c, first, second := site(t)
	admin := c.person()
	if got := admin.login("admin", c.secrets[plan.BrokerAdmin]); got.code != http.StatusFound || got.header.Get("Location") != "/desktops" {
		t.Fatalf("the first administrator cannot log in: %d %s", got.code, got.text)
	}

	t.Run("settings are the same on both, and hold no host name", func(t *testing.T) {
		one, two := first.File(t, "/var/server/server/settings.py"), second.File(t, "/var/server/server/settings.py")
		if one != two || !strings.Contains(one, "BEGIN PRIVATE KEY") || strings.Contains(one, "br1") || strings.Contains(one, "@") && strings.Contains(one, "@SECRET_KEY@") {
			t.Error("the settings differ, lack their keys, or name a node")
		}
		if mode := strings.TrimSpace(first.succeed("root", "stat", "-c", "%a %U", "/var/server/server/settings.py")); mode != "640 broker" {
			t.Errorf("settings.py is %s", mode)
		}
	})
	t.Run("set-up that is run again changes nothing", func(t *testing.T) {
		before := first.File(t, "/var/server/server/settings.py")
		first.succeed("broker", "/usr/lib/broker/setup")
		if first.File(t, "/var/server/server/settings.py") != before {
			t.Error("there are new settings")
		}
		if again := c.person().login("admin", c.secrets[plan.BrokerAdmin]); again.code != http.StatusFound {
			t.Errorf("the administrator's password has changed: %d", again.code)
		}
	})
	t.Run("a session of one broker is good at the other", func(t *testing.T) {
		home := admin.broker()
		for _, m := range []*machine{first, second} {
			if m.name != home {
				continue
			}
			m.stop("broker.service", syscall.SIGKILL)
			if got := admin.broker(); got == home || got == "" {
				t.Errorf("logged in at %s, which is dead; then answered by %q", home, got)
			}
			m.start("broker.service")
			until(t, m.name+" serves again", func() bool { return m.status(443, "/healthz") == "200" })
		}
	})
	t.Run("sessions are in the database, by TLS alone", func(t *testing.T) {
		m := c.db
		if n := m.succeed("postgres", "psql", "-qAtX", "-d", "broker", "-c", "select count(*) from django_session"); strings.TrimSpace(n) == "0" {
			t.Error("the database knows no session")
		}
		if n := m.psql("select count(*) from pg_stat_ssl s join pg_stat_activity a using (pid) where a.usename = 'broker' and not s.ssl"); strings.TrimSpace(n) != "0" {
			t.Errorf("%s connections of brokers without TLS", n)
		}
	})
	t.Run("who is not logged in sees nothing", func(t *testing.T) {
		for _, path := range []string{"/desktops", "/desktops/pc1", "/people", "/people/1", "/password"} {
			got := c.person().get(path)
			if got.code != http.StatusFound || !strings.HasPrefix(got.header.Get("Location"), "/login?next=/") {
				t.Errorf("%s: %d to %q", path, got.code, got.header.Get("Location"))
			}
		}
		// Nor is anybody sent on to another site after logging in.
		got := c.person().submit("/login", "username", "admin", "password", c.secrets[plan.BrokerAdmin], "next", "https://elsewhere.example.org/")
		if got.header.Get("Location") != "/desktops" {
			t.Errorf("sent on to %q", got.header.Get("Location"))
		}
	})
	t.Run("a ticket leads to its desktop once", func(t *testing.T) {
		key := c.secrets[plan.GatewayKey]
		ticket := admin.ticket("pc1")
		if code, text := c.redeem("another-key", ticket); code != http.StatusForbidden {
			t.Errorf("without the gateways' key: %d %s", code, text)
		}
		if code, text := c.redeem(key, ticket); code != http.StatusOK || !strings.Contains(text, `"desktop": "pc1"`) {
			t.Errorf("the first time: %d %s", code, text)
		}
		for name, other := range map[string]string{"a second time": ticket, "with another end": admin.ticket("pc1") + "A", "guessed": "AAAAAAAAAAAAAAAAAAAAAA.AAAA", "empty": "", "long": strings.Repeat("a.", 900)} {
			if code, text := c.redeem(key, other); code != http.StatusNotFound {
				t.Errorf("%s: %d %s", name, code, text)
			}
		}
		old := admin.ticket("pc1")
		c.db.succeed("postgres", "psql", "-qAtX", "-d", "broker", "-c", "update desk_ticket set expires = now() where used is null")
		if code, _ := c.redeem(key, old); code != http.StatusNotFound {
			t.Errorf("an expired one: %d", code)
		}
	})
	t.Run("of many gateways that redeem a ticket at once, one is told yes", func(t *testing.T) {
		ticket, codes := admin.ticket("pc1"), make(chan int)
		for range 8 {
			go func() { code, _ := c.redeem(c.secrets[plan.GatewayKey], ticket); codes <- code }()
		}
		yes := 0
		for range 8 {
			if <-codes == http.StatusOK {
				yes++
			}
		}
		if yes != 1 {
			t.Errorf("%d were told yes", yes)
		}
	})
	t.Run("a person uses the desktops that an administrator gives", func(t *testing.T) {
		added := admin.submit("/people", "username", "ann")
		secret := regexp.MustCompile(`id="password">([^<]+)<`).FindStringSubmatch(added.text)
		if secret == nil {
			t.Fatalf("%d %s", added.code, added.text)
		}
		ann := c.person()
		if got := ann.login("ann", secret[1]); got.code != http.StatusFound {
			t.Fatalf("%d %s", got.code, got.text)
		}
		if got := ann.get("/desktops"); !strings.Contains(got.text, "No desktop is yours yet") {
			t.Errorf("%s", got.text)
		}
		if got := ann.submit("/desktops/pc1"); got.code != http.StatusNotFound && got.code != http.StatusForbidden {
			t.Errorf("a desktop that is not hers: %d", got.code)
		}
		if got := ann.get("/people"); got.code != http.StatusForbidden {
			t.Errorf("the page of administrators: %d", got.code)
		}
		link := regexp.MustCompile(`/people/(\d+)">ann<`).FindStringSubmatch(admin.get("/people").text)
		if link == nil {
			t.Fatal("ann is not among the people")
		}
		if got := admin.submit("/people/"+link[1], "is_active", "on", "desktops", "pc1"); got.code != http.StatusFound {
			t.Fatalf("%d %s", got.code, got.text)
		}
		ticket := ann.ticket("pc1")
		// Whoever may not log in any more has no use of a ticket either.
		if got := admin.submit("/people/"+link[1], "desktops", "pc1"); got.code != http.StatusFound {
			t.Fatalf("%d %s", got.code, got.text)
		}
		if code, _ := c.redeem(c.secrets[plan.GatewayKey], ticket); code != http.StatusNotFound {
			t.Errorf("the ticket of somebody who may not log in: %d", code)
		}
		if got := ann.get("/desktops"); got.code != http.StatusFound {
			t.Errorf("her session goes on: %d", got.code)
		}
	})
	t.Run("a form that comes from elsewhere is refused", func(t *testing.T) {
		if got := admin.do(http.MethodPost, "/desktops/pc1", url.Values{"csrfmiddlewaretoken": {"made-up"}}); got.code != http.StatusForbidden {
			t.Errorf("%d", got.code)
		}
		if got := admin.do(http.MethodPost, "/logout", url.Values{}); got.code != http.StatusForbidden || admin.broker() == "" {
			t.Errorf("%d", got.code)
		}
	})
	t.Run("answers say what browsers shall keep to", func(t *testing.T) {
		got := c.person().get("/login")
		for name, want := range map[string]string{
			"Content-Security-Policy": "frame-ancestors 'none'", "X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff",
			"Strict-Transport-Security": "max-age=", "Cache-Control": "no-store", "Referrer-Policy": "same-origin",
		} {
			if !strings.Contains(got.header.Get(name), want) {
				t.Errorf("%s: %q, want %q", name, got.header.Get(name), want)
			}
		}
		for _, cookie := range got.header.Values("Set-Cookie") {
			if !strings.Contains(cookie, "Secure") || !strings.Contains(cookie, "HttpOnly") || !strings.Contains(cookie, "SameSite=") {
				t.Errorf("cookie %q", cookie)
			}
		}
		for _, file := range []string{"/static/style.css", "/static/icon.svg", "/static/again.js"} {
			if got := c.person().get(file); got.code != http.StatusOK {
				t.Errorf("%s: %d", file, got.code)
			}
		}
		if regexp.MustCompile(`(src|href)="(https?:)?//`).MatchString(got.text) {
			t.Error("the page asks for something from elsewhere")
		}
	})
	t.Run("a host name that is none of the cluster's is not answered", func(t *testing.T) {
		client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
		request, err := http.NewRequest(http.MethodGet, "https://"+vip+"/login", nil)
		must(t, err)
		request.Host = "evil.example.org"
		response, err := client.Do(request)
		must(t, err)
		response.Body.Close()
		if response.StatusCode != http.StatusBadRequest {
			t.Errorf("%d", response.StatusCode)
		}
	})
	t.Run("what is exchanged is taken up without a restart, and nothing else is", func(t *testing.T) {
		second.Put(t, "/usr/bin/systemctl", "#!/bin/sh\nfor last; do :; done\necho $last >>/reloads\n")
		second.succeed("root", "chmod", "0755", "/usr/bin/systemctl")
		changes := func() (units string) {
			t.Helper()
			second.Put(t, "/reloads", "")
			second.tell(false)
			second.succeed("root", "/usr/lib/broker/take-up")
			for _, unit := range strings.Fields(second.File(t, "/reloads")) {
				second.reload(unit)
				units += unit + " "
			}
			return units
		}
		shown := func() (serial string) {
			conn, err := tls.Dial("tcp", "10.77.1.32:443", &tls.Config{RootCAs: c.authority.Pool(), ServerName: "br2"})
			if err != nil {
				return err.Error()
			}
			defer conn.Close()
			return conn.ConnectionState().PeerCertificates[0].SerialNumber.String()
		}
		if got := changes(); got != "" {
			t.Errorf("nothing has changed, and %s is reloaded", got)
		}
		before := shown()
		second.Member = c.member("br2") // with another certificate
		if got := changes(); got != "nginx.service " {
			t.Errorf("the certificate is another one, and %q is reloaded", got)
		}
		until(t, "the other certificate is shown", func() bool { now := shown(); return now != before && !strings.Contains(now, " ") })
		workers, err := os.ReadFile("/proc/" + strings.TrimSpace(second.File(t, "/run/nginx.pid")) + "/task/" + strings.TrimSpace(second.File(t, "/run/nginx.pid")) + "/children")
		must(t, err)
		for _, pid := range strings.Fields(string(workers)) {
			if limits, err := os.ReadFile("/proc/" + pid + "/limits"); err == nil && !regexp.MustCompile(`Max open files +16384 `).Match(limits) {
				t.Errorf("nginx may open too few files for its connections:\n%s", limits)
			}
		}

		asked := func(name string) int {
			client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: c.authority.Pool(), ServerName: "br2"}, DisableKeepAlives: true}}
			request, err := http.NewRequest(http.MethodGet, "https://10.77.1.32/healthz/node", nil)
			must(t, err)
			request.Host = name
			response, err := client.Do(request)
			if err != nil {
				return 0
			}
			response.Body.Close()
			return response.StatusCode
		}
		vip := &c.plan.VIPs[0]
		if got := asked("desk.example.internal"); got != http.StatusBadRequest {
			t.Errorf("a name that is none of the cluster's: %d", got)
		}
		vip.Names = append(vip.Names, "desk.example.internal")
		if got := changes(); got != "" {
			t.Errorf("the address has another name, and %s is reloaded", got)
		}
		if got := asked("desk.example.internal"); got != http.StatusOK {
			t.Errorf("a new name of the cluster: %d", got)
		}
		port := vip.ReadWrite
		for _, way := range []struct{ port, want int }{{5999, http.StatusServiceUnavailable}, {port, http.StatusOK}} {
			vip.ReadWrite = way.port
			if got := changes(); got != "broker.service " {
				t.Errorf("the way to the database is another one, and %q is reloaded", got)
			}
			until(t, "it is taken", func() bool { return asked("br2") == way.want })
		}
	})
	t.Run("maintenance shows to balancers and not to the node", func(t *testing.T) {
		second.tell(true)
		for path, want := range map[string]string{"/healthz": "404", "/healthz/node": "200"} {
			if got := second.status(443, path); got != want {
				t.Errorf("%s: %s, want %s", path, got, want)
			}
		}
		second.tell(false)
	})
	t.Run("too many logins that fail are refused, at both brokers", func(t *testing.T) {
		for i := range 10 {
			if got := c.person().login("admin", "wrong"); got.code != http.StatusOK || !strings.Contains(got.text, "do not belong together") {
				t.Fatalf("the %d. time: %d %s", i+1, got.code, got.text)
			}
		}
		for range 6 {
			if got := c.person().login("admin", c.secrets[plan.BrokerAdmin]); got.code != http.StatusTooManyRequests || got.header.Get("Retry-After") == "" {
				t.Errorf("then: %d", got.code)
			}
		}
		if admin.broker() == "" {
			t.Error("who was logged in is not any more")
		}
		logs := first.log("broker.service") + second.log("broker.service")
		if !strings.Contains(logs, "from 10.77.1.1 failed") {
			t.Errorf("the journal does not say where they came from: %s", logs)
		}
	})
	t.Run("without the database there is a page that tries again, and afterwards all goes on", func(t *testing.T) {
		m := c.db
		m.stop("postgresql.service", syscall.SIGQUIT)
		got := admin.get("/desktops")
		if got.code != http.StatusServiceUnavailable || got.header.Get("Refresh") == "" {
			t.Errorf("%d %s", got.code, got.text)
		}
		m.start("postgresql.service")
		until(t, "the session is back", func() bool { return admin.broker() != "" })
	})
	t.Run("what is over is removed", func(t *testing.T) {
		m := c.db
		m.succeed("postgres", "psql", "-qAtX", "-d", "broker", "-c", "update desk_ticket set expires = now() - interval '2 days'; update desk_attempts set ends = now()")
		first.succeed("broker", "/usr/lib/broker/manage", "tidy")
		if left := m.succeed("postgres", "psql", "-qAtX", "-d", "broker", "-c", "select (select count(*) from desk_ticket) + (select count(*) from desk_attempts)"); strings.TrimSpace(left) != "0" {
			t.Errorf("%s rows are left", left)
		}
	})
}
