package peers

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/internal/fault"
)

// stage is a node that can be made to do things, and its administrator.
type stage struct {
	*street
	*agent
	cluster *membertest.Cluster
}

func setStage(t *testing.T, list ...actions.Action) *stage {
	t.Helper()
	c, s := membertest.New(t), &street{}
	a := s.agent(t, c.Member(t, "a-db1"), "1")
	a.Service.Actions.Actions = list
	if err := a.apply(t); err != nil {
		t.Fatal(err)
	}
	return &stage{s, a, c}
}

// admin is somebody with a right.
func (s *stage) admin(t testing.TB, right string) Remote {
	t.Helper()
	pair, err := s.cluster.Authority.IssueAdmin(right, "ann@desk", s.cluster.Begins)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS("admin")
	if err != nil {
		t.Fatal(err)
	}
	return s.remote(t, cert)
}

func (s *stage) remote(t testing.TB, cert tls.Certificate) Remote {
	t.Helper()
	n, err := s.cluster.Plan.Node("a-db1")
	if err != nil {
		t.Fatal(err)
	}
	return Remote{Node: n, Config: TLS(cert, s.cluster.Authority.Pool(), s.cluster.Plan.ID, n.Name, time.Now), Dial: s.dial}
}

func (s *stage) audit(t testing.TB) []actions.Entry {
	t.Helper()
	entries, err := s.admin(t, pki.AdminRead).Audit(context.Background(), 100)
	if err != nil {
		t.Fatal(err)
	}
	return entries
}

var greet = actions.Action{Name: "greet", Run: func(_ context.Context, e *actions.Env, args json.RawMessage) (any, error) {
	var a struct{ Whom string }
	if err := actions.Decode(args, &a); err != nil {
		return nil, err
	}
	e.Say("greeting %s", a.Whom)
	e.Node.Changed("waved")
	return map[string]string{"said": "hello " + a.Whom + " from " + e.Node.Member.Self.Name}, nil
}}

// quiet takes events that nobody looks at.
func quiet(actions.Event) {}

func TestAnAdministratorWithTheRightToWriteHasANodeDoSomething(t *testing.T) {
	s := setStage(t, greet)
	ended := 0
	s.Service.Actions.After = func() { ended++ }
	var said []string
	result, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "greet", map[string]string{"whom": "world"}, func(e actions.Event) {
		if e.Say != "" {
			said = append(said, e.Say)
		}
	})
	if err != nil || string(result) != `{"said":"hello world from a-db1"}` {
		t.Errorf("result %s, %v", result, err)
	}
	if ended != 1 {
		t.Errorf("%d actions have ended", ended)
	}
	if got := strings.Join(said, "; "); got != "greeting world; waved" {
		t.Errorf("said %q", got)
	}
	entries := s.audit(t)
	if len(entries) != 1 {
		t.Fatalf("log: %+v", entries)
	}
	e := entries[0]
	if e.Action != "greet" || e.By != "ann@desk" || len(e.Serial) < 16 || !strings.HasPrefix(e.From, "127.0.0.1:") || string(e.Args) != `{"whom":"world"}` || e.Outcome != "done" || e.Ended.IsZero() {
		t.Errorf("log: %+v", e)
	}
}

func TestNobodyElseHasANodeDoAnything(t *testing.T) {
	ran := false
	s := setStage(t, actions.Action{Name: "greet", Run: func(context.Context, *actions.Env, json.RawMessage) (any, error) {
		ran = true
		return nil, nil
	}})
	_, err := s.admin(t, pki.AdminRead).Act(t.Context(), "greet", struct{}{}, quiet)
	if fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), `takes the right "write"`) || !strings.Contains(err.Error(), `gives the right "read"`) {
		t.Errorf("with the right to read: %v", err)
	}
	cert, err := s.cluster.Block(t, "a-db2").Certificates[member.AgentCert].TLS("a-db2")
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.remote(t, cert).Act(t.Context(), "greet", struct{}{}, quiet); err == nil || !strings.Contains(err.Error(), "that of node a-db2, which has no right") {
		t.Errorf("a node: %v", err)
	}
	if _, err = s.remote(t, cert).Audit(t.Context(), 1); err == nil {
		t.Error("a node reads the audit log")
	}
	if _, err := s.admin(t, pki.AdminWrite).Audit(t.Context(), 1); err == nil || !strings.Contains(err.Error(), `takes the right "read"`) {
		t.Errorf("the right to write reads: %v", err)
	}
	if entries := s.audit(t); ran || len(entries) > 0 {
		t.Errorf("ran: %v, log %+v", ran, entries)
	}
}

