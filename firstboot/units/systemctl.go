package units

import (
	"context"
	"strings"
)

// Systemctl asks by systemctl(1).
type Systemctl struct {
	// Run runs a program and returns what it printed.
	Run func(ctx context.Context, argv ...string) (string, error)
}

// Units implements Manager.
func (s Systemctl) Units(ctx context.Context, names []string) ([]Unit, error) {
	const properties = "Id,LoadState,ActiveState,SubState,Job,Result,ConditionResult,ConditionTimestampMonotonic,UnitFileState"
	out, err := s.Run(ctx, append([]string{"systemctl", "show", "--property=" + properties, "--"}, names...)...)
	if err != nil {
		return nil, err
	}
	var units []Unit
	for block := range strings.SplitSeq(strings.TrimSpace(out), "\n\n") {
		p := map[string]string{}
		for line := range strings.SplitSeq(block, "\n") {
			key, value, _ := strings.Cut(line, "=")
			p[key] = value
		}
		if p["Id"] == "" {
			continue
		}
		units = append(units, Unit{
			Name: p["Id"], Load: p["LoadState"], Active: p["ActiveState"], Sub: p["SubState"],
			Queued: p["Job"] != "" && p["Job"] != "0",
			Result: p["Result"], FileState: p["UnitFileState"],
			// A condition that was never looked at does not hold either.
			Unmet: p["ConditionResult"] == "no" && p["ConditionTimestampMonotonic"] != "0",
		})
	}
	return units, nil
}

// Starting implements Manager.
func (s Systemctl) Starting(ctx context.Context) bool {
	state, _ := s.Run(ctx, "systemctl", "is-system-running") // its exit status says the same once more
	return !started(strings.TrimSpace(state))
}
