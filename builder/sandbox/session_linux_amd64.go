package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"sync"
	"syscall"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
	"golang.org/x/sys/unix"
)

// Session is a running sandbox. Its methods are safe for use by several
// goroutines.
type Session struct {
	ctx     context.Context
	date    int64
	work    string // of the overlay, "" without one
	process *exec.Cmd
	control *net.UnixConn
	sendMu  sync.Mutex

	mu      sync.Mutex
	next    int
	waiting map[int]chan event
	ended   error // why no more commands can run

	stop func() bool
	once sync.Once
}

// event is an answer with the file that came with it.
type event struct {
	answer
	file int
}

// Start makes a session. When ctx ends, so does all that runs in it.
func Start(ctx context.Context, c Config) (*Session, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "sandbox"), os.NewFile(uintptr(pair[1]), "sandbox")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return nil, err
	}
	s := &Session{ctx: ctx, date: c.Date, work: c.Work, control: conn.(*net.UnixConn), waiting: map[int]chan event{}}

	// A mount point of its own; it is free again as soon as the session has
	// made it its root.
	stage, err := os.MkdirTemp("", "slipway-")
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer os.Remove(stage)

	s.process = exec.Command("/proc/self/exe")
	s.process.Args = []string{argv0}
	s.process.Env = []string{} // nothing of the caller's reaches the inside
	s.process.ExtraFiles = []*os.File{theirs}
	s.process.Stderr = os.Stderr // only a crash of ours would write there
	s.process.Dir = "/"
	s.process.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		Setsid:      true, // Ctrl-C is for the builder to act on
	}
	if err := s.process.Start(); err != nil {
		conn.Close()
		return nil, cannotStart(err)
	}
	s.stop = context.AfterFunc(ctx, func() { s.process.Process.Kill() })
	if err := s.setUp(c, stage); err != nil {
		s.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, err
	}
	go s.listen()
	return s, nil
}

// cannotStart explains why the namespaces were refused.
func cannotStart(err error) error {
	f := fault.New(fault.Missing, "the host allows no user namespaces: %w", err)
	switch {
	case errors.Is(err, unix.ENOSPC):
		return f.WithMend("raise the limit: sysctl user.max_user_namespaces=15000 (and user.max_{mnt,pid,net,uts,ipc}_namespaces)")
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return f.WithMend("allow them: sysctl kernel.unprivileged_userns_clone=1 (Debian), kernel.apparmor_restrict_unprivileged_userns=0 (Ubuntu); in a container, allow unshare and mount")
	case errors.Is(err, unix.EINVAL):
		return f.WithMend("use a kernel with CONFIG_USER_NS, CONFIG_PID_NS, CONFIG_NET_NS, CONFIG_UTS_NS and CONFIG_IPC_NS")
	}
	return fmt.Errorf("starting the sandbox: %w", err)
}

// setUp sends the configuration and waits until the root is made.
func (s *Session) setUp(c Config, stage string) error {
	message := setup{Stage: stage, Date: c.Date}
	var err error
	absolute := func(dir string) string {
		if dir == "" || err != nil {
			return ""
		}
		dir, err = filepath.Abs(dir)
		return dir
	}
	message.Root, message.Upper, message.Work = absolute(c.Root), absolute(c.Upper), absolute(c.Work)
	for _, dir := range c.Lower {
		message.Lower = append(message.Lower, absolute(dir))
	}
	for _, b := range c.Binds {
		message.Binds = append(message.Binds, Bind{absolute(b.Source), b.Target, b.ReadOnly})
	}
	if err != nil {
		return err
	}
	if err := send(s.control, message); err != nil {
		return fmt.Errorf("setting up the sandbox: %w", err)
	}
	var a answer
	if _, err := receive(s.control, &a); err != nil {
		return fmt.Errorf("the sandbox ended while it was set up: %w", err)
	}
	switch {
	case a.Missing:
		return fault.New(fault.Missing, "sandbox: %s", a.Error).WithMend("%s", a.Mend)
	case !a.Ready:
		return fmt.Errorf("sandbox: %s", a.Error)
	}
	return nil
}

// Root is a path by which the host reaches the session's root, overlay
// included, as long as the session lasts.
func (s *Session) Root() string {
	return fmt.Sprintf("/proc/%d/root%s", s.process.Process.Pid, insideRoot)
}

// Close ends all that runs in the session and waits until it is gone.
func (s *Session) Close() error {
	s.once.Do(func() {
		s.stop()
		s.control.Close()
		// The first process leaves when its socket closes, unless it is stuck in
		// a dying file system; killing it is certain, and the kernel then kills
		// and waits for the rest before Wait returns (pid_namespaces(7)).
		s.process.Process.Kill()
		s.process.Wait()
		if s.work != "" {
			// overlayfs leaves a directory there that its owner may not even list.
			os.Chmod(filepath.Join(s.work, "work"), 0o700)
		}
	})
	return nil
}

