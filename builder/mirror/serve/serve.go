// Package serve gives clients what a mirror publishes, over HTTP: a Debian repository for apt, and an
// OCI registry, both read-only and from the same files.
//
// In: the published tree of a store. Out: RFC 9110 (GET, HEAD, ranges, conditional requests), and of the OCI Distribution
// Specification v1.1 the category "Pull" with "Listing Tags". The tree is read anew at each request, so a bundle that
// is imported meanwhile is served at once. go-containerregistry's registry holds manifests in memory and takes them by
// uploads only, so it would have to be fed again after each import; this one answers from the layout.
package serve

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"os"
	"path"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/mirror/store"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Options are the settings of a Server.
type Options struct {
	Access io.Writer // the access log; nil: none
	// Status is asked for the metrics; nil: what the server itself counts is all there is.
	Status func() (store.Status, map[string]time.Time, error)
	Now    func() time.Time // nil: the clock
}

// Server is an http.Handler over a published tree.
type Server struct {
	root    *os.Root
	opts    Options
	metrics metrics
	logging sync.Mutex
}

// New serves the tree in dir.
func New(dir string, opts Options) (*Server, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.New(fault.Input, "serving a mirror: %w", err)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	return &Server{root: root, opts: opts}, nil
}

// Limits on clients. A client that takes no byte for patience is gone.
const (
	patience  = time.Minute
	maxHeader = 32 << 10
)

// Serve answers on l until ctx ends, then lets answers under way end.
func (s *Server) Serve(ctx context.Context, l net.Listener, certFile, keyFile string) error {
	server := &http.Server{Handler: s, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: 20 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: maxHeader}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		stopped <- server.Shutdown(grace)
	})
	defer stop()
	var err error
	if certFile != "" {
		err = server.ServeTLS(l, certFile, keyFile)
	} else {
		err = server.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return <-stopped
	}
	return err
}

// ServeHTTP answers one request and notes it.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := s.opts.Now()
	a := &answer{ResponseWriter: w, control: http.NewResponseController(w)}
	kind := s.route(a, r)
	if a.status == 0 {
		a.status = http.StatusOK
	}
	s.metrics.note(kind, a.status, a.bytes)
	s.log(r, a, began)
}

// route finds out what is asked for and answers it.
func (s *Server) route(w http.ResponseWriter, r *http.Request) (kind string) {
	registry := r.URL.Path == "/v2" || strings.HasPrefix(r.URL.Path, "/v2/")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		if registry {
			refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this registry is read-only")
			return "registry"
		}
		http.Error(w, "this mirror is read-only", http.StatusMethodNotAllowed)
		return "files"
	}
	switch {
	case registry:
		s.registry(w, r)
		return "registry"
	case r.URL.Path == "/metrics":
		s.writeMetrics(w)
		return "metrics"
	case r.URL.Path == "/":
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, "A slipway mirror: Debian repositories below their usual names, an OCI registry at /v2/, the site's key at /keys/site.asc.\n")
		return "files"
	default:
		s.file(w, r)
		return "files"
	}
}

// file answers with a file of the tree.
func (s *Server) file(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if !fs.ValidPath(name) || strings.HasPrefix(path.Base(name), ".") {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", contentType(name))
	if !s.content(w, r, name) {
		w.Header().Del("Content-Type")
		http.NotFound(w, r)
	}
}

// content answers with a regular file, with ranges and conditions; false if there is none.
func (s *Server) content(w http.ResponseWriter, r *http.Request, name string) bool {
	f, err := s.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return false
	}
	// What a path names changes with its inode and its time, and not always to a later one: a mirror can go back to an
	// older bundle. apt only sends the time of its copy (RFC 9110, "If-Modified-Since"), so that one counts exactly.
	if w.Header().Get("ETag") == "" {
		w.Header().Set("ETag", etag(st))
	}
	if since := r.Header.Get("If-Modified-Since"); since != "" && since != st.ModTime().UTC().Format(http.TimeFormat) {
		r = r.Clone(r.Context())
		r.Header.Del("If-Modified-Since")
	}
	http.ServeContent(w, r, "", st.ModTime(), f)
	return true
}

func etag(st os.FileInfo) string {
	var inode uint64
	if sys, ok := st.Sys().(*unixStat); ok {
		inode = sys.Ino
	}
	return fmt.Sprintf(`"%x-%x-%x"`, inode, st.Size(), st.ModTime().UnixNano())
}

func contentType(name string) string {
	switch path.Ext(name) {
	case ".deb":
		return "application/vnd.debian.binary-package"
	case ".xz":
		return "application/x-xz"
	case ".asc", ".gpg", ".lock":
		return "text/plain; charset=utf-8"
	}
	switch path.Base(name) {
	case "InRelease", "Release", "Packages":
		return "text/plain; charset=utf-8"
	}
	if t := mime.TypeByExtension(path.Ext(name)); t != "" && strings.HasPrefix(t, "application/") {
		return t
	}
	return "application/octet-stream"
}

// answer counts what is sent, and gives a client that takes nothing up.
type answer struct {
	http.ResponseWriter
	control *http.ResponseController
	status  int
	bytes   int64
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(p []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	// Not every writer knows deadlines (those of tests do not); then there is none.
	a.control.SetWriteDeadline(time.Now().Add(patience))
	n, err := a.ResponseWriter.Write(p)
	a.bytes += int64(n)
	return n, err
}

// log writes a line in the Common Log Format of web servers, with the seconds that the answer took at its end.
func (s *Server) log(r *http.Request, a *answer, began time.Time) {
	if s.opts.Access == nil {
		return
	}
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = "-"
	}
	line := fmt.Sprintf("%s - - [%s] %q %d %d %.3f\n", host, began.Format("02/Jan/2006:15:04:05 -0700"),
		r.Method+" "+r.URL.RequestURI()+" "+r.Proto, a.status, a.bytes, s.opts.Now().Sub(began).Seconds())
	s.logging.Lock()
	defer s.logging.Unlock()
	io.WriteString(s.opts.Access, line) // a full disk must not end the service
}
