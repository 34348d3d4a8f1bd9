//go:build long

package clustertest

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab/daemon"
)

// thirdDatabase joins examples/postgres-pair in the story.
const thirdDatabase = `  - name: db3
    role: db-replica
    nics: [{network: lan, address: 10.77.3.13}]
    size: {cpus: 1, memory: 1GiB}
`

// administrator is a user with a cluster that is being written to.
type administrator struct {
	*user
	client string // psql's connection string
	writer *writer
}

func (a administrator) part(name string, tell func(a administrator)) {
	a.Helper()
	if !a.Run(name, func(t *testing.T) {
		in := a
		in.user = &user{T: t, dir: a.dir, program: a.program}
		before := a.writer.written()
		tell(in)
		a.writer.goesOn(in.user, before)
	}) {
		a.FailNow()
	}
}

// psql asks the database as a client on this computer does, with a password. A commit may wait
// for a replica: whoever has no answer after a minute does not know what came of it.
func psql(client, password, query string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "psql", "-XqtA", "-v", "ON_ERROR_STOP=1", client, "-c", query)
	cmd.Env = append(os.Environ(), "PGPASSWORD="+password, "PGCONNECT_TIMEOUT=20")
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return "no answer within a minute", ctx.Err()
	}
	return strings.TrimSpace(string(out)), err
}

// password is the application's, as the command shows it; "" while it does not.
func (u *user) password() string {
	_, out, _ := u.call("secret", "show", "cluster.yaml", "database-app", "--store", string(u.place().Store()))
	return strings.TrimSpace(out)
}

// sql asks until it is answered.
func (a administrator) sql(query string) string {
	a.Helper()
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(askAgain) {
		out, err := psql(a.client, a.password(), query)
		if err == nil {
			return out
		}
		if time.Now().After(deadline) {
			a.Fatalf("%s: %s", query, out)
		}
	}
}

// writer inserts one number after the other, each over a connection of its own, and
// keeps those that were acknowledged.
type writer struct {
	client   string
	password func() string
	quit     chan struct{}
	ended    chan struct{}

	mu   sync.Mutex
	acks []int
	gap  time.Duration // the longest between two of them
	said []string      // what went wrong, each once in a row
}

func (w *writer) run() {
	defer close(w.ended)
	password, last := w.password(), time.Now()
	for n := 0; ; n++ {
		select {
		case <-w.quit:
			return
		case <-time.After(300 * time.Millisecond):
		}
		out, err := psql(w.client, password, fmt.Sprintf("insert into written values (%d)", n))
		w.mu.Lock()
		if err == nil {
			w.acks, w.gap, last = append(w.acks, n), max(w.gap, time.Since(last)), time.Now()
		} else if len(w.said) == 0 || w.said[len(w.said)-1] != out {
			w.said = append(w.said, out)
		}
		w.mu.Unlock()
		if err != nil {
			password = w.password() // it may have been exchanged
		}
	}
}

func (w *writer) written() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acks)
}

