package status

import (
	"fmt"
	"time"
)

const minute = "2006-01-02 15:04"

// words are the archiver as parts of a line.
func (a *Archiver) words(bad func(string) string) []string {
	if a == nil {
		return nil
	}
	words := []string{"empty"}
	if !a.Last.IsZero() {
		words = []string{Clean("up to " + a.LastWAL + ", " + a.Last.UTC().Format(minute) + " UTC")}
	}
	if a.Waiting > 0 {
		words = append(words, fmt.Sprintf("%d files wait", a.Waiting))
	}
	if a.Failing {
		words = append(words, bad("FAILING"))
	}
	if len(a.Dropped) > 0 {
		words = append(words, bad(fmt.Sprintf("GAP of %d files", len(a.Dropped))))
	}
	return words
}

// words are the backups as parts of a line.
func (b *Backup) words(bad func(string) string) []string {
	if b == nil {
		return nil
	}
	words := []string{bad("none")}
	if n := len(b.Sets); n > 0 {
		last := b.Sets[n-1]
		words = []string{Clean(fmt.Sprintf("last %s at %s UTC (%s, %s)", last.Type, last.Stop.UTC().Format(minute), last.Label, Bytes(last.Size))),
			fmt.Sprintf("%d in all, back to %s UTC", n, b.Sets[0].Stop.UTC().Format(minute))}
	}
	if b.Running != "" {
		words = append(words, Clean("a "+b.Running+" one is being made"))
	}
	return append(words, Clean("in "+b.Where))
}

// Window is the time span that the database can be brought back to: from the end
// of the oldest backup to the last WAL in the archive. ok is false without one.
func Window(b *Backup, a *Archiver) (from, to time.Time, ok bool) {
	if b == nil || len(b.Sets) == 0 {
		return
	}
	from, to = b.Sets[0].Stop, b.Sets[len(b.Sets)-1].Stop
	if a != nil && a.Last.After(to) {
		to = a.Last
	}
	return from, to, true
}
