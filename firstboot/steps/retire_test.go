package steps

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/actions/actionstest"
	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/peers"
	"github.com/slipwayhq/slipway/internal/fault"
)

// recorder is a systemd under which all units run until they are stopped.
type recorder struct{ stopped []string }

func (r *recorder) Run(_ context.Context, c node.Command) (string, error) {
	unit := c.Argv[len(c.Argv)-1]
	switch c.Argv[1] {
	case "stop":
		r.stopped = append(r.stopped, unit)
	case "is-active":
		if !slices.Contains(r.stopped, unit) {
			return "active\n", nil
		}
	}
	return "", nil
}

// retiree is a balancer with a vote, on which all runs.
func retiree(t *testing.T, c *membertest.Cluster) (*node.Node, *recorder, *Membership) {
	t.Helper()
	r := &recorder{}
	n := &node.Node{Root: t.TempDir(), Run: r, Member: c.Member(t, "a-lb1")}
	for _, dir := range []string{"/usr/bin", "/run/systemd/system"} {
		if err := os.MkdirAll(n.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(n.Path("/usr/bin/systemctl"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return n, r, &Membership{Store: member.NewStore(n.Path(member.Dir)), Now: time.Now}
}

func TestANodeThatIsTakenOutStopsFirstWhatLeadsClientsToItAndKeepsItsVoteUntilTheEnd(t *testing.T) {
	n, r, m := retiree(t, membertest.New(t))
	if _, err := actionstest.Run(t.Context(), Leave(m), n, RetireArgs{Votes: true}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(r.stopped, " "); got != "keepalived.service haproxy.service patroni.service pgbackrest.service slipway-mirror.service" {
		t.Errorf("stopped: %s", got)
	}
	if _, err := actionstest.Run(t.Context(), Leave(m), n, RetireArgs{}); err != nil {
		t.Fatal(err)
	}
	if got := r.stopped[len(r.stopped)-1]; got != "etcd.service" || len(r.stopped) != 6 {
		t.Errorf("stopped in the end: %q", r.stopped)
	}
	for _, unit := range held {
		if !n.Held(unit) {
			t.Errorf("%s may start again", unit)
		}
	}
}

func TestANodeThatWasTakenOutStaysOutUntilANewerPlanHasIt(t *testing.T) {
	c := membertest.New(t)
	n, _, m := retiree(t, c)
	if _, err := actionstest.Run(t.Context(), Leave(m), n, RetireArgs{}); err != nil {
		t.Fatal(err)
	}
	record, err := m.Store.Retirement()
	if err != nil {
		t.Fatal(err)
	}
	again := c.Member(t, "a-lb1")
	if again.Retire(record); again.Retired != member.TakenOut {
		t.Errorf("after a restart it is %q", again.Retired)
	}
	if left := Serving(again, Cluster(m, peers.Task{}, nil)); len(left) != 3 {
		t.Errorf("it still does %d things", len(left))
	}
	c.Plan.Generation++
	back := c.Member(t, "a-lb1")
	if back.Retire(record); back.Retired != "" {
		t.Errorf("taken back in, it is %q", back.Retired)
	}
}

func TestCredentialsCountAboveTheSeedAndSurviveARestart(t *testing.T) {
	c := membertest.New(t)
	n, _, m := retiree(t, c)
	block := c.Block(t, "a-lb1")
	newer := member.Credentials{Cluster: c.Plan.ID, Node: "a-lb1", Issue: 3, EtcdAuthority: block.EtcdAuthority, Certificates: block.Certificates, Secrets: map[string]string{"x": "correct-horse"}}
	foreign := newer
	foreign.Node = "a-db1"
	if _, err := actionstest.Run(t.Context(), Take(m), n, foreign); fault.Of(err) != fault.Input {
		t.Errorf("those of another node: %v", err)
	}
	mixed := newer
	mixed.Certificates = c.Block(t, "a-db1").Certificates
	if _, err := actionstest.Run(t.Context(), Take(m), n, mixed); fault.Of(err) != fault.Integrity {
		t.Errorf("certificates of another node: %v", err)
	}
	if kept, err := m.Store.Credentials(); kept != nil || err != nil {
		t.Errorf("what was refused is kept: %v, %v", kept, err)
	}
	if _, err := actionstest.Run(t.Context(), Take(m), n, newer); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(n.Path(member.Dir), "credentials.json"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", info.Mode(), err)
	}
	seed := membertest.Text(t, c.Block(t, "a-lb1"))
	now, err := m.parse(seed)
	if err != nil || now.Issue != 3 || now.Secrets["x"] != "correct-horse" || now.Serial() == n.Member.Serial() {
		t.Errorf("after a restart: issue %d, %v", now.Issue, err)
	}
	// A seed that was written later counts again.
	later := c.Block(t, "a-lb1")
	later.Issue = 4
	if now, err := m.parse(membertest.Text(t, later)); err != nil || now.Issue != 4 {
		t.Errorf("with a later seed: issue %d, %v", now.Issue, err)
	}
	// An older issue changes nothing.
	n.Member = now
	if got, err := actionstest.Run(t.Context(), Take(m), n, newer); err != nil || string(got) != `{"issue":3,"changed":false}` {
		t.Errorf("the same again: %s, %v", got, err)
	}
}
