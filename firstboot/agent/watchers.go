package agent

import (
	"strings"

	"github.com/slipwayhq/slipway/firstboot/status"
)

// systemd shows the state in systemctl status.
type systemd struct{ notify func(string) }

func (s systemd) Show(r status.Report) {
	text := string(r.State)
	for _, step := range r.Steps {
		if step.State == status.Running {
			if text += "; " + step.Name; step.WaitingFor != "" {
				text += ": " + step.WaitingFor
			}
		}
	}
	s.notify("STATUS=" + strings.Map(func(c rune) rune {
		if c < ' ' {
			return ' '
		}
		return c
	}, text))
}

func (systemd) Line(status.Level, string) {}

// keeper keeps the last report for those who ask when no agent runs.
type keeper struct{ path string }

func (k keeper) Show(r status.Report) {
	// One that cannot be kept is no reason to stop: the agent still answers.
	_ = status.Keep(k.path, r)
}

func (keeper) Line(status.Level, string) {}
