package ether

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// framed is a frame behind its length, as QEMU writes it.
func framed(frame []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(frame))), frame...)
}

func TestASocketSpeaksQEMUsFraming(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a := join(t, s, "a", 1, access1)
		qemu, conn := net.Pipe()
		p, err := s.Attach("vm/0", conn, access1)
		if err != nil {
			t.Fatal(err)
		}
		guest := mac{2, 0, 0, 0, 0, 9}
		// Two frames in pieces that end anywhere: a stream keeps no borders.
		for _, b := range append(framed(ethernet(everyone, guest, "one")), framed(ethernet(a.mac, guest, "two"))...) {
			qemu.Write([]byte{b})
		}
		expect(t, a, "[one two]")

		a.say(guest, "answer")
		want := framed(ethernet(guest, a.mac, "answer"))
		got := make([]byte, len(want))
		if _, err := io.ReadFull(qemu, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("QEMU got %x (%v), want %x", got, err, want)
		}

		qemu.Close()
		<-p.Done()
		if p.Err() != nil {
			t.Errorf("a machine that ended is no error: %v", p.Err())
		}
		if _, still := s.Stats()["vm/0"]; still {
			t.Error("the port of a machine that ended is still there")
		}
		if _, err := s.Attach("vm/0", conn, access1); err != nil {
			t.Errorf("its name cannot be used again: %v", err)
		}
	})
}

func TestASocketsOversizedFrameIsSkipped(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		a := join(t, s, "a", 1, access1)
		qemu, conn := net.Pipe()
		if _, err := s.Attach("vm/0", conn, access1); err != nil {
			t.Fatal(err)
		}
		qemu.Write(framed(make([]byte, maxLength)))
		qemu.Write(framed(nil))
		qemu.Write(framed(ethernet(a.mac, mac{2}, "after it")))
		expect(t, a, "[after it]")
		if st := s.Stats()["vm/0"]; st.Oversized != 1 || st.Malformed != 1 {
			t.Errorf("%+v", st)
		}
	})
}

func TestASocketOutOfStepIsUnplugged(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		qemu, conn := net.Pipe()
		p, err := s.Attach("vm/0", conn, access1)
		if err != nil {
			t.Fatal(err)
		}
		go qemu.Write([]byte("GET / HTTP/1.0\r\n"))
		<-p.Done()
		if p.Err() == nil {
			t.Error("the port does not say why")
		}
		if _, err := qemu.Read(make([]byte, 1)); err == nil {
			t.Error("the socket is still open")
		}
	})
}

func TestClosingUnplugsASocketThatNobodyReads(t *testing.T) {
	bubble(t, Options{Queue: 1000}, func(t *testing.T, s *Switch) {
		a := join(t, s, "a", 1, access1)
		_, conn := net.Pipe()
		p, err := s.Attach("vm/0", conn, access1)
		if err != nil {
			t.Fatal(err)
		}
		for range 100 {
			a.say(everyone, "is anybody there")
		}
		synctest.Wait()
		p.Close()
		<-p.Done()
	})
}

func TestACaptureIsAPcapFile(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		var all, ofB bytes.Buffer
		stopAll, stopB := s.Capture(&all), s.Capture(&ofB, "b")
		a, b := join(t, s, "a/0", 1, access1), join(t, s, "b/0", 2, access1)
		began := time.Now()
		a.say(everyone, "1")
		time.Sleep(1500 * time.Millisecond)
		s.Cut("a")
		b.say(a.mac, "2")
		for _, stop := range []func() error{stopAll, stopB} {
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		}
		b.say(a.mac, "after the end")

		first, second := began, began.Add(1500*time.Millisecond)
		check := func(name string, file []byte, want ...record) {
			if got := readPcap(t, file); !equalRecords(got, want) {
				t.Errorf("%s: %v, want %v", name, got, want)
			}
		}
		check("all", all.Bytes(),
			record{first, taggedFrame(everyone, a.mac, 1, "1")}, record{second, taggedFrame(a.mac, b.mac, 1, "2")})
		check("b", ofB.Bytes(),
			record{first, ethernet(everyone, a.mac, "1")}, record{second, ethernet(a.mac, b.mac, "2")})
	})
}

