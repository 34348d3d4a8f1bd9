//go:build long

package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

// resident is the memory that a process has, in KiB.
func resident(t *testing.T, pid int) (kib int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			return kib
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// TestTwoThousandIdleConnections opens them at one replica, and asks at each once more
// after all have been idle: none may have been dropped.
func TestTwoThousandIdleConnections(t *testing.T) {
	const connections, address = 2000, "127.0.0.1:8446"
	loopback(t)
	m := roletest.Members(t, roletest.Plan())["a-db1"]
	db := roletest.Start(t, m)
	db.Role = &manifest.Role{Name: "db-master"}
	db.PostgreSQL("app", "secret-of-app")
	program := filepath.Join(t.TempDir(), "service")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	replica := exec.Command(program, "-told", tell(t, m, "d1", throughLibpq(db)...), "-listen", address)
	replica.Stderr = os.Stderr
	if err := replica.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { replica.Process.Kill(); replica.Wait() }()
	visit(t, browser(t, m.Authority), address)
	before := resident(t, replica.Process.Pid)

	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(m.Authority))
	clients := make([]*http.Client, connections)
	for i := range clients {
		clients[i] = &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1, TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost"}}}
	}
	round := func() (failed, reused int) {
		var mu sync.Mutex
		var all sync.WaitGroup
		gate := make(chan struct{}, 50)
		for _, c := range clients {
			gate <- struct{}{}
			all.Go(func() {
				defer func() { <-gate }()
				again := false
				ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) { again = got.Reused }})
				request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/health", nil)
				var answer *http.Response
				if err == nil {
					answer, err = c.Do(request)
				}
				if err == nil {
					_, err = io.Copy(io.Discard, answer.Body)
					answer.Body.Close()
				}
				mu.Lock()
				defer mu.Unlock()
				if err != nil || answer.StatusCode != http.StatusOK {
					failed++
				} else if again {
					reused++
				}
			})
		}
		all.Wait()
		return failed, reused
	}
	if failed, _ := round(); failed > 0 {
		t.Fatalf("%d of %d connections failed", failed, connections)
	}
	held := resident(t, replica.Process.Pid)
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", replica.Process.Pid))
	if err != nil || len(fds) < connections {
		t.Errorf("the replica has %d files open: the connections are not held, %v", len(fds), err)
	}
	if failed, reused := round(); failed > 0 || reused != connections {
		t.Errorf("of %d idle connections %d failed and %d were still there when they were used again", connections, failed, reused)
	}
	t.Logf("%d idle connections: %d MiB, %d KiB for each; %d MiB without any; no error", connections, held>>10, (held-before)/connections, before>>10)
	if limit := 512 << 10; held > limit {
		t.Errorf("the replica takes %d KiB, its limit in the stack is %d", held, limit)
	}
}
