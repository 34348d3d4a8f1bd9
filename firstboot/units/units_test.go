package units

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

// manager plays systemd at its private socket: the server's half of the D-Bus
// specification's "Authentication Protocol", then a table of answers.
type manager struct {
	path    string
	answers map[string][]any // member → body

	mu    sync.Mutex
	open  []net.Conn
	asked []string
}

func play(t *testing.T, answers map[string][]any) *manager {
	m := &manager{path: filepath.Join(t.TempDir(), "private"), answers: answers}
	listener, err := net.Listen("unix", m.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close(); m.reexec() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			m.mu.Lock()
			m.open = append(m.open, conn)
			m.mu.Unlock()
			go m.serve(conn)
		}
	}()
	return m
}

func (m *manager) serve(conn net.Conn) {
	in := bufio.NewReader(conn)
	for line := ""; line != "BEGIN"; {
		text, err := in.ReadString('\n')
		if err != nil {
			return
		}
		switch line = strings.Trim(text, "\x00\r\n"); {
		case line == "AUTH":
			io.WriteString(conn, "REJECTED EXTERNAL\r\n")
		case strings.HasPrefix(line, "AUTH EXTERNAL"):
			io.WriteString(conn, "OK 0123456789abcdef0123456789abcdef\r\n")
		case line == "NEGOTIATE_UNIX_FD":
			io.WriteString(conn, "AGREE_UNIX_FD\r\n")
		}
	}
	for serial := uint32(1); ; serial++ {
		call, err := dbus.DecodeMessage(in)
		if err != nil {
			return
		}
		member := call.Headers[dbus.FieldMember].Value().(string)
		if member == "Get" {
			member = call.Body[1].(string)
		}
		answer := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldReplySerial: dbus.MakeVariant(call.Serial()),
		}}
		body, known := m.answers[member]
		if known {
			answer.Body = body
			answer.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
		} else {
			answer.Type = dbus.TypeError
			answer.Headers[dbus.FieldErrorName] = dbus.MakeVariant("org.freedesktop.DBus.Error.UnknownMethod")
		}
		m.mu.Lock()
		if member != "AddMatch" {
			m.asked = append(m.asked, member)
		}
		m.mu.Unlock()
		// A serial is the sender's own business; the package sets it only on what
		// its connections send.
		if err := encode(conn, answer, serial); err != nil {
			return
		}
	}
}

func encode(w io.Writer, m *dbus.Message, serial uint32) error {
	var b strings.Builder
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		return err
	}
	text := []byte(b.String())
	binary.LittleEndian.PutUint32(text[8:], serial)
	_, err := w.Write(text)
	return err
}

// reexec closes what is open, as systemd does when it executes itself anew.
func (m *manager) reexec() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, conn := range m.open {
		conn.Close()
	}
	m.open = nil
}

func (m *manager) bus(t *testing.T, fallback Manager) *Bus {
	b := &Bus{fallback: fallback, dial: func(ctx context.Context) (*systemd.Conn, error) {
		return systemd.NewConnection(func() (*dbus.Conn, error) {
			conn, err := dbus.Dial("unix:path="+m.path, dbus.WithContext(ctx))
			if err != nil {
				return nil, err
			}
			return conn, conn.Auth([]dbus.Auth{dbus.AuthExternal("0")})
		})
	}}
	t.Cleanup(b.Close)
	return b
}

func (m *manager) dials() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.open)
}

func (m *manager) questions() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return strings.Join(m.asked, " ")
}

// status is how ListUnitsByNames tells of a unit.
func status(name, load, active, sub string, job uint32) systemd.UnitStatus {
	return systemd.UnitStatus{Name: name, LoadState: load, ActiveState: active, SubState: sub, Path: "/u", JobId: job, JobPath: "/"}
}

// absent is a systemctl that must not be asked.
type absent struct{ t *testing.T }

func (a absent) Units(context.Context, []string) ([]Unit, error) {
	a.t.Error("the fallback was asked")
	return nil, errors.New("no systemctl")
}

func (a absent) Starting(context.Context) bool { a.t.Error("the fallback was asked"); return true }

