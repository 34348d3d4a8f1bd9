package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/internal/noanswer"
)

const (
	dialLimit = 3 * time.Second
	askLimit  = 5 * time.Second // for a whole question with its answer
)

// handshakeLimit bounds the handshake of a question; a test has its own.
var handshakeLimit = dialLimit

// What is wrong with others, in words that follow a node's name.
var (
	errNotJSON     = errors.New("answered something that is no JSON")
	errStrange     = errors.New("answered something that this version does not understand")
	errTooLong     = fmt.Errorf("answered more than %d MiB", maxAnswer>>20)
	errForeign     = errors.New("belongs to another cluster")
	errForeignPlan = errors.New("has a plan of another cluster")
	errReplaced    = errors.New("is a machine that was replaced or taken out: its certificate counts no more")
	errNobody      = errors.New("this node does not know its cluster")
)

// client asks one node.
type client struct {
	http *http.Client
	base string
	head http.Header
}

// TLS is how an agent or administrator talks to the agent of a node: it shows a
// certificate, and takes nobody for the node but who can show that node's.
func TLS(cert tls.Certificate, authorities *x509.CertPool, id, name string, now func() time.Time) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"},
		// The chain and the name are checked below: with a time that tests can set,
		// and with words that say which of the many things that can be wrong is.
		InsecureSkipVerify: true,
		VerifyConnection: func(c tls.ConnectionState) error {
			return verify(c.PeerCertificates, authorities, id, name, now())
		},
	}
}

// Refusing takes no node for one whose certificate a plan has revoked, either.
func Refusing(config *tls.Config, p *plan.Plan) *tls.Config {
	return refusing(config, func(c *x509.Certificate) bool { return !slices.Contains(p.Revoked, pki.Serial(c)) })
}

func refusing(config *tls.Config, counts func(*x509.Certificate) bool) *tls.Config {
	before := config.VerifyConnection
	config.VerifyConnection = func(c tls.ConnectionState) error {
		if err := before(c); err != nil {
			return err
		}
		if !counts(c.PeerCertificates[0]) {
			return errReplaced
		}
		return nil
	}
	return config
}

func verify(chain []*x509.Certificate, authorities *x509.CertPool, id, name string, now time.Time) error {
	if len(chain) == 0 || authorities == nil { // nil would be those of the system
		return errForeign
	}
	leaf := chain[0]
	_, err := leaf.Verify(x509.VerifyOptions{Roots: authorities, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired && now.Before(leaf.NotBefore):
		return fmt.Errorf("its certificate is valid from %s; the clock says %s", leaf.NotBefore.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("its certificate expired on %s", leaf.NotAfter.UTC().Format(time.DateOnly))
	case err != nil:
		return errForeign
	}
	who, err := pki.PeerOf(leaf)
	switch {
	case err != nil:
		return errors.New("its certificate is not that of an agent")
	case who.ID != id:
		return errForeign
	case who.Node != name:
		return fmt.Errorf("answers as %q", who.Node)
	}
	return nil
}

// client makes one for a node. The service's lock is held.
func (s *Service) client(n plan.Node) *client {
	self := s.self
	config := refusing(TLS(self.cert, pki.Pool(self.member.CA), self.member.Plan.ID, n.Name, s.Now), s.counts)
	return newClient(n.Address, config, s.Dial,
		http.Header{machineHeader: {self.machine}, bootHeader: {self.boot}})
}

func newClient(address netip.Addr, config *tls.Config, dial func(context.Context, string, string) (net.Conn, error), head http.Header) *client {
	return &client{
		base: "https://" + net.JoinHostPort(address.String(), strconv.Itoa(plan.APIPort)), head: head,
		http: &http.Client{
			Timeout:       askLimit,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				DialContext: dial, TLSClientConfig: config, TLSHandshakeTimeout: handshakeLimit, MaxResponseHeaderBytes: maxHeader,
				MaxConnsPerHost: 2, IdleConnTimeout: idleLimit / 2, DisableCompression: true,
			},
		},
	}
}

// patient takes all limits off but that on the handshake, for questions that are
// watched in another way: what takes long keeps its node from shaking hands soon.
func (c *client) patient(handshake time.Duration) {
	c.http.Timeout = 0
	c.http.Transport.(*http.Transport).TLSHandshakeTimeout = handshake
}

func (c *client) close() { c.http.CloseIdleConnections() }

// conflictError says that another machine has this node's name.
type conflictError struct{ machine string }

func (e *conflictError) Error() string { return "says that another machine has this node's name" }

// ask puts a question and returns the answer's body.
func (c *client) ask(ctx context.Context, method, path string, body []byte, most int64) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.base+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header = c.head.Clone()
	response, err := c.http.Do(request)
	if err != nil {
		return nil, errors.New(noanswer.Words(err))
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, most+1))
	var slow net.Error
	switch {
	case errors.As(err, &slow) && slow.Timeout():
		return nil, fmt.Errorf("took longer than %s to answer", askLimit)
	case err != nil:
		return nil, errors.New(noanswer.Words(err))
	case int64(len(data)) > most:
		return nil, errTooLong
	case response.StatusCode == http.StatusConflict:
		var why refusal
		json.Unmarshal(data, &why)
		return nil, &conflictError{machine: why.Machine[:min(len(why.Machine), 16)]}
	case response.StatusCode/100 != 2:
		return nil, &statusError{response.StatusCode, data}
	}
	return data, nil
}

// statusError is an answer that is neither what was asked for nor a conflict. What
// its body says is for administrators; a node believes no more than the status.
type statusError struct {
	code int
	body []byte
}

func (e *statusError) Error() string { return fmt.Sprintf("answered with status %d", e.code) }

// Fetch asks the agent of a node for its report, as JSON.
func Fetch(ctx context.Context, n plan.Node, config *tls.Config, dial func(context.Context, string, string) (net.Conn, error)) ([]byte, error) {
	c := newClient(n.Address, config, dial, nil)
	defer c.close()
	return c.ask(ctx, http.MethodGet, "/v1/status", nil, maxAnswer)
}
