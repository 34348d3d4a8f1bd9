package lab

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Result is what a command in the guest left behind.
type Result struct {
	Code   int // exit status; 128 + n if signal n ended it
	Stdout string
	Stderr string
}

// maxGuestFile bounds what ReadFile takes into memory.
const maxGuestFile = 64 << 20

// WaitForGuest waits until the guest agent answers.
func (m *Machine) WaitForGuest(ctx context.Context) error {
	r, err := m.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.vm.Patience)
	defer cancel()
	if err := r.qga.call(ctx, "guest-ping", nil, nil); err != nil {
		return m.failed("waited for the guest agent: %w", err)
	}
	return nil
}

// Exec runs a shell command in the guest, as root, and waits for its end.
// Pipelines fail if any part of them does.
func (m *Machine) Exec(ctx context.Context, command string) (Result, error) {
	r, err := m.current()
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, m.vm.Patience)
	defer cancel()
	res, err := r.qga.exec(ctx, command)
	if err != nil {
		return res, m.failed("guest command %q: %w", command, err)
	}
	return res, nil
}

func (a *agent) exec(ctx context.Context, command string) (Result, error) {
	var started struct {
		PID int `json:"pid"`
	}
	err := a.call(ctx, "guest-exec", map[string]any{
		"path": "/bin/bash", "arg": []string{"-o", "pipefail", "-c", command}, "capture-output": true,
	}, &started)
	if err != nil {
		return Result{}, err
	}
	pause := 20 * time.Millisecond
	for {
		var status struct {
			Exited   bool   `json:"exited"`
			ExitCode int    `json:"exitcode"`
			Signal   int    `json:"signal"`
			Out      []byte `json:"out-data"`
			Err      []byte `json:"err-data"`
			OutCut   bool   `json:"out-truncated"`
			ErrCut   bool   `json:"err-truncated"`
		}
		if err := a.call(ctx, "guest-exec-status", map[string]any{"pid": started.PID}, &status); err != nil {
			return Result{}, err
		}
		if status.Exited {
			res := Result{Code: status.ExitCode, Stdout: string(status.Out), Stderr: string(status.Err)}
			if status.Signal != 0 {
				res.Code = 128 + status.Signal
			}
			if status.OutCut || status.ErrCut {
				return res, errors.New("it printed more than the guest agent keeps (16 MiB)")
			}
			return res, nil
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return Result{}, fmt.Errorf("it has not ended: %w", ctx.Err())
		}
		pause = min(pause*3/2, 500*time.Millisecond)
	}
}

// Succeed runs a command that must end with status 0 and returns its output.
func (m *Machine) Succeed(ctx context.Context, command string) (string, error) {
	res, err := m.Exec(ctx, command)
	if err != nil {
		return "", err
	}
	if res.Code != 0 {
		return res.Stdout, fault.New(fault.Failed, "machine %s: guest command %q ended with status %d\n%s",
			m.vm.Name, command, res.Code, indent(res.Stdout+res.Stderr))
	}
	return res.Stdout, nil
}

// Fail runs a command that must end with another status than 0 and returns its
// output and errors.
func (m *Machine) Fail(ctx context.Context, command string) (string, error) {
	res, err := m.Exec(ctx, command)
	if err != nil {
		return "", err
	}
	if res.Code == 0 {
		return "", fault.New(fault.Failed, "machine %s: guest command %q succeeded, which it must not\n%s",
			m.vm.Name, command, indent(res.Stdout))
	}
	return res.Stdout + res.Stderr, nil
}

// WaitUntilSucceeds runs a command again and again until it ends with status 0
// and returns its output.
func (m *Machine) WaitUntilSucceeds(ctx context.Context, command string) (string, error) {
	var out string
	err := m.poll(ctx, fmt.Sprintf("guest command %q to succeed", command), func(ctx context.Context) (bool, string) {
		res, err := m.Exec(ctx, command)
		if err != nil {
			return false, firstLine(err.Error())
		}
		out = res.Stdout
		return res.Code == 0, fmt.Sprintf("status %d: %s", res.Code, strings.TrimSpace(res.Stdout+res.Stderr))
	})
	return out, err
}

