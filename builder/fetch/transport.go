package fetch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/internal/fault"
)

var (
	errNotFound  = errors.New("not found")
	errNoHost    = errors.New("no such host")
	errTransient = errors.New("temporary") // marks what may go better next time
)

// NewClient makes an HTTP client for slow links: it limits how long connecting
// and waiting for an answer may take, but not how long the answer's body takes
// (see Options.Idle for that). It asks for no compression, since ranges count
// bytes as they are stored.
func NewClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 20 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   20 * time.Second,
		ResponseHeaderTimeout: time.Minute,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       time.Minute,
		DisableCompression:    true,
		ForceAttemptHTTP2:     true,
	}}
}

// from gets the item from one URL, trying again while the errors are of the
// passing kind. Wrong bytes get one more attempt from the start, since a
// resumed front may have been the wrong part.
func (f *fetcher) from(ctx context.Context, part *cache.Partial, rawURL string) error {
	host := hostOf(rawURL)
	if err, known := f.dead.Load(host); known {
		return err.(error)
	}
	wait := f.opts.Backoff
	fresh := false // ask caches on the way for a new copy
	for try := 1; ; try++ {
		err := f.once(ctx, part, rawURL, fresh)
		if err == nil {
			err = part.Commit()
		}
		again := errors.Is(err, errTransient)
		if fault.Of(err) == fault.Integrity {
			f.task.Add(-part.Have())
			if rerr := part.Restart(); rerr != nil {
				return rerr
			}
			again, fresh = !fresh, true
		}
		if err == nil || ctx.Err() != nil {
			return err
		}
		// A host that cannot be reached gets a second chance, but not with every
		// one of some hundred files: each attempt may take long.
		if isDial(err) && try >= 2 || errors.Is(err, errNoHost) {
			f.dead.Store(host, err)
			return err
		}
		if !again || try >= f.opts.Tries {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		wait = min(2*wait, 30*time.Second)
	}
}

// once makes one attempt to complete part.
func (f *fetcher) once(ctx context.Context, part *cache.Partial, rawURL string, fresh bool) error {
	body, err := open(ctx, f.opts.Client, rawURL, part.Have(), fresh, f.opts.Idle)
	if err != nil {
		return err
	}
	defer body.Close()
	if !body.resumed && part.Have() > 0 {
		f.task.Add(-part.Have())
		if err := part.Restart(); err != nil {
			return err
		}
	}
	_, err = io.Copy(counted{part, f.task.Add}, body)
	return err
}

// counted reports what is written.
type counted struct {
	w   io.Writer
	add func(int64)
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.add(int64(n))
	return n, err
}

// Get returns a small file whose hash nobody knows yet, such as InRelease: the
// first location that has it wins. It fails if the file is larger than limit.
func Get(ctx context.Context, bases []string, path string, limit int64, opts Options) (data []byte, from string, err error) {
	opts = opts.withDefaults()
	var tried []error
	for _, base := range bases {
		u := Join(base, path)
		wait := opts.Backoff
		for try := 1; ; try++ {
			data, err = getOnce(ctx, opts, u, limit)
			if err == nil {
				return data, u, nil
			}
			if ctx.Err() != nil {
				return nil, "", context.Cause(ctx)
			}
			if !errors.Is(err, errTransient) || try >= opts.Tries {
				break
			}
			select {
			case <-ctx.Done():
				return nil, "", context.Cause(ctx)
			case <-time.After(wait):
			}
			wait *= 2
		}
		tried = append(tried, fmt.Errorf("%s: %w", Redacted(u), err))
	}
	return nil, "", fault.New(fault.Network, "%w", errors.Join(tried...)).
		WithMend("check the network, or give another mirror with --mirror URL")
}

func getOnce(ctx context.Context, opts Options, u string, limit int64) ([]byte, error) {
	body, err := open(ctx, opts.Client, u, 0, false, opts.Idle)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	var buf bytes.Buffer
	if _, err := io.Copy(&buf, io.LimitReader(body, limit+1)); err != nil {
		return nil, err
	}
	if int64(buf.Len()) > limit {
		return nil, fmt.Errorf("larger than %d bytes", limit)
	}
	return buf.Bytes(), nil
}

// Exists says whether a location serves the path, without getting it. An error
// means that nobody could tell.
func Exists(ctx context.Context, bases []string, path string, opts Options) (bool, error) {
	opts = opts.withDefaults()
	var tried []error
	for _, base := range bases {
		found, err := existsAt(ctx, opts, Join(base, path))
		if found {
			return true, nil
		}
		if err != nil {
			tried = append(tried, err)
		}
	}
	return false, errors.Join(tried...)
}

func existsAt(ctx context.Context, opts Options, rawURL string) (bool, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return false, err
	}
	if u.Scheme == "file" {
		_, err := os.Stat(u.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return err == nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, rawURL, nil)
	if err != nil {
		return false, err
	}
	resp, err := opts.Client.Do(req)
	if err != nil {
		return false, fault.New(fault.Network, "%w", err)
	}
	resp.Body.Close()
	switch err := checkStatus(resp); {
	case err == nil:
		return true, nil
	case errors.Is(err, errNotFound):
		return false, nil
	default:
		return false, fault.New(fault.Network, "%s: %w", Redacted(rawURL), err)
	}
}

// body is what a location yields.
type body struct {
	io.Reader
	close   func()
	resumed bool // it starts at the offset that was asked for, not at 0
}

func (b *body) Close() { b.close() }

// open starts reading a URL at an offset. A server that does not do ranges
// makes it start at 0.
func open(ctx context.Context, client *http.Client, rawURL string, offset int64, fresh bool, idle time.Duration) (*body, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		return nil, fault.New(fault.Usage, "mirror URL: %w", err)
	}
	switch u.Scheme {
	case "file":
		return openFile(u.Path, offset)
	case "http", "https":
		return openHTTP(ctx, client, rawURL, offset, fresh, idle)
	default:
		return nil, fault.New(fault.Usage, "mirror URL %q: want http://, https:// or file://", Redacted(rawURL))
	}
}

