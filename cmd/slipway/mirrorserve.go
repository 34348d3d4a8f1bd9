package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder/mirror/serve"
	"github.com/slipwayhq/slipway/builder/mirror/store"
	"github.com/slipwayhq/slipway/internal/fault"
)

func mirrorServeCommand() *cli.Command {
	return &cli.Command{
		Name:  "serve",
		Usage: "give apt and container clients what the mirror publishes",
		Description: `Serves Debian repositories and an OCI registry, read-only, and metrics for Prometheus at /metrics. A bundle
that is imported meanwhile is served at once. Ends with Ctrl-C or SIGTERM.

Examples:
  slipway mirror serve --listen :8080
  slipway mirror serve --listen :443 --tls-cert mirror.pem --tls-key mirror.key --access-log access.log`,
		Flags: []cli.Flag{storeFlag(),
			&cli.StringFlag{Name: "listen", Usage: "`ADDRESS` to answer on", Value: "localhost:8080"},
			&cli.StringFlag{Name: "tls-cert", Usage: "`FILE` with the certificate and its chain: serve HTTPS"},
			&cli.StringFlag{Name: "tls-key", Usage: "`FILE` with the certificate's key"},
			&cli.StringFlag{Name: "access-log", Usage: "append to `FILE` a line for each request; - is standard output"},
		},
		Action: mirrorServe,
	}
}

func mirrorServe(c *cli.Context) error {
	if (c.String("tls-cert") == "") != (c.String("tls-key") == "") {
		return fault.New(fault.Usage, "--tls-cert and --tls-key go together")
	}
	b, err := begin(c)
	if err != nil {
		return err
	}
	defer b.close()
	dir := c.String("store")
	s, err := store.Read(dir)
	if err != nil {
		return err
	}
	for _, w := range s.Status(time.Now()).Warnings {
		b.log.Warn(w)
	}
	var access io.Writer
	switch name := c.String("access-log"); name {
	case "":
	case "-":
		access = c.App.Writer
	default:
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
		if err != nil {
			return fault.New(fault.Input, "the access log: %w", err)
		}
		defer f.Close()
		access = f
	}
	server, err := serve.New(s.Public(), serve.Options{Access: access, Status: func() (store.Status, map[string]time.Time, error) {
		s, err := store.Read(dir)
		if err != nil {
			return store.Status{}, nil, err
		}
		return s.Status(time.Now()), s.Ring().Expiries(), nil
	}})
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.String("listen"))
	if err != nil {
		return fault.New(fault.Input, "--listen: %w", err)
	}
	scheme := "http"
	if c.String("tls-cert") != "" {
		scheme = "https"
	}
	fmt.Fprintf(c.App.Writer, "serving %s at %s://%s/\n", dir, scheme, l.Addr())
	return server.Serve(c.Context, l, c.String("tls-cert"), c.String("tls-key"))
}
