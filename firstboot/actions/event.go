package actions

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Event is a line of the answer to an action.
type Event struct {
	Say   string `json:"say,omitempty"`   // how far it is
	Alive bool   `json:"alive,omitempty"` // nothing new, but the node is there

	// The last line is one of these two.
	Done   bool            `json:"done,omitempty"`
	Result json.RawMessage `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
	Mend   string          `json:"mend,omitempty"`
	Class  string          `json:"class,omitempty"` // of the error, see package fault
}

const (
	maxSay  = 4 << 10
	maxLine = 1 << 20
)

// ErrCutOff is an answer that ends before its last line: the node, the agent or the
// network is gone, and whether the action came to its end is not known.
var ErrCutOff = errors.New("hung up before the action had ended")

// ReadEvents reads the answer to an action, hands on each event but the last one
// and returns the result. Whoever answers may be broken: a line has a limit.
func ReadEvents(r io.Reader, event func(Event)) (json.RawMessage, error) {
	lines := bufio.NewReaderSize(r, 64<<10)
	for {
		line, err := readLine(lines)
		if err != nil {
			return nil, err
		}
		var e Event
		if json.Unmarshal(line, &e) != nil {
			return nil, errors.New("answered something that is no JSON")
		}
		switch {
		case e.Error != "":
			err := fault.New(fault.Named(e.Class), "%s", clip(e.Error, maxSay))
			err.Mend = clip(e.Mend, maxSay)
			return nil, err
		case e.Done:
			return e.Result, nil
		}
		e.Say = clip(e.Say, maxSay)
		event(e)
	}
}

// readLine reads one whole line; the end of a torn one is ErrCutOff.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if line = append(line, part...); len(line) > maxLine {
			return nil, fmt.Errorf("answered with a line of more than %d MiB", maxLine>>20)
		}
		switch {
		case err == nil:
			return line, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return nil, ErrCutOff
		default:
			return nil, err
		}
	}
}

// clip shortens a text to at most that many bytes.
func clip(text string, most int) string {
	if len(text) <= most {
		return text
	}
	return text[:most-3] + "..."
}
