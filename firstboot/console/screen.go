package console

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/firstboot/status"
)

// Screen draws the report on a terminal and draws it anew when it changes.
type Screen struct {
	latest chan status.Report
}

// redraw is how often the screen is drawn at most. While nothing changes, the
// lines that tell how long things take are drawn again in the longer intervals,
// and rarely all of them, in case somebody else wrote there: drawing costs most
// of what an idle agent uses where a processor has to fill the screen.
const (
	redraw     = 300 * time.Millisecond
	converging = 15 * time.Second
	settled    = time.Minute
	afresh     = 5 * time.Minute
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
	var p painter
	var cleared time.Time
	for fresh := true; ; {
		if fresh = fresh || now().Sub(cleared) >= afresh; fresh {
			p, cleared = painter{}, now()
		}
		if f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0); err == nil {
			columns, rows := size(f)
			io.WriteString(f, p.paint(wrap(report.Screen(now()), columns), rows))
			f.Close()
		}
		time.Sleep(redraw)
		pause := converging
		if report.State.Settled() {
			pause = settled
		}
		select {
		case report = <-s.latest:
			fresh = true
		case <-time.After(pause):
			fresh = false
		}
	}
}

// painter knows what it drew last.
type painter struct{ lines []string }

// paint is what a terminal of so many rows must be sent to show the text: the
// lines that differ from those before, or all of it if it is not as before
// otherwise, or scrolls.
func (p *painter) paint(text string, rows int) string {
	before := p.lines
	p.lines = strings.Split(text, "\n")
	if len(before) != len(p.lines) || len(p.lines) > rows {
		// Home, text with each line cleared to its end, then clear what is below:
		// no flicker, and whatever the kernel wrote over it is gone.
		return "\x1b[?25l\x1b[H" + strings.Join(p.lines, "\x1b[K\r\n") + "\x1b[J"
	}
	var b strings.Builder
	for i, line := range p.lines {
		if line != before[i] {
			fmt.Fprintf(&b, "\x1b[%d;1H%s\x1b[K", i+1, line)
		}
	}
	return b.String()
}

// size is how many columns and rows a terminal has.
func size(terminal *os.File) (columns, rows int) {
	size, err := unix.IoctlGetWinsize(int(terminal.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col < 40 || size.Row == 0 {
		return 80, 25
	}
	return int(size.Col), int(size.Row)
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
