package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/drill"
	"github.com/slipwayhq/slipway/qemu-tests/drill/faults"
	"github.com/slipwayhq/slipway/qemu-tests/drill/rehearsal"
	drillreport "github.com/slipwayhq/slipway/qemu-tests/drill/report"
	"github.com/slipwayhq/slipway/qemu-tests/drill/schedule"
)

func drillCommand() *cli.Command {
	return &cli.Command{
		Name:      "drill",
		Usage:     "hurt a fresh copy of a cluster on this machine, and see whether it loses anything",
		ArgsUsage: "[FILE]",
		Description: `Boots the nodes of a topology as virtual machines of their own, beside any lab of
"slipway up", has clients write and read through the virtual address, and makes
faults, one after the other: power cuts, killed processes, partitions, full disks,
wrong clocks. After each it waits until the cluster is whole again, with nobody's
help. In the end it compares what clients were told with what the databases hold.

What happens when comes from the seed alone; --seed repeats a drill. Images that
are missing are built. The machines and all that belongs to them are removed in the
end, and with --keep or after a failure kept for a look.

--restore rehearses the loss of all databases instead: clients write, a backup is made, they
write on, all machines but the repository are lost with their disks, new ones take their places,
and "slipway restore --to latest" brings the database back. All rows are compared with those
that were acknowledged; the result says how many of the last were lost, and how long it took.
The cluster needs a repository: "backup" in FILE (docs/drill.md, "Restore", shows one).

FILE is cluster.yaml unless another is named.

Ctrl-C ends the fault that is under way, makes no other, and tells the result of the
rounds so far; a second one ends the drill at once, without a result.

Exit status: 0 everything held, 9 something did not, 130 it was interrupted.

Examples:
  slipway drill                                    # each fault once
  slipway drill --list                             # which faults there are
  slipway drill --fault power-cut --rounds 10      # one fault, ten times
  slipway drill --fault power-cut --target primary # the machine that serves loses its power
  slipway drill --fault pause --fault partition --seed 42 --report drill.html
  slipway drill --rounds 3 --duration 2h           # no fault is begun after two hours
  slipway drill --seed 42 --dry-run                # what would happen when
  slipway drill --restore with-backup.yaml         # lose everything but the backups`,
		Flags: append([]cli.Flag{
			&cli.StringSliceFlag{Name: "fault", Usage: "make only the fault `NAME`; may be given again", DefaultText: "all"},
			&cli.StringFlag{Name: "target", Usage: "hit only `TARGET`, with the faults that may", DefaultText: "all of a fault's targets in turn"},
			&cli.IntFlag{Name: "rounds", Usage: "make each fault `N` times", Value: 1},
			&cli.Uint64Flag{Name: "seed", Usage: "what the schedule comes from `N`", DefaultText: "chosen by chance, and printed"},
			&cli.DurationFlag{Name: "duration", Usage: "begin no fault after `TIME`", DefaultText: "no bound"},
			&cli.BoolFlag{Name: "restore", Usage: "make no fault: lose all databases, bring them back from their backups into new machines, and compare"},
			&cli.StringFlag{Name: "report", Usage: "write a page with a timeline to `FILE`"},
			&cli.StringFlag{Name: "history", Usage: "keep what the clients saw, JSON lines, in `FILE`"},
			&cli.BoolFlag{Name: "json", Usage: "print the result as JSON"},
			&cli.BoolFlag{Name: "list", Usage: "list the faults, and do nothing"},
			&cli.BoolFlag{Name: "dry-run", Usage: "print the schedule, and do nothing"},
			&cli.BoolFlag{Name: "keep", Usage: "keep disks and logs of the machines"},
			&cli.StringFlag{Name: "images", Usage: "`DIR` with ROLE.qcow2 for each role", DefaultText: "out/ of the project"},
			&cli.IntFlag{Name: "cpus", Usage: "processors of each machine `N`", Value: 1},
			&cli.StringFlag{Name: "memory", Usage: "memory of nodes whose size the topology leaves open `SIZE`", Value: "1GiB"},
			&cli.DurationFlag{Name: "timeout", Usage: "how long the cluster may take to form, and half of it to recover `TIME`", Value: 40 * time.Minute},
			&cli.BoolFlag{Name: "build", Usage: "build images that are missing", Value: true},
			lockFlag(),
		}, sourceFlags()...),
		BashComplete: completeFiles,
		Action:       runDrill,
	}
}

