package layer

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// builder is one layer in the making.
type builder struct {
	Input
	pkgs  []*pkg
	graph *graph
	plan  plan

	overlayWork string
	logFile     *os.File
	log         io.Writer

	session *sandbox.Session
	root    *deb.Root // Dir, or the overlay's mount
	db      database
	owners  owners

	configured  map[*pkg]bool
	runningDpkg string
	watch       stopwatch
}

// Build makes a layer. On error Dir and Work may hold half of it, for the
// caller to remove; no process and no mount is left.
func Build(ctx context.Context, in Input) (_ *Result, err error) {
	b := &builder{Input: in, configured: map[*pkg]bool{}, watch: newStopwatch()}
	defer b.close()
	if err := b.prepare(); err != nil {
		return nil, err
	}
	steps := []struct {
		name string
		run  func(context.Context) error
	}{
		{"open", b.open},
		{"unpack", b.unpackFirst},
		{"essential", b.configureFirst},
		{"preinst", b.unpackLate},
		{"configure", b.configureRest},
		{"clean", b.clean},
	}
	endWork := func() {}
	defer func() { endWork() }()
	for _, step := range steps {
		switch step.name {
		case "essential": // from here on scripts run one after another
			endWork = b.workAhead(ctx)
		case "clean":
			endWork()
		}
		if err := step.run(ctx); err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, fmt.Errorf("layer %s: %w", in.Name, err)
		}
		b.watch.lap(step.name)
	}
	return &Result{Dir: in.Dir, Packages: describe(b.pkgs), Log: b.logFile.Name(), Stages: b.watch.stages}, nil
}

// prepare reads the packages and makes the directories.
func (b *builder) prepare() (err error) {
	if b.Progress == nil {
		b.Progress = progress.None
	}
	if b.Keep == nil {
		b.Keep = KeepDefault
	}
	for _, dir := range []string{b.Dir, b.Work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	entries, err := os.ReadDir(b.Dir)
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("directory %s of layer %s is not empty", b.Dir, b.Name)
	}
	// The directory is the layer's root directory, whatever the caller's umask.
	if err := os.Chmod(b.Dir, 0o755); err != nil {
		return err
	}
	if b.LogFile == "" {
		b.LogFile = filepath.Join(b.Work, b.Name+".log")
	}
	if b.logFile, err = os.Create(b.LogFile); err != nil {
		return err
	}
	b.log = b.logFile
	if b.Log != nil {
		b.log = io.MultiWriter(b.logFile, b.Log)
	}
	if b.pkgs, err = readPackages(b.Debs); err != nil {
		return err
	}
	b.graph = newGraph(b.pkgs)
	b.plan, err = makePlan(b.graph, b.pkgs, b.base())
	b.watch.lap("read")
	return err
}

// base tells whether this is the layer at the bottom.
func (b *builder) base() bool { return b.Lower == "" }

// open brings up the sandbox. For a base layer that takes a dpkg-deb to be there.
func (b *builder) open(ctx context.Context) (err error) {
	config := sandbox.Config{Root: b.Dir, Date: b.Date}
	if b.base() {
		if b.root, err = deb.OpenRoot(b.Dir); err != nil {
			return err
		}
		b.db, b.owners = database{b.root}, owners{root: b.root}
		if err := b.skeleton(); err != nil {
			return err
		}
		if err := b.unpack(ctx, b.plan.bootstrap); err != nil {
			return err
		}
	} else {
		if b.overlayWork, err = os.MkdirTemp(b.Work, "overlay-"); err != nil {
			return err
		}
		config = sandbox.Config{Lower: []string{b.Lower}, Upper: b.Dir, Work: b.overlayWork, Date: b.Date}
	}
	if b.session, err = sandbox.Start(ctx, config); err != nil {
		return err
	}
	if b.base() {
		return nil // the session shows Dir itself, only with mounts over /run and the like
	}
	// An overlay can be written through its mount only.
	if b.root, err = deb.OpenRoot(b.session.Root()); err != nil {
		return err
	}
	b.db, b.owners = database{b.root}, owners{root: b.root}
	return nil
}

