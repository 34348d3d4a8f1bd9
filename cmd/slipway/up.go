package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/slipwayhq/slipway/builder"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

func upCommand() *cli.Command {
	return &cli.Command{
		Name:      "up",
		Usage:     "run a cluster on this machine",
		ArgsUsage: "[FILE [NODE...]]",
		Description: `Boots the nodes of a topology as virtual machines, on a network of their own that
reaches nothing else, and waits until they are ready. Needs no root. The machines
run on in the background until "slipway down". What runs already is left alone, so
that the same command starts what is missing, nodes that were added to the file
since among it (slipway add); disks are kept from one time to the next. Ctrl-C while it waits stops the nodes that this command has started.

Images are not copied: each machine writes to a disk of its own over the image, so
leave an image where it is while a lab uses it.
FILE is cluster.yaml unless another is named.

Examples:
  slipway up                                  # cluster.yaml
  slipway up examples/postgres-ha/cluster.yaml
  slipway up cluster.yaml --build             # make the images that are missing first
  slipway up cluster.yaml a-db1 a-db2         # only these two
  slipway up cluster.yaml --no-wait           # do not wait until they are ready
  slipway up cluster.yaml --seeds seeds       # seeds that slipway seed has written`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "images", Usage: "`DIR` with ROLE.qcow2 for each role", DefaultText: "out/ of the project"},
			&cli.StringFlag{Name: "seeds", Usage: "`DIR` with NODE.nocloud.iso for each node", DefaultText: "written by this command, for this lab"},
			&cli.BoolFlag{Name: "build", Usage: "build images that are missing"},
			&cli.DurationFlag{Name: "timeout", Usage: "how long to wait for the nodes to be ready `TIME`", Value: 30 * time.Minute},
			&cli.DurationFlag{Name: "grace", Usage: "after Ctrl-C, cut the power of nodes that have not ended after `TIME`", Value: 20 * time.Second},
			&cli.BoolFlag{Name: "no-wait", Usage: "return when the machines have power"},
			&cli.IntFlag{Name: "cpus", Usage: "processors of each machine `N`", Value: 1},
			&cli.StringFlag{Name: "memory", Usage: "memory of nodes whose size the topology leaves open `SIZE`", Value: "1GiB"},
			&cli.BoolFlag{Name: "volatile", Usage: "give the disks a write cache that a power cut empties, as real disks have"},
			&cli.BoolFlag{Name: "json", Usage: "print the lab's state as JSON"},
			lockFlag(),
		}, append(labStoreFlags(), sourceFlags()...)...),
		BashComplete: completeNodes,
		Action:       up,
	}
}

func up(c *cli.Context) error {
	l, err := beginLab(c)
	if err != nil {
		return err
	}
	defer l.close()
	if c.Int("cpus") < 1 || c.Int("cpus") > 64 {
		return fault.New(fault.Usage, "--cpus is 1 to 64, not %d", c.Int("cpus"))
	}
	for _, w := range l.topology.Warnings {
		l.log.Warn(w)
	}
	if err := l.ensureDaemon(c); err != nil {
		return err
	}
	began := time.Now()
	wanted := l.names
	if len(wanted) == 0 {
		wanted = nodeNames(l.topology)
	}
	out, err := l.client.Order(c.Context, daemon.Order{Action: daemon.Start, Nodes: wanted})
	if err != nil {
		return err
	}
	if !c.Bool("no-wait") {
		if err := l.converge(c.Context, wanted, c.Duration("timeout")); err != nil {
			if c.Context.Err() != nil {
				return l.interrupted(out.Changed, c.Duration("grace"))
			}
			return err
		}
	}
	l.close()
	state, err := l.client.State(c.Context)
	if err != nil {
		return err
	}
	if c.Bool("json") {
		return printJSON(c, state)
	}
	return l.explain(c, state, out.Changed, wanted, time.Since(began))
}

// ensureDaemon starts the lab's daemon unless it runs. One that runs takes nodes in
// that the topology has now, and lets go of those that it has no more.
func (l *labSession) ensureDaemon(c *cli.Context) error {
	state, err := l.client.State(c.Context)
	switch {
	case err == nil:
		digest, err := daemon.Digest(l.file)
		if err == nil && digest != state.Digest {
			_, err = l.client.Adopt(c.Context)
		}
		return err
	case !errors.Is(err, daemon.ErrNotRunning) && fault.Of(err) != fault.Failed:
		return err
	}
	// A daemon that does not answer still has the lock, and Spawn says so.
	if err := l.place.Make(); err != nil {
		return err
	}
	request, err := l.request(c)
	if err != nil {
		return err
	}
	if err := request.Write(l.place); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	task := l.progress.Start("prepare the machines", 0, 0)
	err = daemon.Spawn(c.Context, l.place, self, "--log-format", "json", "lab-daemon", string(l.place))
	task.Done(err)
	return err
}

