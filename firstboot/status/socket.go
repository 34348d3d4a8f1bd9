package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Socket is where a running agent answers, LastReport what it said last.
const (
	Socket     = "/run/slipway/agent.sock"
	LastReport = "/run/slipway/status.json"
)

// Serve answers GET /v1/status on a unix socket until ctx ends. The report
// holds no secret, so every user of the node may ask.
func Serve(ctx context.Context, socket string, t *Tracker) error {
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return err
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(socket, 0o666); err != nil {
		listener.Close()
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(t.Report())
	})
	server := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 5 * time.Second}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	go server.Serve(listener)
	return nil
}

// Keep writes the last report, for those who ask when no agent runs.
func Keep(path string, r Report) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return atomicfile.WriteBytes(path, 0o644, append(data, '\n'))
}

// Ask gets the report from the agent, or, if none answers, the last one that
// it left. live says which.
func Ask(ctx context.Context, socket, last string) (r Report, live bool, err error) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		},
		DisableKeepAlives: true,
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://agent/v1/status", nil)
	if err != nil {
		return r, false, err
	}
	answer, askErr := client.Do(request)
	if askErr == nil {
		defer answer.Body.Close()
		err := json.NewDecoder(io.LimitReader(answer.Body, 8<<20)).Decode(&r)
		return r, true, err
	}
	data, err := os.ReadFile(last)
	if err != nil {
		return r, false, fault.New(fault.Missing, "no agent answers at %s (%v) and none has left a report", socket, errors.Unwrap(askErr)).
			WithMend("see why with: systemctl status slipway-firstboot.service")
	}
	if err := json.Unmarshal(data, &r); err != nil {
		return r, false, fmt.Errorf("%s: %w", last, err)
	}
	return r, false, nil
}

// Wait asks until the node has settled or limit has passed, and returns the
// last answer.
func Wait(ctx context.Context, socket, last string, limit time.Duration) (r Report, live bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		r, live, err = Ask(context.WithoutCancel(ctx), socket, last)
		if err == nil && live && r.State.Settled() {
			return r, live, nil
		}
		select {
		case <-ctx.Done():
			return r, live, err
		case <-tick.C:
		}
	}
}
