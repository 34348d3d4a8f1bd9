package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Command is a program to run on the node.
type Command struct {
	Argv    []string
	Stdin   string        // secrets go here, never into Argv, which every user can list
	Timeout time.Duration // 0 means one minute
	Private bool          // the output may hold secrets and stays out of errors
	LogTo   *os.File      // takes the output as it comes, instead of the result
}

// Runner runs commands on a node.
type Runner interface {
	// Run returns standard output. The error of a command that fails says what
	// it was, how it ended, and the last of what it printed.
	Run(ctx context.Context, c Command) (string, error)
}

// Exec runs commands on this machine, inside a directory of its own if Prefix
// says how to get there (a test's chroot).
type Exec struct {
	Prefix []string
}

const (
	defaultTimeout = time.Minute
	outputKept     = 256 << 10
	outputInError  = 600
)

// Run implements Runner. A command that takes too long is killed with all it
// started.
func (e Exec) Run(ctx context.Context, c Command) (string, error) {
	timeout := c.Timeout
	if timeout == 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	argv := append(append([]string(nil), e.Prefix...), c.Argv...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root", "DEBIAN_FRONTEND=noninteractive"}
	cmd.Dir = "/"
	cmd.Stdin = strings.NewReader(c.Stdin)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 2 * time.Second
	var stdout, all tail
	cmd.Stdout, cmd.Stderr = both{&stdout, &all}, &all
	if c.LogTo != nil {
		cmd.Stdout, cmd.Stderr = c.LogTo, c.LogTo
	}
	err := cmd.Run()
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well; something it left behind holds its output open
	}
	if err == nil {
		return stdout.String(), nil
	}
	how := err.Error()
	if ctx.Err() == context.DeadlineExceeded {
		how = fmt.Sprintf("took longer than %s and was stopped", timeout)
	}
	said := strings.TrimSpace(all.String())
	if len(said) > outputInError {
		said = "…" + said[len(said)-outputInError:]
	}
	if said == "" || c.Private {
		return stdout.String(), &CommandError{Argv: c.Argv, How: how, Err: err}
	}
	return stdout.String(), &CommandError{Argv: c.Argv, How: how, Said: said, Err: err}
}

// CommandError is a command that did not end well.
type CommandError struct {
	Argv []string
	How  string // exit status 1
	Said string // the last of its output, or ""
	Err  error
}

func (e *CommandError) Error() string {
	text := fmt.Sprintf("%s: %s", strings.Join(e.Argv, " "), e.How)
	if e.Said != "" {
		text += ": " + strings.Join(strings.Fields(e.Said), " ")
	}
	return text
}

func (e *CommandError) Unwrap() error { return e.Err }

// tail keeps the last of what is written to it, by several writers at once.
type tail struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n, err := t.buffer.Write(p)
	if t.buffer.Len() > 2*outputKept {
		t.buffer.Next(t.buffer.Len() - outputKept)
	}
	return n, err
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buffer.String()
}

type both struct{ a, b *tail }

func (w both) Write(p []byte) (int, error) {
	w.a.Write(p)
	return w.b.Write(p)
}
