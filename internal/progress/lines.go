package progress

import (
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// Lines reports to a log: one line when a task starts, one every interval while
// it runs, one when it ends. It is what a CI job or a file wants.
func Lines(log logrus.FieldLogger, interval time.Duration) Reporter {
	return &lines{log: log, interval: interval}
}

type lines struct {
	log      logrus.FieldLogger
	interval time.Duration
}

func (l *lines) Start(name string, total int64, unit Unit) Task {
	now := time.Now()
	l.log.Info(name)
	return &lineTask{lines: l, name: name, total: total, unit: unit, began: now, said: now}
}

type lineTask struct {
	*lines
	name  string
	total int64
	unit  Unit
	began time.Time

	mu     sync.Mutex
	said   time.Time
	done   int64
	detail string
	ended  bool
}

func (t *lineTask) Add(n int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done += n
	if now := time.Now(); now.Sub(t.said) >= t.interval && !t.ended {
		t.said = now
		t.log.Infof("%s: %s%s", t.name, amount(t.done, t.total, t.unit), suffix(t.detail))
	}
}

func (t *lineTask) Detail(what string) {
	t.mu.Lock()
	t.detail = what
	t.mu.Unlock()
	t.Add(0)
}

func (t *lineTask) Done(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		return
	}
	t.ended = true
	took := time.Since(t.began).Round(100 * time.Millisecond)
	if err != nil {
		t.log.Warnf("%s: failed after %s%s", t.name, took, suffix(t.detail))
		return
	}
	if t.done > 0 {
		t.log.Infof("%s: done, %s in %s", t.name, amount(t.done, 0, t.unit), took)
		return
	}
	t.log.Infof("%s: done in %s", t.name, took)
}

func suffix(detail string) string {
	if detail == "" {
		return ""
	}
	return " (" + detail + ")"
}

func amount(done, total int64, unit Unit) string {
	text := func(n int64) string {
		if unit == Bytes {
			return Size(n)
		}
		return fmt.Sprint(n)
	}
	if total <= 0 {
		return text(done)
	}
	return fmt.Sprintf("%s of %s, %d %%", text(done), text(total), done*100/total)
}

// Size prints a number of bytes as people read it, in binary units.
func Size(n int64) string {
	const unit = 1024
	if n < unit && n > -unit {
		return fmt.Sprintf("%d B", n)
	}
	value, prefix := float64(n)/unit, 0
	for (value >= unit || value <= -unit) && prefix < 3 {
		value /= unit
		prefix++
	}
	return fmt.Sprintf("%.1f %s", value, [...]string{"KiB", "MiB", "GiB", "TiB"}[prefix])
}

// Reader counts what is read through r as progress of t.
func Reader(r io.Reader, t Task) io.Reader { return countingReader{r, t} }

type countingReader struct {
	r io.Reader
	t Task
}

func (c countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.t.Add(int64(n))
	return n, err
}
