package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
)

// The environment variable that makes this test program a daemon.
const daemonEnv = "SLIPWAY_TEST_DAEMON"

func TestMain(m *testing.M) {
	if place := os.Getenv(daemonEnv); place != "" {
		beDaemon(Place(place))
		return
	}
	os.Exit(m.Run())
}

func beDaemon(place Place) {
	starter := StarterOf()
	release, err := Hold(place)
	if err != nil {
		starter.Failed(err)
		os.Exit(1)
	}
	defer release()
	if _, err := os.Stat(place.path("broken")); err == nil {
		starter.Failed(fault.New(fault.Missing, "no such image").WithMend("build it"))
		os.Exit(1)
	}
	Serve(context.Background(), place, About{Cluster: "toy"}, newToyLab(), nil, silent(), starter.Ready)
}

func silent() logrus.FieldLogger {
	log := logrus.New()
	log.SetOutput(io.Discard)
	return log
}

// toyLab is a lab of two nodes without machines. Whatever is dialled, and every
// console, repeats what it hears.
type toyLab struct {
	mu     sync.Mutex
	on     map[string]bool
	cut    map[string]bool
	sizes  map[string]Size
	closed bool
	dialed []string
	hangs  map[string]bool // does not shut down
	healed []string        // faults
	sticks bool            // faults do not go away
}

func newToyLab() *toyLab {
	return &toyLab{on: map[string]bool{}, cut: map[string]bool{}, sizes: map[string]Size{}, hangs: map[string]bool{}}
}

func (l *toyLab) Nodes() []lab.NodeState {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []lab.NodeState
	for i, name := range []string{"one", "two"} {
		out = append(out, lab.NodeState{Name: name, Role: "gateway", Address: netip.AddrFrom4([4]byte{192, 0, 2, byte(i + 1)}), On: l.on[name], Blocked: l.cut[name]})
	}
	return out
}

func (l *toyLab) Start(_ context.Context, names ...string) (started []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range names {
		if !l.on[n] {
			l.on[n] = true
			started = append(started, n)
		}
	}
	return started, nil
}

func (l *toyLab) Shutdown(ctx context.Context, names ...string) (stopped, forced []string, err error) {
	for _, n := range names {
		if l.hangs[n] {
			<-ctx.Done()
			forced = append(forced, n)
		}
	}
	stopped, err = l.Crash(names...)
	return stopped, forced, err
}

func (l *toyLab) Crash(names ...string) (stopped []string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range names {
		if l.on[n] {
			l.on[n] = false
			stopped = append(stopped, n)
		}
	}
	return stopped, nil
}

func (l *toyLab) setCut(name string, cut bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut[name] = cut
	return nil
}

func (l *toyLab) Inject(_ context.Context, name string, nodes []string) (bool, error) {
	if name == "hiccup" {
		return false, nil
	}
	var errs []error
	for _, n := range nodes {
		errs = append(errs, l.setCut(n, true))
	}
	if name == "half" {
		errs = append(errs, fault.New(fault.Failed, "the other half did not work"))
	}
	return true, errors.Join(errs...)
}

func (l *toyLab) Heal(_ context.Context, name string, nodes []string) error {
	if l.sticks {
		return errors.New("it does not answer")
	}
	l.healed = append(l.healed, name)
	for _, n := range nodes {
		l.setCut(n, false)
	}
	return nil
}

func (l *toyLab) Dial(_ context.Context, address string) (net.Conn, error) {
	l.mu.Lock()
	l.dialed = append(l.dialed, address)
	l.mu.Unlock()
	if strings.HasSuffix(address, ":1") {
		return nil, errors.New("connection refused")
	}
	return echo(), nil
}

func (l *toyLab) Adopt(_ context.Context, t *topology.Topology) error {
	if _, ok := t.Node("stranger"); ok {
		return fault.New(fault.Failed, "not this one").WithMend("another")
	}
	return nil
}

func (l *toyLab) Console(string) (net.Conn, error) { return echo(), nil }
func (l *toyLab) ConsoleLog(string) (string, error) {
	return strings.Repeat("an old line\n", 1000) + "login: ", nil
}