// skeleton makes what must stand before the first package: the merged /usr,
// which Debian's packages take for granted (Debian 12: debootstrap makes it,
// Debian 13: base-files ships it too), dpkg's database and its options.
func (b *builder) skeleton() error {
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := b.root.MkdirAll("usr/" + name); err != nil {
			return err
		}
		if err := b.root.Symlink("usr/"+name, name); err != nil {
			return err
		}
	}
	for _, name := range []string{"dev", "proc", "sys", "run", "tmp"} {
		if err := b.root.MkdirAll(name); err != nil {
			return err
		}
	}
	if err := b.db.create(); err != nil {
		return err
	}
	return b.root.WriteFile(dpkgConfigPath, 0o644, []byte(dpkgConfig))
}

// unpackFirst unpacks what needs no script before.
func (b *builder) unpackFirst(ctx context.Context) error {
	done := map[*pkg]bool{}
	for _, p := range b.plan.bootstrap {
		done[p] = true
	}
	var now []*pkg
	for _, p := range append(append([]*pkg(nil), b.plan.first...), b.plan.early...) {
		if !done[p] {
			done[p] = true
			now = append(now, p)
		}
	}
	if err := b.unpack(ctx, now); err != nil {
		return err
	}
	if err := b.db.add(append(append([]*pkg(nil), b.plan.bootstrap...), now...)); err != nil {
		return err
	}
	if err := b.root.WriteFile("usr/sbin/policy-rc.d", 0o755, []byte(policy)); err != nil {
		return err
	}
	for name, content := range b.Preseed {
		if err := b.root.WriteFile(name, 0o644, content); err != nil {
			return err
		}
	}
	// openssh-server makes host keys unless files are there. Those would be
	// thrown away, since each node makes its own; clean removes these.
	if _, ok := b.graph.byName["openssh-server"]; ok {
		for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
			if err := b.root.WriteFile("etc/ssh/ssh_host_"+kind+"_key", 0o600, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// policy keeps invoke-rc.d from starting services
// (/usr/share/doc/sysv-rc/README.policy-rc.d: 101 is "action forbidden").
const policy = "#!/bin/sh\nexit 101\n"

// configureFirst brings up the Essential packages, which all others may count on.
func (b *builder) configureFirst(ctx context.Context) error {
	if len(b.plan.first) == 0 {
		return nil
	}
	for _, p := range b.plan.first {
		if p.has("preinst") {
			if err := b.preinst(ctx, p); err != nil {
				return err
			}
		}
	}
	return b.configure(ctx, b.plan.first)
}

// unpackLate unpacks the packages that want to act before they are there.
func (b *builder) unpackLate(ctx context.Context) error {
	for rest := b.plan.late; len(rest) > 0; {
		var wave, before []*pkg
		wave, rest, before = nextWave(b.graph, rest, b.configured)
		if len(before) > 0 {
			if err := b.configure(ctx, before); err != nil {
				return err
			}
		}
		for _, p := range b.graph.ordered(wave) {
			if !contains(wave, p) {
				continue
			}
			if err := b.db.addScript(p, "preinst"); err != nil {
				return err
			}
			if err := b.preinst(ctx, p); err != nil {
				return err
			}
		}
		if err := b.unpack(ctx, wave); err != nil {
			return err
		}
		if err := b.db.add(wave); err != nil {
			return err
		}
	}
	return nil
}

func contains(list []*pkg, p *pkg) bool {
	for _, q := range list {
		if p == q {
			return true
		}
	}
	return false
}

// configureRest configures everything, runs the triggers, and asks dpkg
// whether all is well.
func (b *builder) configureRest(ctx context.Context) error {
	if err := b.configure(ctx, nil); err != nil {
		return err
	}
	complaints, err := b.audit(ctx)
	if err != nil {
		return err
	}
	if complaints != "" {
		return b.failed(ctx, fault.New(fault.Failed, "dpkg --audit finds the result unsound:\n%s", complaints))
	}
	return b.root.Remove("usr/sbin/policy-rc.d")
}

// close frees everything; errors no longer matter.
func (b *builder) close() {
	if b.root != nil {
		b.root.Close()
	}
	if b.session != nil {
		b.session.Close()
	}
	if b.overlayWork != "" {
		os.RemoveAll(b.overlayWork)
	}
	if b.logFile != nil {
		b.logFile.Close()
	}
	closePackages(b.pkgs)
}

type stopwatch struct {
	last   time.Time
	stages []Stage
}

func newStopwatch() stopwatch { return stopwatch{last: time.Now()} }

func (s *stopwatch) lap(name string) {
	now := time.Now()
	s.stages = append(s.stages, Stage{name, now.Sub(s.last)})
	s.last = now
}
