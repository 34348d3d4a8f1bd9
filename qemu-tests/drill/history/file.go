package history

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Limits of a file that is read.
const (
	maxLine = 16 << 10
	maxOps  = 10_000_000
)

// Header is the first line of a file.
type Header struct {
	Format  int       `json:"slipway_history"`
	Began   time.Time `json:"began"` // what the times of operations count from
	Cluster string    `json:"cluster"`
}

// Writer gathers operations, in memory for the checker and on disk as evidence.
// It may be used by several goroutines.
type Writer struct {
	began time.Time

	mu  sync.Mutex
	out *bufio.Writer
	ops []Op
	err error
}

// NewWriter begins a history now.
func NewWriter(w io.Writer, cluster string) (*Writer, error) {
	h := &Writer{began: time.Now(), out: bufio.NewWriter(w)}
	return h, h.line(Header{Format: Format, Began: h.began.UTC(), Cluster: cluster})
}

// Now is the moment as the history counts it, on the monotonic clock.
func (w *Writer) Now() time.Duration { return time.Since(w.began) }

// Began is what the history's moments count from.
func (w *Writer) Began() time.Time { return w.began }

func (w *Writer) line(v any) error {
	data, err := json.Marshal(v)
	if err == nil {
		_, err = w.out.Write(append(data, '\n'))
	}
	return err
}

// Add puts an operation down. An error of the disk is Flush's to tell: what is in
// memory is whole.
func (w *Writer) Add(o Op) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ops = append(w.ops, o)
	if w.err == nil {
		w.err = w.line(o)
	}
}

// Ops are the operations so far, in the order of their ends.
func (w *Writer) Ops() []Op {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]Op(nil), w.ops...)
}

// Flush brings all to the file.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = w.out.Flush()
	}
	return w.err
}

// Parse reads a file. A last line without an end is what a power cut leaves, and
// no operation.
func Parse(r io.Reader) (Header, []Op, error) {
	var h Header
	in := bufio.NewReaderSize(r, maxLine)
	line, err := in.ReadSlice('\n')
	if err != nil {
		return h, nil, fault.New(fault.Input, "the history has no header: %w", err)
	}
	if err := strict(line, &h); err != nil || h.Format != Format {
		return h, nil, fault.New(fault.Input, "this is no history of format %d", Format)
	}
	var ops []Op
	for number := 2; ; number++ {
		line, err := in.ReadSlice('\n')
		switch {
		case err == io.EOF:
			return h, ops, nil
		case err != nil:
			return h, nil, fault.New(fault.Input, "line %d: %w", number, err)
		case len(ops) == maxOps:
			return h, nil, fault.New(fault.Input, "the history has more than %d operations", maxOps)
		}
		var o Op
		if err := strict(line, &o); err != nil {
			return h, nil, fault.New(fault.Input, "line %d: %w", number, err)
		}
		if err := o.check(); err != nil {
			return h, nil, fault.New(fault.Input, "line %d: %w", number, err)
		}
		ops = append(ops, o)
	}
}

func strict(line []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(line))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if d.More() {
		return fault.New(fault.Input, "more than one value in a line")
	}
	return nil
}
