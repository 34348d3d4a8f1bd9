package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/drill"
)

//go:embed report.html.tmpl
var page string

// before and after a round, its picture shows so much more.
const (
	before = 15 * time.Second
	after  = 10 * time.Second
)

// view is what the page's template sees.
type view struct {
	*drill.Result
	Outcome   string
	All       Picture
	Each      []Picture
	Summaries []Summary
}

// HTML writes the page.
func HTML(w io.Writer, r *drill.Result) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"seconds": seconds, "verdict": verdict, "gap": gapText, "rejoin": rejoin, "clock": clock, "join": strings.Join,
		"size": func(f float64) string { return fmt.Sprintf("%.1f", f) },
		"add":  func(a, b float64) float64 { return a + b },
		"more": func(found int, evidence []string) int { return found - len(evidence) },
	}).Parse(page)
	if err != nil {
		return err
	}
	v := view{Result: r, Outcome: verdict(r.Held()), Summaries: Summarize(r), All: draw(r, "all", "The whole drill", window{0, r.Length})}
	for i, round := range r.Rounds {
		end := max(round.Healed, round.Gap.End, round.Whole)
		v.Each = append(v.Each, draw(r, fmt.Sprintf("round-%d", i+1), fmt.Sprintf("Round %d: %s of %s", round.Number, round.Fault, strings.Join(round.Hit, ", ")),
			window{max(0, min(round.Injected, round.Gap.Start)-before), min(r.Length, end+after)}))
	}
	return t.Execute(w, v)
}
