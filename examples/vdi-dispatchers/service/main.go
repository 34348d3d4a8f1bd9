// Command service is the reference service of dispatchers: a web page over TLS that
// says which dispatcher and which replica serves, with a session that any replica
// goes on with.
//
// In: /etc/slipway/product of the dispatcher that it runs on (docs/payload.md, "What
// the product is told"), mounted as it is: who and where it is, the certificate, and
// how the database is reached. Out: the page at /, the same as JSON at /session, and at
// /health whether it serves. It keeps nothing itself: a replica can be lost at any time,
// and sessions are rows in PostgreSQL.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/net/netutil"
)

// Limits, for one replica: of three, one may have to serve what was meant for all.
const (
	maxConnections = 7000
	maxHeader      = 16 << 10
	headerTime     = 10 * time.Second
	writeTime      = 30 * time.Second
	// Connections may be idle for long: they are those of people who have a page open.
	idleTime  = time.Hour
	drainTime = 8 * time.Second // Docker kills after 10
)

func main() {
	told := flag.String("told", "/etc/slipway/product", "directory with what the agent tells the product")
	listen := flag.String("listen", ":8443", "address to serve at")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := run(ctx, *told, *listen); err != nil {
		slog.Error(err.Error())
		os.Exit(1)
	}
}

// run serves until ctx ends, then lets requests under way come to their end.
func run(ctx context.Context, told, listen string) error {
	env, err := environment(told)
	if err != nil {
		return err
	}
	sessions, err := openSessions(ctx, env)
	if err != nil {
		return err
	}
	defer sessions.close()
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	certificate := &certificate{dir: told}
	server := &http.Server{
		Handler: handler(identity(env), sessions), MaxHeaderBytes: maxHeader,
		ReadHeaderTimeout: headerTime, ReadTimeout: headerTime, WriteTimeout: writeTime, IdleTimeout: idleTime,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: certificate.get},
		ErrorLog:  slog.NewLogLogger(slog.Default().Handler(), slog.LevelDebug),
	}
	drained := make(chan error, 1)
	go func() {
		<-ctx.Done()
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		drained <- server.Shutdown(end)
	}()
	slog.Info("serving", "address", listener.Addr().String())
	err = server.ServeTLS(netutil.LimitListener(listener, maxConnections), "", "")
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving: %w", err)
	}
	return <-drained
}
