//go:build long

package clustertest

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"regexp"
	"strings"
	"time"
)

// person is somebody at the brokers' pages without a browser: cookies and forms.
type person struct {
	v    *vdi
	http *http.Client
}

func newPerson(v *vdi) *person {
	jar, _ := cookiejar.New(nil) // it fails for no options
	address := v.plan.VIPs[0].Address.Addr().String()
	return &person{v, &http.Client{
		Jar: jar, Timeout: 90 * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: v.authority}, DisableKeepAlives: true,
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return v.Lab().Dial(ctx, address+":443") },
		},
	}}
}

func (p *person) ask(ctx context.Context, method, path string, form url.Values) (int, string, error) {
	request, err := http.NewRequestWithContext(ctx, method, "https://"+people+path, strings.NewReader(form.Encode()))
	if err != nil {
		return 0, "", err
	}
	if form != nil {
		request.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		request.Header.Set("Referer", "https://"+people+path)
	}
	response, err := p.http.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return response.StatusCode, string(text), err
}

var (
	formToken  = regexp.MustCompile(`name="csrfmiddlewaretoken" value="([^"]+)"`)
	answeredBy = regexp.MustCompile(`Answered by ([a-z0-9]+)\.`)
	shownToken = regexp.MustCompile(`readonly spellcheck="false">([^<]+)<`)
)

// submit fills in the form of a page and returns what comes of it.
func (p *person) submit(ctx context.Context, path string, want int, fields url.Values) (string, error) {
	code, text, err := p.ask(ctx, http.MethodGet, path, nil)
	if err != nil {
		return "", err
	}
	token := formToken.FindStringSubmatch(text)
	if token == nil {
		return "", fmt.Errorf("%s: HTTP %d without a form", path, code)
	}
	fields.Set("csrfmiddlewaretoken", token[1])
	code, text, err = p.ask(ctx, http.MethodPost, path, fields)
	if err == nil && code != want {
		err = fmt.Errorf("%s: HTTP %d", path, code)
	}
	return text, err
}

// login has the person log in. The password is hashed hundreds of thousands of times,
// which an emulated broker needs a minute for.
func (p *person) login(ctx context.Context, name, password string) error {
	_, err := p.submit(ctx, "/login", http.StatusFound, url.Values{"username": {name}, "password": {password}})
	return err
}

// ticket has a person who is logged in ask for a way to a desktop.
func (p *person) ticket(ctx context.Context, desktop string) (string, error) {
	text, err := p.submit(ctx, "/desktops/"+desktop, http.StatusOK, url.Values{"tunnel": {"1"}})
	if err != nil {
		return "", err
	}
	found := shownToken.FindStringSubmatch(text)
	if found == nil {
		return "", fmt.Errorf("no ticket to %s", desktop)
	}
	return found[1], nil
}

// broker is the one that answers the person.
func (p *person) broker(ctx context.Context) (string, error) {
	code, text, err := p.ask(ctx, http.MethodGet, "/desktops", nil)
	if err != nil {
		return "", err
	}
	found := answeredBy.FindStringSubmatch(text)
	if found == nil {
		return "", fmt.Errorf("/desktops: HTTP %d", code)
	}
	return found[1], nil
}

// cookies are what the person's browser shows the brokers.
func (p *person) cookies() (list []string) {
	for _, c := range p.http.Jar.Cookies(&url.URL{Scheme: "https", Host: people, Path: "/"}) {
		list = append(list, c.Name+"="+c.Value)
	}
	return list
}