type record struct {
	at    time.Time
	frame []byte
}

func equalRecords(a, b []record) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if !a[i].at.Equal(b[i].at) || !bytes.Equal(a[i].frame, b[i].frame) {
			return false
		}
	}
	return true
}

func readPcap(t *testing.T, file []byte) (all []record) {
	t.Helper()
	le := binary.LittleEndian
	if len(file) < 24 || le.Uint32(file) != 0xa1b23c4d || le.Uint16(file[4:]) != 2 || le.Uint16(file[6:]) != 4 || le.Uint32(file[20:]) != 1 {
		t.Fatalf("no pcap header: %x", file)
	}
	for file = file[24:]; len(file) > 0; {
		n := le.Uint32(file[8:])
		all = append(all, record{time.Unix(int64(le.Uint32(file)), int64(le.Uint32(file[4:]))), file[16 : 16+n]})
		file = file[16+n:]
	}
	return all
}

func TestACaptureThatCannotBeWrittenSaysSo(t *testing.T) {
	bubble(t, Options{}, func(t *testing.T, s *Switch) {
		full := errors.New("the disk is full")
		stop := s.Capture(failing{full})
		join(t, s, "a", 1, access1).say(everyone, "x")
		if err := stop(); err != full {
			t.Error(err)
		}
	})
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

// The guest is nothing but the network boot ROM that comes with QEMU: it asks
// for an address.
func TestFramesOfARealQEMUArrive(t *testing.T) {
	qemu, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip("no QEMU on this computer")
	}
	if testing.Short() {
		t.Skip("starts a machine")
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	theirs, mine := os.NewFile(uintptr(fds[0]), "theirs"), os.NewFile(uintptr(fds[1]), "mine")
	conn, err := net.FileConn(mine)
	mine.Close()
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{})
	defer s.Close()
	frames := make(chan []byte, 100)
	if _, err := s.Join("a", access1, func(f []byte) {
		select {
		case frames <- bytes.Clone(f):
		default:
		}
	}); err != nil {
		t.Fatal(err)
	}
	p, err := s.Attach("vm/0", conn, access1)
	if err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.CommandContext(t.Context(), qemu, "-nodefaults", "-no-user-config", "-machine", "q35,accel=tcg", "-m", "64M", "-display", "none",
		"-netdev", "stream,id=net0,server=off,addr.type=fd,addr.str=3",
		"-device", "virtio-net-pci,netdev=net0,mac=52:54:00:01:02:03,bootindex=0")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	late := time.After(2 * time.Minute)
	for {
		select {
		case f := <-frames:
			if [6]byte(f[6:12]) != [6]byte{0x52, 0x54, 0, 1, 2, 3} {
				t.Fatalf("a frame of another card: %x", f)
			}
			if isDHCPDiscover(f) {
				cmd.Process.Kill()
				cmd.Wait()
				<-p.Done() // as at a power cut
				return
			}
		case <-p.Done():
			cmd.Wait()
			t.Fatalf("QEMU ended: %s", said.String())
		case <-late:
			t.Fatal("the network boot ROM asked for no address")
		}
	}
}

// isDHCPDiscover looks for a BOOTREQUEST from port 68 to port 67 (RFC 2131, 2).
func isDHCPDiscover(f []byte) bool {
	const ip = headerSize
	if len(f) < ip+28+240 || binary.BigEndian.Uint16(f[12:]) != 0x0800 || f[ip+9] != 17 {
		return false
	}
	udp := f[ip+int(f[ip]&15)*4:]
	return binary.BigEndian.Uint16(udp) == 68 && binary.BigEndian.Uint16(udp[2:]) == 67 && udp[8] == 1
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0})
	f.Add(framed([]byte("x")))
	f.Add(framed(ethernet(everyone, mac{2}, "payload")))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0, 0, 0x40, 0, 1, 2, 3})
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := bufio.NewReader(bytes.NewReader(stream))
		buf := make([]byte, 100)
		rest := stream
		for {
			n, err := readFrame(r, buf)
			if err == errOversized {
				rest = rest[lengthSize+int(binary.BigEndian.Uint32(rest)):]
				continue
			}
			if err != nil {
				return
			}
			if !bytes.HasPrefix(rest, framed(buf[:n])) {
				t.Fatalf("read %x from %x", buf[:n], rest)
			}
			rest = rest[lengthSize+n:]
		}
	})
}

