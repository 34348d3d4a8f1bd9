package fetch

import (
	"sync/atomic"

	"github.com/slipwayhq/slipway/internal/progress"
)

// watcher tells a function of every change of the sum of bytes.
type watcher struct {
	each func(sum int64)
	sum  atomic.Int64
}

func onBytes(each func(sum int64)) *watcher { return &watcher{each: each} }

func (w *watcher) Start(string, int64, progress.Unit) progress.Task { return w }
func (w *watcher) Add(n int64)                                      { w.each(w.sum.Add(n)) }
func (w *watcher) Detail(string)                                    {}
func (w *watcher) Done(error)                                       {}
