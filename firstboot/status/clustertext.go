package status

import (
	"fmt"
	"strings"
	"time"
)

// mostProblems is how many problems a screen has room for.
const mostProblems = 2

// clusterLines are what a node knows of its cluster, a name and a value each.
func (c *Cluster) lines(style Style) (out [][2]string) {
	add := func(name string, words []string) {
		if len(words) > 0 {
			out = append(out, [2]string{name, strings.Join(words, ", ")})
		}
	}
	bad := func(text string) string { return style.Paint("1;31", Clean(text)) }
	add("cluster", []string{fmt.Sprintf("%s: node %s at site %s", Clean(c.Name), Clean(c.Node), Clean(c.Site)),
		fmt.Sprintf("plan %d", c.Generation), "certificates until " + c.Expires.UTC().Format(time.DateOnly)})
	var words []string
	var missing []string
	for _, p := range c.Peers {
		if p.Answers {
			words = append(words, Clean(p.Name+" "+string(p.State)))
		} else {
			missing = append(missing, p.Name)
		}
	}
	if len(missing) > 0 {
		words = append(words, bad("missing: "+strings.Join(missing, ", ")))
	}
	add("peers", words)
	if c.Consensus != nil {
		words = []string{"quorum"}
		if !c.Consensus.Quorum {
			words = []string{bad("NO QUORUM")}
		}
		for _, m := range c.Consensus.Members {
			switch {
			case !m.Healthy:
				words = append(words, bad(m.Node+" not healthy"))
			case m.Leader:
				words = append(words, Clean(m.Node+" leader"))
			default:
				words = append(words, Clean(m.Node))
			}
		}
		add("consensus", words)
	}
	if d := c.Database; d != nil {
		words = nil
		for _, m := range d.Members {
			words = append(words, Clean(m.Node+" "+m.Words()))
		}
		name := "database"
		if len(words) == 0 {
			words = []string{"nothing known yet"}
		}
		if d.Standby {
			words = append([]string{"replica of another site"}, words...)
		}
		if d.Paused {
			words = append([]string{style.Paint("1;33", "PAUSED: no failover")}, words...)
		}
		if d.Restore != nil && !d.Restore.Taken {
			words = append([]string{style.Paint("1;33", Clean("BEING RESTORED to "+d.Restore.Target))}, words...)
		}
		add(name, words)
		add("WAL archive", d.Archiver.words(bad))
	}
	add("backups", c.Backup.words(bad))
	words = nil
	for _, v := range c.VIPs {
		switch {
		case v.Held:
			words = append(words, Clean(v.Name+" "+v.Address+" here"))
		case v.Problem != "":
			words = append(words, bad(fmt.Sprintf("%s %s not here: %s", v.Name, v.Address, v.Problem)))
		default:
			words = append(words, Clean(v.Name+" "+v.Address+" elsewhere"))
		}
	}
	add("virtual IPs", words)
	words = nil
	for _, b := range c.Backends {
		text := b.Name + " " + b.Server
		if b.Up {
			words = append(words, Clean(text+" up"))
		} else {
			words = append(words, Clean(strings.TrimSpace(text+" down "+b.Check)))
		}
	}
	add("backends", words)
	return out
}

// Words are a member's role, state, timeline and lag.
func (m DatabaseMember) Words() string {
	words := []string{m.Role}
	if m.State != "" && m.State != "running" && m.State != "streaming" {
		words = append(words, m.State)
	}
	if m.Timeline > 0 {
		words = append(words, fmt.Sprintf("TL %d", m.Timeline))
	}
	if m.Lag != nil && m.Role != "leader" {
		words = append(words, "lag "+Bytes(*m.Lag))
	}
	return strings.Join(words, " ")
}

// Bytes is a size as people read it.
func Bytes(n int64) string {
	switch {
	case n < 10<<10:
		return fmt.Sprintf("%d B", n)
	case n < 10<<20:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

// News are the problems that no step under way tells already.
func (r Report) News() (out []string) {
	if r.Cluster == nil {
		return nil
	}
	telling := map[string]bool{}
	for _, s := range r.Steps {
		telling[s.Name] = s.State == Running && s.WaitingFor != "" || s.State == Broken
	}
	for _, p := range r.Cluster.Problems {
		if step, _, _ := strings.Cut(p, ": "); !telling[step] {
			out = append(out, p)
		}
	}
	return out
}
