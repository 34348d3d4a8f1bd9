package sandbox

import (
	"context"
	"io"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// Shell runs a command on the builder's own terminal until the user leaves it.
// Inside it has a terminal of the session's, so job control and Ctrl-C work as
// on any other machine. Without a terminal the command gets stdin, stdout and
// stderr as they are.
func (s *Session) Shell(ctx context.Context, c Cmd) error {
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
		return s.Run(ctx, c)
	}
	env := map[string]string{"TERM": os.Getenv("TERM")}
	for name, value := range c.Env {
		env[name] = value
	}
	events, err := s.request(spawn{Args: c.Args, Env: s.environment(env), Dir: c.Dir, Terminal: true})
	if err != nil {
		return err
	}
	e, ok := <-events
	if !ok || !e.Started {
		events <- e
		return s.wait(events, c.Args)
	}
	// Go's poller cannot wait for a terminal that is opened as blocking.
	unix.SetNonblock(e.file, true)
	master := os.NewFile(uintptr(e.file), "terminal")
	defer master.Close()

	old, err := term.MakeRaw(int(os.Stdin.Fd()))
	if err != nil {
		return err
	}
	defer term.Restore(int(os.Stdin.Fd()), old)
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	defer func() { signal.Stop(resized); close(resized) }()
	resized <- unix.SIGWINCH
	go func() {
		for range resized {
			if size, err := unix.IoctlGetWinsize(int(os.Stdin.Fd()), unix.TIOCGWINSZ); err == nil {
				unix.IoctlSetWinsize(e.file, unix.TIOCSWINSZ, size)
			}
		}
	}()
	go io.Copy(master, os.Stdin)
	go io.Copy(os.Stdout, master)
	return s.wait(events, c.Args)
}
