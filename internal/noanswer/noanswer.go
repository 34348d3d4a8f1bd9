// Package noanswer says in a few words why a service on another machine did not
// answer over HTTP and TLS.
//
// In: the error of net/http or of reading an answer's body. Out: the reason alone,
// without a URL and without an address; whoever reports it names the service.
package noanswer

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"
)

// Words is the reason, such as "connection refused".
func Words(err error) string {
	var (
		timeout net.Error
		alert   tls.AlertError
		record  tls.RecordHeaderError
		check   *tls.CertificateVerificationError
	)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, syscall.EHOSTUNREACH):
		return "no route to it, or it is switched off"
	case errors.Is(err, syscall.ENETUNREACH):
		return "no route to its network"
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return "hung up"
	case errors.As(err, &alert):
		return "refuses this certificate (" + alert.Error() + ")"
	case errors.As(err, &record):
		return "answered something that is no TLS"
	case errors.As(err, &check):
		return check.Err.Error()
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer"
	case strings.Contains(err.Error(), "malformed HTTP"): // net/http has no type for it
		return "answered something that is no HTTP"
	}
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	var connection *net.OpError
	if errors.As(err, &connection) {
		err = connection.Err
	}
	return err.Error()
}
