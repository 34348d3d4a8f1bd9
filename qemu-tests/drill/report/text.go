// Package report shows what came of a drill: a table for the terminal, and one
// HTML file with a timeline picture that needs nothing but itself.
//
// In goes a drill.Result, out come text and HTML. The HTML holds no script and
// names no other resource; its pictures are inline SVG 2 with titles and
// descriptions (WAI-ARIA 1.2, role img), light or dark as the reader's system is.
package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/slipwayhq/slipway/qemu-tests/drill"
)

// Summary is what all rounds of one fault came to.
type Summary struct {
	Fault    string        `json:"fault"`
	Rounds   int           `json:"rounds"`
	Failed   int           `json:"failed"` // rounds in which something was not as it should be
	Shortest time.Duration `json:"gap_min_ns"`
	Median   time.Duration `json:"gap_median_ns"`
	Longest  time.Duration `json:"gap_max_ns"`
	// Rejoin is the longest time from the end of the fault until all was well.
	Rejoin time.Duration `json:"rejoin_max_ns"`
}

// Summarize sums up each fault, in the order of the rounds.
func Summarize(r *drill.Result) (all []Summary) {
	var names []string
	for _, round := range r.Rounds {
		if !slices.Contains(names, round.Fault) {
			names = append(names, round.Fault)
		}
	}
	for _, name := range names {
		s := Summary{Fault: name}
		var gaps []time.Duration
		for _, round := range r.Rounds {
			if round.Fault != name {
				continue
			}
			s.Rounds++
			gaps = append(gaps, round.Gap.Length())
			if round.Problem != "" || round.Whole == 0 {
				s.Failed++
			}
			s.Rejoin = max(s.Rejoin, rejoin(round))
		}
		slices.Sort(gaps)
		s.Shortest, s.Longest = gaps[0], gaps[len(gaps)-1]
		s.Median = (gaps[(len(gaps)-1)/2] + gaps[len(gaps)/2]) / 2
		all = append(all, s)
	}
	return all
}

// rejoin is how long a round's cluster took to be whole once it was left alone.
func rejoin(r drill.Round) time.Duration {
	if r.Whole == 0 {
		return 0
	}
	return max(0, r.Whole-r.Healed)
}

// seconds is a time as tables have it.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// verdict is the outcome in a word.
func verdict(held bool) string {
	if held {
		return "held"
	}
	return "FAILED"
}

// Text is a drill's result for the terminal.
func Text(r *drill.Result) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 4, 2, ' ', 0)
	fmt.Fprintln(w, "ROUND\tFAULT\tTARGET\tNODES\tGAP\tWHOLE AFTER\tOUTCOME")
	for _, round := range r.Rounds {
		whole := "never"
		if round.Whole > 0 {
			whole = seconds(rejoin(round))
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", round.Number, round.Fault, round.Target, strings.Join(round.Hit, ", "), gapText(round), whole, cmp.Or(round.Problem, "well"))
	}
	w.Flush()
	b.WriteString("\n")
	fmt.Fprintln(w, "FAULT\tROUNDS\tGAP MIN\tMEDIAN\tMAX\tWHOLE AFTER, MAX")
	for _, s := range Summarize(r) {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", s.Fault, s.Rounds, seconds(s.Shortest), seconds(s.Median), seconds(s.Longest), seconds(s.Rejoin))
	}
	w.Flush()
	c := r.Verdict.Counts
	fmt.Fprintf(&b, "\n%d operations acknowledged, %d failed, %d of unknown outcome; %d lost. Seed %d.\n\n", c.Acknowledged, c.Failed, c.Unknown, c.Lost, r.Seed)
	for _, claim := range r.Verdict.Claims {
		fmt.Fprintf(&b, "%-6s  %s\n", verdict(claim.Held), claim.What)
		for _, e := range claim.Evidence {
			fmt.Fprintf(&b, "        - %s\n", e)
		}
		if more := claim.Found - len(claim.Evidence); more > 0 {
			fmt.Fprintf(&b, "        and %d more\n", more)
		}
	}
	if r.Skipped > 0 {
		fmt.Fprintf(&b, "\n%d rounds of the schedule were not begun.\n", r.Skipped)
	}
	if r.Problem != "" {
		fmt.Fprintf(&b, "\n%s\n", r.Problem)
	}
	return b.String()
}

// gapText is a gap, or that it has no end.
func gapText(r drill.Round) string {
	if r.Gap.Open {
		return "over " + seconds(r.Gap.Length())
	}
	return seconds(r.Gap.Length())
}
