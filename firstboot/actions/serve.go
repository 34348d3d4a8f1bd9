package actions

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	// keepAlive is how often an action that has nothing to say shows that the node is
	// there; writeLimit is how long the administrator may take to read a line.
	keepAlive  = 5 * time.Second
	writeLimit = 15 * time.Second
	argsLimit  = 10 * time.Second
	// Silence is after how long an administrator gives up on a node.
	Silence = 6 * keepAlive
)

// Refuse answers with an error in the form that the API has.
func Refuse(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(failure(err))
}

func failure(err error) Event {
	return Event{Error: err.Error(), Mend: fault.Mend(err), Class: fault.Of(err).String()}
}

// Act answers POST /v1/actions/NAME for a node.
func (s *Server) Act(w http.ResponseWriter, r *http.Request, name string, n node.Node, by Caller) {
	action, err := find(s.Actions, name, n.Member.Self.Name)
	if err != nil {
		Refuse(w, http.StatusNotFound, err)
		return
	}
	args, err := arguments(w, r)
	if err != nil {
		Refuse(w, http.StatusBadRequest, err)
		return
	}
	if other := s.take(underWay{name, by, time.Now()}); other != nil {
		Refuse(w, http.StatusConflict, fault.New(fault.Failed, "%s is busy with %s for %s (from %s) since %s", n.Member.Self.Name,
			other.name, other.by.Name, other.by.From, other.since.UTC().Format("15:04:05 UTC")).WithMend("wait until it has ended"))
		return
	}
	release := sync.OnceFunc(s.release)
	defer release()
	ctx, out, cancel := answering(w, r)
	defer cancel()
	logged := json.RawMessage(args)
	if action.Secret {
		logged = json.RawMessage(`"(secret)"`)
	}
	end, err := s.Log.Begin(Entry{By: by.Name, Serial: by.Serial, From: by.From, Action: name, Args: logged})
	if err != nil {
		Refuse(w, http.StatusInternalServerError, err)
		return
	}
	s.line("action %s, asked for by %s (%s)", name, by.Name, by.From)
	out.begin()
	result, err := s.run(ctx, action, n, args, by, out)
	outcome := "done"
	if err != nil {
		outcome = err.Error()
	}
	if logErr := end(outcome); logErr != nil && err == nil {
		err = logErr
	}
	s.line("action %s: %s", name, outcome)
	if s.After != nil {
		s.After()
	}
	release() // whoever reads the last line may ask for the next action at once
	out.end(result, err)
}

// Look answers POST /v1/looks/NAME for a node.
func (s *Server) Look(w http.ResponseWriter, r *http.Request, name string, n node.Node, by Caller) {
	look, err := find(s.Looks, name, n.Member.Self.Name)
	if err != nil {
		Refuse(w, http.StatusNotFound, err)
		return
	}
	args, err := arguments(w, r)
	if err != nil {
		Refuse(w, http.StatusBadRequest, err)
		return
	}
	ctx, out, cancel := answering(w, r)
	defer cancel()
	out.begin()
	out.end(s.run(ctx, look, n, args, by, out))
}

// arguments are those that a request came with, as JSON.
func arguments(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(argsLimit))
	args, err := io.ReadAll(http.MaxBytesReader(w, r.Body, MaxArgs))
	if err != nil {
		return nil, fault.New(fault.Input, "the action's arguments: %w", err)
	}
	if !json.Valid(args) {
		return nil, fault.New(fault.Input, "the action's arguments are not JSON")
	}
	return args, nil
}

// answering is where an action's events go; its context ends when nobody takes them.
func answering(w http.ResponseWriter, r *http.Request) (context.Context, *stream, context.CancelFunc) {
	control := http.NewResponseController(w)
	// The server reads on, to see whether the administrator is still there: without
	// end, as the action may take its time.
	control.SetReadDeadline(time.Time{})
	ctx, cancel := context.WithCancel(r.Context())
	return ctx, &stream{w: w, control: control, gone: cancel}, cancel
}

// run runs an action and keeps the administrator's connection alive.
func (s *Server) run(ctx context.Context, action Action, n node.Node, args []byte, by Caller, out *stream) (result any, err error) {
	every := s.Alive
	if every == 0 {
		every = keepAlive
	}
	alive := time.NewTicker(every)
	ended := make(chan struct{})
	var beside sync.WaitGroup
	beside.Go(func() {
		for {
			select {
			case <-alive.C:
				out.send(Event{Alive: true})
			case <-ended:
				return
			}
		}
	})
	defer func() {
		alive.Stop()
		close(ended)
		beside.Wait()
		if cause := recover(); cause != nil {
			result, err = nil, fault.New(fault.Internal, "the action %s has a defect: %v", action.Name, cause)
		}
	}()
	say := func(text string) {
		s.line("%s: %s", action.Name, text)
		out.send(Event{Say: clip(text, maxSay)})
	}
	again := s.Again
	if again == nil {
		again = func(string) {}
	}
	return action.Run(ctx, NewEnv(n, by, again, say), args)
}

func (s *Server) line(format string, args ...any) {
	if s.Line != nil {
		s.Line(fmt.Sprintf(format, args...))
	}
}

// stream is the answer, a line at a time. Once nobody takes it any more, gone is
// called.
type stream struct {
	mu      sync.Mutex
	w       http.ResponseWriter
	control *http.ResponseController
	gone    func()
}

func (s *stream) begin() {
	s.w.Header().Set("Content-Type", "application/x-ndjson")
	s.w.WriteHeader(http.StatusOK)
	s.send(Event{Alive: true})
}

func (s *stream) send(e Event) {
	line, err := json.Marshal(e)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.control.SetWriteDeadline(time.Now().Add(writeLimit))
	if err == nil {
		_, err = s.w.Write(append(line, '\n'))
	}
	if err == nil {
		err = s.control.Flush()
	}
	if err != nil {
		s.gone()
	}
}

func (s *stream) end(result any, err error) {
	last := Event{Done: true}
	if err == nil && result != nil {
		last.Result, err = json.Marshal(result)
	}
	if err == nil && len(last.Result) > maxLine/2 {
		err = fmt.Errorf("the action's result has %d bytes", len(last.Result))
	}
	if err != nil {
		last = failure(err)
		last.Error = clip(last.Error, maxSay)
	}
	s.send(last)
}

const (
	defaultRecords = 100
	maxRecords     = 1000
)

// Audit answers GET /v1/audit.
func (s *Server) Audit(w http.ResponseWriter, r *http.Request) {
	n := defaultRecords
	if text := r.URL.Query().Get("n"); text != "" {
		var err error
		if n, err = strconv.Atoi(text); err != nil || n < 1 || n > maxRecords {
			Refuse(w, http.StatusBadRequest, fault.New(fault.Input, "n is a number from 1 to %d", maxRecords))
			return
		}
	}
	entries, err := s.Log.Read(n)
	if err != nil {
		Refuse(w, http.StatusInternalServerError, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(entries)
}

// Refusal reads an error that Refuse has written; nil if it is none.
func Refusal(data []byte) error {
	var e Event
	if json.Unmarshal(data, &e) != nil || e.Error == "" {
		return nil
	}
	err := fault.New(fault.Named(e.Class), "%s", clip(e.Error, maxSay))
	err.Mend = clip(e.Mend, maxSay)
	return err
}

// ParseEntries reads another node's answer to GET /v1/audit.
func ParseEntries(data []byte) ([]Entry, error) {
	var entries []Entry
	if json.Unmarshal(data, &entries) != nil {
		return nil, errors.New("answered something that is no audit log")
	}
	return entries, nil
}