func runDrill(c *cli.Context) error {
	if c.Bool("list") {
		return listFaults(c)
	}
	l, err := beginLab(c)
	if err != nil {
		return err
	}
	defer l.close()
	if len(l.names) > 0 {
		return fault.New(fault.Usage, "slipway drill takes the whole cluster").WithMend("see slipway drill --help")
	}
	if c.Int("cpus") < 1 || c.Int("cpus") > 64 {
		return fault.New(fault.Usage, "--cpus is 1 to 64, not %d", c.Int("cpus"))
	}
	if c.Bool("restore") {
		for _, name := range []string{"fault", "target", "rounds", "seed", "duration", "report", "history", "dry-run"} {
			if c.IsSet(name) {
				return fault.New(fault.Usage, "--restore makes no faults, and takes no --%s", name)
			}
		}
		if err := rehearsal.Check(l.topology.Plan()); err != nil {
			return err
		}
		return l.onSite(c, l.rehearse)
	}
	chosen, err := faults.Named(c.StringSlice("fault"))
	if err != nil {
		return err
	}
	if c.IsSet("target") {
		aimed, err := faults.At(schedule.Target(c.String("target")), chosen)
		if err == nil && c.IsSet("fault") && len(aimed) < len(chosen) {
			err = fault.New(fault.Usage, "not every fault that is named hits the target %q", c.String("target")).WithMend("slipway drill --list tells which fault has which targets")
		}
		if err != nil {
			return err
		}
		chosen = aimed
	}
	seed := c.Uint64("seed")
	if !c.IsSet("seed") {
		if seed, err = anySeed(); err != nil {
			return err
		}
	}
	rounds, err := schedule.New(l.topology.Plan(), faults.Schedule(chosen), c.Int("rounds"), seed)
	if err != nil {
		return err
	}
	if c.Bool("dry-run") {
		return printSchedule(c, seed, rounds)
	}
	return l.onSite(c, func(c *cli.Context, site *drill.Site, dir string) (bool, error) {
		return l.drill(c, site, dir, chosen, rounds, seed)
	})
}

// onSite makes a cluster, has something done with it, and takes it away again, unless what
// came of it is suspect: then disks and logs are kept for a look.
func (l *labSession) onSite(c *cli.Context, do func(c *cli.Context, site *drill.Site, dir string) (suspect bool, err error)) (err error) {
	memory, err := profile.ParseSize(c.String("memory"))
	if err != nil {
		return fault.New(fault.Usage, "--memory: %w", err)
	}
	images, err := l.images(c)
	if err != nil {
		return err
	}
	l.close() // from here on, lines
	dir, err := l.scratch()
	if err != nil {
		return err
	}
	kept := c.Bool("keep")
	defer func() {
		if kept {
			l.log.Infof("disks, logs and the clients' history are kept in %s", dir)
		} else if gone := os.RemoveAll(dir); err == nil {
			err = gone
		}
	}()
	site, err := drill.NewSite(c.Context, drill.SiteConfig{Topology: l.topology, Images: images, Dir: dir, CPUs: c.Int("cpus"), Memory: int64(memory), Log: l.log})
	if err != nil {
		return err
	}
	defer site.Close() // before the directory goes
	began := time.Now()
	l.log.Infof("%d machines get power, those with the data and the votes first; waiting until the cluster has formed", len(l.topology.Nodes))
	if err := site.Form(c.Context, c.Duration("timeout")); err != nil {
		kept = c.Context.Err() == nil || kept
		return err
	}
	l.log.Infof("the cluster has formed in %.0f s", time.Since(began).Seconds())
	suspect, err := do(c, site, dir)
	kept = kept || suspect
	return err
}

// rehearse brings the database back from its backups, and shows what came of it.
func (l *labSession) rehearse(c *cli.Context, site *drill.Site, _ string) (suspect bool, err error) {
	ground := &rehearsal.Lab{Site: site, FormTime: c.Duration("timeout"), Log: l.log}
	l.log.Info("waiting until nothing is under way any more")
	if err := ground.Whole(c.Context); err != nil {
		return c.Context.Err() == nil, err
	}
	result, err := rehearsal.Run(c.Context, rehearsal.Config{
		Cluster: l.topology.Name, Version: builder.Version, Log: l.log, Patience: c.Duration("timeout") / 2,
		After: rehearsal.WritesOn(site.Plan), Ground: ground,
	})
	if err != nil {
		return c.Context.Err() == nil, err
	}
	if c.Bool("json") {
		err = printJSON(c, result)
	} else {
		_, err = io.WriteString(c.App.Writer, result.Text())
	}
	if err == nil && !result.Held() {
		err = fault.New(fault.Failed, "what is back of %s is not what was written", result.Cluster)
	}
	return !result.Held(), err
}