// WaitForUnit waits until a systemd unit is active, and fails at once if it has
// failed for good: the error then shows the end of its journal.
func (m *Machine) WaitForUnit(ctx context.Context, unit string) error {
	var broken string
	err := m.poll(ctx, "unit "+unit+" to be active", func(ctx context.Context) (bool, string) {
		res, err := m.Exec(ctx, "systemctl show --property=ActiveState,SubState,LoadState -- "+quote(unit))
		if err != nil {
			return false, firstLine(err.Error())
		}
		state := properties(res.Stdout)
		if state["ActiveState"] == "failed" {
			broken = strings.TrimSpace(strings.ReplaceAll(res.Stdout, "\n", " "))
			return true, ""
		}
		return state["ActiveState"] == "active", strings.TrimSpace(strings.ReplaceAll(res.Stdout, "\n", " "))
	})
	if err != nil || broken == "" {
		return err
	}
	journal, err := m.Exec(ctx, "journalctl --no-pager --lines=20 --output=cat --unit="+quote(unit))
	if err != nil {
		return err
	}
	return m.failed("unit %s has failed (%s); its journal ends with:\n%s", unit, broken, indent(journal.Stdout))
}

// properties reads systemctl's NAME=VALUE lines.
func properties(text string) map[string]string {
	p := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			p[name] = value
		}
	}
	return p
}

// ReadFile reads a file of the guest.
func (m *Machine) ReadFile(ctx context.Context, path string) ([]byte, error) {
	var content []byte
	err := m.withFile(ctx, path, "r", func(ctx context.Context, a *agent, handle int) error {
		for {
			var part struct {
				Data []byte `json:"buf-b64"`
				EOF  bool   `json:"eof"`
			}
			if err := a.call(ctx, "guest-file-read", map[string]any{"handle": handle, "count": 1 << 20}, &part); err != nil {
				return err
			}
			content = append(content, part.Data...)
			if len(content) > maxGuestFile {
				return fmt.Errorf("it is larger than %d MiB", maxGuestFile>>20)
			}
			if part.EOF || len(part.Data) == 0 {
				return nil
			}
		}
	})
	return content, err
}

// WriteFile replaces a file of the guest.
func (m *Machine) WriteFile(ctx context.Context, path string, content []byte) error {
	return m.withFile(ctx, path, "w", func(ctx context.Context, a *agent, handle int) error {
		for len(content) > 0 {
			var wrote struct {
				Count int `json:"count"`
			}
			part := content[:min(len(content), 1<<20)]
			err := a.call(ctx, "guest-file-write", map[string]any{
				"handle": handle, "buf-b64": base64.StdEncoding.EncodeToString(part),
			}, &wrote)
			if err != nil {
				return err
			}
			if wrote.Count < 1 || wrote.Count > len(part) {
				return io.ErrShortWrite
			}
			content = content[wrote.Count:]
		}
		return a.call(ctx, "guest-file-flush", map[string]any{"handle": handle}, nil)
	})
}

// withFile opens a file of the guest for work and closes it.
func (m *Machine) withFile(ctx context.Context, path, mode string, work func(context.Context, *agent, int) error) error {
	r, err := m.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, m.vm.Patience)
	defer cancel()
	var handle int
	err = r.qga.call(ctx, "guest-file-open", map[string]any{"path": path, "mode": mode}, &handle)
	if err == nil {
		err = errors.Join(work(ctx, r.qga, handle), r.qga.call(ctx, "guest-file-close", map[string]any{"handle": handle}, nil))
	}
	if err != nil {
		return fault.New(fault.Failed, "machine %s: guest file %s: %w", m.vm.Name, path, err)
	}
	return nil
}

// quote makes one word of text for the guest's shell.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

func indent(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}
