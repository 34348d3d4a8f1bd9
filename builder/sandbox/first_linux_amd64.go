package sandbox

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// controlFD is where the first process finds its socket.
const controlFD = 3

// first is the first process of a session: it makes the root, starts commands,
// answers their system calls and collects the dead. It ends when the builder
// closes the socket, and with it all that runs in the session.
func first() int {
	file := os.NewFile(controlFD, "control")
	conn, err := net.FileConn(file)
	if err != nil {
		return 1
	}
	file.Close()
	control := conn.(*net.UnixConn)
	var s setup
	if _, err := receive(control, &s); err != nil {
		return 1
	}
	init, err := newFirst(control, s)
	if err != nil {
		a := answer{Error: err.Error()}
		var lack *lacking
		if errors.As(err, &lack) {
			a.Missing, a.Mend = true, lack.mend
		}
		send(control, a)
		return 1
	}
	if err := send(control, answer{Ready: true}); err != nil {
		return 1
	}
	init.serve()
	return 0
}

// lacking is an error that the host is to blame for.
type lacking struct {
	err  error
	mend string
}

func (l *lacking) Error() string { return l.err.Error() }
func (l *lacking) Unwrap() error { return l.err }

// firstProcess is the state of a session's first process.
type firstProcess struct {
	control *net.UnixConn
	spawns  chan job // to the thread that is filtered

	mu      sync.Mutex  // held over fork and registration, so that no death is missed
	running map[int]int // process → request
	sendMu  sync.Mutex
}

// job is one command with its open files.
type job struct {
	spawn
	files []int
}

func newFirst(control *net.UnixConn, s setup) (*firstProcess, error) {
	unix.Umask(0o022)
	if err := makeRoot(s); err != nil {
		return nil, err
	}
	if err := unix.Sethostname([]byte("localhost")); err != nil {
		return nil, fmt.Errorf("setting the host name: %w", err)
	}
	if err := loopbackUp(); err != nil {
		return nil, fmt.Errorf("bringing up the loopback device: %w", err)
	}
	p := &firstProcess{control: control, spawns: make(chan job), running: map[int]int{}}
	ready := make(chan error)
	go p.spawner(ready)
	return p, <-ready
}

// serve takes requests until the builder closes the socket.
func (p *firstProcess) serve() {
	go p.reap()
	for {
		var request spawn
		files, err := receive(p.control, &request)
		if err != nil {
			return
		}
		p.spawns <- job{request, files}
	}
}

// spawner starts all commands from one thread, and only that thread carries
// the system call filter: children inherit it, while the supervisor's own
// threads stay free of what they would have to answer themselves.
func (p *firstProcess) spawner(ready chan<- error) {
	runtime.LockOSThread() // never unlocked: the thread dies with the filter
	listener, err := installFilter()
	if err != nil {
		ready <- err
		return
	}
	go supervise(listener)
	ready <- nil
	for j := range p.spawns {
		if err := p.start(j); err != nil {
			p.send(answer{ID: j.ID, Error: err.Error()})
		}
	}
}

func (p *firstProcess) send(a answer, files ...int) {
	p.sendMu.Lock()
	defer p.sendMu.Unlock()
	send(p.control, a, files...) // an error means that the builder is gone; serve sees it too
}

// start starts one command.
func (p *firstProcess) start(j job) error {
	defer func() {
		for _, fd := range j.files {
			unix.Close(fd)
		}
	}()
	attr := &syscall.ProcAttr{Dir: j.Dir, Env: j.Env, Sys: &syscall.SysProcAttr{Setsid: true, Chroot: insideRoot}}
	if attr.Dir == "" {
		attr.Dir = "/"
	}
	master := -1
	if j.Terminal {
		var slave int
		var err error
		if master, slave, err = openTerminal(); err != nil {
			return fmt.Errorf("opening a terminal: %w", err)
		}
		j.files = append(j.files, master, slave)
		attr.Files = []uintptr{uintptr(slave), uintptr(slave), uintptr(slave)}
		attr.Sys.Setctty = true
	} else {
		if len(j.files) != 3 {
			return fmt.Errorf("%d files came with a command, not 3", len(j.files))
		}
		for _, fd := range j.files {
			attr.Files = append(attr.Files, uintptr(fd))
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pid, err := syscall.ForkExec(j.Args[0], j.Args, attr)
	if err != nil {
		return fmt.Errorf("starting %s: %w", j.Args[0], err)
	}
	p.running[pid] = j.ID
	if j.Terminal {
		p.send(answer{ID: j.ID, Started: true}, master)
	}
	return nil
}

// reap collects every process that ends: commands, and orphans that became
// children of this process.
func (p *firstProcess) reap() {
	children := make(chan os.Signal, 1)
	notifyChildren(children)
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid == 0 { // none, or none that has ended
			<-children
			continue
		}
		p.mu.Lock()
		id, ok := p.running[pid]
		delete(p.running, pid)
		p.mu.Unlock()
		if ok {
			p.send(answer{ID: id, Exited: true, Status: uint32(status)})
		}
	}
}