// goesOn waits for lines that are written after all that was done, and tells what the
// writer saw meanwhile.
func (w *writer) goesOn(u *user, before int) {
	u.Helper()
	now := w.written()
	for deadline := time.Now().Add(3 * time.Minute); w.written() < now+3; time.Sleep(askAgain) {
		if time.Now().After(deadline) {
			u.Fatalf("nothing can be written any more: %q", w.said)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	u.Logf("meanwhile: %d lines written, the longest gap %.1f s", len(w.acks)-before, w.gap.Seconds())
	for _, text := range w.said {
		u.Logf("  the writer: %s", text)
	}
	if now == before {
		u.Error("nothing was written while this went on")
	}
	w.gap, w.said = 0, nil
}

// overview is the cluster as its nodes tell it.
func (u *user) overview() (o overview.Overview) {
	u.Helper()
	_, out, said := u.call("status", "cluster.yaml", "--json")
	if err := json.Unmarshal([]byte(out), &o); err != nil {
		u.Fatalf("status: %v\n%s%s", err, out, said)
	}
	return o
}

// isWhole waits until status finds nothing wrong, and returns what it shows.
func (u *user) isWhole() overview.Overview {
	u.Helper()
	for deadline := time.Now().Add(readyTime); ; time.Sleep(askAgain) {
		code, out, said := u.call("status", "cluster.yaml", "--json")
		if code == 0 {
			var o overview.Overview
			if err := json.Unmarshal([]byte(out), &o); err != nil {
				u.Fatalf("status: %v\n%s%s", err, out, said)
			}
			return o
		}
		if time.Now().After(deadline) {
			u.Fatalf("status: exit status %d\n%s%s", code, out, said)
		}
	}
}

// votes checks whom etcd counts on, by the word of its members.
func (u *user) votes(o overview.Overview, want ...string) {
	u.Helper()
	for _, name := range want {
		word := o.Word(name)
		if word == nil || word.Consensus == nil {
			u.Errorf("%s says nothing of etcd", name)
			continue
		}
		var healthy []string
		for _, m := range word.Consensus.Members {
			if m.Healthy {
				healthy = append(healthy, m.Node)
			}
		}
		slices.Sort(healthy)
		if !slices.Equal(healthy, want) || len(word.Consensus.Strangers) > 0 {
			u.Errorf("etcd by the word of %s: %v and strangers %v, want %v", name, healthy, word.Consensus.Strangers, want)
		}
	}
}

// operates does an operation in the background and starts a fresh machine by doing
// what it asks for.
func (u *user) operates(args ...string) (said string) {
	u.Helper()
	cmd := u.command(append(args, "--yes")...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		u.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	if err := cmd.Start(); err != nil {
		u.Fatal(err)
	}
	var all strings.Builder
	for lines := bufio.NewScanner(out); lines.Scan(); {
		line := lines.Text()
		u.Log(line)
		fmt.Fprintln(&all, line)
		if command, ok := strings.CutPrefix(strings.TrimSpace(line), "slipway "); ok && strings.HasPrefix(line, "      ") {
			words := strings.Fields(command)
			if words[0] == "up" {
				words = append(words, "--no-wait")
			}
			u.runs(words...)
		}
	}
	io.Copy(io.Discard, out)
	if err := cmd.Wait(); err != nil {
		u.Fatalf("slipway %s: %v\n%s", strings.Join(args, " "), err, all.String())
	}
	u.says(all.String(), "Done and verified")
	return all.String()
}

// audit are the nodes' audit logs, as the command shows them with --json. A node that does
// not answer now is asked again.
func (u *user) audit(nodes ...string) string {
	u.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(askAgain) {
		code, out, said := u.call(append([]string{"audit", "cluster.yaml", "--json"}, nodes...)...)
		if code == 0 {
			return out
		}
		if code != 5 || time.Now().After(deadline) {
			u.Fatalf("audit: exit status %d\n%s%s", code, out, said)
		}
	}
}

// did are the actions that stand in the nodes' audit logs as done.
func (u *user) did(nodes ...string) map[string][]string {
	u.Helper()
	var log struct {
		Nodes []struct {
			Node    string
			Entries []actions.Entry
		}
	}
	if err := json.Unmarshal([]byte(u.audit(nodes...)), &log); err != nil {
		u.Fatal(err)
	}
	done := map[string][]string{}
	for _, n := range log.Nodes {
		for _, e := range n.Entries {
			if e.Outcome == "done" {
				done[n.Node] = append(done[n.Node], e.Action)
			}
		}
	}
	return done
}

func anyDid(done map[string][]string, action string) bool {
	for _, list := range done {
		if slices.Contains(list, action) {
			return true
		}
	}
	return false
}

// TestNodesComeAndGo tells what becomes of examples/postgres-pair while it is written to: it gets
// a third database, loses one and has it replaced, gives the third one up, and exchanges its
// certificates and passwords. All of it is done by the command alone.
func TestNodesComeAndGo(t *testing.T) {
	u := newUser(t)
	pair, err := os.ReadFile(example(t, "postgres-pair"))
	if err != nil {
		t.Fatal(err)
	}
	u.write("cluster.yaml", string(pair))
	u.own(u.path("cluster.yaml"))
	u.shareImages(images.Path(t, "db-master", "qcow2"))
	u.endLabs()
	out := u.runs("up", "cluster.yaml", "--images", "images", "--timeout", formTime.String())
	_, client, ok := strings.Cut(out, "  psql \"")
	if client, _, _ = strings.Cut(client, "\"\n"); !ok {
		t.Fatalf("up names no command for the database:\n%s", out)
	}
	a := administrator{user: u, client: client}
	a.sql("create table written (n int primary key)")
	a.writer = &writer{client: client, password: u.password, quit: make(chan struct{}), ended: make(chan struct{})}
	go a.writer.run()
	t.Cleanup(func() { // the lab ends after this
		select {
		case <-a.writer.ended:
		default:
			close(a.writer.quit)
			<-a.writer.ended
		}
	})

	a.part("a replica is added, and the vote moves to it", func(a administrator) {
		a.votes(a.isWhole(), "db1", "db2", "witness1")
		a.write("cluster.yaml", string(pair)+thirdDatabase)
		a.operates("add", "cluster.yaml", "db3", "--timeout", formTime.String())
		a.votes(a.isWhole(), "db1", "db2", "db3")
		a.says(a.runs("add", "cluster.yaml", "db3", "--yes"), "Nothing to do")
	})
	a.part("a dead machine is replaced by a fresh one", func(a administrator) {
		dead := "db2"
		if primary(a.overview()) == dead {
			dead = "db1"
		}
		before := a.ssh(dead, "cat /etc/machine-id")
		a.says(a.fails(9, "replace", "cluster.yaml", dead, "--yes"), "it is not dead")
		a.order(daemon.Crash, dead)
		a.operates("replace", "cluster.yaml", dead, "--timeout", formTime.String())
		a.votes(a.isWhole(), "db1", "db2", "db3")
		if after := a.ssh(dead, "cat /etc/machine-id"); after == before {
			a.Errorf("%s is the same machine as before", dead)
		}
	})
	a.part("a replica is removed, and nothing of it is left", func(a administrator) {
		a.operates("remove", "cluster.yaml", "db3")
		if text, err := os.ReadFile(a.path("cluster.yaml")); err != nil || string(text) != string(pair) {
			a.Errorf("the file is not what it was: %v\n%s", err, text)
		}
		a.votes(a.isWhole(), "db1", "db2", "witness1")
		a.runs("up", "cluster.yaml", "--no-wait")
		if _, there := a.state().Node("db3"); there {
			a.Error("its machine is still in the lab")
		}
		list := a.ssh("db1", "sudo patronictl list")
		if strings.Contains(list, "db3") || strings.Count(list, "db") < 2 {
			a.Errorf("Patroni knows:\n%s", list)
		}
		a.isWhole()
	})
	a.part("certificates are exchanged without a restart", func(a administrator) {
		started := a.sql("select pg_postmaster_start_time()")
		before := a.overview()
		const etcd = "systemctl show --value --property=ActiveEnterTimestampMonotonic etcd patroni"
		running := a.ssh("db1", etcd)
		a.operates("rotate", "certificates", "cluster.yaml")
		after := a.isWhole()
		for _, n := range after.Nodes {
			if was, is := before.Word(n.Name), after.Word(n.Name); is.Issue <= was.Issue || !is.Expires.After(was.Expires) {
				a.Errorf("%s has certificates of issue %d until %v, before %d until %v", n.Name, is.Issue, is.Expires, was.Issue, was.Expires)
			}
		}
		if now := a.sql("select pg_postmaster_start_time()"); now != started {
			a.Errorf("PostgreSQL was started anew at %s", now)
		}
		if now := a.ssh("db1", etcd); now != running {
			a.Errorf("etcd or Patroni was started anew: %q, before %q", now, running)
		}
	})
	a.part("passwords are exchanged, and the former ones get nobody in", func(a administrator) {
		former := a.password()
		a.operates("rotate", "secrets", "cluster.yaml")
		a.isWhole()
		if now := a.password(); now == former {
			a.Error("the password is the same as before")
		}
		if out, err := psql(a.client, former, "select 1"); err == nil || !strings.Contains(out, "password authentication failed") {
			a.Errorf("with the former password: %v, %s", err, out)
		}
		// The replica gets in with the new one, too.
		replica := "db2"
		if primary(a.overview()) == replica {
			replica = "db1"
		}
		a.ssh(replica, "sudo systemctl restart patroni")
		a.isWhole()
	})
	a.part("all of it stands in the audit logs, and no password", func(a administrator) {
		done := a.did()
		for _, name := range []string{"db1", "db2", "witness1"} {
			for _, action := range []string{"plan", "credentials"} {
				if !slices.Contains(done[name], action) {
					a.Errorf("the audit log of %s has no %q: %q", name, action, done[name])
				}
			}
		}
		for _, action := range []string{"expel", "forget"} {
			if !anyDid(done, action) {
				a.Errorf("no audit log has %q: %v", action, done)
			}
		}
		if text := a.audit(); strings.Contains(text, a.password()) {
			a.Error("an audit log holds a password")
		}
	})
	close(a.writer.quit)
	<-a.writer.ended
	have := map[string]bool{}
	for line := range strings.Lines(a.sql("select n from written")) {
		have[strings.TrimSpace(line)] = true
	}
	for _, n := range a.writer.acks {
		if !have[fmt.Sprint(n)] {
			t.Errorf("line %d was acknowledged and is lost", n)
		}
	}
	t.Logf("%d lines acknowledged, %d there", len(a.writer.acks), len(have))
}
