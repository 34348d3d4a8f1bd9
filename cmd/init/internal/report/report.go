// Package report brings the init's words to whoever watches: every console
// that the kernel uses, so the serial line and the screen alike, and the
// kernel's log, where the journal finds them later.
package report

import (
	"fmt"
	"os"
	"strings"
)

// Report writes lines to consoles. The zero value writes nowhere.
type Report struct {
	consoles []string
	log      string
}

// New finds the consoles in sysfs; sys and dev are "/sys" and "/dev".
func New(sys, dev string) *Report {
	r := &Report{log: dev + "/kmsg"}
	active, _ := os.ReadFile(sys + "/class/tty/console/active")
	for _, name := range strings.Fields(string(active)) {
		r.consoles = append(r.consoles, dev+"/"+name)
	}
	if len(r.consoles) == 0 {
		r.consoles = []string{dev + "/console"}
	}
	return r
}

// Say tells of a step.
func (r *Report) Say(format string, args ...any) {
	r.write("7", fmt.Sprintf(format, args...))
}

// Alarm tells why the machine does not come up. Each line stands out.
func (r *Report) Alarm(text string) {
	for _, line := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		r.write("7", "*** "+line)
	}
}

// write gives a line to every console by itself and to the kernel's log at a
// level that the kernel does not print on consoles, lest it stand there twice.
func (r *Report) write(level, line string) {
	for _, c := range r.consoles {
		appendTo(c, "slipway: "+line+"\r\n")
	}
	if r.log != "" {
		appendTo(r.log, "<"+level+">slipway: "+line+"\n")
	}
}

// appendTo opens the device each time: a console may be hung up in between,
// and a missing one must not keep the machine from booting.
func appendTo(path, text string) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.WriteString(text)
}
