// Package fetch downloads files whose SHA-256 is known, from several places,
// into the cache: in parallel, resumed where a download broke off, tried again
// when a server stumbles, checked before use.
//
// In: items from images.lock (or from a signed Release file), and the locations
// of each archive. Out: blobs in the cache. A file is looked for in the cache,
// at the archive's mirrors, in a mirror bundle (a directory), then at the
// snapshot service. Locations are http, https or file URLs; bytes that do not
// hash right are never handed on, whoever served them.
//
// Ranges and status codes are those of RFC 9110, "HTTP Semantics", sections 14
// and 15.
package fetch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// Locations holds the base URLs of each archive, by its alias, in the order
// they are tried.
type Locations map[string][]string

// Item is one file to have in the cache.
type Item struct {
	Name   string // what to call it in messages: a package or an index
	Path   string // below the base URL of its archive
	First  string // another path that is tried before Path, such as a by-hash path; may be empty
	Alias  string // its archive
	Size   int64
	SHA256 string
	Line   int // in images.lock; 0: not from there
}

// Options are the settings of a Fetch. The zero value works.
type Options struct {
	Parallel int               // downloads at a time; 0: 4
	Progress progress.Reporter // nil: none
	Title    string            // the progress task's name; "": "download"
	Bundle   string            // directory of a mirror bundle: BUNDLE/ALIAS/PATH or BUNDLE/PATH
	Snapshot Locations         // base URLs of last resort
	Offline  bool              // look only into the cache and the bundle
	Client   *http.Client      // nil: NewClient()
	Idle     time.Duration     // a connection silent for that long is given up; 0: a minute
	Tries    int               // attempts at each location; 0: 4
	Backoff  time.Duration     // wait before the second attempt, doubled for each further; 0: half a second
}

func (o Options) withDefaults() Options {
	if o.Parallel <= 0 {
		o.Parallel = 4
	}
	if o.Progress == nil {
		o.Progress = progress.None
	}
	if o.Title == "" {
		o.Title = "download"
	}
	if o.Client == nil {
		o.Client = NewClient()
	}
	if o.Idle <= 0 {
		o.Idle = time.Minute
	}
	if o.Tries <= 0 {
		o.Tries = 4
	}
	if o.Backoff <= 0 {
		o.Backoff = 500 * time.Millisecond
	}
	return o
}

// Missing returns the items that the cache does not have, each digest once.
func Missing(c *cache.Cache, items []Item) []Item {
	seen := map[string]bool{}
	var missing []Item
	for _, item := range items {
		if seen[item.SHA256] {
			continue
		}
		seen[item.SHA256] = true
		if _, ok := c.CheckedBlob(item.SHA256, item.Size); !ok {
			missing = append(missing, item)
		}
	}
	return missing
}

// Fetch returns when every item is a blob in the cache, or with the errors of
// those that could not be had. Downloads that ctx ends are kept for resuming.
func Fetch(ctx context.Context, c *cache.Cache, locations Locations, items []Item, opts Options) error {
	opts = opts.withDefaults()
	missing := Missing(c, items)
	if len(missing) == 0 {
		return nil
	}
	var total int64
	for _, item := range missing {
		total += item.Size
	}
	task := opts.Progress.Start(opts.Title, total, progress.Bytes)

	dead := &sync.Map{}
	queue := make(chan Item)
	failed := make([]error, 0)
	var mu sync.Mutex
	var workers sync.WaitGroup
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	for range min(opts.Parallel, len(missing)) {
		workers.Go(func() {
			for item := range queue {
				f := &fetcher{cache: c, locations: locations, opts: opts, task: task, dead: dead}
				err := f.item(ctx, item)
				if err == nil {
					continue
				}
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
				if fault.Of(err) == fault.Space {
					stop(err) // the other downloads need room, too
				}
			}
		})
	}
feed:
	for _, item := range missing {
		select {
		case queue <- item:
		case <-ctx.Done():
			break feed
		}
	}
	close(queue)
	workers.Wait()

	err := summary(ctx, failed)
	task.Done(err)
	return err
}

