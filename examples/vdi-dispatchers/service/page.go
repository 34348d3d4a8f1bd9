package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"html/template"
	"log/slog"
	"net/http"
	"time"
)

const cookie = "__Host-session"

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// answer is what the page shows.
type answer struct {
	who
	// Session is nil where the topology has no database for dispatchers.
	Session *session `json:"session,omitempty"`
}

// handler serves the page.
func handler(self who, sessions *sessions) http.Handler {
	mux := http.NewServeMux()
	visit := func(w http.ResponseWriter, r *http.Request) (answer, bool) {
		ctx, cancel := context.WithTimeout(r.Context(), visitTime)
		defer cancel()
		w.Header().Set("Cache-Control", "no-store")
		token := ""
		if c, err := r.Cookie(cookie); err == nil {
			token = c.Value
		}
		s, token, err := sessions.visit(ctx, token)
		if err != nil {
			slog.Error("the session cannot be had", "error", err)
			w.Header().Set("Retry-After", "3")
			http.Error(w, "The database does not answer at the moment. Try again in a few seconds.", http.StatusServiceUnavailable)
			return answer{}, false
		}
		if token != "" {
			http.SetCookie(w, &http.Cookie{Name: cookie, Value: token, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode, MaxAge: int(sessionAge / time.Second)})
		}
		return answer{self, s}, true
	}
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		if a, ok := visit(w, r); ok {
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
			page.Execute(w, a)
		}
	})
	mux.HandleFunc("GET /session", func(w http.ResponseWriter, r *http.Request) {
		if a, ok := visit(w, r); ok {
			w.Header().Set("Content-Type", "application/json")
			json.NewEncoder(w).Encode(a)
		}
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), healthTime)
		defer cancel()
		if err := sessions.ping(ctx); err != nil {
			http.Error(w, "the database does not answer", http.StatusServiceUnavailable)
			return
		}
		w.Write([]byte("serves\n"))
	})
	return mux
}
