package console

import (
	"bytes"
	"regexp"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/firstboot/status"
)

func TestLongLinesBreakAtASpaceAndLoseNothing(t *testing.T) {
	text := "  short\n\n  \x1b[32m[ ok ]\x1b[0m one, two, three, four, five, six, seven, eight\n" + strings.Repeat("x", 50) + "\n"
	got := wrap(text, 40)
	colours := regexp.MustCompile("\x1b\\[[0-9;]*m")
	for line := range strings.Lines(got) {
		if bare := colours.ReplaceAllString(strings.TrimSuffix(line, "\n"), ""); len(bare) > 40 && strings.Contains(bare, " ") {
			t.Errorf("too long: %q", line)
		}
	}
	if strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(text), " ") {
		t.Errorf("text was lost: %q", got)
	}
}

func TestOnlyLinesThatDifferAreDrawnAgain(t *testing.T) {
	var p painter
	if got, want := p.paint("READY since 1 s\nhost lb1\n", 25), "\x1b[?25l\x1b[HREADY since 1 s\x1b[K\r\nhost lb1\x1b[K\r\n\x1b[J"; got != want {
		t.Errorf("at first %q, want %q", got, want)
	}
	if got := p.paint("READY since 1 s\nhost lb1\n", 25); got != "" {
		t.Errorf("nothing has changed, yet %q is drawn", got)
	}
	if got, want := p.paint("READY since 1 s\nhost lb2\n", 25), "\x1b[2;1Hhost lb2\x1b[K"; got != want {
		t.Errorf("one line %q, want %q", got, want)
	}
	for name, text := range map[string]string{"fewer lines": "READY\n", "lines that scroll": strings.Repeat("x\n", 30)} {
		p.paint(text+"more\n", 25)
		if got := p.paint(text, 25); !strings.HasPrefix(got, "\x1b[?25l\x1b[H") || !strings.HasSuffix(got, "\x1b[J") {
			t.Errorf("%s: %q is not the whole screen", name, got)
		}
	}
}

func TestALineCannotSteerATerminal(t *testing.T) {
	if got := printable("a\x1b[2Jb\nc"); strings.ContainsAny(got, "\x1b\n") {
		t.Errorf("%q", got)
	}
}

func TestTheJournalGetsPriorities(t *testing.T) {
	var out bytes.Buffer
	log := logrus.New()
	log.SetOutput(&out)
	log.SetFormatter(JournalFormat{})
	j := Journal{Log: log}
	j.Line(status.Info, "fine")
	j.Line(status.Warning, "odd")
	j.Line(status.Error, "bad")
	if got := out.String(); got != "<6>fine\n<4>odd\n<3>bad\n" {
		t.Errorf("%q", got)
	}
}
