// Package mtls asks the services of a cluster, which speak JSON over HTTP and
// know each other by certificates (TLS 1.3, RFC 8446; both sides present one).
//
// In: an authority, a certificate with its key, a URL. Out: the answer, decoded,
// or an error; package noanswer puts it into the few words that suit a report.
// Whoever answers may be broken or hostile: an answer has a limit in size and in
// time, and redirects are not followed.
package mtls

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	answerLimit = 1 << 20
	connectTime = 3 * time.Second
	// A service under load is not one that is down. Whoever gives up early asks
	// again, and the service does the work twice.
	answerTime = 10 * time.Second
)

// Client asks services that one authority vouches for. It keeps connections open.
type Client struct{ http *http.Client }

// New makes a client that trusts an authority (PEM) and presents a certificate.
func New(authority string, pair member.Pair) (*Client, error) {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(authority)) {
		return nil, fault.New(fault.Input, "the seed holds no certificate of the authority")
	}
	certificate, err := tls.X509KeyPair([]byte(pair.Certificate), []byte(pair.Key))
	if err != nil {
		return nil, fault.New(fault.Input, "the seed's certificate cannot be used: %w", err)
	}
	return &Client{&http.Client{
		Timeout:       answerTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12},
			DialContext:     (&net.Dialer{Timeout: connectTime}).DialContext,
			// One connection to each service, kept between two looks at it.
			MaxIdleConnsPerHost: 1, IdleConnTimeout: time.Minute,
			MaxResponseHeaderBytes: 64 << 10,
		},
	}}, nil
}

// Patient is the same client with more time for an answer.
func (c *Client) Patient(limit time.Duration) *Client {
	slow := *c.http
	slow.Timeout = limit
	return &Client{&slow}
}

// Close ends connections that are open.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Refused is an answer that says no.
type Refused struct {
	Status int
	Said   string // the start of the body
}

func (r *Refused) Error() string {
	text := fmt.Sprintf("HTTP %d", r.Status)
	if r.Said != "" {
		text += ": " + r.Said
	}
	return text
}

// JSON sends in (unless it is nil) and decodes the answer into out (unless that
// is nil). Basic credentials in the URL are sent along.
func (c *Client) JSON(ctx context.Context, method, address string, in, out any) error {
	var body io.Reader
	if in != nil {
		data, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(data)
	}
	request, err := http.NewRequestWithContext(ctx, method, address, body)
	if err != nil {
		return err
	}
	if in != nil {
		request.Header.Set("Content-Type", "application/json")
	}
	answer, err := c.http.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	data, err := io.ReadAll(io.LimitReader(answer.Body, answerLimit+1))
	switch {
	case err != nil:
		return err
	case len(data) > answerLimit:
		return fmt.Errorf("the answer is longer than %d bytes", answerLimit)
	case answer.StatusCode >= 300:
		said := strings.Join(strings.Fields(strings.ToValidUTF8(string(data[:min(len(data), 200)]), "?")), " ")
		return &Refused{answer.StatusCode, said}
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(data, out); err != nil {
		return fmt.Errorf("the answer makes no sense: %w", err)
	}
	return nil
}
