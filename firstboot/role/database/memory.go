package database

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/plan"
)

// mebibytes is an amount of memory.
type mebibytes int

func (m mebibytes) String() string { return fmt.Sprintf("%dMB", int(m)) } // PostgreSQL's MB are MiB

// installed is what the machine has, as far as Linux may use it.
func installed(n *node.Node) (mebibytes, error) {
	text, err := n.Read("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
			if err == nil {
				return mebibytes(kib / 1024), nil
			}
		}
	}
	return 0, fmt.Errorf("/proc/meminfo does not say how much memory there is")
}

// memorySettings are the parameters that follow from a machine's memory, but for
// those that the topology sets itself. docs/database.md has them as a table.
func memorySettings(total mebibytes, p plan.Postgres) map[string]string {
	settings := map[string]string{
		"shared_buffers":       max(total/4, 32).String(),
		"effective_cache_size": max(total*3/5, 64).String(),
		// A quarter for all sessions at once; a session may take it several times.
		"work_mem":             min(max(total/4/mebibytes(max(p.MaxConnections, 1)), 2), 64).String(),
		"maintenance_work_mem": min(max(total/16, 32), 1024).String(),
	}
	for name := range p.Parameters {
		delete(settings, strings.ToLower(name))
	}
	return settings
}