func (l *toyLab) ConsoleSize(_ context.Context, name string, rows, columns int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sizes[name] = Size{rows, columns}
	return nil
}

func (l *toyLab) Report(ctx context.Context, name string) (*status.Report, error) {
	if name == "two" {
		<-ctx.Done() // it boots
		return nil, ctx.Err()
	}
	return &status.Report{State: status.Ready, Hostname: name}, nil
}

func (l *toyLab) Screenshot(context.Context, string) ([]byte, error) {
	return []byte("\x89PNG and so on"), nil
}

func (l *toyLab) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
}

// echo is a connection to something that sends back what it gets, and ends when
// it is told that nothing follows.
func echo() net.Conn {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		c, err := l.Accept()
		l.Close() // not before: what waits to be accepted would be reset
		if err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		panic(err)
	}
	return c
}

// serve runs a daemon in this process until the test ends.
func serve(t *testing.T, toy *toyLab) (*Client, Place) { return serveFile(t, toy, "/t/cluster.yaml") }

// serveFile is serve with a topology's file.
func serveFile(t *testing.T, toy *toyLab, file string) (*Client, Place) {
	t.Helper()
	// Longer than the path of a socket may be.
	place := Place(filepath.Join(t.TempDir(), strings.Repeat("a-long-name-", 10)))
	if err := place.Make(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	release, err := Hold(place)
	if err != nil {
		t.Fatal(err)
	}
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		err := Serve(ctx, place, About{Cluster: "toy", Topology: file, Digest: "d"}, toy, nil, silent(), func() { close(ready) })
		release()
		done <- err
	}()
	select {
	case <-ready:
	case err := <-done:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if !toy.closed {
			t.Error("the machines were left behind")
		}
	})
	return NewClient(place), place
}

func TestOnlyTheOwnerMayOpenTheSocket(t *testing.T) {
	_, place := serve(t, newToyLab())
	for path, want := range map[string]os.FileMode{string(place): 0o700, place.path(socketName): 0o600} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v; want mode %o", path, st.Mode(), err, want)
		}
	}
}

func TestAPlaceThatOthersMayEnterIsRefused(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Place(dir).Make(); fault.Of(err) != fault.Missing || !strings.Contains(fault.Mend(err), "chmod 700") {
		t.Errorf("%v; mend: %s", err, fault.Mend(err))
	}
}