// summary makes one error of those that happened: the end of ctx or a full disk
// before all, else the first by name with the number of the others.
func summary(ctx context.Context, failed []error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(failed) == 0 {
		return nil
	}
	slices.SortFunc(failed, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	if len(failed) == 1 {
		return failed[0]
	}
	const shown = 5
	lines := make([]string, 0, shown)
	for _, err := range failed[:min(shown, len(failed))] {
		lines = append(lines, err.Error())
	}
	if n := len(failed) - shown; n > 0 {
		lines = append(lines, fmt.Sprintf("and %d more", n))
	}
	return fault.New(fault.Of(failed[0]), "%d files could not be had:\n  %s", len(failed), strings.Join(lines, "\n  ")).
		WithMend("%s", fault.Mend(failed[0]))
}

// fetcher gets one item.
type fetcher struct {
	cache     *cache.Cache
	locations Locations
	opts      Options
	task      progress.Task
	dead      *sync.Map // hosts that could not be reached, with the error; shared by all fetchers of a Fetch
}

func (f *fetcher) item(ctx context.Context, item Item) error {
	f.task.Detail(item.Name)
	part, err := f.cache.Partial(ctx, item.SHA256, item.Size)
	if err != nil {
		return err
	}
	defer part.Close()
	if _, ok := f.cache.CheckedBlob(item.SHA256, item.Size); ok {
		f.task.Add(item.Size) // another process was faster
		return part.Restart()
	}
	f.task.Add(part.Have())
	if part.Have() == item.Size {
		if part.Commit() == nil {
			return nil // a process was killed between the last byte and the rename
		}
		f.task.Add(-item.Size)
	}

	var tried []error
	for _, u := range f.urls(item) {
		err := f.from(ctx, part, u)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if fault.Of(err) == fault.Space {
			return fmt.Errorf("downloading %s: %w", item.Name, err)
		}
		tried = append(tried, fmt.Errorf("%s: %w", Redacted(u), err))
	}
	return f.nowhere(item, tried)
}

// urls lists where the item may be, in order.
func (f *fetcher) urls(item Item) []string {
	paths := []string{item.Path}
	if item.First != "" {
		paths = []string{item.First, item.Path}
	}
	var urls []string
	add := func(bases []string) {
		for _, base := range bases {
			for _, p := range paths {
				urls = append(urls, Join(base, p))
			}
		}
	}
	if !f.opts.Offline {
		add(f.locations[item.Alias])
	} else {
		for _, base := range f.locations[item.Alias] {
			if strings.HasPrefix(base, "file:") {
				add([]string{base})
			}
		}
	}
	if f.opts.Bundle != "" {
		add([]string{FileURL(filepath.Join(f.opts.Bundle, item.Alias)), FileURL(f.opts.Bundle)})
	}
	if !f.opts.Offline {
		add(f.opts.Snapshot[item.Alias])
	}
	return urls
}

// nowhere is the error for an item that no location gave.
func (f *fetcher) nowhere(item Item, tried []error) error {
	class := fault.Network
	var gone bool
	for _, err := range tried {
		if fault.Of(err) == fault.Integrity {
			class = fault.Integrity
		}
		gone = gone || errors.Is(err, errNotFound)
	}
	where := ""
	if item.Line > 0 {
		where = fmt.Sprintf(" (images.lock:%d)", item.Line)
	}
	if len(tried) == 0 {
		tried = []error{fmt.Errorf("no mirror is known for the archive %q", item.Alias)}
	}
	reasons := make([]string, len(tried))
	for i, err := range tried {
		reasons[i] = "\n    " + err.Error()
	}
	e := fault.New(class, "%s%s is neither in the cache nor at any location:%s", item.Name, where, strings.Join(reasons, ""))
	switch {
	case f.opts.Offline:
		return e.WithMend("run without --offline, or give the bundle that holds it with --bundle DIR")
	case item.Line > 0 && gone && class != fault.Integrity:
		name, _, _ := strings.Cut(item.Name, " ")
		return e.WithMend("the archive has moved on: run `slipway lock --upgrade %s`, or give a mirror that still has it with --mirror URL", name)
	default:
		return e.WithMend("check the network, or give another mirror with --mirror URL")
	}
}

// Join appends a path to a base URL, escaping what must be (a "+" in a version
// is legal in a path, but some servers read it as a space).
func Join(base, path string) string {
	parts := strings.Split(path, "/")
	for i, p := range parts {
		parts[i] = strings.ReplaceAll(url.PathEscape(p), "+", "%2B")
	}
	return strings.TrimSuffix(base, "/") + "/" + strings.Join(parts, "/")
}

// FileURL is the file URL of a path.
func FileURL(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	return (&url.URL{Scheme: "file", Path: path}).String()
}

// Redacted is a URL without the password that it may hold.
func Redacted(raw string) string {
	if u, err := url.Parse(raw); err == nil {
		return u.Redacted()
	}
	return raw
}