// listen hands answers to those who wait for them.
func (s *Session) listen() {
	for {
		e := event{file: -1}
		files, err := receive(s.control, &e.answer)
		if err != nil {
			break
		}
		if len(files) > 0 {
			e.file = files[0]
		}
		s.mu.Lock()
		if c, ok := s.waiting[e.ID]; ok {
			c <- e
		}
		s.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = s.ctx.Err()
	if s.ended == nil {
		s.ended = errors.New("the sandbox has ended")
	}
	for _, c := range s.waiting {
		close(c)
	}
	s.waiting = nil
}

// request registers a command and sends it.
func (s *Session) request(r spawn, files ...int) (chan event, error) {
	events := make(chan event, 2)
	s.mu.Lock()
	if s.ended != nil {
		defer s.mu.Unlock()
		return nil, s.ended
	}
	s.next++
	r.ID = s.next
	s.waiting[r.ID] = events
	s.mu.Unlock()
	s.sendMu.Lock()
	defer s.sendMu.Unlock()
	if err := send(s.control, r, files...); err != nil {
		s.forget(r.ID)
		if s.ctx.Err() != nil {
			return nil, s.ctx.Err()
		}
		return nil, fmt.Errorf("asking the sandbox for %s: %w", r.Args[0], err)
	}
	return events, nil
}

func (s *Session) forget(id int) {
	s.mu.Lock()
	delete(s.waiting, id)
	s.mu.Unlock()
}

// wait takes a command's last event.
func (s *Session) wait(events chan event, args []string) error {
	e, ok := <-events
	if !ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.ended
	}
	s.forget(e.ID)
	if e.Error != "" {
		return fmt.Errorf("sandbox: %s", e.Error)
	}
	if status := syscall.WaitStatus(e.Status); status != 0 {
		return &ExitError{Args: args, Status: status}
	}
	return nil
}

// environment is what a command gets, sorted.
func (s *Session) environment(extra map[string]string) []string {
	all := Environment(s.date)
	for name, value := range extra {
		all[name] = value
	}
	var out []string
	for name, value := range all {
		out = append(out, name+"="+value)
	}
	sort.Strings(out)
	return out
}

// Run runs a command to its end. A failure of the command is an *ExitError.
func (s *Session) Run(ctx context.Context, c Cmd) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { s.process.Process.Kill() })()
	p := pipes{}
	defer p.close()
	in, err := p.input(c.Stdin)
	if err != nil {
		return err
	}
	out, err := p.output(c.Stdout)
	if err != nil {
		return err
	}
	errs := out
	if c.Stderr != c.Stdout {
		if errs, err = p.output(c.Stderr); err != nil {
			return err
		}
	}
	events, err := s.request(spawn{Args: c.Args, Env: s.environment(c.Env), Dir: c.Dir}, in, out, errs)
	if err != nil {
		return err
	}
	p.handedOver()
	err = s.wait(events, c.Args)
	if perr := p.drain(); err == nil {
		err = perr
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// pipes connects readers and writers of the builder with a command.
type pipes struct {
	inside  []*os.File // ends that the command gets
	outside []*os.File // ends that output is read from
	copying sync.WaitGroup
	mu      sync.Mutex
	failed  error
}

func (p *pipes) null() (int, error) {
	f, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return -1, err
	}
	p.inside = append(p.inside, f)
	return int(f.Fd()), nil
}

func (p *pipes) input(r io.Reader) (int, error) {
	switch r := r.(type) {
	case nil:
		return p.null()
	case *os.File:
		return int(r.Fd()), nil
	}
	read, write, err := os.Pipe()
	if err != nil {
		return -1, err
	}
	p.inside = append(p.inside, read)
	go func() {
		io.Copy(write, r) // a command need not read all that it is offered
		write.Close()
	}()
	return int(read.Fd()), nil
}

func (p *pipes) output(w io.Writer) (int, error) {
	switch w := w.(type) {
	case nil:
		return p.null()
	case *os.File:
		return int(w.Fd()), nil
	}
	read, write, err := os.Pipe()
	if err != nil {
		return -1, err
	}
	p.inside = append(p.inside, write)
	p.outside = append(p.outside, read)
	p.copying.Go(func() {
		_, err := io.Copy(w, read)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			p.mu.Lock()
			p.failed = err
			p.mu.Unlock()
		}
	})
	return int(write.Fd()), nil
}

// handedOver closes our copies of what the command now has.
func (p *pipes) handedOver() {
	for _, f := range p.inside {
		f.Close()
	}
	p.inside = nil
}

// drain waits for the rest of the output. A process that the command left
// behind may hold the pipe open, so the wait is short.
func (p *pipes) drain() error {
	for _, f := range p.outside {
		f.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	}
	p.copying.Wait()
	return p.failed
}

func (p *pipes) close() {
	p.handedOver()
	for _, f := range p.outside {
		f.Close()
	}
}