func TestSystemdIsAskedOverOneConnectionAndWhyOnlyOfWhatDoesNotRun(t *testing.T) {
	m := play(t, map[string][]any{
		"ListUnitsByNames": {[]systemd.UnitStatus{
			status("haproxy.service", "loaded", "active", "running", 0),
			status("keepalived.service", "loaded", "failed", "failed", 0),
			status("late.service", "loaded", "inactive", "dead", 7),
			status("gone.service", "not-found", "inactive", "dead", 0),
		}},
		"GetAll": {map[string]dbus.Variant{
			"Result": dbus.MakeVariant("exit-code"), "UnitFileState": dbus.MakeVariant("enabled"),
			"ConditionResult": dbus.MakeVariant(false), "ConditionTimestampMonotonic": dbus.MakeVariant(uint64(5)),
		}},
		"SystemState": {dbus.MakeVariant("starting")},
	})
	b := m.bus(t, absent{t})
	want := []Unit{
		{Name: "haproxy.service", Load: "loaded", Active: "active", Sub: "running"},
		{Name: "keepalived.service", Load: "loaded", Active: "failed", Sub: "failed", Result: "exit-code", Unmet: true, FileState: "enabled"},
		{Name: "late.service", Load: "loaded", Active: "inactive", Sub: "dead", Queued: true},
		{Name: "gone.service", Load: "not-found", Active: "inactive", Sub: "dead"},
	}
	for range 3 {
		got, err := b.Units(t.Context(), []string{"haproxy.service", "keepalived.service", "late.service", "gone.service"})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v, %v", got, err)
		}
	}
	if !b.Starting(t.Context()) {
		t.Error("systemd said that it is starting")
	}
	if got := m.questions(); got != "ListUnitsByNames GetAll ListUnitsByNames GetAll ListUnitsByNames GetAll SystemState" {
		t.Errorf("asked: %s", got)
	}
	if n := m.dials(); n > 2 { // go-systemd keeps a second one for signals
		t.Errorf("%d connections for four questions", n)
	}
}

func TestAConnectionThatSystemdHasClosedIsMadeAnew(t *testing.T) {
	m := play(t, map[string][]any{"SystemState": {dbus.MakeVariant("running")}})
	b := m.bus(t, absent{t})
	for range 3 {
		if b.Starting(t.Context()) {
			t.Error("systemd said that it is running")
		}
		m.reexec()
	}
}

func TestASystemdThatSaysNothingHoldsUpNobodyWhoIsStopped(t *testing.T) {
	path := filepath.Join(t.TempDir(), "private")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		if conn, err := listener.Accept(); err == nil {
			defer conn.Close()
			stop()
			io.Copy(io.Discard, conn) // until the other side gives up
		}
	}()
	if _, err := (&manager{path: path}).bus(t, absent{t}).Units(ctx, []string{"a.service"}); err == nil {
		t.Error("an answer out of nothing")
	}
}

func TestSystemctlIsAskedWhereTheSocketDoesNotAnswer(t *testing.T) {
	var argv []string
	systemctl := Systemctl{Run: func(_ context.Context, a ...string) (string, error) {
		argv = a
		if a[1] == "show" {
			return "Id=a.service\nLoadState=loaded\nActiveState=inactive\nSubState=dead\nJob=0\nResult=success\nConditionResult=no\nConditionTimestampMonotonic=0\nUnitFileState=disabled\n\n" +
				"Id=b.target\nLoadState=loaded\nActiveState=active\nSubState=active\n", nil
		}
		return "degraded\n", errors.New("exit status 1")
	}}
	nobody := &manager{path: filepath.Join(t.TempDir(), "private")}
	refuses := play(t, nil)
	for name, b := range map[string]*Bus{"nobody there": nobody.bus(t, systemctl), "an error": refuses.bus(t, systemctl)} {
		got, err := b.Units(t.Context(), []string{"a.service", "b.target"})
		want := []Unit{
			{Name: "a.service", Load: "loaded", Active: "inactive", Sub: "dead", Result: "success", FileState: "disabled"},
			{Name: "b.target", Load: "loaded", Active: "active", Sub: "active"},
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if !reflect.DeepEqual(argv[len(argv)-3:], []string{"--", "a.service", "b.target"}) {
			t.Errorf("%s: %q", name, argv)
		}
		if b.Starting(t.Context()) {
			t.Errorf("%s: a degraded system has started", name)
		}
	}
}
