package checker

import (
	"strings"
	"testing"
	"time"
)

// frames is a sighting each 200 ms of the node that a letter names.
func frames(nodes string) map[string][]Sighting {
	var seen []Sighting
	for i, n := range nodes {
		if n != '.' {
			seen = append(seen, Sighting{At: time.Duration(i) * 200 * time.Millisecond, Node: string(n)})
		}
	}
	return map[string][]Sighting{"database": seen}
}

func TestAnAddressMovesAndIsNotShared(t *testing.T) {
	for name, c := range map[string]struct {
		frames map[string][]Sighting
		held   bool
	}{
		"it stays":                   {frames(strings.Repeat("a", 100)), true},
		"it moves":                   {frames(strings.Repeat("a", 100) + "..." + strings.Repeat("b", 100)), true},
		"it moves there and back":    {frames(strings.Repeat("a", 100) + strings.Repeat("b", 100) + strings.Repeat("a", 100)), true},
		"an old holder wakes":        {frames("aaaa" + strings.Repeat("b", 200) + "aabab" + strings.Repeat("b", 100)), true},
		"two answer for six seconds": {frames(strings.Repeat("a", 50) + strings.Repeat("ab", 16) + strings.Repeat("b", 50)), false},
		"two answer to the end":      {frames(strings.Repeat("a", 50) + strings.Repeat("aab", 20)), false},
	} {
		if got := oneHolder(Addresses{Frames: c.frames}); got.Held != c.held {
			t.Errorf("%s: held %t: %q", name, got.Held, got.Evidence)
		}
	}
}

// samples is what the nodes say, every 2 s, for so many seconds.
func samples(parts ...Sample) (all []Sample) {
	at := time.Duration(0)
	for _, p := range parts {
		for end := at + p.At; at < end; at += 2 * time.Second {
			s := p
			s.At = at
			all = append(all, s)
		}
	}
	return all
}

func say(length time.Duration, primary, holders, writable string) Sample {
	return Sample{At: length, Primaries: strings.Fields(primary), Holders: map[string][]string{"database": strings.Fields(holders)}, Writable: map[string][]string{"database": strings.Fields(writable)}}
}

func TestWhatNodesSayIsHeldAgainstThemWhenItLasts(t *testing.T) {
	well := say(time.Minute, "a-db1", "a-lb1", "a-lb1 a-lb2")
	for name, c := range map[string]struct {
		samples       []Sample
		one, writable bool
	}{
		"all is well":               {samples(well), true, true},
		"it moves":                  {samples(well, say(10*time.Second, "a-db1", "a-lb1 a-lb2", "a-lb1 a-lb2"), say(time.Minute, "a-db1", "a-lb2", "a-lb2")), true, true},
		"two hold it for a minute":  {samples(well, say(time.Minute, "a-db1", "a-lb1 a-lb2", "a-lb1 a-lb2")), false, true},
		"no primary, nothing to do": {samples(well, say(2*time.Minute, "", "a-lb1", ""), well), true, true},
		"a failover":                {samples(well, say(20*time.Second, "a-db2", "a-lb1", ""), well), true, true},
		"it leads nowhere":          {samples(well, say(time.Minute, "a-db2", "a-lb1", "a-lb2"), well), true, false},
	} {
		a := Addresses{Samples: c.samples}
		if got := oneHolder(a); got.Held != c.one || got.Found > 1 {
			t.Errorf("%s: one holder: %t, %d: %q", name, got.Held, got.Found, got.Evidence)
		}
		if got := holderWritable(a); got.Held != c.writable || got.Found > 1 {
			t.Errorf("%s: writable: %t, %d: %q", name, got.Held, got.Found, got.Evidence)
		}
	}
}