func TestALookTakesTheRightToReadAndStandsInNoLog(t *testing.T) {
	hold, begun, letGo, _ := held()
	s := setStage(t, hold)
	s.Service.Actions.Looks = []actions.Action{greet}
	args := map[string]string{"whom": "world"}
	first := make(chan error, 1)
	go func() {
		_, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "hold", struct{}{}, quiet)
		first <- err
	}()
	<-begun
	result, err := s.admin(t, pki.AdminRead).Look(t.Context(), "greet", args, quiet)
	if err != nil || string(result) != `{"said":"hello world from a-db1"}` {
		t.Errorf("result %s, %v", result, err)
	}
	if _, err := s.admin(t, pki.AdminWrite).Look(t.Context(), "greet", args, quiet); err == nil || !strings.Contains(err.Error(), `takes the right "read"`) {
		t.Errorf("with the right to write: %v", err)
	}
	close(letGo)
	if err := <-first; err != nil {
		t.Errorf("the action beside it: %v", err)
	}
	// What changes something is no look, and a look no action.
	if _, err := s.admin(t, pki.AdminRead).Look(t.Context(), "hold", struct{}{}, quiet); fault.Of(err) != fault.Missing || !strings.Contains(err.Error(), "it has: greet") {
		t.Errorf("an action as a look: %v", err)
	}
	if _, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "greet", args, quiet); fault.Of(err) != fault.Missing {
		t.Errorf("a look as an action: %v", err)
	}
	for _, e := range s.audit(t) {
		if e.Action == "greet" {
			t.Errorf("log: %+v", e)
		}
	}
}

func TestARightToWriteEndsAfterAnHour(t *testing.T) {
	c := membertest.New(t)
	for right, want := range map[string]time.Duration{pki.AdminRead: pki.AdminLifetime, pki.AdminWrite: time.Hour} {
		pair, err := c.Authority.IssueAdmin(right, "ann@desk", c.Begins)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := pki.ParseCertificate("test", pair.Certificate)
		if err != nil {
			t.Fatal(err)
		}
		if got := cert.NotAfter.Sub(c.Begins.Truncate(time.Second)); got != want && got != want-time.Second {
			t.Errorf("%s: valid for %s, want %s", right, got, want)
		}
	}
}

func TestAnUnknownActionIsAnsweredWithThoseThatThereAre(t *testing.T) {
	s := setStage(t, greet, actions.Action{Name: "bow"})
	_, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "dance", struct{}{}, quiet)
	if fault.Of(err) != fault.Missing || !strings.Contains(err.Error(), `no action "dance"; it has: bow, greet`) || fault.Mend(err) == "" {
		t.Errorf("%v; %s", err, fault.Mend(err))
	}
}

func TestAnActionThatIsRefusedSaysWhyAndHowToMendIt(t *testing.T) {
	s := setStage(t,
		actions.Action{Name: "refuse", Secret: true, Run: func(context.Context, *actions.Env, json.RawMessage) (any, error) {
			return nil, fault.New(fault.Integrity, "the moon is not full").WithMend("wait")
		}},
		actions.Action{Name: "crash", Run: func(context.Context, *actions.Env, json.RawMessage) (any, error) { panic("no") }}, greet)
	_, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "refuse", map[string]string{"password": "correct-horse"}, quiet)
	if fault.Of(err) != fault.Integrity || err.Error() != "the moon is not full" || fault.Mend(err) != "wait" {
		t.Errorf("%v (%s)", err, fault.Mend(err))
	}
	if _, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "crash", struct{}{}, quiet); err == nil || !strings.Contains(err.Error(), "has a defect") {
		t.Errorf("an action with a defect: %v", err)
	}
	if _, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "greet", map[string]int{"unknown": 1}, quiet); fault.Of(err) != fault.Input {
		t.Errorf("an argument that the node does not know: %v", err)
	}
	log, err := os.ReadFile(s.node.Path(actions.LogPath))
	if err != nil || strings.Contains(string(log), "correct-horse") || !strings.Contains(string(log), "the moon is not full") {
		t.Errorf("log: %s, %v", log, err)
	}
}

