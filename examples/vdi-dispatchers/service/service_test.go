package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

func TestMain(m *testing.M) { roletest.Main(m) }

// tell writes what the agent of a dispatcher would.
func tell(t testing.TB, m *member.Member, dispatcher string, env ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	pair := m.Certificates[member.ServiceCert]
	lines := append([]string{"SLIPWAY_NODE=" + dispatcher}, env...)
	var text string
	for _, line := range lines {
		name, value, _ := strings.Cut(line, "=")
		text += name + "=\"" + strings.ReplaceAll(value, "DIR", dir) + "\"\n"
	}
	for name, content := range map[string]string{
		"env": text, "pgpass": "*:*:app:app:secret-of-app\n", "ca.pem": m.Authority, "certificate.pem": pair.Certificate, "key.pem": pair.Key,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// loopback is there, which a new network namespace has not.
func loopback(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// throughLibpq is how the database is reached.
func throughLibpq(db *roletest.Node) []string {
	return []string{
		"PGHOST=" + db.Member.Self.Address.String(), "PGPORT=5432", "PGDATABASE=app", "PGUSER=app", "PGPASSFILE=DIR/pgpass", "PGSSLMODE=verify-full",
		"PGSSLROOTCERT=DIR/ca.pem", "PGTARGETSESSIONATTRS=read-write", "PGCONNECT_TIMEOUT=5",
	}
}

// start runs a replica until stop.
func start(t *testing.T, dir, address string) (stop func() error) {
	t.Helper()
	loopback(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx, dir, address) }()
	t.Cleanup(cancel)
	return func() error { cancel(); return <-ended }
}

// browser asks replicas, by the authority's certificate, and keeps cookies.
func browser(t testing.TB, authority string) *http.Client {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(authority))
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	return &http.Client{Jar: jar, Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost"}}}
}

// ask gets a page, waiting until somebody listens.
func ask(t testing.TB, b *http.Client, url string) (int, string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; time.Sleep(100 * time.Millisecond) {
		answer, err := b.Get(url)
		if err != nil {
			if time.Now().After(end) {
				t.Fatal(err)
			}
			continue
		}
		text, err := io.ReadAll(answer.Body)
		answer.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		return answer.StatusCode, string(text)
	}
}

// visit reads the session's state at a replica.
func visit(t testing.TB, b *http.Client, address string) (a answer) {
	t.Helper()
	code, text := ask(t, b, "https://"+address+"/session")
	if err := json.Unmarshal([]byte(text), &a); code != http.StatusOK || err != nil {
		t.Fatalf("%s: HTTP %d, %v: %s", address, code, err, text)
	}
	return a
}

func TestASessionGoesOnAtAnyReplica(t *testing.T) {
	m := roletest.Members(t, roletest.Plan())["a-db1"]
	db := roletest.Start(t, m)
	db.Role = &manifest.Role{Name: "db-master"}
	db.PostgreSQL("app", "secret-of-app")
	const one, two = "127.0.0.1:8443", "127.0.0.1:8444"
	stopOne := start(t, tell(t, m, "d1", throughLibpq(db)...), one)
	start(t, tell(t, m, "d2", throughLibpq(db)...), two)

	b := browser(t, m.Authority)
	first := visit(t, b, one)
	if first.Dispatcher != "d1" || first.Replica == "" || first.Session == nil || first.Session.Visits != 1 {
		t.Fatalf("the first visit: %+v", first)
	}
	second := visit(t, b, two)
	if second.Dispatcher != "d2" || second.Session.Visits != 2 || !second.Session.Begun.Equal(first.Session.Begun) {
		t.Errorf("at the other replica: %+v, %+v", second, second.Session)
	}
	if code, text := ask(t, b, "https://"+two+"/"); code != http.StatusOK || !strings.Contains(text, `<dd id="dispatcher">d2`) || !strings.Contains(text, `<dd id="visits">3`) {
		t.Errorf("the page: HTTP %d\n%s", code, text)
	}
	if err := stopOne(); err != nil {
		t.Errorf("it did not end well: %v", err)
	}
	if third := visit(t, b, two); third.Session.Visits != 4 {
		t.Errorf("after the loss of a replica: %+v", third.Session)
	}

	// A token that the service has not given out begins nothing of that name.
	forged, err := http.NewRequest(http.MethodGet, "https://"+two+"/session", nil)
	if err != nil {
		t.Fatal(err)
	}
	forged.AddCookie(&http.Cookie{Name: cookie, Value: strings.Repeat("A", 43)})
	other := browser(t, m.Authority)
	answer, err := other.Do(forged)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	if c := answer.Cookies(); len(c) != 1 || c[0].Value == strings.Repeat("A", 43) || !c[0].Secure || !c[0].HttpOnly {
		t.Errorf("a forged token: %v", c)
	}
	if n := db.SQL("app", "SELECT count(*) FROM dispatcher_session"); n != "2" {
		t.Errorf("there are %s sessions", n)
	}

	if code, _ := ask(t, b, "https://"+two+"/health"); code != http.StatusOK {
		t.Errorf("health: HTTP %d", code)
	}
	db.StopPostgreSQL()
	if code, _ := ask(t, b, "https://"+two+"/health"); code != http.StatusServiceUnavailable {
		t.Errorf("health without the database: HTTP %d", code)
	}
}

func TestWithoutADatabaseThePageSaysWhoServes(t *testing.T) {
	m := roletest.Members(t, roletest.Plan())["a-db1"]
	const address = "127.0.0.1:8445"
	start(t, tell(t, m, "d7"), address)
	b := browser(t, m.Authority)
	if a := visit(t, b, address); a.Dispatcher != "d7" || a.Session != nil {
		t.Errorf("%+v", a)
	}
	if code, text := ask(t, b, "https://"+address+"/"); code != http.StatusOK || strings.Contains(text, "visits") {
		t.Errorf("HTTP %d\n%s", code, text)
	}
	if code, _ := ask(t, b, "https://"+address+"/nowhere"); code != http.StatusNotFound {
		t.Errorf("HTTP %d", code)
	}
}

func TestWhatTheAgentWritesIsReadAsSystemdReadsIt(t *testing.T) {
	dir := t.TempDir()
	write := func(text string) (map[string]string, error) {
		if err := os.WriteFile(filepath.Join(dir, "env"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return environment(dir)
	}
	env, err := write("A=\"x\"\nB=\"quote \\\" dollar \\$ back \\\\ tick \\`\"\nC=\"\"\n")
	if err != nil || env["A"] != "x" || env["B"] != "quote \" dollar $ back \\ tick `" || env["C"] != "" || len(env) != 3 {
		t.Errorf("%q, %v", env, err)
	}
	if _, err := write("A=\"x\"\nB=y\n"); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("%v", err)
	}
}

func TestACertificateThatWasExchangedIsShown(t *testing.T) {
	m := roletest.Members(t, roletest.Plan())["a-db1"]
	dir := tell(t, m, "d1")
	c := &certificate{dir: dir}
	shown := func() string {
		t.Helper()
		pair, err := c.get(nil)
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%x", pair.Certificate[0])
	}
	put := func(name, content string) {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := shown()
	renewed := roletest.Renewed(t, m)[member.ServiceCert]
	later := time.Now().Add(time.Second)
	put("certificate.pem", renewed.Certificate)
	os.Chtimes(filepath.Join(dir, "certificate.pem"), later, later)
	if shown() != before {
		t.Error("a certificate is shown whose key is not there yet")
	}
	put("key.pem", renewed.Key)
	if shown() == before {
		t.Error("the former certificate is still shown")
	}
}