// drill hurts the cluster and shows what came of it.
func (l *labSession) drill(c *cli.Context, site *drill.Site, dir string, chosen []faults.Fault, rounds []schedule.Round, seed uint64) (suspect bool, err error) {
	l.log.Infof("seed %d, %d rounds", seed, len(rounds))
	file, err := os.OpenFile(historyFile(c, dir), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return false, err
	}
	defer file.Close()
	ctx, end := untilSecondInterrupt(c.Context, func() {
		l.log.Warn("ending the fault that is under way; when the cluster is whole again, the result of the rounds so far follows; Ctrl-C again ends the drill at once, without a result")
	})
	defer end()
	result, err := drill.Run(ctx, drill.Config{
		Cluster: l.topology.Name, Version: builder.Version, Seed: seed, Schedule: rounds, Faults: faults.On(site.Lab, chosen),
		Ground: site.Lab, Load: site.Clients, History: file, Until: c.Duration("duration"), Stop: c.Context.Done(), Recover: c.Duration("timeout") / 2, Log: l.log,
	})
	if err != nil {
		return !errors.Is(err, context.Canceled), err
	}
	return !result.Held(), cmp.Or(showDrill(c, result), drilled(c.Context, result))
}

// untilSecondInterrupt is ctx for something that ends by itself, and well, after a first
// Ctrl-C, at which first is called: it ends with the second one, or when the process is
// asked to terminate.
func untilSecondInterrupt(ctx context.Context, first func()) (lasting context.Context, end func()) {
	lasting, cancel := context.WithCancel(context.WithoutCancel(ctx))
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		defer cancel()
		defer signal.Stop(signals)
		for warned := false; ; warned = true {
			select {
			case s := <-signals:
				if warned || s == syscall.SIGTERM {
					return
				}
				first()
			case <-lasting.Done():
				return
			}
		}
	}()
	return lasting, cancel
}

// scratch is a new directory beside those of labs: disks may be too large for where
// temporary files are.
func (l *labSession) scratch() (string, error) {
	drills := filepath.Join(filepath.Dir(filepath.Dir(string(l.place))), "drill")
	if err := os.MkdirAll(drills, 0o700); err != nil {
		return "", err
	}
	return os.MkdirTemp(drills, l.topology.Name+"-")
}

func historyFile(c *cli.Context, dir string) string {
	if named := c.String("history"); named != "" {
		return named
	}
	return filepath.Join(dir, "history.jsonl")
}

// showDrill prints and writes the result.
func showDrill(c *cli.Context, result *drill.Result) error {
	if name := c.String("report"); name != "" {
		if err := atomicfile.Write(name, 0o644, func(f *os.File) error { return drillreport.HTML(f, result) }); err != nil {
			return err
		}
	}
	var err error
	if c.Bool("json") {
		err = printJSON(c, result)
	} else {
		_, err = io.WriteString(c.App.Writer, drillreport.Text(result))
	}
	return err
}

// drilled is an error if anything did not hold, or if ctx has ended before all rounds
// were made.
func drilled(ctx context.Context, result *drill.Result) error {
	if ctx.Err() != nil {
		found := "all held"
		if !result.Held() {
			found = "something did not hold"
		}
		return fault.New(fault.Failed, "%w", context.Canceled).WithMend("rounds made: %d, and %s; not begun: %d", len(result.Rounds), found, result.Skipped)
	}
	if result.Held() {
		return nil
	}
	return fault.New(fault.Failed, "the drill of %s found something that did not hold", result.Cluster).
		WithMend("the same faults again: slipway drill with --seed %d", result.Seed)
}

// anySeed is short enough to be typed.
func anySeed() (uint64, error) {
	var b [4]byte
	_, err := rand.Read(b[:])
	return uint64(binary.BigEndian.Uint32(b[:])), err
}

// listedFault is a line of "slipway drill --list".
type listedFault struct {
	Name    string            `json:"name"`
	Targets []schedule.Target `json:"targets"`
	About   string            `json:"about"`
}

func listFaults(c *cli.Context) error {
	var all []listedFault
	for _, f := range faults.All() {
		all = append(all, listedFault{f.Name, f.Targets, f.About})
	}
	if c.Bool("json") {
		return printJSON(c, all)
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "FAULT\tTARGETS\tWHAT HAPPENS")
	for _, f := range all {
		var targets []string
		for _, t := range f.Targets {
			targets = append(targets, string(t))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", f.Name, strings.Join(targets, " "), f.About)
	}
	return w.Flush()
}

func printSchedule(c *cli.Context, seed uint64, rounds []schedule.Round) error {
	if c.Bool("json") {
		return printJSON(c, map[string]any{"schedule_format": schedule.Format, "seed": seed, "rounds": rounds})
	}
	_, err := fmt.Fprintf(c.App.Writer, "seed %d\n\n%s", seed, schedule.Text(rounds))
	return err
}