func openFile(path string, offset int64) (*body, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNotFound
	}
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return &body{Reader: f, close: func() { f.Close() }, resumed: offset > 0}, nil
}

func openHTTP(ctx context.Context, client *http.Client, rawURL string, offset int64, fresh bool, idle time.Duration) (*body, error) {
	ctx, cancel := context.WithCancel(ctx)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rawURL, nil)
	if err != nil {
		cancel()
		return nil, err
	}
	req.Header.Set("User-Agent", "slipway")
	if offset > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(offset, 10)+"-")
	}
	if fresh {
		req.Header.Set("Cache-Control", "no-cache")
	}
	resp, err := client.Do(req)
	if err != nil {
		cancel()
		return nil, transientUnlessFinal(err)
	}
	if err := checkStatus(resp); err != nil {
		resp.Body.Close()
		cancel()
		return nil, err
	}
	resumed := resp.StatusCode == http.StatusPartialContent
	if resumed && !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
		resp.Body.Close()
		cancel()
		return nil, fault.New(fault.Integrity, "the server sent another range (%q) than was asked for", resp.Header.Get("Content-Range"))
	}
	r := &idleReader{r: resp.Body, idle: idle}
	r.timer = time.AfterFunc(idle, func() { r.late.Store(true); cancel() })
	return &body{Reader: r, resumed: resumed, close: func() {
		r.timer.Stop()
		resp.Body.Close()
		cancel()
	}}, nil
}

// checkStatus sorts an answer's status: fine, not found, or an error that may pass.
func checkStatus(resp *http.Response) error {
	switch code := resp.StatusCode; {
	case code == http.StatusOK, code == http.StatusPartialContent:
		return nil
	case code == http.StatusNotFound, code == http.StatusGone:
		return errNotFound
	case code == http.StatusRequestedRangeNotSatisfiable:
		// What is there is as long as the file or longer, yet not right.
		return fault.New(fault.Integrity, "the server says %s", resp.Status)
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return fmt.Errorf("the server says %s (%w)", resp.Status, errTransient)
	default:
		return fmt.Errorf("the server says %s", resp.Status)
	}
}

// transientUnlessFinal marks errors of a connection as worth another attempt,
// other than a host that does not exist.
func transientUnlessFinal(err error) error {
	var dns *net.DNSError
	if errors.As(err, &dns) && dns.IsNotFound {
		return fmt.Errorf("%w: %w", errNoHost, err)
	}
	return fmt.Errorf("%w (%w)", err, errTransient)
}

// isDial says whether err came before any connection stood.
func isDial(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

func hostOf(rawURL string) string {
	if u, err := url.Parse(rawURL); err == nil {
		return u.Scheme + "://" + u.Host
	}
	return rawURL
}

// idleReader gives up on a body that stays silent.
type idleReader struct {
	r     io.Reader
	idle  time.Duration
	timer *time.Timer
	late  atomic.Bool
}

func (r *idleReader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	r.timer.Reset(r.idle)
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case r.late.Load():
		return n, fmt.Errorf("no data for %s (%w)", r.idle, errTransient)
	default:
		return n, fmt.Errorf("the connection broke: %w (%w)", err, errTransient)
	}
}
