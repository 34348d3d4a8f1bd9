// Package wrk has many browsers of one person ask for a page, over and over, with wrk
// (https://github.com/wg/wrk).
//
// In: where to ask, the name that is asked for, the person's cookies. Out: how many
// answers were the page, how many were a login or neither, and how long they took.
package wrk

import (
	"bytes"
	"context"
	_ "embed" // the script
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

//go:embed count.lua
var script string

// Load is who asks for what.
type Load struct {
	URL         string // https://ADDRESS:PORT/PATH; the certificate is not checked
	Host        string // the name that people type
	Cookies     []string
	Connections int
	For         time.Duration // whole seconds
}

// Figures are what came of it. Times are in milliseconds, but for those in seconds.
type Figures struct {
	Seconds   float64 `json:"seconds"`
	Good      int     `json:"good"`       // answers that were the page
	LoggedOut int     `json:"logged_out"` // answers that wanted a login
	Bad       int     `json:"bad"`        // other answers
	// BadSeconds is how long it took from the first bad answer to the last, to the second.
	BadSeconds int     `json:"bad_seconds"`
	Connect    int     `json:"connect"` // connections that were not taken
	Read       int     `json:"read"`    // and those that broke
	Write      int     `json:"write"`
	Timeout    int     `json:"timeout"` // answers that took more than ten seconds
	P50        float64 `json:"p50_ms"`
	P99        float64 `json:"p99_ms"`
	Max        float64 `json:"max_ms"`
}

// Lost is how many questions had no answer.
func (f Figures) Lost() int { return f.Connect + f.Read + f.Write }

// Start begins to ask. What it returns waits for the end.
func Start(t testing.TB, l Load) func() Figures {
	t.Helper()
	program, err := exec.LookPath("wrk")
	if err != nil {
		t.Fatal("no wrk: apt-get install wrk")
	}
	path := filepath.Join(t.TempDir(), "count.lua")
	if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"--threads", "1", "--connections", strconv.Itoa(l.Connections), "--duration", strconv.Itoa(int(l.For.Seconds())) + "s", "--timeout", "10s",
		"--script", path, "--header", "Host: " + l.Host, "--header", "Cookie: " + strings.Join(l.Cookies, "; "), l.URL}
	ctx, cancel := context.WithTimeout(t.Context(), l.For+5*time.Minute)
	cmd := exec.CommandContext(ctx, program, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	return func() Figures {
		t.Helper()
		defer cancel()
		figures, err := Figures{}, cmd.Wait()
		_, said, found := strings.Cut(out.String(), "COUNTED ")
		if err == nil && !found {
			err = fmt.Errorf("it counted nothing")
		}
		if err == nil {
			err = json.Unmarshal([]byte(said), &figures)
		}
		if err != nil {
			t.Fatalf("wrk: %v: %s", err, &out)
		}
		return figures
	}
}
