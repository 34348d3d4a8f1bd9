package fetch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/internal/fault"
)

const content = "the bytes of a package, of which there are some"

var digest = func() string {
	sum := sha256.Sum256([]byte(content))
	return hex.EncodeToString(sum[:])
}()

// theItem is what the tests download.
func theItem() Item {
	return Item{Name: "hello 2.10-5+b1", Path: "pool/main/h/hello/hello_2.10-5+b1_amd64.deb", Alias: "main",
		Size: int64(len(content)), SHA256: digest, Line: 42}
}

// quick are options for tests: no waiting between attempts.
func quick() Options { return Options{Backoff: time.Millisecond, Idle: time.Minute} }

func newCache(t *testing.T) *cache.Cache {
	t.Helper()
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// mirror serves requests with handle and keeps a list of what was asked.
type mirror struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string // path as sent, and the Range if there was one
}

func newMirror(t *testing.T, handle func(w http.ResponseWriter, r *http.Request, nth int)) *mirror {
	t.Helper()
	m := &mirror{}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		m.asked = append(m.asked, strings.TrimSpace(r.URL.EscapedPath()+" "+r.Header.Get("Range")))
		nth := len(m.asked)
		m.mu.Unlock()
		handle(w, r, nth)
	}))
	t.Cleanup(m.Close)
	return m
}

func (m *mirror) requests() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]string{}, m.asked...)
}

func whole(w http.ResponseWriter, _ *http.Request, _ int) { w.Write([]byte(content)) }

func ranges(w http.ResponseWriter, r *http.Request, _ int) {
	http.ServeContent(w, r, "", time.Time{}, strings.NewReader(content))
}

// breakAfter serves n bytes of the whole, then cuts the connection.
func breakAfter(w http.ResponseWriter, n int) {
	w.Header().Set("Content-Length", strconv.Itoa(len(content)))
	w.Write([]byte(content[:n]))
	w.(http.Flusher).Flush()
	panic(http.ErrAbortHandler)
}

func mustHave(t *testing.T, c *cache.Cache) {
	t.Helper()
	path, ok := c.CheckedBlob(digest, int64(len(content)))
	if !ok {
		t.Fatal("not in the cache")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != content {
		t.Fatalf("cache holds %q, %v", b, err)
	}
}

func TestAFileIsDownloadedOnceWithItsPathEscaped(t *testing.T) {
	c := newCache(t)
	m := newMirror(t, whole)
	for range 2 {
		if err := Fetch(t.Context(), c, Locations{"main": {m.URL + "/debian/"}}, []Item{theItem(), theItem()}, quick()); err != nil {
			t.Fatal(err)
		}
	}
	mustHave(t, c)
	want := []string{"/debian/pool/main/h/hello/hello_2.10-5%2Bb1_amd64.deb"}
	if got := m.requests(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("asked %q, want %q", got, want)
	}
}

func TestADamagedFileInTheCacheIsDownloadedAnew(t *testing.T) {
	c := newCache(t)
	m := newMirror(t, whole)
	get := func() {
		t.Helper()
		if err := Fetch(t.Context(), c, Locations{"main": {m.URL}}, []Item{theItem()}, quick()); err != nil {
			t.Fatal(err)
		}
	}
	get()
	path, _ := c.Blob(digest)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(strings.ToUpper(content)), 0o644); err != nil {
		t.Fatal(err)
	}
	get()
	mustHave(t, c)
	if n := len(m.requests()); n != 2 {
		t.Errorf("%d requests, want 2", n)
	}
}

func TestABrokenDownloadIsResumedWhereItBroke(t *testing.T) {
	c := newCache(t)
	m := newMirror(t, func(w http.ResponseWriter, r *http.Request, nth int) {
		if nth == 1 {
			breakAfter(w, 10)
		}
		ranges(w, r, nth)
	})
	if err := Fetch(t.Context(), c, Locations{"main": {m.URL}}, []Item{theItem()}, quick()); err != nil {
		t.Fatal(err)
	}
	mustHave(t, c)
	if got := m.requests(); len(got) != 2 || !strings.HasSuffix(got[1], " bytes=10-") {
		t.Errorf("asked %q", got)
	}
}

func TestAServerWithoutRangesIsReadFromTheStart(t *testing.T) {
	c := newCache(t)
	m := newMirror(t, func(w http.ResponseWriter, r *http.Request, nth int) {
		if nth == 1 {
			breakAfter(w, 10)
		}
		whole(w, r, nth)
	})
	if err := Fetch(t.Context(), c, Locations{"main": {m.URL}}, []Item{theItem()}, quick()); err != nil {
		t.Fatal(err)
	}
	mustHave(t, c)
}

