//go:build long

package desktopstest

import (
	"encoding/json"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/wrk"
)

// TestSessionsAreHeldWhileABrokerDies asks for a page as somebody who is logged in, all
// the time, while the broker that serves it is lost.
func TestSessionsAreHeldWhileABrokerDies(t *testing.T) {
	c, first, second := site(t)
	admin := c.admin()
	home := admin.broker()
	ask := wrk.Load{URL: "https://" + vip + "/desktops", Host: host, Cookies: admin.cookies(), Connections: 16, For: 40 * time.Second}
	ends := wrk.Start(t, ask)
	time.Sleep(ask.For / 4) // a quarter of the time all is well
	for _, m := range []*machine{first, second} {
		if m.name == home {
			m.cut()
		}
	}
	during := ends()
	ask.For = 10 * time.Second
	after := wrk.Start(t, ask)()
	keep(t, "load", map[string]wrk.Figures{"while " + home + " is lost": during, "afterwards": after})
	if during.Good == 0 || after.Good == 0 {
		t.Error("nobody saw the page")
	}
	if during.LoggedOut > 0 || during.Bad > 0 {
		t.Errorf("%d answers wanted a login, and %d were not the page: sessions are not held", during.LoggedOut, during.Bad)
	}
	if after.LoggedOut > 0 || after.Bad > 0 || after.Lost() > 0 || after.Timeout > 0 {
		t.Errorf("afterwards %d answers are not the page, %d are none", after.LoggedOut+after.Bad, after.Lost()+after.Timeout)
	}
	until(t, "the other broker answers", func() bool { got := admin.broker(); return got != home && got != "" })
}

// cookies are what the person's browser shows the brokers.
func (p *person) cookies() (list []string) {
	for _, cookie := range p.http.Jar.Cookies(&url.URL{Scheme: "https", Host: host, Path: "/"}) {
		list = append(list, cookie.Name+"="+cookie.Value)
	}
	return list
}

// keep logs figures, and writes them down where results are kept.
func keep(t *testing.T, name string, figures any) {
	t.Helper()
	data, err := json.MarshalIndent(figures, "", "  ")
	must(t, err)
	t.Logf("%s", data)
	if dir := os.Getenv("SLIPWAY_TEST_OUT"); dir != "" {
		must(t, os.MkdirAll(filepath.Join(dir, "desktops"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "desktops", name+".json"), data, 0o644))
	}
}
