package actions

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// LogPath is where a node keeps its audit log, through all versions of its image.
const LogPath = "/var/lib/slipway/audit.jsonl"

const (
	// logSize is when the log begins anew; the former one stays beside it.
	logSize   = 4 << 20
	formerLog = ".1"
	maxLogged = 4 << 10 // bytes of arguments, and of an outcome
)

// Entry is what the log tells of one action.
type Entry struct {
	At     time.Time       `json:"at"`
	By     string          `json:"by"`               // the certificate's common name
	Serial string          `json:"serial,omitempty"` // the certificate's, hexadecimal
	From   string          `json:"from,omitempty"`   // address and port
	Action string          `json:"action"`
	Args   json.RawMessage `json:"args,omitempty"`
	// Ended is when the action came to its end. Where it is zero, it still goes on, or
	// the node lost power on the way.
	Ended   time.Time `json:"ended,omitzero"`
	Outcome string    `json:"outcome,omitempty"` // done, or why not
}

// record is a line of the log: what an action begins with, or its end.
type record struct {
	ID string `json:"id"`
	Entry
}

// Log is a node's audit log: a file that only grows, with a line when an action
// begins and one when it has ended. Each line is on the disk before anything else
// happens. A line that a power cut has torn is passed over, and what follows it
// counts.
type Log struct {
	Path string
	Now  func() time.Time // nil is the clock

	mu sync.Mutex
}

func (l *Log) time() time.Time {
	if l.Now != nil {
		return l.Now().UTC()
	}
	return time.Now().UTC()
}

// Begin records that an action begins, and returns what records its end. An action
// that cannot be recorded must not be done.
func (l *Log) Begin(e Entry) (end func(outcome string) error, err error) {
	e.At = l.time()
	if len(e.Args) > maxLogged {
		e.Args, _ = json.Marshal(fmt.Sprintf("(%d bytes)", len(e.Args)))
	}
	id := rand.Text()
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.rotate(); err != nil {
		return nil, unwritten(err)
	}
	if err := l.append(record{id, e}); err != nil {
		return nil, unwritten(err)
	}
	return func(outcome string) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		e.Ended, e.Outcome, e.Args = l.time(), clip(outcome, maxLogged), nil
		return unwritten(l.append(record{id, e}))
	}, nil
}

func unwritten(err error) error {
	if err == nil {
		return nil
	}
	return fault.New(fault.Failed, "the audit log cannot be written: %w", err).WithMend("make room on the node's state partition")
}

// rotate begins a new file once the log is large.
func (l *Log) rotate() error {
	info, err := os.Stat(l.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || info.Size() < logSize {
		return err
	}
	if err := os.Rename(l.Path, l.Path+formerLog); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(l.Path))
}

// append writes a line and waits until it is on the disk.
func (l *Log) append(r record) error {
	line, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(l.Path), 0o755); err != nil {
		return err
	}
	_, missing := os.Stat(l.Path)
	f, err := os.OpenFile(l.Path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	torn, err := endsTorn(f)
	if err != nil {
		return err
	}
	if torn {
		line = append([]byte("\n"), line...)
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if missing != nil {
		return atomicfile.SyncDir(filepath.Dir(l.Path))
	}
	return nil
}

// endsTorn reports whether the last line of a file has no end.
func endsTorn(f *os.File) (bool, error) {
	info, err := f.Stat()
	if err != nil || info.Size() == 0 {
		return false, err
	}
	last := make([]byte, 1)
	_, err = f.ReadAt(last, info.Size()-1)
	return last[0] != '\n', err
}

// Read returns the newest entries, at most n, the newest last.
func (l *Log) Read(n int) ([]Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	entries := []Entry{}
	at := map[string]int{}
	for _, path := range []string{l.Path + formerLog, l.Path} {
		f, err := os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			entries, err = readLog(f, entries, at)
			f.Close()
		}
		if err != nil {
			return nil, fmt.Errorf("the audit log cannot be read: %w", err)
		}
	}
	return entries[max(0, len(entries)-n):], nil
}

// readLog adds a file's entries; at is where each is by its id.
func readLog(r io.Reader, entries []Entry, at map[string]int) ([]Entry, error) {
	lines := bufio.NewReader(io.LimitReader(r, 4*logSize))
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		var rec record
		if json.Unmarshal(bytes.TrimSpace(line), &rec) == nil && rec.ID != "" && err == nil {
			i, known := at[rec.ID]
			switch {
			case known:
				entries[i].Ended, entries[i].Outcome = rec.Ended, rec.Outcome
			default:
				at[rec.ID] = len(entries)
				entries = append(entries, rec.Entry)
			}
		}
		if err != nil {
			return entries, nil
		}
	}
}
