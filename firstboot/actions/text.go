package actions

import (
	"fmt"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/firstboot/status"
)

// Text are records for people, a line each and why where one failed.
func Text(entries []Entry) string {
	if len(entries) == 0 {
		return "  nothing yet\n"
	}
	var b strings.Builder
	for _, e := range entries {
		how := "done in " + status.Took(e.Ended.Sub(e.At))
		switch {
		case e.Ended.IsZero():
			how = "did not end, or goes on"
		case e.Outcome != "done":
			how = "failed: " + e.Outcome
		}
		from := ""
		if e.From != "" {
			from = " (" + e.From + ")"
		}
		fmt.Fprintf(&b, "  %s  %s %s  by %s%s: %s\n", e.At.UTC().Format(time.DateTime), status.Clean(e.Action), status.Clean(string(e.Args)), status.Clean(e.By), status.Clean(from), status.Clean(how))
	}
	return b.String()
}
