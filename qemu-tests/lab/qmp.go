package lab

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
)

// monitor is a QMP connection: one JSON object a line, answers matched to
// commands by id (qmp-spec, 2.4).
type monitor struct {
	conn net.Conn

	mu      sync.Mutex
	next    int
	waiting map[int]chan qmpMessage
	err     error // why reading ended

	ready chan struct{} // closed when the greeting arrived
	done  chan struct{} // closed when reading ended
}

type qmpMessage struct {
	QMP    json.RawMessage `json:"QMP"`
	ID     *int            `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *qmpError       `json:"error"`
	Event  string          `json:"event"`
}

type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

var errMachineEnded = errors.New("the machine has ended")

// newMonitor waits for QEMU's greeting and enters command mode.
func newMonitor(ctx context.Context, conn net.Conn) (*monitor, error) {
	m := &monitor{conn: conn, waiting: map[int]chan qmpMessage{}, ready: make(chan struct{}), done: make(chan struct{})}
	go m.read()
	select {
	case <-m.ready:
	case <-m.done:
		return nil, m.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return m, m.execute(ctx, "qmp_capabilities", nil, nil)
}

func (m *monitor) read() {
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(nil, 16<<20)
	greeted := false
	for lines.Scan() {
		var msg qmpMessage
		if err := json.Unmarshal(lines.Bytes(), &msg); err != nil {
			continue // nothing that we asked for looks like this
		}
		if msg.QMP != nil && !greeted {
			greeted = true
			close(m.ready)
		}
		if msg.ID != nil {
			m.mu.Lock()
			answer := m.waiting[*msg.ID]
			delete(m.waiting, *msg.ID)
			m.mu.Unlock()
			if answer != nil {
				answer <- msg
			}
		}
	}
	m.mu.Lock()
	m.err = errMachineEnded
	if err := lines.Err(); err != nil {
		m.err = fmt.Errorf("%w: QMP: %w", errMachineEnded, err)
	}
	m.mu.Unlock()
	close(m.done)
}

// execute runs one command and stores what it returns in out, unless out is nil.
func (m *monitor) execute(ctx context.Context, command string, args, out any) error {
	answer := make(chan qmpMessage, 1)
	m.mu.Lock()
	m.next++
	id := m.next
	m.waiting[id] = answer
	m.mu.Unlock()

	request := map[string]any{"execute": command, "id": id}
	if args != nil {
		request["arguments"] = args
	}
	line, err := json.Marshal(request)
	if err != nil {
		return err
	}
	if _, err := m.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("QMP %s: %w: %w", command, errMachineEnded, err)
	}
	select {
	case msg := <-answer:
		if msg.Error != nil {
			return fmt.Errorf("QMP %s: %s: %s", command, msg.Error.Class, msg.Error.Desc)
		}
		if out == nil {
			return nil
		}
		return json.Unmarshal(msg.Return, out)
	case <-m.done:
		return fmt.Errorf("QMP %s: %w", command, m.err)
	case <-ctx.Done():
		return fmt.Errorf("QMP %s: %w", command, ctx.Err())
	}
}