func TestAnEditedTopologyIsTakenOverOrRefusedWithTheLabsReason(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	write := func(node string) {
		text := "slipway: 1\nname: toy\nnetworks: {lan: {subnet: 192.0.2.0/24}}\nnodes: [{name: " + node + ", role: db-master, nics: [{network: lan, address: 192.0.2.1}]}]\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, _ := serveFile(t, newToyLab(), file)
	write("one")
	want, err := Digest(file)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := c.Adopt(t.Context()); err != nil || s.Digest != want {
		t.Errorf("%+v, %v; want the digest %s", s, err, want)
	}
	write("stranger")
	if _, err := c.Adopt(t.Context()); fault.Of(err) != fault.Failed || fault.Mend(err) != "another" {
		t.Errorf("%v; mend: %s", err, fault.Mend(err))
	}
	write("no name")
	if _, err := c.Adopt(t.Context()); fault.Of(err) != fault.Input {
		t.Errorf("a file with a mistake: %v", err)
	}
	if s, err := c.State(t.Context()); err != nil || s.Digest != want {
		t.Errorf("%+v, %v; want the digest %s", s, err, want)
	}
}

func TestOrdersChangeOnlyWhatIsNotSoAlready(t *testing.T) {
	c, _ := serve(t, newToyLab())
	order := func(o Order) Outcome {
		t.Helper()
		out, err := c.Order(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if got := order(Order{Action: Start, Nodes: []string{"two"}}).Changed; !slices.Equal(got, []string{"two"}) {
		t.Errorf("started %v", got)
	}
	if got := order(Order{Action: Start, Nodes: []string{"one", "two"}}).Changed; !slices.Equal(got, []string{"one"}) {
		t.Errorf("a second start started %v", got)
	}
	order(Order{Action: Crash, Nodes: []string{"one"}})
	s, err := c.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	one, _ := s.Node("one")
	two, _ := s.Node("two")
	if one.On || !two.On || s.Cluster != "toy" || s.PID != os.Getpid() {
		t.Errorf("%+v", s)
	}
}

func TestFaultsThatLastAreHealedInReverse(t *testing.T) {
	toy := newToyLab()
	c, _ := serve(t, toy)
	inject := func(name string, nodes ...string) (Fault, error) {
		t.Helper()
		return c.Inject(t.Context(), name, nodes)
	}
	if f, err := inject("hiccup", "one"); err != nil || f.Lasts {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := inject("isolation", "two"); err != nil || !f.Lasts || f.Since.IsZero() {
		t.Errorf("%+v, %v", f, err)
	}
	// What was made on some nodes only has to be healed as well.
	if _, err := inject("half", "one"); fault.Of(err) != fault.Failed {
		t.Errorf("%v", err)
	}
	for _, nodes := range [][]string{{"three"}, {}} {
		if _, err := inject("isolation", nodes...); fault.Of(err) != fault.Usage {
			t.Errorf("%q: %v", nodes, err)
		}
	}
	active := func() (names []string) {
		t.Helper()
		s, err := c.State(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range s.Faults {
			names = append(names, f.Name)
		}
		return names
	}
	if got := active(); !slices.Equal(got, []string{"isolation", "half"}) {
		t.Errorf("faults %q", got)
	}
	toy.sticks = true
	if _, err := c.Heal(t.Context()); err == nil || !strings.Contains(err.Error(), "half of one: it does not answer") {
		t.Errorf("%v", err)
	}
	if got := active(); !slices.Equal(got, []string{"isolation", "half"}) {
		t.Errorf("faults that did not go away: %q", got)
	}
	toy.sticks = false
	healed, err := c.Heal(t.Context())
	if err != nil || len(healed) != 2 || !slices.Equal(toy.healed, []string{"half", "isolation"}) || len(active()) != 0 {
		t.Errorf("healed %+v, %v; %q", healed, err, toy.healed)
	}
	if healed, err := c.Heal(t.Context()); err != nil || healed == nil || len(healed) != 0 {
		t.Errorf("healed %#v, %v", healed, err)
	}
}

func TestANodeThatDoesNotShutDownLosesItsPowerAtTheLimit(t *testing.T) {
	toy := newToyLab()
	toy.hangs["one"] = true
	c, _ := serve(t, toy)
	if _, err := c.Order(t.Context(), Order{Action: Start, Nodes: []string{"one", "two"}}); err != nil {
		t.Fatal(err)
	}
	out, err := c.Order(t.Context(), Order{Action: Shutdown, Nodes: []string{"one", "two"}, Limit: time.Millisecond})
	if err != nil || !slices.Equal(out.Forced, []string{"one"}) || len(out.Changed) != 2 {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestMistakesKeepTheirClassOnTheWay(t *testing.T) {
	c, _ := serve(t, newToyLab())
	_, err := c.Order(t.Context(), Order{Action: Start, Nodes: []string{"three"}})
	if fault.Of(err) != fault.Usage || !strings.Contains(err.Error(), `no node "three"`) || fault.Mend(err) == "" {
		t.Errorf("%v; class %v, mend %q", err, fault.Of(err), fault.Mend(err))
	}
	if _, err := c.Order(t.Context(), Order{Action: "explode", Nodes: []string{"one"}}); fault.Of(err) != fault.Usage {
		t.Error(err)
	}
	if _, err := c.Screenshot(t.Context(), "../../quit"); fault.Of(err) != fault.Usage {
		t.Error(err)
	}
	if err := c.Resize(t.Context(), "one", Size{Rows: 1 << 30, Columns: 80}); fault.Of(err) != fault.Usage {
		t.Error(err)
	}
	if _, err := c.Dial(t.Context(), "tcp", "192.0.2.1:1"); fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
	if _, err := c.Dial(t.Context(), "tcp", "example.org:80"); fault.Of(err) != fault.Usage {
		t.Errorf("a name that only the host could resolve: %v", err)
	}
}

// says writes text and expects it back, behind what want begins with.
func says(t *testing.T, c net.Conn, text, want string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	if err := c.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || string(got) != want {
		t.Errorf("got %.60q (%d bytes), %v", got, len(got), err)
	}
}

func TestAStreamCarriesEveryByteAndItsEndBothWays(t *testing.T) {
	toy := newToyLab()
	c, _ := serve(t, toy)
	conn, err := c.Dial(t.Context(), "tcp", "192.0.2.1:22")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	text := strings.Repeat("0123456789abcdef\r\n\x00\xff", 50_000)
	says(t, conn, text, text)
	if !slices.Equal(toy.dialed, []string{"192.0.2.1:22"}) {
		t.Errorf("dialed %v", toy.dialed)
	}
}

func TestAConsoleBeginsWithItsLastLinesAndTakesOneViewer(t *testing.T) {
	c, _ := serve(t, newToyLab())
	first, err := c.Console(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if _, err := c.Console(t.Context(), "one"); fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "somebody else") {
		t.Errorf("a second viewer: %v", err)
	}
	says(t, first, "root\n", strings.Repeat("an old line\n", 340)+"login: root\n")
	first.Close()
	// The daemon sees the end some time after it.
	for {
		again, err := c.Console(t.Context(), "one")
		if err == nil {
			again.Close()
			return
		}
		if t.Context().Err() != nil || fault.Of(err) != fault.Failed {
			t.Fatal(err)
		}
	}
}

func TestTheGuestLearnsTheSizeOfTheTerminal(t *testing.T) {
	toy := newToyLab()
	c, _ := serve(t, toy)
	if err := c.Resize(t.Context(), "one", Size{Rows: 50, Columns: 132}); err != nil || toy.sizes["one"] != (Size{50, 132}) {
		t.Errorf("%v, %v", toy.sizes, err)
	}
}

func TestAScreenshotArrives(t *testing.T) {
	c, _ := serve(t, newToyLab())
	if png, err := c.Screenshot(t.Context(), "one"); err != nil || !bytes.HasPrefix(png, []byte("\x89PNG")) {
		t.Errorf("%q, %v", png, err)
	}
}

func TestANodeThatSaysNothingDoesNotHoldUpTheOthersReports(t *testing.T) {
	c, _ := serve(t, newToyLab())
	if _, err := c.Order(t.Context(), Order{Action: Start, Nodes: []string{"one"}}); err != nil {
		t.Fatal(err)
	}
	got, err := c.Reports(t.Context(), time.Minute)
	if err != nil || len(got) != 1 || got["one"].Report.State != status.Ready {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := c.Order(t.Context(), Order{Action: Start, Nodes: []string{"two"}}); err != nil {
		t.Fatal(err)
	}
	got, err = c.Reports(t.Context(), 50*time.Millisecond)
	if err != nil || got["one"].Report == nil || got["two"].Report != nil || got["two"].Problem == "" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestRequestsAreLimited(t *testing.T) {
	c, _ := serve(t, newToyLab())
	names := slices.Repeat([]string{strings.Repeat("n", 1000)}, 100)
	if _, err := c.Order(t.Context(), Order{Action: Start, Nodes: names}); fault.Of(err) != fault.Usage || !strings.Contains(err.Error(), "too large") {
		t.Error(err)
	}
}

func TestWithoutADaemonTheErrorSaysHowToStartOne(t *testing.T) {
	place := Place(t.TempDir())
	for _, when := range []string{"never started", "died and left its socket"} {
		if _, err := NewClient(place).State(t.Context()); !errors.Is(err, ErrNotRunning) || !strings.Contains(fault.Mend(err), "slipway up") {
			t.Errorf("%s: %v; mend: %s", when, err, fault.Mend(err))
		}
		if runs, err := place.Runs(); runs || err != nil {
			t.Errorf("%s: runs %v, %v", when, runs, err)
		}
		l, err := place.listen()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	}
}

// spawn starts this test program as a daemon.
func spawn(t *testing.T, place Place) error {
	t.Helper()
	t.Setenv(daemonEnv, string(place))
	return Spawn(t.Context(), place, os.Args[0])
}

func TestADaemonOutlivesTheCommandThatStartedIt(t *testing.T) {
	place := Place(t.TempDir())
	if err := os.Chmod(string(place), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := spawn(t, place); err != nil {
		t.Fatal(err)
	}
	c := NewClient(place)
	s, err := c.State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if s.PID == os.Getpid() {
		t.Error("the daemon is this process")
	}
	if runs, err := place.Runs(); !runs || err != nil {
		t.Errorf("runs %v, %v", runs, err)
	}
	if err := spawn(t, place); fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "another process runs this lab") {
		t.Errorf("a second daemon: %v", err)
	}
	if err := c.Quit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.State(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after quit: %v", err)
	}
}

func TestADaemonThatWasKilledIsReplaced(t *testing.T) {
	place := Place(t.TempDir())
	if err := spawn(t, place); err != nil {
		t.Fatal(err)
	}
	s, err := NewClient(place).State(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("kill", "-9", fmt.Sprint(s.PID)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for {
		if runs, err := place.Runs(); err != nil {
			t.Fatal(err)
		} else if !runs {
			break
		}
	}
	if _, err := os.Stat(place.path(socketName)); err != nil {
		t.Fatalf("the test needs a socket that was left behind: %v", err)
	}
	if err := spawn(t, place); err != nil {
		t.Fatal(err)
	}
	if err := NewClient(place).Quit(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestADaemonThatCannotServeSaysWhy(t *testing.T) {
	place := Place(t.TempDir())
	if err := os.WriteFile(place.path("broken"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := spawn(t, place); fault.Of(err) != fault.Missing || err.Error() != "no such image" || fault.Mend(err) != "build it" {
		t.Errorf("%v; class %v, mend %q", err, fault.Of(err), fault.Mend(err))
	}
}

func TestForwardsKeepTheirPorts(t *testing.T) {
	place := Place(t.TempDir())
	toy := newToyLab()
	wanted := []Forward{{Name: "db", Service: "read-write", Guest: "192.0.2.10:5432"}, {Name: "db", Service: "read-only", Guest: "192.0.2.10:5433"}}
	var first string
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		open, err := OpenForwards(ctx, place, wanted, toy.Dial, silent())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", open[0].Host)
		if err != nil {
			t.Fatal(err)
		}
		says(t, conn, "SELECT 1", "SELECT 1")
		conn.Close()
		now, _ := json.Marshal(open)
		if first != "" && string(now) != first {
			t.Errorf("the ports moved:\n%s\n%s", first, now)
		}
		first = string(now)
		cancel()
		for _, f := range open { // each listener closes in its own time after ctx has ended
			for {
				l, err := net.Listen("tcp", f.Host)
				if err == nil {
					l.Close()
					break
				}
			}
		}
	}
	if !strings.HasPrefix(toy.dialed[0], "192.0.2.10:5432") {
		t.Errorf("dialed %v", toy.dialed)
	}
}

func TestTheNameOfAPlaceTellsClustersApart(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_STATE_HOME", dir)
	for _, name := range []string{"a", "b"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name, "cluster.yaml"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a, errA := PlaceOf("shop", filepath.Join(dir, "a", "cluster.yaml"))
	b, errB := PlaceOf("shop", filepath.Join(dir, "b", "cluster.yaml"))
	t.Chdir(filepath.Join(dir, "a"))
	again, errAgain := PlaceOf("shop", "./cluster.yaml")
	if err := errors.Join(errA, errB, errAgain); err != nil {
		t.Fatal(err)
	}
	if a == b || a != again || !strings.HasPrefix(string(a), filepath.Join(dir, "slipway", "lab", "shop-")) {
		t.Errorf("%s, %s, %s", a, b, again)
	}
}
