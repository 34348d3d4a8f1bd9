// Command slipway builds appliance images that form highly available clusters
// by themselves. Each subcommand is one file; all of them only read flags, call
// the builder and print what it returns.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

func main() {
	sandbox.Init() // does not return when this process is the inside of a sandbox
	os.Exit(run(os.Args))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second Ctrl-C ends the process at once.
	context.AfterFunc(ctx, stop)

	app := newApp()
	err := app.RunContext(ctx, flagsFirst(app, args))
	if ctx.Err() != nil && err != nil && !errors.Is(err, context.Canceled) {
		err = context.Canceled
	}
	report(app.ErrWriter, err, wantsJSON(args))
	return fault.ExitCode(err)
}

func newApp() *cli.App {
	app := &cli.App{
		Name:    "slipway",
		Usage:   "build appliance images that form highly available clusters by themselves",
		Version: builder.Version,
		Description: strings.TrimSpace(`
A project holds profiles/ (what a role is), overlays/ (the files it brings) and
images.lock (every package by hash). "slipway lock" writes the lock, "slipway
build" turns it into images; neither needs root. A cluster is described in one
file, cluster.yaml: "slipway init" writes it, "slipway check" finds its mistakes.

Examples:
  slipway lock                          # pin packages, or refresh the pins
  slipway build --all                   # every role, as qcow2 and OVA, into out/
  slipway build db-master --format raw  # one role, one format
  slipway inspect out/db-master.ova     # what is in an image
  slipway diff old.qcow2 new.qcow2      # what an upgrade changes
  slipway init && slipway check         # describe a cluster

Exit status: 0 success, 1 a defect in slipway, 2 wrong usage, 3 wrong input
file, 4 the host lacks something, 5 network, 6 a hash or signature does not fit,
7 disk full, 8 a check found a difference, 9 what was run failed, 130 Ctrl-C.`),
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "project", Usage: "directory that holds profiles/, overlays/ and images.lock `DIR`", DefaultText: "this one or the nearest above", EnvVars: []string{"SLIPWAY_PROJECT"}},
			&cli.StringFlag{Name: "cache", Usage: "content-addressed cache `DIR`", DefaultText: "slipway in the user's cache directory", EnvVars: []string{"SLIPWAY_CACHE"}},
			&cli.StringFlag{Name: "log-level", Usage: "`LEVEL`: debug, info, warning or error", Value: "info"},
			&cli.StringFlag{Name: "log-format", Usage: "`FORMAT` of log lines: text or json", Value: "text"},
			&cli.StringFlag{Name: "progress", Usage: "`HOW` to show progress: auto, bars, lines or none", Value: "auto"},
		},
		Commands: []*cli.Command{
			lockCommand(), buildCommand(), pushCommand(), inspectCommand(), diffCommand(), sbomCommand(), cacheCommand(), mirrorCommand(),
			initCommand(), checkCommand(), schemaCommand(), seedCommand(), secretCommand(),
			completionCommand(),
			switchoverCommand(), maintenanceCommand(), promoteSiteCommand(), demoteSiteCommand(), shareCommand(), addCommand(), removeCommand(), replaceCommand(), rotateCommand(), backupCommand(), backupsCommand(), restoreCommand(), upgradeCommand(), rollbackCommand(), factoryResetCommand(), versionsCommand(), auditCommand(),
			upCommand(), statusCommand(), sshCommand(), consoleCommand(), screenshotCommand(), downCommand(), injectCommand(), healCommand(), drillCommand(), labDaemonCommand(), labDialCommand(),
		},
		EnableBashCompletion: true,
		Suggest:              true,
		ErrWriter:            os.Stderr,
		// Errors are printed by report, with their mend; cli must not exit by itself.
		ExitErrHandler: func(*cli.Context, error) {},
		OnUsageError:   usageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fault.New(fault.Usage, "there is no command %q", c.Args().First()).WithMend("see slipway --help")
			}
			return cli.ShowAppHelp(c)
		},
	}
	onUsageError(app.Commands)
	return app
}

