package database

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/role/consensus"
)

// These are of the launcher, overlays/database/usr/lib/slipway/patroni.

// etcd takes down that the database is being made, and Patroni does not hear of it: what it
// finds then is what its own attempt left behind.
func TestADatabaseIsMadeThoughEtcdsAnswerWasLost(t *testing.T) {
	first, second := two(t)
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	go func() {
		for !first.Running(Unit) { // then the mark of an earlier start is gone, and Patroni has not looked yet
			if ctx.Err() != nil {
				return
			}
			time.Sleep(time.Millisecond)
		}
		client, err := consensus.Dial(first.Member)
		if err == nil {
			defer client.Close()
			err = client.Put(ctx, initializeKey(first.Member), "")
		}
		if err != nil {
			t.Error(err)
		}
	}()
	all(t, first, second)
	if log := first.File(t, "/"+Unit+".log"); !strings.Contains(log, "went unheard: beginning again") {
		t.Errorf("Patroni found nothing:\n%s", log)
	}
}

// While nobody leads, Patroni makes a connection to PostgreSQL for each question about a
// replica's timeline; balancers and agents ask several times a second.
func TestAReplicaIsAskedOftenAndLooksSeldomForItsTimeline(t *testing.T) {
	first, second := two(t)
	second.Put(t, "/etc/patroni/conf.d/91-log.yml", "postgresql: {parameters: {log_replication_commands: \"on\"}}\n")
	all(t, first, second)
	first.Output(t, patronictl, "pause", "--wait")
	first.StopUnit(Unit) // paused, it leaves PostgreSQL as it is, and its key runs out

	patroni, err := dial(second.Member)
	if err != nil {
		t.Fatal(err)
	}
	defer patroni.mtls.Close()
	var got struct {
		Unlocked bool `json:"cluster_unlocked"`
		Timeline int  `json:"timeline"`
	}
	ask := func() {
		t.Helper()
		if err := patroni.mtls.JSON(t.Context(), http.MethodGet, rest(second.Member.Self)+"/patroni", nil, &got); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(patience); !got.Unlocked; time.Sleep(100 * time.Millisecond) {
		if ask(); time.Now().After(deadline) {
			t.Fatalf("%+v\n%s", got, second.Log(Unit))
		}
	}
	looks := func() int {
		return strings.Count(second.File(t, "/"+Unit+".log"), "received replication command: IDENTIFY_SYSTEM")
	}
	before, begun, questions := looks(), time.Now(), 0
	for ; questions < 20 || time.Since(begun) < 5*time.Second; questions++ {
		if ask(); got.Timeline != 1 {
			t.Fatalf("%+v", got)
		}
	}
	made := looks() - before
	if most := int(time.Since(begun).Seconds())/2 + 2; made == 0 || made > most {
		t.Errorf("%d questions, %d connections; want 1 to %d of them", questions, made, most)
	}
}

// A candidate that does not answer for a moment is asked again, each time for a third of
// retry_timeout, which is 3 in the tests' plan.
func TestACandidateThatIsSlowToAnswerIsAskedAgain(t *testing.T) {
	first, second := two(t)
	all(t, first, second)
	second.role(t, "quorum_standby")
	nft := func(words ...string) {
		t.Helper()
		if out, err := second.On(append([]string{"nft"}, words...)...); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	nft(fmt.Sprintf("table inet slow { chain in { type filter hook input priority 0; tcp dport %d drop; }; }", plan.PatroniPort))
	got, err := first.switchover(t, first, second, func(said string) {
		if strings.Contains(said, "asking again") {
			nft("flush", "ruleset")
		}
	})
	if err != nil || !got.Changed {
		t.Fatalf("%+v, %v", got, err)
	}
	if log := first.File(t, "/"+Unit+".log"); !strings.Contains(log, "(connect timeout=1.0)") {
		t.Errorf("for how long it was asked:\n%s", log)
	}
}

// A primary whose clock is set, back or forward, goes on: it leads as long as it renews its
// key, and says so.
func TestAPrimaryWhoseClockIsSetGoesOn(t *testing.T) {
	first, second := two(t)
	ownClock(t, first)
	all(t, first, second)
	second.role(t, "quorum_standby")
	patroni, err := dial(first.Member)
	if err != nil {
		t.Fatal(err)
	}
	defer patroni.mtls.Close()

	ttl := time.Duration(first.Member.Site.Patroni.TTL) * time.Second
	for _, c := range []struct{ clock, off string }{{"-600s\n", "600"}, {"+0s\n", "0"}} {
		first.Put(t, "/clock", c.clock)
		for end := time.Now().Add(ttl * 5 / 4); time.Now().Before(end); time.Sleep(200 * time.Millisecond) {
			err := patroni.mtls.JSON(t.Context(), http.MethodGet, rest(first.Member.Self)+"/primary", nil, &struct{}{})
			if err != nil && strings.Contains(err.Error(), "503") {
				t.Fatalf("with its clock at %sit says that it is no primary: %v\n%s", c.clock, err, first.Log(Unit))
			}
		}
		off := fmt.Sprintf("SELECT round((%d - extract(epoch FROM clock_timestamp())) / 60) * 60", time.Now().Unix())
		if got := first.sql(t, off+", pg_is_in_recovery()"); got != c.off+"|f" {
			t.Errorf("how far behind its clock is, and whether it has become a replica: %s", got)
		}
	}
	if got := first.sql(t, "SELECT timeline_id FROM pg_control_checkpoint()"); got != "1" {
		t.Errorf("it was promoted again: it is on timeline %s", got)
	}
}

// PostgreSQL that was started at another time of day than the kernel reckons with is known
// for what it is, by the Patroni that has started it and by the next one.
func TestPostgreSQLIsKnownThoughTheClockWasSet(t *testing.T) {
	first, second := two(t)
	ownClock(t, first)
	all(t, first, second)
	first.Put(t, "/clock", "-600s\n")
	time.Sleep(2 * time.Second) // libfaketime looks once a second

	file := "/" + Unit + ".log"
	log := func(from int) string { return first.File(t, file)[from:] }
	until := func(from int, want string) (end int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
			said := log(from)
			if at := strings.Index(said, want); at >= 0 {
				return from + at + len(want)
			}
			if time.Now().After(deadline) {
				t.Fatalf("Patroni does not say %q:\n%s", want, said)
			}
		}
	}
	postmaster := func() string {
		return strings.Join(strings.Fields(first.Output(t, "head", "-n", "3", dataDir+"/postmaster.pid")), " ")
	}
	for range 2 {
		time.Sleep(time.Second) // once a second is looked for PostgreSQL to watch
		pid, _, _ := strings.Cut(postmaster(), " ")
		before := len(log(0))
		first.Output(t, "kill", "-9", pid)
		until(before, "PostgreSQL has ended (process "+pid+")")
		// Patroni hands over when PostgreSQL ends before it has seen that it is back.
		back := until(before, "database system is ready to accept connections")
		until(back, "I am (a-db1), the leader with the lock")
	}
	running, before := postmaster(), len(log(0))
	first.KillUnit(Unit)
	until(before, "I am (a-db1), the leader with the lock")
	if got := postmaster(); got != running || strings.Contains(log(before), "postmaster pid=") {
		t.Errorf("PostgreSQL was started anew: %s, before %s\n%s", got, running, log(before))
	}
}

// ownClock gives all that a node starts a time of day of its own, by libfaketime. The kernel
// and its accounts of processes go by the machine's.
func ownClock(t *testing.T, n *running) {
	n.Put(t, "/clock", "+0s\n")
	n.Extra = []string{
		"LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1", "FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_TIMESTAMP_FILE=/clock", "FAKETIME_CACHE_DURATION=1",
	}
}
