package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

const pairYAML = `slipway: 1
name: pair
domain: example.internal
networks:
  lan: {subnet: 10.77.1.0/24, gateway: 10.77.1.1}
users:
  - name: ops
    keys: [ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIQWcKfXtgSLIULAjglp4cLpZ+GbfxfgW+3tsP16FZED ops@example.org]
vips:
  - {name: database, address: 10.77.1.10, on: balancers, router_id: 51}
nodes:
  - {name: db1, role: db-master, nics: [{network: lan, address: 10.77.1.11}]}
  - {name: lb1, role: balancer, nics: [{network: lan, address: 10.77.1.21}]}
`

// inLab changes to a directory with a cluster.yaml, where no lab has ever run.
func inLab(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "cluster.yaml"), []byte(pairYAML), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	t.Setenv("XDG_STATE_HOME", filepath.Join(dir, "state"))
	return dir
}

func placeOf(t *testing.T) daemon.Place {
	t.Helper()
	place, err := daemon.PlaceOf("pair", "cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return place
}

func TestLabCommandsSayWhatTheyLack(t *testing.T) {
	inLab(t)
	if err := os.Mkdir("empty", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args string
		code int
		says []string
	}{
		{"up", 2, []string{"--images"}},
		{"status", 3, []string{"there is no store", "slipway seed"}},
		{"up nowhere.yaml", 3, []string{"nowhere.yaml"}},
		{"up cluster.yaml db7", 2, []string{`no node "db7"`, "db1, lb1"}},
		{"up cluster.yaml", 2, []string{"--images"}},
		{"up cluster.yaml --images empty", 4, []string{"balancer, db-master", "slipway build balancer db-master"}},
		{"up cluster.yaml --images empty --memory much", 2, []string{"--memory"}},
		{"up cluster.yaml --cpus 0", 2, []string{"--cpus"}},
		{"ssh cluster.yaml", 2, []string{"one node", "db1, lb1"}},
		{"ssh cluster.yaml db1 lb1", 2, []string{"one node"}},
		{"ssh cluster.yaml db1 -- true", 9, []string{"not running", "slipway up"}},
		{"console cluster.yaml db1", 9, []string{"not running"}},
		{"screenshot cluster.yaml db1", 9, []string{"not running"}},
		{"status cluster.yaml", 3, []string{"store", "slipway seed"}},
		{"status cluster.yaml db1", 2, []string{"firstboot status"}},
		{"lab-dial", 2, []string{"directory"}},
		{"lab-daemon " + t.TempDir(), 2, []string{"slipway up"}},
	} {
		code, _, stderr := call(t, strings.Fields(c.args)...)
		if code != c.code {
			t.Errorf("slipway %s: exit status %d, want %d\n%s", c.args, code, c.code, stderr)
		}
		for _, w := range c.says {
			if !strings.Contains(stderr, w) {
				t.Errorf("slipway %s does not say %q:\n%s", c.args, w, stderr)
			}
		}
	}
}

func TestNamesOfNodesAreCompletedBehindTheFile(t *testing.T) {
	inLab(t)
	for _, c := range []struct{ args, want string }{
		{"up cluster.yaml", "db1\nlb1\n"},
		{"ssh cluster.yaml", "db1\nlb1\n"},
		{"down cluster.yaml db1", "db1\nlb1\n"},
		{"console", ""},
		{"screenshot nowhere.yaml", ""},
	} {
		code, out, stderr := call(t, append(strings.Fields(c.args), "--generate-bash-completion")...)
		if code != 0 || out != c.want || stderr != "" {
			t.Errorf("slipway %s: exit status %d, %q\n%s", c.args, code, out, stderr)
		}
	}
}

func TestDownIsContentWhereNothingRuns(t *testing.T) {
	inLab(t)
	if code, out, stderr := call(t, "down", "cluster.yaml"); code != 0 || out != "nothing runs\n" {
		t.Errorf("exit status %d, %q\n%s", code, out, stderr)
	}
}

func TestDestroyRemovesWhatTheDryRunNames(t *testing.T) {
	inLab(t)
	place := placeOf(t)
	for _, name := range []string{"db1", "lb1"} {
		if err := os.MkdirAll(place.Machine(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(place.Machine(name), "disk.qcow2"), make([]byte, 1000), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	there := func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	}
	destroyed := func(args ...string) downResult {
		t.Helper()
		code, out, stderr := call(t, append([]string{"down", "cluster.yaml", "--destroy", "--json"}, args...)...)
		var r downResult
		if err := json.Unmarshal([]byte(out), &r); err != nil || code != 0 {
			t.Fatalf("exit status %d, %v\n%s%s", code, err, out, stderr)
		}
		return r
	}
	if r := destroyed("--dry-run"); !slices.Equal(r.Removed, []string{string(place)}) || r.Bytes != 2000 || !there(place.Machine("db1")) {
		t.Errorf("%+v", r)
	}
	if r := destroyed("db1"); !slices.Equal(r.Removed, []string{place.Machine("db1")}) || there(place.Machine("db1")) || !there(place.Machine("lb1")) {
		t.Errorf("%+v", r)
	}
	if destroyed(); there(string(place)) {
		t.Error("the lab is still there")
	}
	if r := destroyed(); len(r.Removed) != 0 {
		t.Errorf("%+v", r)
	}
}

func TestTheLabsKeyIsMadeOnce(t *testing.T) {
	place := daemon.Place(t.TempDir())
	first, err := labKey(place, "pair")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(place.Key()); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if second, err := labKey(place, "pair"); err != nil || second != first || !strings.HasPrefix(first, "ssh-ed25519 ") {
		t.Errorf("%q, then %q, %v", first, second, err)
	}
	if err := os.WriteFile(place.Key(), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := labKey(place, "pair"); fault.Of(err) != fault.Input || fault.Mend(err) == "" {
		t.Error(err)
	}
}

// ssh itself says what it makes of the arguments (ssh(1), -G).
func TestSSHUnderstandsItsArgumentsWhateverThePathsHold(t *testing.T) {
	if _, err := exec.LookPath("ssh"); err != nil {
		t.Fatalf("%v; run: apt-get install openssh-client", err)
	}
	place := daemon.Place("/home/a user/100%/lab")
	args := sshArgs(place, "/opt/it's here/slipway", "slipway", "/home/a user/key", lab.NodeState{Name: "db1", Address: netip.MustParseAddr("10.77.1.11")})
	out, err := exec.Command("ssh", append([]string{"-G"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{
		`proxycommand '/opt/it'\''s here/slipway' lab-dial '/home/a user/100%%/lab' 10.77.1.11:22`,
		"identityfile /home/a user/key", "identitiesonly yes", "stricthostkeychecking accept-new", "hostkeyalias db1", "user slipway", "hostname db1",
		"userknownhostsfile /home/a user/100%/lab/nodes/db1/known_hosts",
	} {
		if !strings.Contains(string(out), want+"\n") {
			t.Errorf("ssh does not take it for %q:\n%s", want, out)
		}
	}
}

func TestSSHWaitsForANodeThatDoesNotListenYet(t *testing.T) {
	tries := 0
	dial := func(then error) func(context.Context, string, string) (net.Conn, error) {
		tries = 0
		return func(context.Context, string, string) (net.Conn, error) {
			if tries++; tries < 3 {
				return nil, fault.New(fault.Failed, "connection was refused")
			}
			return nil, then
		}
	}
	if _, err := dialPatiently(t.Context(), dial(nil), "192.0.2.1:22"); err != nil || tries != 3 {
		t.Errorf("%d tries, %v", tries, err)
	}
	if _, err := dialPatiently(t.Context(), dial(fault.New(fault.Failed, "%w", daemon.ErrNotRunning)), "192.0.2.1:22"); !errors.Is(err, daemon.ErrNotRunning) || tries != 3 {
		t.Errorf("%d tries, %v", tries, err)
	}
}

func TestACommandStandsBehindDashes(t *testing.T) {
	if got := commandAfterDashes([]string{"cluster.yaml", "db1", "--", "ls", "--", "-l"}); !slices.Equal(got, []string{"ls", "--", "-l"}) {
		t.Error(got)
	}
	if got := commandAfterDashes([]string{"cluster.yaml", "db1"}); got != nil {
		t.Error(got)
	}
}

func TestANodesProgressSaysWhatItWaitsFor(t *testing.T) {
	now := time.Now()
	on := lab.NodeState{Name: "db1", On: true, Since: now.Add(-83 * time.Second)}
	blocked := on
	blocked.Blocked = true
	report := func(s status.State, steps ...status.Step) daemon.NodeReport {
		return daemon.NodeReport{Report: &status.Report{State: s, Steps: steps}}
	}
	for _, c := range []struct {
		node   lab.NodeState
		report daemon.NodeReport
		text   string
		ready  bool
	}{
		{lab.NodeState{}, daemon.NodeReport{}, "off", false},
		{on, daemon.NodeReport{Problem: "no answer"}, "booting [83 s]", false},
		{on, report(status.Converging, status.Step{Name: "peers", State: status.Running, WaitingFor: "a-db2 does not answer"}), "converging: peers: a-db2 does not answer [83 s]", false},
		{on, report(status.Failed, status.Step{Name: "users", State: status.Broken, Error: "no room"}), "failed: users: no room [83 s]", false},
		{blocked, report(status.Degraded), "degraded (its network is blocked) [83 s]", false},
		{on, report(status.Ready), "ready", true},
	} {
		if text, ready := describe(c.node, c.report, now); text != c.text || ready != c.ready {
			t.Errorf("got %q, %v; want %q, %v", text, ready, c.text, c.ready)
		}
	}
}

func TestLinesAreSaidOnceAndTheScreenIsDrawnOver(t *testing.T) {
	var said []string
	log := &logView{say: func(line string) { said = append(said, line) }}
	log.show([]string{"a  booting [1 s]", "b  off"})
	log.show([]string{"a  booting [2 s]", "b  booting [0 s]"})
	if want := []string{"a  booting", "b  off", "b  booting"}; !slices.Equal(said, want) {
		t.Errorf("said %q", said)
	}
	var out bytes.Buffer
	screen := &screenView{out: &out, width: func() int { return 12 }}
	screen.show([]string{"a  booting and more", "b  off"})
	out.Reset()
	screen.show([]string{"a  ready", "b  a long text"})
	if want := "\x1b[2A\ra  ready\x1b[K\n\rb  a long t\x1b[K\n"; out.String() != want {
		t.Errorf("drew %q, want %q", out.String(), want)
	}
}

// sit connects attach to a console of which the test is the other side.
func sit(t *testing.T, keys io.Reader) (console net.Conn, out *bytes.Buffer, left chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if console, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ours.Close(); console.Close() })
	out, left = &bytes.Buffer{}, make(chan error, 1)
	go func() { left <- attach(t.Context(), ours, keys, out) }()
	return console, out, left
}

func TestTheEscapeKeyLeavesTheConsole(t *testing.T) {
	keys, press := io.Pipe()
	console, _, left := sit(t, keys)
	go press.Write([]byte("root\r\x03\x1dnot sent"))
	if err := <-left; err != nil {
		t.Error(err)
	}
	console.SetReadDeadline(time.Now().Add(time.Minute))
	heard := make([]byte, 6)
	if _, err := io.ReadFull(console, heard); err != nil || string(heard) != "root\r\x03" {
		t.Errorf("the console heard %q, %v", heard, err)
	}
}

func TestAConsoleThatEndsSaysThatThePowerIsOff(t *testing.T) {
	keys, _ := io.Pipe()
	console, _, left := sit(t, keys)
	console.Close()
	if err := <-left; fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "powered off") {
		t.Error(err)
	}
}

func TestWithoutKeysTheConsoleIsReadToItsEnd(t *testing.T) {
	console, out, left := sit(t, strings.NewReader(""))
	if _, err := io.ReadAll(console); err != nil { // the end of the keys
		t.Fatal(err)
	}
	io.WriteString(console, "the last lines")
	console.Close()
	if err := <-left; err != nil || out.String() != "the last lines" {
		t.Errorf("%q, %v", out, err)
	}
}

func TestTheExitStatusOfStatusTellsTrouble(t *testing.T) {
	node := func(name string, s status.State) overview.Node {
		return overview.Node{Name: name, Report: &status.Report{State: s}}
	}
	for _, c := range []struct {
		nodes          []overview.Node
		contradictions []string
		code           int
		says           string
	}{
		{nodes: []overview.Node{node("a", status.Ready)}},
		{[]overview.Node{node("a", status.Ready), node("b", status.Converging)}, nil, 8, "not ready: b"},
		{[]overview.Node{node("a", status.Ready)}, []string{"two leaders"}, 8, "1 contradictions"},
		{[]overview.Node{node("a", status.Degraded), {Name: "b"}}, nil, 9, "no answer from b; not ready: a"},
		{[]overview.Node{node("a", status.Failed)}, nil, 9, "failed: a"},
	} {
		s := clusterStatus{Overview: overview.Overview{Nodes: c.nodes, Contradictions: c.contradictions}}
		err := s.verdict()
		if fault.ExitCode(err) != c.code || err != nil && err.Error() != c.says {
			t.Errorf("exit status %d, %v; want %d, %q", fault.ExitCode(err), err, c.code, c.says)
		}
	}
}

func TestStatusTellsOfNodesThatCannotAnswerInALab(t *testing.T) {
	s := clusterStatus{Lab: &daemon.State{Nodes: []lab.NodeState{{Name: "a", On: true}, {Name: "b"}, {Name: "c", On: true}},
		Faults: []daemon.Fault{{Name: "isolation", Nodes: []string{"a", "c"}}}}}
	if got, want := s.power(), "\nIn the lab on this machine; powered off: b; isolation of a, c.\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if s.Lab = nil; s.power() != "" {
		t.Error("there is no lab")
	}
}

func TestInterruptedUpStopsOnlyWhatItStarted(t *testing.T) {
	inLab(t)
	l := &labSession{place: placeOf(t)}
	if err := l.interrupted(nil, time.Second); !errors.Is(err, context.Canceled) {
		t.Errorf("with nothing started nothing is asked of the daemon: %v", err)
	}
}
