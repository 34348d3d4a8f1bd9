package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:      "status",
		Usage:     "ask the nodes of a cluster how they are",
		ArgsUsage: "[FILE]",
		Description: `Asks every agent with the administrator's certificate and shows who is what, who
lags, who holds which virtual address, what waits for what, and when certificates
end. A lab of this cluster that runs on this machine is asked through its gateway;
otherwise, or with --direct, the nodes are asked at the topology's addresses.
FILE is cluster.yaml unless another is named.

Exit status: 0 all is well, 8 something is under way or not as it should be, 9 a
node has failed or does not answer.

Examples:
  slipway status
  slipway status cluster.yaml --watch
  slipway status cluster.yaml --json | jq '.nodes[] | {name, state: .report.state}'`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "watch", Aliases: []string{"w"}, Usage: "show it again and again, until Ctrl-C"},
			&cli.DurationFlag{Name: "interval", Usage: "how often, with --watch `TIME`", Value: 2 * time.Second},
			&cli.BoolFlag{Name: "direct", Usage: "do not look for a lab on this machine"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON; with --watch one document a line"},
		}, labStoreFlags()...),
		BashComplete: completeFiles,
		Action:       showStatus,
	}
}

// clusterStatus is what "slipway status --json" prints.
type clusterStatus struct {
	overview.Overview
	// Lab is the lab that the nodes run in, if it is one on this machine.
	Lab *daemon.State `json:"lab,omitempty"`
}

func showStatus(c *cli.Context) error {
	l, err := beginLab(c)
	if err != nil {
		return err
	}
	defer l.close()
	if len(l.names) > 0 {
		return fault.New(fault.Usage, "slipway status shows the whole cluster").WithMend("on a node: slipway ssh %s %s -- sudo firstboot status", l.file, l.names[0])
	}
	if c.Duration("interval") <= 0 {
		return fault.New(fault.Usage, "--interval is more than 0")
	}
	inLab := false
	if !c.Bool("direct") {
		if inLab, err = l.place.Runs(); err != nil {
			return err
		}
	}
	ask, err := l.asker(c, inLab)
	if err != nil {
		return err
	}
	colour := status.Style(term.IsTerminal(int(os.Stdout.Fd())))
	for {
		now, err := ask(c.Context)
		if c.Bool("watch") && c.Context.Err() != nil {
			return nil // Ctrl-C is how a watch ends
		}
		if err != nil {
			return err
		}
		if err := now.print(c, colour, c.Bool("watch")); err != nil {
			return err
		}
		if !c.Bool("watch") {
			return now.verdict()
		}
		select {
		case <-time.After(c.Duration("interval")):
		case <-c.Context.Done():
			return nil
		}
	}
}

// asker returns what asks all nodes once.
func (l *labSession) asker(c *cli.Context, inLab bool) (func(context.Context) (*clusterStatus, error), error) {
	dir, _ := l.storeDir(c)
	v, err := openStoreIn(c, dir, vault.Options{Cluster: l.topology.Name, ReadOnly: true})
	if err != nil {
		return nil, err
	}
	p, err := v.Plan()
	if err == nil && p == nil {
		err = fault.New(fault.Input, "%s holds no plan yet", v.Dir()).WithMend("run: slipway seed %s", l.file)
	}
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) (*clusterStatus, error) {
		// The certificate is good for a short time, and a watch may last longer.
		cert, authorities, err := v.AdminTLS(pki.AdminRead)
		if err != nil {
			return nil, err
		}
		now := &clusterStatus{}
		dial := (&net.Dialer{}).DialContext
		if inLab {
			state, err := l.client.State(ctx)
			if err != nil {
				return nil, err
			}
			now.Lab, dial = &state, l.client.Dial
		}
		now.Overview = gather(ctx, p, &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: authorities}, dial)
		return now, nil
	}, nil
}

// gatherTime bounds one round of questions.
const gatherTime = 20 * time.Second

func gather(ctx context.Context, p *plan.Plan, config *tls.Config, dial func(context.Context, string, string) (net.Conn, error)) overview.Overview {
	ctx, cancel := context.WithTimeout(ctx, gatherTime)
	defer cancel()
	return overview.Gather(ctx, p, config, dial)
}

// print writes the status, over the last one if it is watched on a terminal.
func (s *clusterStatus) print(c *cli.Context, colour status.Style, watched bool) error {
	if c.Bool("json") {
		if watched {
			return json.NewEncoder(c.App.Writer).Encode(s)
		}
		return printJSON(c, s)
	}
	text := s.Text(time.Now(), colour) + s.power()
	if watched && bool(colour) {
		text = "\x1b[H\x1b[2J" + text // ECMA-48: CUP 8.3.21, ED 8.3.39
	}
	_, err := fmt.Fprint(c.App.Writer, text)
	return err
}

// power says what the lab knows of nodes that cannot answer.
func (s *clusterStatus) power() string {
	if s.Lab == nil {
		return ""
	}
	var off []string
	for _, n := range s.Lab.Nodes {
		if !n.On {
			off = append(off, n.Name)
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nIn the lab on this machine")
	if len(off) > 0 {
		fmt.Fprintf(&b, "; powered off: %s", strings.Join(off, ", "))
	}
	for _, f := range s.Lab.Faults {
		fmt.Fprintf(&b, "; %s of %s", f.Name, strings.Join(f.Nodes, ", "))
	}
	return b.String() + ".\n"
}

// verdict is an error unless all is well: the exit status tells scripts.
func (s *clusterStatus) verdict() error {
	var silent, failed, other []string
	for _, n := range s.Nodes {
		switch {
		case n.Report == nil:
			silent = append(silent, n.Name)
		case n.Report.State == status.Failed || n.Report.State == status.Unconfigured:
			failed = append(failed, n.Name)
		case n.Report.State != status.Ready && n.Report.State != status.Maintenance:
			other = append(other, n.Name)
		}
	}
	var says []string
	for _, part := range []struct {
		nodes []string
		what  string
	}{{silent, "no answer from"}, {failed, "failed:"}, {other, "not ready:"}} {
		if len(part.nodes) > 0 {
			says = append(says, part.what+" "+strings.Join(part.nodes, ", "))
		}
	}
	if n := len(s.Contradictions); n > 0 {
		says = append(says, fmt.Sprintf("%d contradictions", n))
	}
	if says == nil {
		return nil
	}
	class := fault.Drift
	if len(silent)+len(failed) > 0 {
		class = fault.Failed
	}
	return fault.New(class, "%s", strings.Join(says, "; "))
}
