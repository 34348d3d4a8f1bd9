package lab

import (
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// process is a running child that ends with us, even if we are killed.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended and was reaped
	err  error         // what Wait returned; read it after done
}

// startTied starts cmd so that the kernel kills it when this process dies. The
// signal is tied to the thread that forked (prctl(2), PR_SET_PDEATHSIG), so one
// thread is kept for as long as the child runs. A Ctrl-C at the terminal is for this
// process alone to act on.
func startTied(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	p := &process{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			p.err = cmd.Wait()
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return p, nil
}

// kill ends the process at once and waits until it is gone.
func (p *process) kill() {
	p.cmd.Process.Kill() // an error means that it has ended already
	<-p.done
}

// channel makes a connected pair of unix sockets: one end for us, the other to
// hand to the child. It has no name, so nobody else on the host can reach it.
func channel(name string) (ours net.Conn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	theirs = os.NewFile(uintptr(fds[1]), name+"-guest")
	mine := os.NewFile(uintptr(fds[0]), name)
	defer mine.Close() // FileConn works on a duplicate
	ours, err = net.FileConn(mine)
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}
