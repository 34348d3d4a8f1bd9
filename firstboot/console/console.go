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

// Screen draws the report on a terminal and draws it anew when it changes.
type Screen struct {
	latest chan status.Report
}

// redraw is how often the screen is drawn at most; while nothing changes, it
// is drawn in the longer interval, since it shows how long things take.
const (
	redraw = 300 * time.Millisecond
	idle   = 15 * time.Second
)

// NewScreen draws on the terminal of that path. Without such a terminal it
// draws nowhere.
func NewScreen(path string, now func() time.Time) *Screen {
	s := &Screen{latest: make(chan status.Report, 1)}
	go s.draw(path, now)
	return s
}

// Show implements status.Watcher.
func (s *Screen) Show(r status.Report) {
	select {
	case <-s.latest: // nobody has drawn it yet, and nobody needs to
	default:
	}
	select {
	case s.latest <- r:
	default:
	}
}

// Line implements status.Watcher; a screen has no use for lines.
func (s *Screen) Line(status.Level, string) {}

func (s *Screen) draw(path string, now func() time.Time) {
	report := <-s.latest
	for {
		// Home, text with each line cleared to its end, then clear what is below:
		// no flicker, and whatever the kernel wrote over it is gone.
		text := wrap(report.Screen(now()), width(path))
		drawing := "\x1b[?25l\x1b[H" + strings.ReplaceAll(text, "\n", "\x1b[K\r\n") + "\x1b[J"
		if f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
			io.WriteString(f, drawing)
			f.Close()
		}
		time.Sleep(redraw)
		select {
		case report = <-s.latest:
		case <-time.After(idle):
		}
	}
}

// width is how many columns a terminal has.
func width(path string) int {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return 80
	}
	defer f.Close()
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col < 40 {
		return 80
	}
	return int(size.Col)
}

// wrap breaks lines that are longer than columns at a space; what follows is
// indented.
func wrap(text string, columns int) string {
	const indent = "         "
	var out strings.Builder
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		used, space := 0, -1 // columns so far; where the line can be broken
		start, escape := 0, false
		for i := 0; i < len(line); i++ {
			switch c := line[i]; {
			case escape:
				escape = c < '@' || c == '['
				continue
			case c == '\x1b':
				escape = true
				continue
			case c == ' ' && used > len(indent):
				space = i
			}
			if used++; used > columns && space > start {
				out.WriteString(line[start:space] + "\n" + indent)
				start = space + 1
				used, space = len(indent)+i-space, -1
			}
		}
		out.WriteString(line[start:] + "\n")
	}
	return out.String()
}

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
