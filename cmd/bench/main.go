// Command bench measures slipway side by side with what a user would pick
// instead: for mirrors aptly and skopeo, for images mkosi, and mmdebstrap with mke2fs and
// qemu-img. All make a Debian 13 with the packages of the same role, from package caches that are warm, in one run
// and in turns, so that a busy machine slows all of them alike. It prints medians
// and ratios; the ratios are what a claim may rest on.
//
// It needs root (mkosi and mmdebstrap do, in the way they are run here) and
// installs the peers into out/bench when they are missing.
package main

import (
	"context"
	"embed"
	"encoding/json"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/profile"
)

//go:embed peers
var peerFiles embed.FS

// role is the appliance that all of them build: the one with the most packages
// that Debian itself calls a server.
const role = "db-master"

func main() {
	runs := flag.Int("runs", 3, "how often each is measured; the median counts")
	dir := flag.String("dir", "out/bench", "where peers, caches and results are kept")
	boot := flag.Bool("boot", true, "measure the boot too")
	what := flag.String("of", "", "measure only builds, or only mirrors")
	image := flag.String("image", "", "only write the image that mirrors carry into `DIR`; for bench itself")
	flag.Parse()
	if *image != "" {
		if err := writeImage(*image); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b, err := newBench(ctx, *dir, *runs)
	if err == nil {
		err = b.all(*what, *boot)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	ctx      context.Context
	dir      string // absolute
	project  string // absolute
	slipway  string
	mirror   string
	packages []string // roots of the role, base included
	runs     int
	figures  []figure
}

// figure is one line of the report.
type figure struct {
	What   string  `json:"what"`
	Ours   float64 `json:"ours"`
	Peer   string  `json:"peer"`
	Theirs float64 `json:"theirs"`
	Unit   string  `json:"unit"`
	Ratio  float64 `json:"ratio"`            // ours / theirs
	Target float64 `json:"target,omitempty"` // the ratio, or value, to stay under
}

func newBench(ctx context.Context, dir string, runs int) (*bench, error) {
	if os.Getuid() != 0 {
		return nil, fmt.Errorf("run it as root: the peers need it")
	}
	project, err := os.Getwd()
	if err != nil {
		return nil, err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	b := &bench{ctx: ctx, dir: dir, project: project, slipway: filepath.Join(project, "bin/slipway"), runs: runs}
	set, err := profile.Load("profiles")
	if err != nil {
		return nil, err
	}
	p, err := set.Role(role)
	if err != nil {
		return nil, err
	}
	b.packages = slices.Concat(set.Base.Packages, p.Packages)
	if b.mirror, err = mainMirror(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return b, b.setUp()
}

// mainMirror is the Debian mirror of the machine's own apt sources.
func mainMirror() (string, error) {
	d, err := apt.LoadDistribution(filepath.Join("profiles", profile.DistributionFile))
	if err != nil {
		return "", err
	}
	sources, err := apt.MachineSources("/")
	if err != nil {
		return "", err
	}
	locations, err := apt.Mirrors(d, nil, os.Getenv("SLIPWAY_MIRROR"), sources)
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(locations["main"][0], "/"), nil
}

// setUp writes the peers' files.
func (b *bench) setUp() error {
	return fs.WalkDir(peerFiles, "peers", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := peerFiles.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(b.dir, d.Name()), data, 0o755)
	})
}

// installMkosi makes a tree that holds it.
func (b *bench) installMkosi() error {
	tree := b.tree()
	if _, err := os.Stat(filepath.Join(tree, "usr/bin/mkosi")); err != nil {
		say("installing mkosi into %s", tree)
		if _, err := b.run("mmdebstrap", "--quiet", "--variant=apt",
			"--include=mkosi,ca-certificates,systemd-repart,systemd-boot,systemd-ukify,mtools,dosfstools,e2fsprogs,qemu-utils,debian-archive-keyring,cpio,zstd,kmod,udev,bubblewrap,util-linux",
			"trixie", tree, b.mirror); err != nil {
			return err
		}
	}
	for _, d := range []string{"out", "cache", "packages", "workspace", "extra/etc"} {
		if err := os.MkdirAll(filepath.Join(tree, "work", d), 0o755); err != nil {
			return err
		}
	}
	conf, err := os.ReadFile(filepath.Join(b.dir, "mkosi.conf"))
	if err != nil {
		return err
	}
	text := strings.NewReplacer("@MIRROR@", b.mirror, "@PACKAGES@", "    "+strings.Join(b.packages, "\n    ")).Replace(string(conf))
	return os.WriteFile(filepath.Join(tree, "work/mkosi.conf"), []byte(text), 0o644)
}

func (b *bench) tree() string { return filepath.Join(b.dir, "trixie") }

// all measures builds, warming first, or mirrors, or both, and prints the report.
func (b *bench) all(what string, boot bool) error {
	builds, mirrors := []func() error{b.warm, b.cold, b.edit, b.roles, b.assemble, b.sizes}, []func() error{b.mirrors}
	if boot {
		builds = append(builds, b.boot)
	}
	var steps []func() error
	switch what {
	case "":
		steps = append(builds, mirrors...)
	case "builds":
		steps = builds
	case "mirrors":
		steps = mirrors
	default:
		return fmt.Errorf("-of %s: want builds or mirrors", what)
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	b.print()
	data, err := json.MarshalIndent(b.figures, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.dir, "figures.json"), append(data, '\n'), 0o644)
}

// print writes the report as a table.
func (b *bench) print() {
	fmt.Printf("\n%-46s %10s  %-28s %10s  %7s  %s\n", "", "slipway", "against", "", "ratio", "target")
	for _, f := range b.figures {
		theirs, ratio, target := "", "", ""
		if f.Peer != "" {
			theirs, ratio = fmt.Sprintf("%.2f %s", f.Theirs, f.Unit), fmt.Sprintf("%.3f", f.Ratio)
		}
		if f.Target != 0 {
			target = fmt.Sprintf("<= %.3f", f.Target)
		}
		fmt.Printf("%-46s %10s  %-28s %10s  %7s  %s\n", f.What, fmt.Sprintf("%.2f %s", f.Ours, f.Unit), f.Peer, theirs, ratio, target)
	}
}

// compare records ours against theirs.
func (b *bench) compare(what string, ours float64, peer string, theirs float64, unit string, target float64) {
	f := figure{What: what, Ours: ours, Peer: peer, Theirs: theirs, Unit: unit, Target: target}
	if theirs != 0 {
		f.Ratio = ours / theirs
	}
	b.figures = append(b.figures, f)
	say("%s: %.2f %s; %s: %.2f %s", what, ours, unit, peer, theirs, unit) // a run that is cut short has told what it knows
}

// sample is one measured run.
type sample struct {
	seconds float64
	cpu     float64 // seconds of processors, of all processes in it
	peak    int64   // largest resident set of any process in it, bytes
}

// run runs a command, its output kept for the error, and measures it.
func (b *bench) run(argv ...string) (sample, error) {
	cmd := exec.CommandContext(b.ctx, argv[0], argv[1:]...)
	cmd.Dir = b.project
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	began := time.Now()
	out, err := cmd.CombinedOutput()
	took := time.Since(began)
	if err != nil {
		return sample{}, fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, lastLines(string(out), 30))
	}
	usage := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	cpu := cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return sample{took.Seconds(), cpu.Seconds(), usage.Maxrss * 1024}, nil
}

// median measures several contenders in turns and returns each one's median.
func (b *bench) median(contenders ...func() (sample, error)) ([]sample, error) {
	all := make([][]sample, len(contenders))
	for range b.runs {
		for i, c := range contenders {
			s, err := c()
			if err != nil {
				return nil, err
			}
			all[i] = append(all[i], s)
		}
	}
	var out []sample
	for _, list := range all {
		slices.SortFunc(list, func(a, b sample) int { return int((a.seconds - b.seconds) * 1e6) })
		m := list[len(list)/2]
		for _, s := range list {
			m.peak = max(m.peak, s.peak)
		}
		out = append(out, m)
	}
	return out, nil
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
