package console

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

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

func TestATerminalThatWasHungUpIsOpenedAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "line")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	reader := func() *os.File {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	line := terminal{path: path}
	before := reader()
	line.write("one")
	before.Close()
	line.write("to nobody")
	after := reader()
	defer after.Close()
	line.write("two")
	got := make([]byte, 10)
	if n, err := after.Read(got); string(got[:n]) != "two" {
		t.Errorf("%q, %v", got[:n], err)
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

func TestAClustersNodeFitsTheScreen(t *testing.T) {
	now := time.Date(2026, 11, 20, 12, 5, 0, 0, time.UTC)
	r := status.Report{
		State: status.Converging, Since: now, Role: "db-master", Summary: "PostgreSQL", Version: "db-master-20261120-1a2b3c4d", Hostname: "a-db1.example.internal",
		Datasource: "NoCloud (/dev/sr0)", Addresses: []status.Address{{Interface: "ens3", Address: "10.77.1.11/24"}},
		HostKeys: []status.HostKey{{Type: "ssh-ed25519", Fingerprint: "SHA256:" + strings.Repeat("x", 43)}, {Type: "ecdsa-sha2-nistp256", Fingerprint: "SHA256:" + strings.Repeat("x", 43)}},
		Logins:   []string{"slipway"}, Advice: []string{"Log in: ssh slipway@10.77.1.11"},
	}
	for _, name := range strings.Fields("datasource membership bootcmd hostname network resolver firewall keys clock locale certificates disks users files consensus-setup time peers") {
		r.Steps = append(r.Steps, status.Step{Name: name, State: status.Done})
	}
	wait := "no quorum: 1 of 3 members of etcd are well: a-db2: connection refused, a-db3: connection refused"
	r.Steps = append(r.Steps, status.Step{Name: "consensus", State: status.Running, Since: now, WaitingFor: wait},
		status.Step{Name: "database", State: status.Pending}, status.Step{Name: "role", State: status.Running, Since: now, WaitingFor: "patroni.service is held back until the cluster is there for it"},
		status.Step{Name: "confirm", State: status.Pending})
	r.Cluster = &status.Cluster{
		Name: "shop", Node: "a-db1", Site: "a", Generation: 1, Expires: now.AddDate(2, 0, 0),
		Consensus: &status.Consensus{Members: []status.ConsensusMember{{Node: "a-db1", Healthy: true}, {Node: "a-db2"}, {Node: "a-db3"}}},
		Database:  &status.Database{Scope: "shop-a"},
	}
	for _, name := range []string{"a-db2", "a-db3", "a-lb1", "a-lb2", "b-db1"} {
		r.Cluster.Peers = append(r.Cluster.Peers, status.Peer{Name: name, Address: "10.77.1.12", Since: now})
		r.Cluster.Problems = append(r.Cluster.Problems, "peers: "+name+" (10.77.1.12): connection refused, since 12:03:00 UTC")
	}
	screen := wrap(r.Screen(now), 80)
	if lines := strings.Count(screen, "\n"); lines > 25 {
		t.Errorf("%d lines:\n%s", lines, screen)
	}
	for _, want := range []string{": no quorum", "missing: a-db2, a-db3", "ssh slipway@10.77.1.11"} {
		if !strings.Contains(screen, want) {
			t.Errorf("no %q on the screen:\n%s", want, screen)
		}
	}
}
