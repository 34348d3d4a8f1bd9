// Package console shows a node's report where people look first: as a screen on
// the machine's console, as lines on its serial lines and other consoles, and
// as lines for the journal.
//
// No way of showing may hold up the node: a terminal that has been stopped with
// Ctrl-S, or a serial line that nobody reads, blocks its own writer alone.
package console

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/firstboot/status"
)

// Lines tells the story line by line on terminals such as serial lines.
type Lines struct {
	queue chan string
}

// queued is how many lines wait for a slow terminal; more are dropped.
const queued = 256

// NewLines writes to these terminals.
func NewLines(paths []string) *Lines {
	l := &Lines{queue: make(chan string, queued)}
	files := make([]*os.File, 0, len(paths))
	for _, path := range paths {
		if f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0); err == nil {
			files = append(files, f)
		}
	}
	go func() {
		for line := range l.queue {
			for _, f := range files {
				f.SetWriteDeadline(time.Now().Add(2 * time.Second)) // a terminal that cannot be polled ignores it
				io.WriteString(f, line)
			}
		}
	}()
	return l
}

// Show implements status.Watcher.
func (l *Lines) Show(status.Report) {}

// Line implements status.Watcher.
func (l *Lines) Line(_ status.Level, text string) {
	select {
	case l.queue <- "slipway: " + printable(text) + "\r\n":
	default:
	}
}

// printable keeps foreign text from steering a terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// Journal writes lines to a logger.
type Journal struct{ Log *logrus.Logger }

// Show implements status.Watcher.
func (Journal) Show(status.Report) {}

// Line implements status.Watcher.
func (j Journal) Line(level status.Level, text string) {
	switch level {
	case status.Error:
		j.Log.Error(text)
	case status.Warning:
		j.Log.Warn(text)
	default:
		j.Log.Info(text)
	}
}

// JournalFormat writes what systemd reads from a service's standard error: a
// priority, then the text (sd-daemon(3)).
type JournalFormat struct{}

// Format implements logrus.Formatter.
func (JournalFormat) Format(e *logrus.Entry) ([]byte, error) {
	priority := map[logrus.Level]int{logrus.ErrorLevel: 3, logrus.WarnLevel: 4, logrus.InfoLevel: 6}[e.Level]
	if priority == 0 {
		priority = 7
	}
	var b strings.Builder
	fmt.Fprintf(&b, "<%d>%s", priority, printable(e.Message))
	keys := make([]string, 0, len(e.Data))
	for k := range e.Data {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(&b, " %s=%v", k, e.Data[k])
	}
	return []byte(b.String() + "\n"), nil
}

// Serial lists the consoles of the kernel that are not its screen.
func Serial(sys, dev string) []string {
	active, _ := os.ReadFile(filepath.Join(sys, "class/tty/console/active"))
	var out []string
	for _, name := range strings.Fields(string(active)) {
		if name != "tty0" && name != "tty1" {
			out = append(out, filepath.Join(dev, name))
		}
	}
	return out
}
