package serve

import (
	"io"
	"net/http"
)

// Transport has HTTP clients of this process ask the server with no network between them.
func (s *Server) Transport() http.RoundTripper { return local{s} }

type local struct{ handler http.Handler }

// RoundTrip answers a request. Its body streams as a server's would.
func (l local) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		req.Body.Close() // nothing here reads one
	}
	out, in := io.Pipe()
	w := &localWriter{header: http.Header{}, body: in, began: make(chan struct{})}
	go func() {
		r := req.Clone(req.Context())
		r.RequestURI = req.URL.RequestURI()
		l.handler.ServeHTTP(w, r)
		w.WriteHeader(http.StatusOK)
		in.Close()
	}()
	select {
	case <-w.began:
	case <-req.Context().Done():
		out.CloseWithError(req.Context().Err())
		return nil, req.Context().Err()
	}
	return &http.Response{
		Status: http.StatusText(w.status), StatusCode: w.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: w.sent, Body: out, ContentLength: -1, Request: req,
	}, nil
}

// localWriter is the answer under way. Its fields are read once began is closed.
type localWriter struct {
	header, sent http.Header
	status       int
	body         *io.PipeWriter
	began        chan struct{}
}

func (w *localWriter) Header() http.Header { return w.header }

func (w *localWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status, w.sent = status, w.header.Clone()
		close(w.began)
	}
}

func (w *localWriter) Write(p []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.body.Write(p)
}
