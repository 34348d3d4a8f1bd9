package steps

import (
	"context"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/actions"
	"github.com/slipwayhq/slipway/firstboot/membertest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/units"
	"github.com/slipwayhq/slipway/internal/fault"
)

// silent runs nothing.
type silent struct{ ran []string }

func (s *silent) Run(_ context.Context, c node.Command) (string, error) {
	s.ran = append(s.ran, strings.Join(c.Argv, " "))
	return "active", nil
}

// mayHold is a node that may hold an address.
func mayHold(t *testing.T) (*node.Node, *silent) {
	t.Helper()
	run := &silent{}
	n := &node.Node{Root: t.TempDir(), Run: run, Role: &manifest.Role{Services: []string{"haproxy.service", "keepalived.service"}},
		Member: membertest.New(t).Member(t, "a-lb1")}
	for _, dir := range []string{"/run/systemd/system", "/usr/bin"} {
		if err := os.MkdirAll(n.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(n.Path("/usr/bin/systemctl"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	return n, run
}

func maintain(t *testing.T, n *node.Node, args MaintenanceArgs) error {
	t.Helper()
	return maintainOr(t, n, args, func(why string) { t.Errorf("a new round begins: %s", why) })
}

func maintainOr(t *testing.T, n *node.Node, args MaintenanceArgs, again func(why string)) error {
	t.Helper()
	data, err := json.Marshal(args)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Maintenance.Run(t.Context(), actions.NewEnv(*n, actions.Caller{Name: "ann@desk"}, again, func(string) {}), data)
	return err
}

func TestMaintenanceIsKeptOnTheNodeAndTakesItsAddressAway(t *testing.T) {
	n, run := mayHold(t)
	for range 2 { // it may be asked for again
		if err := maintain(t, n, MaintenanceArgs{On: true}); err != nil {
			t.Fatal(err)
		}
	}
	m := n.Maintenance()
	if m == nil || m.By != "ann@desk" || m.Since.IsZero() {
		t.Fatalf("the note is %+v", m)
	}
	if !n.Held("keepalived.service") || !strings.Contains(strings.Join(run.ran, "\n"), "stop keepalived.service") {
		t.Errorf("ran %q", run.ran)
	}
	up := units.Unit{Load: "loaded", Active: "active", Sub: "running"}
	n.Units = &systemd{map[string][]units.Unit{"haproxy.service": {up}, "keepalived.service": {{Load: "loaded", Active: "inactive"}}, "etcd.service": {up}}, false}
	if h, err := CheckRole(t.Context(), n); err != nil || len(h.Waiting)+len(h.Broken) > 0 {
		t.Errorf("in maintenance, keepalived is no lack: %+v, %v", h, err)
	}
	if err := n.EndMaintenance(); err != nil || n.Maintenance() != nil {
		t.Errorf("it does not end: %v", err)
	}
	if h, err := CheckRole(t.Context(), n); err != nil || len(h.Waiting) != 1 {
		t.Errorf("afterwards, keepalived is a lack: %+v, %v", h, err)
	}
}

func TestWhatDoesNotSucceedAtOnceIsLeftToTheSteps(t *testing.T) {
	n, _ := mayHold(t)
	if err := n.BeginMaintenance(node.Maintenance{By: "ann@desk"}); err != nil {
		t.Fatal(err)
	}
	rounds := 0
	// No network card has the node's address here.
	if err := maintainOr(t, n, MaintenanceArgs{}, func(string) { rounds++ }); err == nil || rounds != 1 || n.Maintenance() != nil {
		t.Errorf("%v, %d rounds, maintenance %+v", err, rounds, n.Maintenance())
	}
}

func TestADatabaseNodeOfWhichNobodyKnowsWhetherItLeadsIsNotPutIntoMaintenance(t *testing.T) {
	n, _ := mayHold(t)
	n.Member = membertest.New(t).Member(t, "a-db1") // nothing answers there
	if err := maintain(t, n, MaintenanceArgs{On: true}); fault.Of(err) != fault.Failed || !strings.Contains(fault.Mend(err), "--force") {
		t.Errorf("%v", err)
	}
	if n.Maintenance() != nil {
		t.Error("it is in maintenance")
	}
}

func TestANoteThatCannotBeReadKeepsTheNodeInMaintenance(t *testing.T) {
	n, _ := mayHold(t)
	if err := n.BeginMaintenance(node.Maintenance{Since: time.Now(), By: "ann@desk"}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(n.Path("/var/lib/slipway/maintenance.json"), []byte("{\x00"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n.Maintenance() == nil {
		t.Error("a damaged note counts as none")
	}
}