// request works out what the daemon is told: which images, which seeds.
func (l *labSession) request(c *cli.Context) (r daemon.Request, err error) {
	var memory profile.Size
	if memory, err = profile.ParseSize(c.String("memory")); err != nil {
		return r, fault.New(fault.Usage, "--memory: %w", err)
	}
	r = daemon.Request{CPUs: c.Int("cpus"), Memory: int64(memory), Volatile: c.Bool("volatile")}
	if r.Topology, err = filepath.Abs(l.file); err != nil {
		return r, err
	}
	if r.Images, err = l.images(c); err != nil {
		return r, err
	}
	if named := c.String("seeds"); named != "" {
		r.Seeds, err = filepath.Abs(named)
		return r, err
	}
	r.Seeds = l.place.Seeds()
	return r, l.writeSeeds(c)
}

// images is the directory with the images, complete if --build may make them.
func (l *labSession) images(c *cli.Context) (string, error) {
	dir := c.String("images")
	if dir == "" {
		project, err := projectDir(c.String("project"))
		if err != nil {
			return "", fault.New(fault.Usage, "%w", err).WithMend("run slipway inside a project, or say where the images are with --images DIR")
		}
		dir = filepath.Join(project, "out")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	var missing []string
	for _, role := range lab.Roles(l.topology) {
		if _, err := os.Stat(lab.Image(dir, role)); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, role)
		} else if err != nil {
			return "", err
		}
	}
	if len(missing) == 0 {
		return dir, nil
	}
	if !c.Bool("build") {
		return "", fault.New(fault.Missing, "%s holds no image of: %s", dir, strings.Join(missing, ", ")).
			WithMend("run: slipway build %s --format qcow2 -o %s, or slipway up with --build", strings.Join(missing, " "), dir)
	}
	return dir, l.build(c, dir, missing)
}

// build makes images as "slipway build" does.
func (l *labSession) build(c *cli.Context, dir string, roles []string) error {
	var err error
	if l.project, err = projectDir(c.String("project")); err != nil {
		return err
	}
	formats, err := builder.ParseFormats("qcow2")
	if err != nil {
		return err
	}
	means, closeCache, err := l.means(c)
	if err != nil {
		return err
	}
	defer closeCache()
	_, err = builder.Build(c.Context, builder.Request{Project: l.project, LockFile: l.lockFile(c), Roles: roles, Formats: formats, Output: dir}, means)
	return err
}

// interrupted stops what this command has started: nobody has been told yet that
// it runs.
func (l *labSession) interrupted(started []string, grace time.Duration) error {
	if len(started) == 0 {
		return context.Canceled
	}
	l.log.Warnf("interrupted: stopping %s, which this command started; Ctrl-C once more leaves the machines running", strings.Join(started, ", "))
	ctx := context.Background() // c.Context has ended
	if _, err := l.client.Order(ctx, daemon.Order{Action: daemon.Shutdown, Nodes: started, Limit: grace}); err != nil {
		return err
	}
	if err := l.quitIfIdle(ctx); err != nil {
		return err
	}
	return context.Canceled
}

// explain says what runs and how to get at it.
func (l *labSession) explain(c *cli.Context, state daemon.State, started, wanted []string, took time.Duration) error {
	w := c.App.Writer
	verb := "ready"
	if c.Bool("no-wait") {
		verb = "powered on"
	}
	fmt.Fprintf(w, "%s: %d nodes %s, %d of them started now, in %.0f s\n", state.Cluster, len(wanted), verb, len(started), took.Seconds())
	fmt.Fprintf(w, "\n  slipway status %s --watch\n  slipway ssh %s %s\n  slipway down %s\n", l.file, l.file, wanted[0], l.file)
	if len(state.Forwards) == 0 {
		return nil
	}
	fmt.Fprintf(w, "\nFrom this computer:\n")
	for _, f := range state.Forwards {
		fmt.Fprintf(w, "  %-10s %-10s  %-21s at %s\n", f.Name, f.Service, f.Guest, f.Host)
	}
	l.explainDatabase(c, state)
	dir, _ := l.storeDir(c)
	fmt.Fprint(w, howToOpen(l.topology.Plan(), state.Forwards, l.file, l.place.Authority(), dir))
	return nil
}