// onUsageError has every command, at any depth, report wrong flags as ours.
func onUsageError(commands []*cli.Command) {
	for _, c := range commands {
		c.OnUsageError = usageError
		onUsageError(c.Subcommands)
	}
}

// usageError gives what the flag package complains of its class.
func usageError(c *cli.Context, err error, _ bool) error {
	return fault.New(fault.Usage, "%w", err).WithMend("see %s --help", c.Command.HelpName)
}

// wantsJSON tells, before flags are parsed, whether errors are to be JSON too.
func wantsJSON(args []string) bool {
	for _, a := range args {
		if a == "--" {
			return false
		}
		if a == "--json" || a == "-json" || a == "--json=true" {
			return true
		}
	}
	return false
}

// report prints an error the way the user asked for.
func report(w io.Writer, err error, asJSON bool) {
	if err == nil {
		return
	}
	interrupted := errors.Is(err, context.Canceled)
	if asJSON {
		class := fault.Of(err).String()
		if interrupted {
			class = "interrupted"
		}
		line, _ := json.Marshal(map[string]any{"error": map[string]string{"class": class, "message": err.Error(), "mend": fault.Mend(err)}})
		fmt.Fprintln(w, string(line))
		return
	}
	if interrupted {
		fmt.Fprintln(w, "slipway: interrupted; nothing half-written is left; "+cmp.Or(fault.Mend(err), "run the same command again to go on"))
		return
	}
	fmt.Fprintln(w, "slipway: "+err.Error())
	if mend := fault.Mend(err); mend != "" {
		fmt.Fprintln(w, "         "+mend)
	}
}

// session is what every command needs: where the project is, a logger, and
// progress.
type session struct {
	project  string
	log      *logrus.Logger
	progress progress.Reporter
	close    func()
}

// begin reads the global flags.
func begin(c *cli.Context) (*session, error) {
	log := logrus.New()
	log.SetOutput(c.App.ErrWriter)
	level, err := logrus.ParseLevel(c.String("log-level"))
	if err != nil {
		return nil, fault.New(fault.Usage, "--log-level: %w", err)
	}
	log.SetLevel(level)
	switch c.String("log-format") {
	case "text":
		log.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableLevelTruncation: true})
	case "json":
		log.SetFormatter(&logrus.JSONFormatter{TimestampFormat: time.RFC3339})
	default:
		return nil, fault.New(fault.Usage, "--log-format is text or json, not %q", c.String("log-format"))
	}
	s := &session{log: log, close: func() {}}
	how := c.String("progress")
	if how == "auto" {
		how = "lines"
		if c.String("log-format") == "text" && term.IsTerminal(int(os.Stderr.Fd())) {
			how = "bars"
		}
	}
	switch how {
	case "bars":
		bars := progress.NewBars(os.Stderr)
		log.SetOutput(bars)
		s.progress, s.close = bars, func() { bars.Close(); log.SetOutput(c.App.ErrWriter) }
	case "lines":
		s.progress = progress.Lines(log, 5*time.Second)
	case "none":
		s.progress = progress.None
	default:
		return nil, fault.New(fault.Usage, "--progress is auto, bars, lines or none, not %q", how)
	}
	return s, nil
}

// findProject is begin for commands that work on a project.
func findProject(c *cli.Context) (*session, error) {
	s, err := begin(c)
	if err != nil {
		return nil, err
	}
	s.project, err = projectDir(c.String("project"))
	return s, err
}

// projectDir returns the directory that was named, or the nearest one at or
// above the current one that holds profiles/.
func projectDir(named string) (string, error) {
	holds := func(dir string) bool {
		st, err := os.Stat(filepath.Join(dir, "profiles"))
		return err == nil && st.IsDir()
	}
	if named != "" {
		if !holds(named) {
			return "", fault.New(fault.Usage, "--project %s: there is no profiles/ in it", named)
		}
		return filepath.Abs(named)
	}
	start, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if holds(dir) {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fault.New(fault.Usage, "no profiles/ in %s or above it", start).
				WithMend("run slipway inside a project, or name it with --project DIR")
		}
	}
}

// printJSON writes v to the command's standard output.
func printJSON(c *cli.Context, v any) error {
	enc := json.NewEncoder(c.App.Writer)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
