package serve

import (
	"cmp"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"sync"
	"time"
)

// metrics counts answers.
type metrics struct {
	mu      sync.Mutex
	answers map[answered]int64
	bytes   map[string]int64
}

type answered struct {
	kind   string
	status int
}

func (m *metrics) note(kind string, status int, bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.answers == nil {
		m.answers, m.bytes = map[answered]int64{}, map[string]int64{}
	}
	m.answers[answered{kind, status}]++
	m.bytes[kind] += bytes
}

// writeMetrics answers in the text format of Prometheus ("Exposition formats", version 0.0.4).
func (s *Server) writeMetrics(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	metric := func(name, kind, help string) { fmt.Fprintf(w, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind) }
	s.metrics.mu.Lock()
	answers, bytes := maps.Clone(s.metrics.answers), maps.Clone(s.metrics.bytes)
	s.metrics.mu.Unlock()

	metric("slipway_mirror_answers_total", "counter", "Answers by what was asked for and status.")
	for _, a := range slices.SortedFunc(maps.Keys(answers), func(a, b answered) int { return cmp.Or(cmp.Compare(a.kind, b.kind), a.status-b.status) }) {
		fmt.Fprintf(w, "slipway_mirror_answers_total{kind=%q,status=\"%d\"} %d\n", a.kind, a.status, answers[a])
	}
	metric("slipway_mirror_sent_bytes_total", "counter", "Bytes of bodies that were sent.")
	for _, kind := range slices.Sorted(maps.Keys(bytes)) {
		fmt.Fprintf(w, "slipway_mirror_sent_bytes_total{kind=%q} %d\n", kind, bytes[kind])
	}
	if s.opts.Status == nil {
		return
	}
	st, ends, err := s.opts.Status()
	metric("slipway_mirror_readable", "gauge", "1 if the store's records can be read.")
	if err != nil {
		fmt.Fprintln(w, "slipway_mirror_readable 0")
		return
	}
	fmt.Fprintln(w, "slipway_mirror_readable 1")
	metric("slipway_mirror_edition", "gauge", "Number of the published bundle.")
	fmt.Fprintf(w, "slipway_mirror_edition{site=%q} %d\n", st.Site, st.Edition)
	metric("slipway_mirror_made_timestamp_seconds", "gauge", "When the published bundle was made.")
	fmt.Fprintf(w, "slipway_mirror_made_timestamp_seconds %d\n", seconds(st.Date))
	metric("slipway_mirror_key_end_timestamp_seconds", "gauge", "When a signing key ends; 0 is never.")
	for _, f := range slices.Sorted(maps.Keys(ends)) {
		fmt.Fprintf(w, "slipway_mirror_key_end_timestamp_seconds{fingerprint=%q} %d\n", f, seconds(ends[f]))
	}
}

func seconds(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}
