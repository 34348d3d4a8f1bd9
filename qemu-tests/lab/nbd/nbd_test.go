package nbd

import (
	"bytes"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

const testSize = 4 << 20

// image makes a file of so many bytes, all of them the same.
func image(t testing.TB, size int, fill byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, bytes.Repeat([]byte{fill}, size), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// client speaks the protocol over a pipe, as far as the tests need it.
type client struct {
	t    testing.TB
	conn net.Conn
	disk *Disk
	path string
}

func attach(t testing.TB, path string, o Options) *client {
	t.Helper()
	ours, theirs := net.Pipe()
	d, err := Attach(theirs, path, o)
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, conn: ours, disk: d, path: path}
	t.Cleanup(d.Cut)
	c.read(18)
	c.send(uint32(fixedNewstyle|noZeroes), uint64(magicOption), uint32(optExportName), uint32(0))
	if answer := c.read(10); binary.BigEndian.Uint64(answer) != uint64(d.size) {
		t.Fatalf("export: % x", answer)
	}
	return c
}

func (c *client) send(values ...any) {
	c.t.Helper()
	var b bytes.Buffer
	for _, v := range values {
		if err := binary.Write(&b, binary.BigEndian, v); err != nil {
			c.t.Fatal(err)
		}
	}
	if _, err := c.conn.Write(b.Bytes()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.conn, b); err != nil {
		c.t.Fatal(err)
	}
	return b
}

// do sends a request and returns what it was answered.
func (c *client) do(kind, flags uint16, off uint64, length uint32, data []byte) (Errno, []byte) {
	c.t.Helper()
	c.send(request{magicRequest, flags, kind, 7, off, length}, data)
	head := c.read(16)
	if binary.BigEndian.Uint32(head) != magicReply || binary.BigEndian.Uint64(head[8:]) != 7 {
		c.t.Fatalf("reply % x", head)
	}
	e := Errno(binary.BigEndian.Uint32(head[4:]))
	if kind == cmdRead && e == noErrno {
		return e, c.read(int(length))
	}
	return e, nil
}

func (c *client) write(off uint64, fill byte, length int, flags uint16) {
	c.t.Helper()
	if e, _ := c.do(cmdWrite, flags, off, uint32(length), bytes.Repeat([]byte{fill}, length)); e != noErrno {
		c.t.Fatalf("write: %d", e)
	}
}

// onFile are the bytes of the file, each value once for a stretch of it.
func (c *client) onFile(off int64, length int) []byte {
	c.t.Helper()
	content, err := os.ReadFile(c.path)
	if err != nil {
		c.t.Fatal(err)
	}
	return content[off:][:length]
}

func all(b []byte, value byte) bool {
	return len(bytes.Trim(b, string([]byte{value}))) == 0 && len(b) > 0
}

func TestWhatWasNotFlushedIsGoneAfterAPowerCut(t *testing.T) {
	c := attach(t, image(t, testSize, 'o'), Options{})
	c.write(0, 'f', 8192, 0)
	if e, _ := c.do(cmdFlush, 0, 0, 0, nil); e != noErrno {
		t.Fatal(e)
	}
	c.write(4096, 'l', 8192, 0)
	if _, now := c.do(cmdRead, 0, 0, 16384, nil); !all(now[:4096], 'f') || !all(now[4096:12288], 'l') || !all(now[12288:], 'o') {
		t.Error("what was written last is not what is read")
	}
	if s := c.disk.Stats(); s.Held != 8192 || s.Writes != 2 || s.Flushes != 1 || s.Reads != 1 {
		t.Errorf("%+v", s)
	}
	c.disk.Cut()
	if !all(c.onFile(0, 8192), 'f') || !all(c.onFile(8192, 8192), 'o') {
		t.Error("the file is not as it was at the flush")
	}
	if s := c.disk.Stats(); s.Dropped != 8192 || s.Survived != 0 || s.Held != 0 {
		t.Errorf("%+v", s)
	}
	if err := c.disk.Wait(); err != nil {
		t.Error(err)
	}
}

func TestAWriteWithFUASurvivesAndItsNeighbourDoesNot(t *testing.T) {
	c := attach(t, image(t, testSize, 'o'), Options{})
	c.write(0, 'l', 4096, 0)
	c.write(512, 'f', 512, flagFUA)
	c.conn.Close() // as when QEMU is killed
	if err := c.disk.Wait(); err != nil {
		t.Error(err)
	}
	if !all(c.onFile(0, 512), 'o') || !all(c.onFile(512, 512), 'f') || !all(c.onFile(1024, 4096), 'o') {
		t.Errorf("%q", c.onFile(0, 2048))
	}
	if s := c.disk.Stats(); s.Dropped != 4096-512 {
		t.Errorf("%+v", s)
	}
}

func TestAClientThatTakesItsLeaveLosesNothing(t *testing.T) {
	c := attach(t, image(t, testSize, 'o'), Options{})
	c.write(1<<20, 'k', 4096, 0)
	c.send(request{Magic: magicRequest, Type: cmdDisc})
	if err := c.disk.Wait(); err != nil || !all(c.onFile(1<<20, 4096), 'k') || c.disk.Stats().Dropped != 0 {
		t.Errorf("%v, %+v", err, c.disk.Stats())
	}
}

func TestATornCacheLosesWholeSectorsByChanceAndTheSameInEveryRun(t *testing.T) {
	var first []byte
	for range 2 {
		c := attach(t, image(t, testSize, 'o'), Options{Tear: 7})
		c.write(0, 'n', 64*sectorSize, 0)
		c.disk.Cut()
		s := c.disk.Stats()
		if s.Dropped == 0 || s.Survived == 0 || s.Dropped+s.Survived != 64*sectorSize {
			t.Errorf("%+v", s)
		}
		file := c.onFile(0, 64*sectorSize)
		for at := 0; at < len(file); at += sectorSize {
			if s := file[at : at+sectorSize]; !all(s, 'n') && !all(s, 'o') {
				t.Errorf("the sector at %d is torn", at)
			}
		}
		if first == nil {
			first = file
		}
		if !bytes.Equal(file, first) {
			t.Error("the same seed lost other sectors")
		}
	}
}

func TestAFullCacheIsWritten(t *testing.T) {
	c := attach(t, image(t, testSize, 'o'), Options{Cache: 64 << 10})
	for i := range 20 {
		c.write(uint64(i)*4096, 'w', 4096, 0)
	}
	c.disk.Cut()
	if s := c.disk.Stats(); s.Spills != 1 || s.Dropped == 0 || s.Dropped >= 20*4096 || !all(c.onFile(0, 4096), 'w') || !all(c.onFile(19*4096, 4096), 'o') {
		t.Errorf("%+v", s)
	}
}

func TestZerosAndTrimsAreLostLikeWrites(t *testing.T) {
	c := attach(t, image(t, testSize, 'o'), Options{})
	c.do(cmdWriteZeroes, flagFUA|flagNoHole, 0, 4096, nil)
	c.do(cmdWriteZeroes, flagFastZero, 1<<20, 1<<20, nil)
	c.do(cmdTrim, 0, 2<<20, 1<<20, nil)
	if _, now := c.do(cmdRead, 0, 1<<20, 2<<20, nil); !all(now, 0) {
		t.Error("zeros are not read")
	}
	c.disk.Cut()
	if !all(c.onFile(0, 4096), 0) || !all(c.onFile(4096, testSize-4096), 'o') || c.disk.Stats().Dropped != 2<<20 {
		t.Errorf("%+v", c.disk.Stats())
	}
}

func TestWhatADiskCannotDoIsRefusedAndTheNextRequestIsServed(t *testing.T) {
	c := attach(t, image(t, testSize, 'o'), Options{})
	for what, r := range map[string]struct {
		request
		want Errno
	}{
		"half a sector":           {request{Type: cmdRead, Offset: 256, Length: 512}, einval},
		"a read behind the end":   {request{Type: cmdRead, Offset: testSize, Length: 512}, einval},
		"a read of too much":      {request{Type: cmdRead, Length: maxPayload + 512}, einval},
		"zeros behind the end":    {request{Type: cmdWriteZeroes, Offset: testSize - 512, Length: 1024}, ENOSPC},
		"an offset that wraps":    {request{Type: cmdTrim, Offset: 1<<64 - 512, Length: 1024}, einval},
		"an unknown command":      {request{Type: 99}, einval},
		"a flag that it lacks":    {request{Type: cmdRead, Flags: flagFastZero, Length: 512}, einval},
		"a flush with FUA is one": {request{Type: cmdFlush, Flags: flagFUA}, noErrno},
	} {
		if e, _ := c.do(r.Type, r.Flags, r.Offset, r.Length, nil); e != r.want {
			t.Errorf("%s: %d, want %d", what, e, r.want)
		}
	}
}

func TestADiskRefusesAndIsMended(t *testing.T) {
	c := attach(t, image(t, testSize, 'o'), Options{Manner: Manner{Refuse: ENOSPC}})
	data := make([]byte, 512)
	if e, _ := c.do(cmdWrite, 0, 0, 512, data); e != ENOSPC {
		t.Error(e)
	}
	if e, _ := c.do(cmdRead, 0, 0, 512, nil); e != noErrno {
		t.Error(e)
	}
	c.disk.Behave(Manner{Refuse: EIO})
	for _, kind := range []uint16{cmdRead, cmdFlush, cmdTrim} {
		if e, _ := c.do(kind, 0, 0, 512, nil); e != EIO {
			t.Errorf("command %d: %d", kind, e)
		}
	}
	c.disk.Behave(Manner{})
	if e, _ := c.do(cmdWrite, 0, 0, 512, data); e != noErrno {
		t.Error(e)
	}
}

func TestASlowDiskTakesAtLeastItsTimeAndLosesItsPowerAtOnce(t *testing.T) {
	const latency, bandwidth = 20 * time.Millisecond, 1 << 20
	c := attach(t, image(t, testSize, 'o'), Options{Manner: Manner{Latency: latency, Bandwidth: bandwidth}})
	began := time.Now()
	c.write(0, 'w', 64<<10, 0)
	if took, least := time.Since(began), latency+time.Second/16; took < least {
		t.Errorf("it took %v, want at least %v", took, least)
	}
	c.disk.Behave(Manner{Latency: time.Hour})
	c.send(request{Magic: magicRequest, Type: cmdRead, Length: 512})
	c.disk.Behave(Manner{})
	c.read(16 + 512)
	c.disk.Behave(Manner{Latency: time.Hour})
	c.send(request{Magic: magicRequest, Type: cmdFlush})
	c.disk.Cut() // this returns
	if !all(c.onFile(0, 4096), 'o') {
		t.Error("a flush that was not answered in time has been carried out")
	}
}

func TestADiskIsUsedByOneMachineAtATime(t *testing.T) {
	path := image(t, testSize, 0)
	c := attach(t, path, Options{})
	_, theirs := net.Pipe()
	if _, err := Attach(theirs, path, Options{}); fault.Of(err) != fault.Usage || !strings.Contains(err.Error(), "in use") {
		t.Error(err)
	}
	c.disk.Cut()
	attach(t, path, Options{})
}

func TestAFileOfHalfASectorIsNoDisk(t *testing.T) {
	if _, err := Attach(nil, image(t, 700, 0), Options{}); fault.Of(err) != fault.Input {
		t.Error(err)
	}
}

// What a client may read is what it wrote last, and what the power cut leaves is,
// sector by sector, what the last flush left; with chance in it, or anything that
// was current at the cut.
func FuzzCache(f *testing.F) {
	f.Add([]byte{0, 0, 9, 1, 3, 0, 0, 0, 0, 4, 200, 5, 1, 2, 3}, uint64(0))
	f.Add([]byte{1, 0, 255, 0, 127, 2, 3, 4, 2, 0, 255}, uint64(3))
	f.Add([]byte{4, 48, 0}, uint64(0)) // nothing, zeroed
	f.Fuzz(func(t *testing.T, script []byte, tear uint64) {
		const size = 256 << 10
		path := image(t, size, 'o')
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		c := newCache(file)
		durable, current := bytes.Repeat([]byte{'o'}, size), bytes.Repeat([]byte{'o'}, size)
		for step := byte(1); len(script) >= 3; step++ {
			op, off, length := script[0]%6, int64(script[1])*2*sectorSize, int64(script[2])*sectorSize
			script = script[3:]
			length = min(length, size-off)
			data := bytes.Repeat([]byte{step}, int(length))
			if op >= 3 {
				clear(data)
			}
			var err error
			switch op {
			case 0, 1:
				_, err = c.WriteAt(data, off)
			case 2:
				err = c.through(data, off)
				copy(durable[off:], data)
			case 3:
				c.zero(off, length)
			case 4:
				err = c.zeroThrough(off, length)
				copy(durable[off:], data)
			case 5:
				err = c.write()
				copy(durable, current)
				data = nil
			}
			if err != nil {
				t.Fatal(err)
			}
			copy(current[off:], data)
			got := make([]byte, size)
			if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, current) {
				t.Fatalf("what is read is not what was written last: %v", err)
			}
		}
		var held int64
		for _, b := range c.blocks {
			held += blockCost
			for _, p := range b.pages {
				if p != nil {
					held += pageSize
				}
			}
		}
		if held != c.held {
			t.Errorf("it thinks that it holds %d bytes of memory, and holds %d", c.held, held)
		}
		bytesHeld := c.bytes()
		var chance *rand.Rand
		if tear != 0 {
			chance = rand.New(rand.NewPCG(tear, 0))
		}
		dropped, survived, err := c.lose(chance)
		if err != nil || dropped+survived != bytesHeld {
			t.Errorf("dropped %d, survived %d of %d: %v", dropped, survived, bytesHeld, err)
		}
		left, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := 0; at < size; at += sectorSize {
			s := left[at : at+sectorSize]
			if !bytes.Equal(s, durable[at:at+sectorSize]) && (tear == 0 || !bytes.Equal(s, current[at:at+sectorSize])) {
				t.Fatalf("the sector at %d is neither old nor new", at)
			}
		}
	})
}

