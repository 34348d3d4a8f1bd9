package seed

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"time"

	"github.com/diskfs/go-diskfs/backend"
)

// memory is a disk in memory, for go-diskfs to write to.
type memory struct {
	data []byte
	pos  int64
}

var _ backend.Storage = (*memory)(nil)
var _ backend.WritableFile = (*memory)(nil)

// maxMedium bounds a medium: seeds are small, and something is wrong with one
// that is not.
const maxMedium = 128 << 20

func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if off < 0 || end > maxMedium {
		return 0, errors.New("the seed is larger than 128 MiB")
	}
	if end > int64(len(m.data)) {
		m.data = append(m.data, make([]byte, end-int64(len(m.data)))...)
	}
	return copy(m.data[off:end], p), nil
}

func (m *memory) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off >= int64(len(m.data)) {
		return 0, io.EOF
	}
	n := copy(p, m.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (m *memory) Read(p []byte) (int, error) {
	n, err := m.ReadAt(p, m.pos)
	m.pos += int64(n)
	return n, err
}

func (m *memory) Seek(off int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		off += m.pos
	case io.SeekEnd:
		off += int64(len(m.data))
	}
	if off < 0 {
		return 0, errors.New("seek before the begin")
	}
	m.pos = off
	return off, nil
}

func (m *memory) Close() error                            { return nil }
func (m *memory) Stat() (fs.FileInfo, error)              { return memoryInfo{m}, nil }
func (m *memory) Path() string                            { return "" }
func (m *memory) Sys() (*os.File, error)                  { return nil, backend.ErrNotSuitable }
func (m *memory) Writable() (backend.WritableFile, error) { return m, nil }

type memoryInfo struct{ m *memory }

func (i memoryInfo) Name() string       { return "seed" }
func (i memoryInfo) Size() int64        { return int64(len(i.m.data)) }
func (i memoryInfo) Mode() fs.FileMode  { return 0o600 }
func (i memoryInfo) ModTime() time.Time { return epoch() }
func (i memoryInfo) IsDir() bool        { return false }
func (i memoryInfo) Sys() any           { return nil }
