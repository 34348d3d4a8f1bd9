package overview

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/status"
)

// WriteJSON writes the overview with all reports.
func (o Overview) WriteJSON(w io.Writer) error {
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(o)
}

// expirySoon is how long before it a certificate's end is painted.
const expirySoon = 30 * 24 * time.Hour

// widest is the most that a column takes.
const widest = 48

// cell is a text and its colour.
type cell struct{ text, code string }

// Text is the overview for people: a row for each node, what it waits for below
// it, then consensus, and what contradicts itself. It keeps to ASCII.
func (o Overview) Text(now time.Time, style status.Style) string {
	rows := [][]cell{{{"NODE", ""}, {"ROLE", ""}, {"SITE", ""}, {"STATE", ""}, {"DATABASE", ""}, {"VIRTUAL IP", ""}, {"CERTIFICATE", ""}}}
	for _, n := range o.Nodes {
		rows = append(rows, n.row(now))
	}
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, c := range row {
			c.text = c.text[:min(len(c.text), widest)]
			row[i] = c
			widths[i] = max(widths[i], len(c.text))
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Cluster %s, plan %d, %s\n\n", status.Clean(o.Cluster), o.Generation, o.At.UTC().Format("2006-01-02 15:04:05 UTC"))
	for i, row := range rows {
		var line strings.Builder
		for j, c := range row {
			line.WriteString(style.Paint(c.code, c.text) + strings.Repeat(" ", widths[j]-len(c.text)+2))
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
		if i > 0 {
			for _, note := range o.Nodes[i-1].notes() {
				fmt.Fprintf(&b, "    %s\n", status.Clean(note))
			}
		}
	}
	if line := o.sites(); line != "" {
		b.WriteString("\n" + line + "\n")
	}
	if lines := o.consensus(); len(lines) > 0 {
		b.WriteString("\n" + strings.Join(lines, "\n") + "\n")
	}
	if len(o.Contradictions) > 0 {
		b.WriteString("\n")
		for _, c := range o.Contradictions {
			fmt.Fprintf(&b, "%s %s\n", style.Paint("1;31", "!"), status.Clean(c))
		}
	}
	return b.String()
}

// row is a node's line in the table.
func (n Node) row(now time.Time) []cell {
	row := []cell{{status.Clean(n.Name), ""}, {status.Clean(n.Role), ""}, {status.Clean(n.Site), ""}, {"no answer", "1;31"}, {"-", ""}, {"-", ""}, {"-", ""}}
	if n.Report == nil {
		return row
	}
	row[3] = cell{status.Clean(string(n.Report.State)), map[status.State]string{
		status.Ready: "1;32", status.Degraded: "1;33", status.Maintenance: "1;33", status.Unconfigured: "1;33", status.Failed: "1;31",
	}[n.Report.State]}
	c := n.Report.Cluster
	if c == nil {
		return row
	}
	if c.Database != nil {
		for _, m := range c.Database.Members {
			if m.Node == n.Name {
				row[4] = cell{status.Clean(m.Words()), ""}
			}
		}
	}
	var held []string
	for _, v := range c.VIPs {
		if v.Held {
			held = append(held, v.Name)
		}
	}
	if len(held) > 0 {
		row[5].text = status.Clean(strings.Join(held, ","))
	}
	row[6].text = c.Expires.UTC().Format(time.DateOnly)
	if c.Expires.Sub(now) < expirySoon {
		row[6].code = "1;31"
	}
	return row
}

// notes are what a node waits for and what is wrong with it.
func (n Node) notes() (out []string) {
	switch {
	case n.Report == nil:
		return []string{n.Address + ": " + n.Problem}
	case n.Report.Cluster == nil && n.Report.State != status.Starting:
		out = append(out, "it knows of no cluster")
	}
	if m := n.Report.Maintenance; m != nil {
		out = append(out, fmt.Sprintf("in maintenance since %s, by %s", m.Since.UTC().Format("2006-01-02 15:04 UTC"), m.By))
	}
	for _, s := range n.Report.Steps {
		switch {
		case s.State == status.Running && s.WaitingFor != "":
			out = append(out, fmt.Sprintf("%s: %s", s.Name, s.WaitingFor))
		case s.State == status.Broken:
			out = append(out, fmt.Sprintf("%s: %s", s.Name, s.Error))
		}
	}
	out = append(out, n.Report.News()...)
	for _, w := range n.Report.Warnings {
		if w.Serious {
			out = append(out, w.String())
		}
	}
	const most, longest = 8, 300
	if len(out) > most {
		out = append(out[:most], fmt.Sprintf("... and %d more: firstboot status, on the node", len(out)-most))
	}
	for i, text := range out {
		if len(text) > longest {
			out[i] = text[:longest-3] + "..."
		}
	}
	return out
}

// sites says which site takes writes, where more than one has a database.
func (o Overview) sites() string {
	if len(o.plan.DatabaseSites()) < 2 {
		return ""
	}
	if len(o.Writable) == 0 {
		return "Writes: no site is seen to take any"
	}
	var words []string
	for _, site := range o.Writable {
		words = append(words, fmt.Sprintf("site %s (primary %s)", site, o.primary(site)))
	}
	return status.Clean("Writes: " + strings.Join(words, " AND "))
}

// consensus is a line for each site, as told by the first node that takes part.
func (o Overview) consensus() (lines []string) {
	for _, s := range o.plan.Sites {
		for _, n := range o.Nodes {
			c := n.cluster()
			if n.Site != s.Name || c == nil || c.Consensus == nil {
				continue
			}
			healthy, leader := 0, "no leader"
			for _, m := range c.Consensus.Members {
				if m.Healthy {
					healthy++
				}
				if m.Leader {
					leader = "leader " + m.Node
				}
			}
			quorum := "quorum"
			if !c.Consensus.Quorum {
				quorum = "NO QUORUM"
			}
			lines = append(lines, status.Clean(fmt.Sprintf("Consensus at site %s: %s, %d of %d members healthy, %s (as %s says)", s.Name, quorum, healthy, len(c.Consensus.Members), leader, n.Name)))
			break
		}
	}
	return lines
}
