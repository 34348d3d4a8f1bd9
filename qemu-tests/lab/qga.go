package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// agent is the host's side of the guest agent's channel: one JSON object a
// line, one command at a time, with no ids. After an answer was given up on,
// the channel must be brought back into step: guest-sync-delimited has the
// agent put a byte 0xFF, which JSON cannot hold, before an answer that carries
// our number (qemu-ga-ref, guest-sync-delimited).
type agent struct {
	mu     sync.Mutex // held for one command and its answer
	conn   net.Conn
	lines  *bufio.Reader
	number int64
	synced bool
}

const (
	// The agent itself captures at most 16 MiB of each stream; base64 and JSON make that 44 MiB.
	maxAgentLine = 48 << 20
	// How long one knock waits for an answer before the next: a guest that is still booting gives none.
	knockTime = 3 * time.Second
	sentinel  = 0xFF
)

// agentError is what the agent answers to a command that it cannot carry out.
type agentError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *agentError) Error() string { return e.Desc }

func newAgent(conn net.Conn) *agent {
	return &agent{conn: conn, lines: bufio.NewReader(conn), number: time.Now().UnixNano() >> 10 & (1<<40 - 1)}
}

// call runs one agent command and stores what it returns in out, unless out is
// nil. It waits for the agent to be there as long as ctx lasts.
func (a *agent) call(ctx context.Context, command string, args, out any) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	for !a.synced {
		if err := a.sync(ctx); err != nil {
			return err
		}
	}
	err := a.send(command, args)
	if err == nil {
		var line []byte
		line, err = a.receive(ctx, 0)
		if err == nil {
			err = decodeAnswer(line, out)
		}
	}
	var refusal *agentError
	if err != nil && !errors.As(err, &refusal) {
		a.synced = false
	}
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// sync knocks once; a guest that stays silent is no error while ctx lasts.
func (a *agent) sync(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	a.number++
	a.conn.SetWriteDeadline(time.Now().Add(knockTime))
	defer a.conn.SetWriteDeadline(time.Time{})
	// A leading 0xFF ends any half command that the agent may still be reading.
	if _, err := a.conn.Write([]byte{sentinel}); err != nil {
		return quiet(ended(err))
	}
	if err := a.send("guest-sync-delimited", map[string]any{"id": a.number}); err != nil {
		return quiet(err)
	}
	until := time.Now().Add(knockTime)
	for {
		line, err := a.receive(ctx, time.Until(until))
		if err != nil {
			return quiet(err)
		}
		var number int64
		if decodeAnswer(line, &number) == nil && number == a.number {
			a.synced = true
			return nil
		}
	}
}

// quiet turns silence into nil and the machine's end into its own error.
func quiet(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

func (a *agent) send(command string, args any) error {
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err = a.conn.Write(append(line, '\n')); err != nil {
		return ended(err)
	}
	return nil
}

// receive reads one line, for at most wait if it is positive, and never beyond ctx.
func (a *agent) receive(ctx context.Context, wait time.Duration) ([]byte, error) {
	var deadline time.Time
	if d, ok := ctx.Deadline(); ok {
		deadline = d
	}
	if wait != 0 {
		if d := time.Now().Add(wait); deadline.IsZero() || d.Before(deadline) {
			deadline = d
		}
	}
	a.conn.SetReadDeadline(deadline)
	stop := context.AfterFunc(ctx, func() { a.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := readLine(a.lines, maxAgentLine)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return line, ended(err)
}

func ended(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w (%w)", errMachineEnded, err)
}

// readLine reads up to a newline, which it leaves out, and refuses a line
// longer than limit.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if len(line)+len(part) > limit {
			return nil, fmt.Errorf("the guest agent sent a line of more than %d bytes", limit)
		}
		line = append(line, part...)
		switch {
		case err == nil:
			return line[:len(line)-1], nil
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// decodeAnswer reads one line of the agent: whatever stands before a sentinel
// belongs to an answer that nobody waits for any more.
func decodeAnswer(line []byte, out any) error {
	if i := bytes.LastIndexByte(line, sentinel); i >= 0 {
		line = line[i+1:]
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *agentError     `json:"error"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		return fmt.Errorf("the guest agent's answer %.60q is not JSON: %w", line, err)
	}
	switch {
	case answer.Error != nil:
		return answer.Error
	case answer.Return == nil:
		return fmt.Errorf("the guest agent's answer %.60q holds neither return nor error", line)
	case out == nil:
		return nil
	}
	if err := json.Unmarshal(answer.Return, out); err != nil {
		return fmt.Errorf("the guest agent returned %.60q: %w", answer.Return, err)
	}
	return nil
}
