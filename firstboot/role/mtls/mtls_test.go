package mtls

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func serve(t *testing.T, handler http.HandlerFunc) (*Client, string) {
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	return &Client{http: s.Client()}, s.URL
}

func TestWhatAPeerAnswersHasALimit(t *testing.T) {
	c, url := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		for range answerLimit/1024 + 2 {
			io.WriteString(w, strings.Repeat(" ", 1024))
		}
	})
	var out any
	if err := c.JSON(t.Context(), http.MethodGet, url, nil, &out); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Error(err)
	}
}

func TestGarbageAndRefusalsAreToldInAFewWords(t *testing.T) {
	c, url := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			w.WriteHeader(403)
		}
		io.WriteString(w, "client certificate\n required \xff"+strings.Repeat("!", 500))
	})
	var out struct{}
	if err := c.JSON(t.Context(), http.MethodGet, url, nil, &out); err == nil || !strings.Contains(err.Error(), "makes no sense") {
		t.Error(err)
	}
	err := c.JSON(t.Context(), http.MethodPost, url+"/no", struct{}{}, &out)
	var refused *Refused
	if !errors.As(err, &refused) || refused.Status != 403 || !strings.HasPrefix(err.Error(), "HTTP 403: client certificate required ?!") || len(err.Error()) > 300 {
		t.Error(err)
	}
}