func TestADownloadThatWasInterruptedGoesOnInTheNextRun(t *testing.T) {
	c := newCache(t)
	ctx, cancel := context.WithCancel(t.Context())
	var once sync.Once
	m := newMirror(t, func(w http.ResponseWriter, r *http.Request, nth int) {
		if nth > 1 {
			ranges(w, r, nth)
			return
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		w.Write([]byte(content[:10]))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	opts := quick()
	opts.Progress = onBytes(func(n int64) {
		if n == 10 {
			once.Do(cancel) // the user presses Ctrl-C
		}
	})
	err := Fetch(ctx, c, Locations{"main": {m.URL}}, []Item{theItem()}, opts)
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
	if _, ok := c.Blob(digest); ok {
		t.Fatal("half a file is in the cache")
	}
	if err := Fetch(t.Context(), c, Locations{"main": {m.URL}}, []Item{theItem()}, quick()); err != nil {
		t.Fatal(err)
	}
	mustHave(t, c)
	if got := m.requests(); !strings.HasSuffix(got[len(got)-1], " bytes=10-") {
		t.Errorf("asked %q", got)
	}
}

func TestAStaleFrontIsThrownAway(t *testing.T) {
	c := newCache(t)
	part, err := c.Partial(t.Context(), digest, int64(len(content)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := part.Write([]byte("something else")); err != nil {
		t.Fatal(err)
	}
	part.Close()
	m := newMirror(t, ranges)
	if err := Fetch(t.Context(), c, Locations{"main": {m.URL}}, []Item{theItem()}, quick()); err != nil {
		t.Fatal(err)
	}
	mustHave(t, c)
	if got := m.requests(); len(got) != 2 || strings.Contains(got[1], "bytes") {
		t.Errorf("asked %q", got)
	}
}

func TestWrongBytesAreNeverHandedOn(t *testing.T) {
	for name, body := range map[string]string{
		"altered":  strings.ToUpper(content),
		"short":    content[:20],
		"too long": content + "!",
		"empty":    "",
	} {
		t.Run(name, func(t *testing.T) {
			c := newCache(t)
			m := newMirror(t, func(w http.ResponseWriter, _ *http.Request, _ int) { w.Write([]byte(body)) })
			err := Fetch(t.Context(), c, Locations{"main": {m.URL}}, []Item{theItem()}, quick())
			if fault.Of(err) != fault.Integrity {
				t.Errorf("got %v (%v)", err, fault.Of(err))
			}
			if _, ok := c.Blob(digest); ok {
				t.Error("it is in the cache")
			}
			if n := len(m.requests()); n != 2 {
				t.Errorf("%d requests, want 2: one more attempt past caches on the way", n)
			}
		})
	}
}

func TestASecondMirrorMakesUpForTheFirst(t *testing.T) {
	for name, handle := range map[string]func(http.ResponseWriter, *http.Request, int){
		"gone":      func(w http.ResponseWriter, _ *http.Request, _ int) { http.Error(w, "gone", http.StatusNotFound) },
		"forbidden": func(w http.ResponseWriter, _ *http.Request, _ int) { http.Error(w, "no", http.StatusForbidden) },
		"failing":   func(w http.ResponseWriter, _ *http.Request, _ int) { http.Error(w, "oops", http.StatusBadGateway) },
		"wrong":     func(w http.ResponseWriter, _ *http.Request, _ int) { w.Write([]byte("<html>captive portal</html>")) },
		"breaking":  func(w http.ResponseWriter, _ *http.Request, _ int) { breakAfter(w, 3) },
	} {
		t.Run(name, func(t *testing.T) {
			c := newCache(t)
			bad, good := newMirror(t, handle), newMirror(t, whole)
			if err := Fetch(t.Context(), c, Locations{"main": {bad.URL, good.URL}}, []Item{theItem()}, quick()); err != nil {
				t.Fatal(err)
			}
			mustHave(t, c)
		})
	}
}

func TestAServerThatStumblesIsAskedAgain(t *testing.T) {
	c := newCache(t)
	m := newMirror(t, func(w http.ResponseWriter, r *http.Request, nth int) {
		if nth < 3 {
			http.Error(w, "later", http.StatusServiceUnavailable)
			return
		}
		whole(w, r, nth)
	})
	if err := Fetch(t.Context(), c, Locations{"main": {m.URL}}, []Item{theItem()}, quick()); err != nil {
		t.Fatal(err)
	}
	mustHave(t, c)
}

func TestASilentServerIsGivenUp(t *testing.T) {
	c := newCache(t)
	m := newMirror(t, func(w http.ResponseWriter, r *http.Request, _ int) {
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		w.Write([]byte(content[:5]))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	opts := quick()
	opts.Idle, opts.Tries = time.Millisecond, 2
	err := Fetch(t.Context(), c, Locations{"main": {m.URL}}, []Item{theItem()}, opts)
	if fault.Of(err) != fault.Network {
		t.Errorf("got %v", err)
	}
}

// TestTheChainOfPlaces goes through cache, mirror, bundle and snapshot service.
func TestTheChainOfPlaces(t *testing.T) {
	notFound := func(w http.ResponseWriter, r *http.Request, _ int) { http.NotFound(w, r) }
	place := func(t *testing.T, dir string) {
		t.Helper()
		path := filepath.Join(dir, theItem().Path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("bundle by alias", func(t *testing.T) {
		c, opts := newCache(t), quick()
		opts.Bundle = t.TempDir()
		place(t, filepath.Join(opts.Bundle, "main"))
		if err := Fetch(t.Context(), c, Locations{"main": {newMirror(t, notFound).URL}}, []Item{theItem()}, opts); err != nil {
			t.Fatal(err)
		}
		mustHave(t, c)
	})
	t.Run("bundle, offline", func(t *testing.T) {
		c, opts := newCache(t), quick()
		opts.Bundle, opts.Offline = t.TempDir(), true
		place(t, opts.Bundle)
		m := newMirror(t, whole)
		if err := Fetch(t.Context(), c, Locations{"main": {m.URL}}, []Item{theItem()}, opts); err != nil {
			t.Fatal(err)
		}
		mustHave(t, c)
		if got := m.requests(); len(got) > 0 {
			t.Errorf("offline, yet asked %q", got)
		}
	})
	t.Run("file mirror", func(t *testing.T) {
		c, dir := newCache(t), t.TempDir()
		place(t, dir)
		if err := Fetch(t.Context(), c, Locations{"main": {FileURL(dir)}}, []Item{theItem()}, quick()); err != nil {
			t.Fatal(err)
		}
		mustHave(t, c)
	})
	t.Run("snapshot", func(t *testing.T) {
		c, opts := newCache(t), quick()
		opts.Snapshot = Locations{"main": {newMirror(t, whole).URL}}
		if err := Fetch(t.Context(), c, Locations{"main": {newMirror(t, notFound).URL}}, []Item{theItem()}, opts); err != nil {
			t.Fatal(err)
		}
		mustHave(t, c)
	})
	t.Run("nowhere", func(t *testing.T) {
		err := Fetch(t.Context(), newCache(t), Locations{"main": {newMirror(t, notFound).URL}}, []Item{theItem()}, quick())
		for _, want := range []string{"hello 2.10-5+b1", "images.lock:42"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: does not say %q", err, want)
			}
		}
		if mend := fault.Mend(err); !strings.Contains(mend, "`slipway lock --upgrade hello`") {
			t.Errorf("mend: %q", mend)
		}
	})
}

func TestAPreferredPathIsTriedFirst(t *testing.T) {
	c := newCache(t)
	m := newMirror(t, func(w http.ResponseWriter, r *http.Request, nth int) {
		if strings.Contains(r.URL.Path, "by-hash") {
			http.NotFound(w, r)
			return
		}
		whole(w, r, nth)
	})
	item := theItem()
	item.First = "by-hash/SHA256/" + digest
	if err := Fetch(t.Context(), c, Locations{"main": {m.URL}}, []Item{item}, quick()); err != nil {
		t.Fatal(err)
	}
	if got := m.requests(); len(got) != 2 || !strings.Contains(got[0], "by-hash") {
		t.Errorf("asked %q", got)
	}
}

func TestAHostThatCannotBeReachedIsNotTriedForEveryFile(t *testing.T) {
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close() // nobody listens at its port any more
	var dials atomic.Int64
	opts := quick()
	opts.Parallel = 1
	opts.Client = &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}}
	var items []Item
	for i := range 20 {
		item := theItem()
		item.SHA256 = fmt.Sprintf("%064x", i)
		items = append(items, item)
	}
	err := Fetch(t.Context(), newCache(t), Locations{"main": {gone.URL}}, items, opts)
	if fault.Of(err) != fault.Network || !strings.Contains(err.Error(), "20 files") {
		t.Errorf("got %v", err)
	}
	if n := dials.Load(); n != 2 {
		t.Errorf("%d connections tried, want 2", n)
	}
}

func TestASmallFileHasALimit(t *testing.T) {
	m := newMirror(t, whole)
	if b, _, err := Get(t.Context(), []string{m.URL}, "x", int64(len(content)), quick()); err != nil || string(b) != content {
		t.Errorf("got %q, %v", b, err)
	}
	if _, _, err := Get(t.Context(), []string{m.URL}, "x", 10, quick()); err == nil {
		t.Error("more than the limit was taken")
	}
}

func TestPasswordsStayOutOfMessages(t *testing.T) {
	m := newMirror(t, func(w http.ResponseWriter, r *http.Request, _ int) { http.NotFound(w, r) })
	base := strings.Replace(m.URL, "http://", "http://user:secret@", 1)
	err := Fetch(t.Context(), newCache(t), Locations{"main": {base}}, []Item{theItem()}, quick())
	if err == nil || strings.Contains(err.Error(), "secret") {
		t.Errorf("got %v", err)
	}
}
