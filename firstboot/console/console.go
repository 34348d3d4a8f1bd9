// Package console shows a node's report where people look first: as a screen on
// the machine's console, as lines on its serial lines and other consoles, and
// as lines for the journal.
//
// No way of showing may hold up the node: a terminal that has been stopped with
// Ctrl-S, or a serial line that nobody reads, blocks its own writer alone.
package console

import (
	"errors"
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
	terminals := make([]terminal, len(paths))
	for i, path := range paths {
		terminals[i].path = path
	}
	go func() {
		for line := range l.queue {
			for i := range terminals {
				terminals[i].write(line)
			}
		}
	}()
	return l
}

// terminal is one that lines are written to.
type terminal struct {
	path string
	file *os.File // nil while it is not open
}

// write opens the terminal again when it was hung up, which a login prompt does
// to everybody else when it takes a line over (vhangup(2)).
func (t *terminal) write(line string) {
	for range 2 {
		if t.file == nil {
			f, err := os.OpenFile(t.path, os.O_WRONLY|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
			if err != nil {
				return
			}
			t.file = f
		}
		t.file.SetWriteDeadline(time.Now().Add(2 * time.Second)) // a terminal that cannot be polled ignores it
		if _, err := io.WriteString(t.file, line); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			return
		}
		t.file.Close()
		t.file = nil
	}
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
