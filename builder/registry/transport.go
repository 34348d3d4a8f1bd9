package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/slipwayhq/slipway/internal/fault"
)

// patience is how long a registry may say nothing before it counts as dead.
const patience = time.Minute

// newTransport is the connection that all requests go through.
func newTransport() http.RoundTripper {
	return guard{&http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: patience,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       90 * time.Second,
		DisableCompression:    true, // digests are of the bytes as they travel
	}}
}

// guard refuses HTTP without TLS to anything but this machine, wherever a redirect
// or a registry's answer points. go-containerregistry itself would also use it
// with private networks.
type guard struct{ inner http.RoundTripper }

func (g guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !loopback(req.URL.Hostname()) {
		return nil, fmt.Errorf("%s://%s: only https may be spoken with another machine", req.URL.Scheme, req.URL.Host)
	}
	return g.inner.RoundTrip(req)
}

func loopback(host string) bool {
	if ip := net.ParseIP(host); ip != nil {
		return ip.IsLoopback()
	}
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// body is what a registry sends: a reader that remembers whether reading itself
// failed, and that ends the request when nothing arrives for a while.
type body struct {
	r     io.Reader
	timer *time.Timer
	err   error // of the connection
}

// watch makes a body of r; quit ends the request.
func watch(r io.Reader, quit context.CancelFunc) *body {
	return &body{r: r, timer: time.AfterFunc(patience, quit)}
}

func (b *body) Read(p []byte) (int, error) {
	b.timer.Reset(patience)
	n, err := b.r.Read(p)
	b.timer.Stop() // the time that a slow disk takes is not the registry's
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

// failed gives what went wrong on the way to or from a registry its class.
func failed(ctx context.Context, what string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, context.Canceled) { // by body's timer, not by the user
		err = fmt.Errorf("nothing arrived for %s", patience)
	}
	f := fault.New(fault.Network, "%s: %w", what, err)
	var answer *transport.Error
	if errors.As(err, &answer) && (answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden) {
		return f.WithMend("log in to the registry (docker login, or a credential helper in ~/.docker/config.json), or check the repository's name")
	}
	return f.WithMend("check the repository's name and that this machine reaches the registry")
}

// Transport reaches registries: patiently, and without TLS on this machine alone.
func Transport() http.RoundTripper { return newTransport() }
