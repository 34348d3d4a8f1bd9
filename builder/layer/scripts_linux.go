package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"

	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// preinst runs a package's preinst as dpkg would for a first installation
// (Debian Policy, 6.5; environment: dpkg(1), "ENVIRONMENT").
func (b *builder) preinst(ctx context.Context, p *pkg) error {
	script := "/" + b.db.controlFile(p, "preinst")
	fmt.Fprintf(b.log, "Running preinst of %s (%s) ...\n", p.Name, p.Version)
	err := b.session.Run(ctx, sandbox.Cmd{
		Args: []string{script, "install"},
		Env: map[string]string{
			"DPKG_MAINTSCRIPT_PACKAGE":          p.Name,
			"DPKG_MAINTSCRIPT_PACKAGE_REFCOUNT": "1",
			"DPKG_MAINTSCRIPT_ARCH":             p.Arch,
			"DPKG_MAINTSCRIPT_NAME":             "preinst",
			"DPKG_ADMINDIR":                     "/" + adminDir,
			"DPKG_ROOT":                         "",
			"DPKG_RUNNING_VERSION":              b.dpkgVersion(),
		},
		Stdout: b.log, Stderr: b.log,
	})
	var exit *sandbox.ExitError
	if errors.As(err, &exit) {
		return b.failed(ctx, b.scriptFault(p.Name, "preinst", exit.Error()))
	}
	return err
}

// dpkgVersion is the upstream version of the dpkg that stands in the layer or
// the one below.
func (b *builder) dpkgVersion() string {
	if b.runningDpkg == "" {
		status, _ := b.root.ReadFile(adminDir + "/status") // add has read it before
		if m := dpkgStanza.FindSubmatch(status); m != nil {
			b.runningDpkg = string(m[1])
		}
	}
	return b.runningDpkg
}

var dpkgStanza = regexp.MustCompile(`(?m)^Package: dpkg\n(?:.+\n)*?Version: ([^-\n]*)`)

// configure has dpkg configure packages, or with none given all that wait, and
// then the triggers.
func (b *builder) configure(ctx context.Context, pkgs []*pkg) error {
	args := []string{"/usr/bin/dpkg", "--force-unsafe-io", "--force-confdef", "--force-confold", "--log=/dev/null"}
	count := len(b.pkgs) - len(b.configured)
	if pkgs == nil {
		args = append(args, "--configure", "--pending")
	} else {
		// Dependencies of these that form cycles with packages which wait for their
		// preinst cannot be met yet; apt forces such steps too.
		args = append(args, "--no-triggers", "--force-depends", "--configure")
		count = 0
		for _, p := range pkgs {
			if !b.configured[p] {
				args = append(args, p.instance())
				b.configured[p] = true
				count++
			}
		}
		if count == 0 {
			return nil
		}
	}
	task := b.Progress.Start(b.Name+": configure", int64(count), progress.Items)
	err := b.session.Run(ctx, sandbox.Cmd{Args: args, Stdout: io.MultiWriter(b.log, &settingUp{task: task}), Stderr: b.log})
	task.Done(err)
	var exit *sandbox.ExitError
	if errors.As(err, &exit) {
		return b.failed(ctx, b.dpkgFault(exit))
	}
	return err
}

// audit is what dpkg finds wrong.
func (b *builder) audit(ctx context.Context) (string, error) {
	var out bytes.Buffer
	err := b.session.Run(ctx, sandbox.Cmd{Args: []string{"/usr/bin/dpkg", "--audit"}, Stdout: &out, Stderr: &out})
	var exit *sandbox.ExitError
	if errors.As(err, &exit) { // it also tells by its status that it found something
		err = nil
	}
	return strings.TrimSpace(out.String()), err
}

var (
	dpkgError  = regexp.MustCompile(`(?m)^dpkg: error processing package (\S+) \(--configure\):\n (.*)$`)
	dpkgScript = regexp.MustCompile(`installed \S+ package (\S+) script subprocess (.*)`)
)

// dpkgFault finds in the log which package failed, and how.
func (b *builder) dpkgFault(exit *sandbox.ExitError) *fault.Error {
	text, _ := os.ReadFile(b.logFile.Name())
	m := dpkgError.FindSubmatch(text)
	if m == nil {
		return b.scriptFault("dpkg", "--configure", exit.Error())
	}
	// The script's name is shortened to what Policy calls it.
	if s := dpkgScript.FindSubmatch(m[2]); s != nil {
		name := map[string]string{"post-installation": "postinst", "pre-installation": "preinst"}[string(s[1])]
		if name == "" {
			name = string(s[1])
		}
		return b.scriptFault(string(m[1]), name, string(s[2]))
	}
	return b.scriptFault(string(m[1]), "configuration", string(m[2]))
}

// scriptFault says what failed, with the end of the log.
func (b *builder) scriptFault(name, script, how string) *fault.Error {
	return fault.New(fault.Failed, "%s of package %s failed: %s\n%s", script, name, how, b.logTail()).
		WithMend("read the whole log in %s, or build again with --shell-on-failure to look around where it failed", b.logFile.Name())
}

// logTail is the last lines of the log, indented.
func (b *builder) logTail() string {
	const lines = 20
	text, err := os.ReadFile(b.logFile.Name())
	if err != nil {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return "    " + strings.Join(all, "\n    ")
}

// failed opens a shell where a script failed, if that is wished, and returns
// the failure.
func (b *builder) failed(ctx context.Context, failure *fault.Error) error {
	if b.ShellOnFailure {
		fmt.Fprintf(os.Stderr, "%s\n\nThis is the sandbox as it stands; the build ends when you leave the shell.\n", failure)
		b.session.Shell(ctx, sandbox.Cmd{Args: []string{"/bin/sh", "-i"}, Dir: "/"}) // how it ends does not matter
	}
	return failure
}

// settingUp counts dpkg's "Setting up" lines for progress.
type settingUp struct {
	task progress.Task
	rest []byte
}

func (s *settingUp) Write(p []byte) (int, error) {
	s.rest = append(s.rest, p...)
	for {
		line, rest, ok := bytes.Cut(s.rest, []byte("\n"))
		if !ok {
			return len(p), nil
		}
		s.rest = rest
		if words := strings.Fields(string(line)); len(words) > 2 && words[0] == "Setting" {
			s.task.Detail(words[2])
			s.task.Add(1)
		}
	}
}
