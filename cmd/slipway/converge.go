package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

// Times of the wait for nodes.
const (
	lookEvery  = 3 * time.Second // each look starts a program in every guest
	reportTime = 6 * time.Second // for a node to say how it is
)

// converge shows how nodes come up until all are ready, one has powered itself
// off, or the limit has passed.
func (l *labSession) converge(ctx context.Context, names []string, limit time.Duration) error {
	view := l.view()
	deadline := time.Now().Add(limit)
	last := map[string]daemon.NodeReport{}
	for {
		state, reports, err := l.look(ctx)
		if errors.Is(err, daemon.ErrNotRunning) {
			return fault.New(fault.Failed, "the lab has ended, by slipway down or by itself").WithMend("see %s", l.place.Log())
		}
		if err != nil {
			return err
		}
		for name, r := range reports {
			// A busy guest may not answer in time: what it said before still holds.
			if r.Report != nil {
				last[name] = r
			}
		}
		var lines, missing []string
		for _, name := range names {
			node, _ := state.Node(name)
			text, ready := describe(node, last[name], time.Now())
			lines = append(lines, fmt.Sprintf("%-*s  %s", longest(names), name, text))
			switch {
			case !node.On:
				return fault.New(fault.Failed, "%s has powered itself off", name).WithMend("see %s", node.Dir)
			case !ready:
				missing = append(missing, name+": "+text)
			}
		}
		view.show(lines)
		if len(missing) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fault.New(fault.Failed, "after %v, these nodes are not ready, and run on:\n  %s", limit, strings.Join(missing, "\n  ")).
				WithMend("wait on with slipway up %s, look with slipway status or slipway console, or end it with slipway down", l.file)
		}
		select {
		case <-time.After(lookEvery):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *labSession) look(ctx context.Context) (daemon.State, map[string]daemon.NodeReport, error) {
	reports, err := l.client.Reports(ctx, reportTime)
	if err != nil {
		return daemon.State{}, nil, err
	}
	state, err := l.client.State(ctx)
	return state, reports, err
}

// describe says in a few words how a node is.
func describe(n lab.NodeState, r daemon.NodeReport, now time.Time) (text string, ready bool) {
	switch {
	case !n.On:
		return "off", false
	case r.Report == nil:
		text = "booting"
	default:
		text, ready = lab.Progress(r.Report), r.Report.State == status.Ready
	}
	if n.Blocked {
		text += " (its network is blocked)"
	}
	if !ready {
		text += fmt.Sprintf(" [%d s]", int(now.Sub(n.Since).Seconds()))
	}
	return text, ready
}

func longest(words []string) int {
	n := 0
	for _, w := range words {
		n = max(n, len(w))
	}
	return n
}

// view shows lines that change.
type view interface {
	show(lines []string)
}

// view draws over itself on a terminal and else tells what is new, as the flag
// --progress says.
func (l *labSession) view() view {
	switch l.progress.(type) {
	case *progress.Bars:
		l.close()
		return &screenView{out: os.Stderr, width: terminalWidth}
	default:
		if l.progress == progress.None {
			return &logView{say: func(string) {}}
		}
		return &logView{say: func(line string) { l.log.Info(line) }}
	}
}

func terminalWidth() int {
	if width, _, err := term.GetSize(int(os.Stderr.Fd())); err == nil {
		return width
	}
	return 80
}

// screenView replaces its last lines (ECMA-48: CUU 8.3.22, EL 8.3.41).
type screenView struct {
	out   io.Writer
	width func() int
	drawn int
}

func (v *screenView) show(lines []string) {
	var b strings.Builder
	if v.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", v.drawn)
	}
	width := v.width()
	for _, line := range lines {
		// A line that wraps would put the cursor where it is not expected.
		if text := []rune(line); len(text) >= width && width > 1 {
			line = string(text[:width-1])
		}
		b.WriteString("\r" + line + "\x1b[K\n")
	}
	v.drawn = len(lines)
	io.WriteString(v.out, b.String())
}

// logView says each line once, until it is another one. How long a node has been
// at something is no news.
type logView struct {
	say  func(string)
	last map[int]string
}

func (v *logView) show(lines []string) {
	if v.last == nil {
		v.last = map[int]string{}
	}
	for i, line := range lines {
		news, _, _ := strings.Cut(line, " [")
		if v.last[i] != news {
			v.last[i] = news
			v.say(news)
		}
	}
}