// Whatever is sent, a port in another network sees none of it, and what a trunk
// gets is what was sent.
func FuzzForward(f *testing.F) {
	f.Add([]byte{})
	f.Add(ethernet(everyone, mac{2}, "payload"))
	f.Add(taggedFrame(everyone, mac{2}, 0xe001, "payload"))
	f.Add(taggedFrame(everyone, mac{2}, 2, "payload"))
	f.Add(taggedFrame(everyone, mac{2}, 1, "")[:addrsSize+tagSize])
	f.Fuzz(func(t *testing.T, raw []byte) {
		from, to, other := PortConfig{VLAN: 1}, PortConfig{Trunk: []uint16{1}}, PortConfig{VLAN: 2, Trunk: []uint16{3}}
		frame, verdict := from.classify(raw)
		if verdict != accepted {
			return
		}
		if frame.vlan != 1 || other.member(frame.vlan) {
			t.Fatalf("%x is in VLAN %d", raw, frame.vlan)
		}
		out := frame.appendTo(nil, true)
		if len(out) != frame.size(true) || len(out) > MaxFrame {
			t.Fatalf("%d bytes, expected %d", len(out), frame.size(true))
		}
		again, verdict := to.classify(out)
		if verdict != accepted || again.vlan != 1 || !bytes.Equal(again.rest, frame.rest) || !bytes.Equal(again.addrs, raw[:addrsSize]) {
			t.Fatalf("%x became %x", raw, out)
		}
	})
}

// The figure to look at is MB/s through the switch, with a port that keeps up.
func BenchmarkForward(b *testing.B) {
	s := New(Options{Queue: 4 << 20})
	defer s.Close()
	src, dst := mac{2, 0, 0, 0, 0, 1}, mac{2, 0, 0, 0, 0, 2}
	in, err := s.Join("in", access1, func([]byte) {})
	if err != nil {
		b.Fatal(err)
	}
	out, err := s.Join("out", access1, func([]byte) {})
	if err != nil {
		b.Fatal(err)
	}
	out.Send(ethernet(src, dst, "here"))
	frame := ethernet(dst, src, string(make([]byte, 1500)))
	b.SetBytes(int64(len(frame)))
	b.ReportAllocs()
	for b.Loop() {
		in.Send(frame)
	}
	b.ReportMetric(float64(s.Stats()["out"].Overflow)/float64(b.N), "dropped/op")
}

// Through sockets on both sides, with the sender held back by the kernel alone.
func BenchmarkSockets(b *testing.B) {
	s := New(Options{Queue: 4 << 20})
	defer s.Close()
	ends := map[string]net.Conn{}
	for _, name := range []string{"in", "out"} {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			b.Fatal(err)
		}
		var conns [2]net.Conn
		for i, fd := range fds {
			f := os.NewFile(uintptr(fd), name)
			if conns[i], err = net.FileConn(f); err != nil {
				b.Fatal(err)
			}
			f.Close()
		}
		if _, err := s.Attach(name, conns[0], access1); err != nil {
			b.Fatal(err)
		}
		ends[name] = conns[1]
		defer conns[1].Close()
	}
	src, dst := mac{2, 0, 0, 0, 0, 1}, mac{2, 0, 0, 0, 0, 2}
	ends["out"].Write(framed(ethernet(src, dst, "here")))
	io.ReadFull(ends["in"], make([]byte, len(framed(ethernet(src, dst, "here")))))
	frame := framed(ethernet(dst, src, string(make([]byte, 1500))))
	done := make(chan int)
	go func() {
		n, _ := io.Copy(io.Discard, ends["out"])
		done <- int(n)
	}()
	b.SetBytes(int64(len(frame)))
	for b.Loop() {
		ends["in"].Write(frame)
	}
	ends["in"].Close()
	s.mu.Lock()
	p := s.ports["in"]
	s.mu.Unlock()
	if p != nil {
		<-p.Done()
	}
	b.ReportMetric(float64(s.Stats()["out"].Overflow)/float64(b.N), "dropped/op")
	s.Close()
	<-done
}