// wire is a connection whose other side says what the fuzzer wants.
type wire struct {
	io.Reader
	io.Writer
}

func FuzzServe(f *testing.F) {
	option := func(kind uint32, data string) []byte {
		b := binary.BigEndian.AppendUint64(nil, magicOption)
		b = binary.BigEndian.AppendUint32(b, kind)
		return append(binary.BigEndian.AppendUint32(b, uint32(len(data))), data...)
	}
	ask := func(q request) []byte {
		q.Magic = magicRequest
		b, _ := binary.Append(nil, binary.BigEndian, q)
		return b
	}
	flags := []byte{0, 0, 0, 3}
	f.Add(slicesConcat(flags, option(optList, ""), option(optInfo, "\x00\x00\x00\x00\x00\x01\x00\x03"), option(optGo, "\x00\x00\x00\x00\x00\x00"),
		ask(request{Type: cmdWrite, Length: 512}), make([]byte, 512), ask(request{Type: cmdRead, Length: 1024}), ask(request{Type: cmdFlush}), ask(request{Type: cmdDisc})))
	f.Add(slicesConcat(flags, option(8, ""), option(optGo, "\x00\x00\x00\x01x\x00\x00"), option(optAbort, "")))
	f.Add(slicesConcat(flags, option(optExportName, ""), ask(request{Type: cmdTrim, Offset: 1 << 63, Length: 512}), ask(request{Type: cmdWrite, Length: 1 << 31})))
	path := image(f, testSize, 'o')
	f.Fuzz(func(t *testing.T, said []byte) {
		file, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		d := &Disk{size: testSize, options: Options{Cache: 1 << 20}, cache: newCache(file), cut: make(chan struct{})}
		d.end(d.serve(wire{bytes.NewReader(said), io.Discard}))
		if st, err := file.Stat(); err != nil || st.Size() != testSize {
			t.Errorf("the file has %d bytes, %v", st.Size(), err)
		}
		if d.cache.held != 0 {
			t.Errorf("%d bytes are held without power", d.cache.held)
		}
	})
}

func slicesConcat(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