func TestArgumentsHaveALimit(t *testing.T) {
	s := setStage(t, greet)
	if _, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "greet", map[string]string{"whom": strings.Repeat("x", actions.MaxArgs)}, quiet); fault.Of(err) != fault.Input {
		t.Errorf("64 KiB and a little: %v", err)
	}
	request, err := http.NewRequest(http.MethodPost, "https://127.0.0.1:7420/v1/actions/greet", strings.NewReader("no JSON"))
	if err != nil {
		t.Fatal(err)
	}
	response, err := s.asks(t, &s.admin(t, pki.AdminWrite).Config.Certificates[0]).Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusBadRequest || len(s.audit(t)) != 0 {
		t.Errorf("status %d, log %+v", response.StatusCode, s.audit(t))
	}
}

// held is an action that goes on until it is let go or cancelled.
func held() (a actions.Action, begun chan struct{}, letGo chan struct{}, ended chan error) {
	begun, letGo, ended = make(chan struct{}, 1), make(chan struct{}), make(chan error, 1)
	return actions.Action{Name: "hold", Run: func(ctx context.Context, _ *actions.Env, _ json.RawMessage) (any, error) {
		begun <- struct{}{}
		var err error
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-letGo:
		}
		ended <- err
		return nil, err
	}}, begun, letGo, ended
}

func TestANodeDoesOneThingAtATime(t *testing.T) {
	hold, begun, letGo, _ := held()
	s := setStage(t, hold, greet)
	first := make(chan error, 1)
	go func() {
		_, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "hold", struct{}{}, quiet)
		first <- err
	}()
	<-begun
	_, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "greet", map[string]string{"whom": "x"}, quiet)
	if err == nil || !strings.Contains(err.Error(), "a-db1 is busy with hold for ann@desk (from 127.0.0.1:") || !strings.Contains(err.Error(), " since ") {
		t.Errorf("a second one: %v", err)
	}
	close(letGo)
	if err := <-first; err != nil {
		t.Errorf("the first one: %v", err)
	}
	if _, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "greet", map[string]string{"whom": "x"}, quiet); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestAnActionLastsLongerThanAnyQuestionMayAndShowsThatItIsAlive(t *testing.T) {
	hold, begun, letGo, _ := held()
	c, street := membertest.New(t), &street{}
	a := street.agent(t, c.Member(t, "a-db1"), "1")
	a.Service.Actions.Actions, a.Service.Actions.Alive, a.Service.limit = []actions.Action{hold}, 50*time.Millisecond, 400*time.Millisecond
	if err := a.apply(t); err != nil {
		t.Fatal(err)
	}
	s := &stage{street, a, c}
	alive := 0
	_, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "hold", struct{}{}, func(e actions.Event) {
		if e.Alive {
			alive++
		}
		if alive == 20 { // a second, and more than twice the limit
			close(letGo)
		}
	})
	<-begun
	if err != nil || alive < 20 {
		t.Errorf("after %d signs of life: %v", alive, err)
	}
}

func TestAnActionEndsWhenItsAdministratorGoesAway(t *testing.T) {
	hold, begun, _, ended := held()
	s := setStage(t, hold)
	ctx, leave := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, err := s.admin(t, pki.AdminWrite).Act(ctx, "hold", struct{}{}, quiet)
		gone <- err
	}()
	<-begun
	leave()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the administrator hears %v", err)
	}
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("the action hears %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if e := s.audit(t); len(e) == 1 && e[0].Outcome == context.Canceled.Error() {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("log: %+v", e)
		}
	}
}

