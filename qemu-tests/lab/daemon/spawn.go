package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"

	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Request is what the command that starts a daemon tells it, in a file of the
// Place: paths are absolute. It holds no secret.
type Request struct {
	Topology string `json:"topology"`
	Images   string `json:"images"`
	Seeds    string `json:"seeds"`
	CPUs     int    `json:"cpus,omitempty"`
	Memory   int64  `json:"memory,omitempty"`
	Volatile bool   `json:"volatile,omitempty"` // see lab.VM
}

// Write leaves the request for the daemon.
func (r Request) Write(place Place) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(place.path(requestName), 0o600, append(data, '\n'))
}

// ReadRequest is the daemon's side of Write.
func ReadRequest(place Place) (Request, error) {
	var r Request
	data, err := os.ReadFile(place.path(requestName))
	if err != nil {
		return r, err
	}
	return r, json.Unmarshal(data, &r)
}

// readyFD is the descriptor on which a new daemon tells who started it that it
// serves, or why not.
const readyFD = 3

// Spawn runs program with args as a daemon: in a session of its own, so that no
// Ctrl-C reaches it, with its output in the place's log. It returns once the
// daemon serves. If ctx ends before, the daemon is ended.
func Spawn(ctx context.Context, place Place, program string, args ...string) error {
	log, err := os.OpenFile(place.Log(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	word, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer word.Close()
	cmd := exec.Command(program, args...)
	cmd.Dir = string(place)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs} // readyFD
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	theirs.Close() // so that reading ends when the daemon does
	if err != nil {
		return fmt.Errorf("starting the lab's daemon: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	said, err := io.ReadAll(io.LimitReader(word, maxBody))
	if !stop() {
		cmd.Wait()
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	if string(said) == readyWord {
		return cmd.Process.Release()
	}
	cmd.Wait()
	var p problem
	if err := json.Unmarshal(said, &p); err == nil && p.Message != "" {
		return p.fault()
	}
	return fault.New(fault.Failed, "the lab's daemon ended before it served (%s)", cmd.ProcessState).WithMend("see %s", place.Log())
}

const readyWord = "ready\n"

// Starter is a daemon's way to answer the process that started it.
type Starter struct{ word *os.File }

// StarterOf finds the process that called Spawn. Without one, as when a person
// runs the daemon in a terminal, nothing is told to anybody.
func StarterOf() Starter {
	word := os.NewFile(readyFD, "ready")
	if st, err := word.Stat(); err != nil || st.Mode()&os.ModeNamedPipe == 0 {
		return Starter{}
	}
	syscall.CloseOnExec(readyFD)
	return Starter{word}
}

// Ready says that commands can connect.
func (s Starter) Ready() { s.say([]byte(readyWord)) }

// Failed says why the daemon ends. After Ready it does nothing.
func (s Starter) Failed(err error) {
	if data, e := json.Marshal(problemOf(err)); e == nil {
		s.say(data)
	}
}

func (s Starter) say(what []byte) {
	if s.word != nil {
		s.word.Write(what) // after Ready the file is closed
		s.word.Close()
	}
}
