// Command firstboot is the agent inside an appliance. As a daemon it brings the
// node to what its metadata asks for, at every boot; as a command it tells how
// far the node is.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/slipwayhq/slipway/firstboot/agent"
	"github.com/slipwayhq/slipway/firstboot/console"
	"github.com/slipwayhq/slipway/firstboot/datasource"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/units"
	"github.com/slipwayhq/slipway/internal/fault"
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is main with its surroundings as arguments.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	code := 0
	app := &cli.App{
		Name:  "firstboot",
		Usage: "configure this node from its metadata, and tell how far it is",
		Description: "The daemon runs as slipway-firstboot.service. To see why a node is not ready:\n" +
			"  firstboot status\n  journalctl -u slipway-firstboot",
		HideHelpCommand: true,
		Writer:          stdout,
		ErrWriter:       stderr,
		ExitErrHandler:  func(*cli.Context, error) {},
		Commands: []*cli.Command{
			{Name: "agent", Usage: "run as the daemon", Action: func(*cli.Context) error { return daemon(ctx, stderr) }},
			statusCommand(ctx, stdout, &code),
			auditCommand(stdout),
			{Name: "version", Usage: "print the version of this program", Action: func(*cli.Context) error {
				_, err := fmt.Fprintln(stdout, "firstboot", version())
				return err
			}},
		},
	}
	if err := app.RunContext(ctx, args); err != nil {
		fmt.Fprintln(stderr, "firstboot:", err)
		if mend := fault.Mend(err); mend != "" {
			fmt.Fprintln(stderr, "  "+mend)
		}
		if fault.Of(err) == fault.Usage {
			return 2
		}
		return 1
	}
	return code
}

func daemon(ctx context.Context, stderr io.Writer) error {
	if os.Geteuid() != 0 {
		return fault.New(fault.Usage, "the agent configures the whole node and must be run by root").
			WithMend("to see how far the node is: firstboot status")
	}
	log := logrus.New()
	log.SetOutput(stderr)
	if os.Getenv("JOURNAL_STREAM") != "" {
		log.SetFormatter(console.JournalFormat{})
	}
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGHUP)
	runner := node.Exec{}
	bus := units.NewBus(units.Systemctl{Run: func(ctx context.Context, argv ...string) (string, error) {
		return runner.Run(ctx, node.Command{Argv: argv})
	}})
	defer bus.Close()
	a := &agent.Agent{
		Root:     "/",
		Runner:   runner,
		Units:    bus,
		Metadata: datasource.Machine(),
		Socket:   status.Socket,
		Last:     status.LastReport,
		Again:    again,
		Watchers: []status.Watcher{
			console.Journal{Log: log},
			console.NewScreen("/dev/tty1", time.Now),
			console.NewLines(console.Serial("/sys", "/dev")),
		},
	}
	return a.Run(ctx)
}

func statusCommand(ctx context.Context, stdout io.Writer, code *int) *cli.Command {
	return &cli.Command{
		Name:  "status",
		Usage: "tell how far the node is: which step, since when, waiting for what",
		Description: `Exit status:
  0  ready         everything that was asked for is in effect (or maintenance)
  1  no agent answers and none has left a report
  2  the command line is wrong
  3  degraded      the role is up; something that was asked for is not in effect
  4  starting, converging (or not settled within --wait)
  5  unconfigured  there is no metadata
  6  failed        the role is not up`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "json", Usage: "print the whole report as JSON (docs/metadata.md)"},
			&cli.DurationFlag{Name: "wait", Usage: "wait up to this `DURATION` (such as 90s) until the node has settled"},
		},
		OnUsageError: func(_ *cli.Context, err error, _ bool) error { return fault.New(fault.Usage, "%w", err) },
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fault.New(fault.Usage, "status takes no argument, but was given %q", c.Args().First())
			}
			var (
				report status.Report
				live   bool
				err    error
			)
			if limit := c.Duration("wait"); limit > 0 {
				report, live, err = status.Wait(ctx, status.Socket, status.LastReport, limit)
			} else {
				report, live, err = status.Ask(ctx, status.Socket, status.LastReport)
			}
			if err != nil {
				return err
			}
			*code = report.State.ExitCode()
			if c.Bool("json") {
				out := json.NewEncoder(stdout)
				out.SetIndent("", "  ")
				return out.Encode(report)
			}
			style := status.Plain
			if f, ok := stdout.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" {
				style = status.Colour
			}
			if !live {
				fmt.Fprintln(stdout, "No agent answers; this is its last report. See: systemctl status slipway-firstboot")
			}
			_, err = io.WriteString(stdout, report.Text(time.Now(), style))
			return err
		},
	}
}

func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(development)"
	}
	return info.Main.Version
}