func TestANodeThatFallsSilentOrHangsUpInAnActionIsNamed(t *testing.T) {
	c := membertest.New(t)
	pair, err := c.Block(t, "a-db1").Certificates[member.AgentCert].TLS("a-db1")
	if err != nil {
		t.Fatal(err)
	}
	defer func(was time.Duration) { silence = was }(silence)
	silence = 300 * time.Millisecond
	const head = "HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
	for want, after := range map[string]string{
		"says nothing for 300ms":               "",
		"hung up before the action had ended":  "HANG UP",
		"answered with a line of more than 1 ": strings.Repeat("x", 2<<20),
		"answered something that is no JSON":   "hello\n",
	} {
		s := &stage{&street{}, nil, c}
		s.impostor(t, "127.0.0.1", &tls.Config{Certificates: []tls.Certificate{pair}}, func(conn net.Conn) {
			conn.Read(make([]byte, 4096))
			io.WriteString(conn, head+"{\"say\":\"begun\"}\n")
			if after != "HANG UP" {
				io.WriteString(conn, after)
				io.Copy(io.Discard, conn) // until the other side goes
			}
		})
		_, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "x", struct{}{}, quiet)
		if fault.Of(err) != fault.Network || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "a-db1") || fault.Mend(err) == "" {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

func TestANodeThatShakesHandsLateIsWaitedForByWhoActsOrSends(t *testing.T) {
	c := membertest.New(t)
	pair, err := c.Block(t, "a-db1").Certificates[member.AgentCert].TLS("a-db1")
	if err != nil {
		t.Fatal(err)
	}
	defer func(was time.Duration) { handshakeLimit = was }(handshakeLimit)
	const limit = 10 * time.Millisecond
	handshakeLimit = limit
	s := &stage{&street{}, nil, c}
	answers := func(body string) {
		s.impostor(t, "127.0.0.1", nil, func(conn net.Conn) {
			time.Sleep(20 * limit)
			conn = tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{pair}})
			conn.Read(make([]byte, 4096))
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
			io.Copy(io.Discard, conn)
		})
	}
	answers("{\"done\":true,\"result\":\"well\"}\n")
	if result, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "x", struct{}{}, quiet); err != nil || string(result) != `"well"` {
		t.Errorf("an action: %s, %v", result, err)
	}
	answers(`{"have":1}`)
	if have, err := s.admin(t, pki.AdminWrite).Send(t.Context(), "known", 0, strings.NewReader("x")); err != nil || have != 1 {
		t.Errorf("a blob: %d, %v", have, err)
	}
	if _, err := s.admin(t, pki.AdminRead).Audit(t.Context(), 1); fault.Of(err) != fault.Network {
		t.Errorf("a question, which has its limit: %v", err)
	}
}

func TestAnAdministratorHandsANodeANewerPlanWhichIsWrittenDown(t *testing.T) {
	s := setStage(t)
	s.cluster.Plan.Generation = 2
	if err := s.admin(t, pki.AdminRead).Give(t.Context(), s.cluster.Signed(t)); err == nil || !strings.Contains(err.Error(), `takes the right "write"`) {
		t.Errorf("with the right to read: %v", err)
	}
	for range 2 { // the second time it is no news
		if err := s.admin(t, pki.AdminWrite).Give(t.Context(), s.cluster.Signed(t)); err != nil {
			t.Error(err)
		}
	}
	if len(s.kept) != 1 || s.kept[0] != 2 {
		t.Errorf("kept %v", s.kept)
	}
	if e := s.audit(t); len(e) != 1 || e[0].Action != "plan" || e[0].By != "ann@desk" || string(e[0].Args) != `{"generation":2}` || e[0].Outcome != "done" {
		t.Errorf("log: %+v", e)
	}
	if err := s.admin(t, pki.AdminWrite).Give(t.Context(), membertest.New(t).Signed(t)); fault.Of(err) != fault.Integrity {
		t.Errorf("a plan of another cluster: %v", err)
	}
}

func TestNothingIsDoneThatCannotBeWrittenDown(t *testing.T) {
	ran := false
	s := setStage(t, actions.Action{Name: "x", Run: func(context.Context, *actions.Env, json.RawMessage) (any, error) {
		ran = true
		return nil, nil
	}})
	if err := os.MkdirAll(s.node.Path(actions.LogPath), 0o755); err != nil { // no file can be there
		t.Fatal(err)
	}
	_, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "x", struct{}{}, quiet)
	if ran || err == nil || !strings.Contains(err.Error(), "the audit log cannot be written") {
		t.Errorf("ran: %v; %v", ran, err)
	}
}

func TestTheAuditLogTellsNoMoreThanIsAskedFor(t *testing.T) {
	s := setStage(t, greet)
	for i := range 3 {
		if _, err := s.admin(t, pki.AdminWrite).Act(t.Context(), "greet", map[string]string{"whom": fmt.Sprint(i)}, quiet); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := s.admin(t, pki.AdminRead).Audit(t.Context(), 2)
	if err != nil || len(entries) != 2 || string(entries[1].Args) != `{"whom":"2"}` {
		t.Errorf("%+v, %v", entries, err)
	}
	if _, err := s.admin(t, pki.AdminRead).Audit(t.Context(), 5000); fault.Of(err) != fault.Input {
		t.Errorf("5000 records: %v", err)
	}
}
