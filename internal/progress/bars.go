package progress

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

// Bars draws a bar for every task under way. Its Write prints lines above the
// bars, so that logs and bars share one terminal; Close draws the last state and
// leaves the cursor below it.
type Bars struct {
	container *mpb.Progress
}

// NewBars draws on w, which must be a terminal.
func NewBars(w io.Writer) *Bars {
	return &Bars{container: mpb.New(mpb.WithOutput(w), mpb.WithWidth(40), mpb.WithRefreshRate(120*time.Millisecond))}
}

// Write prints p above the bars.
func (b *Bars) Write(p []byte) (int, error) { return b.container.Write(p) }

// Close waits for the last drawing.
func (b *Bars) Close() { b.container.Shutdown() }

// Start implements Reporter.
func (b *Bars) Start(name string, total int64, unit Unit) Task {
	t := &barTask{began: time.Now(), total: total}
	detail := decor.Any(func(decor.Statistics) string {
		if s, ok := t.detail.Load().(string); ok {
			return " " + s
		}
		return ""
	})
	count := decor.Any(func(decor.Statistics) string { return amount(t.done.Load(), t.total, unit) })
	elapsed := decor.Any(func(decor.Statistics) string {
		return fmt.Sprintf("%5.1f s ", time.Since(t.began).Seconds())
	})
	t.bar = b.container.New(max(total, 1), mpb.BarStyle().Rbound("| "),
		mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR), elapsed),
		mpb.AppendDecorators(count, detail), mpb.BarRemoveOnComplete())
	return t
}

type barTask struct {
	bar    *mpb.Bar
	began  time.Time
	total  int64
	done   atomic.Int64
	detail atomic.Value
	ended  atomic.Bool
}

func (t *barTask) Add(n int64) {
	done := t.done.Add(n)
	if t.total > 0 && done < t.total { // the last step is Done's, so that the bar stays until then
		t.bar.SetCurrent(done)
	}
}

func (t *barTask) Detail(what string) { t.detail.Store(what) }

func (t *barTask) Done(err error) {
	if t.ended.Swap(true) {
		return
	}
	t.bar.Abort(true)
}
