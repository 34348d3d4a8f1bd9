package operations

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/member"
	"github.com/slipwayhq/slipway/firstboot/overview"
	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/firstboot/plan"
	"github.com/slipwayhq/slipway/firstboot/seeding"
	"github.com/slipwayhq/slipway/firstboot/topology"
	"github.com/slipwayhq/slipway/firstboot/vault"
	"github.com/slipwayhq/slipway/internal/fault"
)

type overviewOf = overview.Overview

func pemOf(v *vault.Vault) string { return pki.EncodeCertificate(v.Authority().Raw) }

// voters are the members of etcd, sorted.
func (w *town) voters() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(slices.Sorted(slices.Values(w.votes)), " ")
}

func (w *town) look(h *Home) overview.Overview {
	w.t.Helper()
	now, err := h.Cluster.Look(w.t.Context())
	w.must(err)
	return now
}

func TestANodeIsAddedAndTheVoteMovesToIt(t *testing.T) {
	w := newTown(t)
	if got := w.voters(); got != "a-db1 a-db2 a-lb1" {
		t.Fatalf("votes before: %s", got)
	}
	h := w.home(shop + third)
	result, err := w.run(h, Add(h, "a-db3"), "")
	if err != nil || !result.Verified {
		t.Fatalf("%+v, %v", result, err)
	}
	if got := w.voters(); got != "a-db1 a-db2 a-db3" {
		t.Errorf("votes: %s", got)
	}
	for _, n := range w.look(h).Nodes {
		if c := n.Report; c == nil || c.Cluster.Generation != 2 {
			t.Errorf("%s does not have the new plan: %+v", n.Name, n)
		}
	}
	// With its key the one whose vote was taken asks etcd whether that still counts on it.
	witness := w.machines["192.0.2.21"]
	witness.mu.Lock()
	defer witness.mu.Unlock()
	if _, ok := witness.member.Certificates[member.EtcdCert]; !ok {
		t.Error("the witness has lost its key of etcd")
	}
}

func TestAPlanReachesWhomItCannotBeHandedThroughTheOthers(t *testing.T) {
	for why, c := range map[string]struct {
		missed []string // by what is sent after the first look
		want   fault.Class
	}{
		"one is missed": {[]string{"192.0.2.12"}, fault.Internal},
		"all are":       {[]string{"192.0.2.11", "192.0.2.12", "192.0.2.21"}, fault.Network},
	} {
		w := newTown(t)
		h := w.home(shop + third)
		if _, err := h.reseed(t.Context(), h.Topology, seeding.Options{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		dials := map[string]int{}
		h.Cluster.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			host, _, _ := net.SplitHostPort(address)
			mu.Lock()
			dials[host]++
			lost := dials[host] == 2 && slices.Contains(c.missed, host)
			mu.Unlock()
			if lost {
				return nil, fmt.Errorf("no answer")
			}
			return w.dial(ctx, network, address)
		}
		var said []string
		err := h.publish(t.Context(), nil, func(line string) { said = append(said, line) })
		if (err != nil) != (c.want == fault.Network) || err != nil && fault.Of(err) != c.want {
			t.Errorf("%s: %v", why, err)
		}
		if !strings.Contains(strings.Join(said, "; "), "a-db2 (192.0.2.12): no answer; it hears of the plan from the others") {
			t.Errorf("%s: said %q", why, said)
		}
		if err != nil {
			continue
		}
		for _, n := range w.look(h).Nodes {
			if n.Report != nil && n.Report.Cluster.Generation != h.Cluster.Plan.Generation {
				t.Errorf("%s: %s has the plan of generation %d", why, n.Name, n.Report.Cluster.Generation)
			}
		}
	}
}

func TestAnInterruptedAdditionGoesOn(t *testing.T) {
	for _, at := range []string{"2/5", "3/5", "4/5", "5/5"} {
		w := newTown(t)
		h := w.home(shop + third)
		if result, err := w.run(h, Add(h, "a-db3"), at); err == nil {
			t.Fatalf("broken at %s: %+v", at, result)
		}
		h = w.home(shop + third)
		result, err := w.run(h, Add(h, "a-db3"), "")
		if err != nil || !result.Verified || w.voters() != "a-db1 a-db2 a-db3" {
			t.Errorf("after a break at %s: %+v, %v, votes %s", at, result, err, w.voters())
		}
	}
}

func (w *town) removal(h *Home, text, name string, dead bool) (Removal, *string) {
	w.t.Helper()
	out := text
	cut, after, err := topology.Without("cluster.yaml", []byte(text), name)
	w.must(err)
	return Removal{Node: name, Dead: dead, Without: after, Write: func() error { out = string(cut); return nil }}, &out
}

func TestANodeIsRemovedAndNothingOfItIsLeft(t *testing.T) {
	for _, dead := range []bool{false, true} {
		w := newTown(t)
		h := w.home(shop + third)
		if _, err := w.run(h, Add(h, "a-db3"), ""); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		old := w.machines["192.0.2.13"]
		w.mu.Unlock()
		h = w.home(shop + third)
		if dead {
			old.off()
			r, _ := w.removal(h, shop+third, "a-db3", false)
			if _, err := w.run(h, Remove(h, r), ""); fault.Of(err) != fault.Failed || !strings.Contains(fault.Mend(err), "--dead") {
				t.Errorf("a node that does not answer: %v", err)
			}
		} else {
			w.mu.Lock()
			w.leader = "a-db3"
			w.mu.Unlock()
			r, _ := w.removal(h, shop+third, "a-db3", true)
			if _, err := w.run(h, Remove(h, r), ""); fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "it is not dead") {
				t.Errorf("a node that answers was to be removed as a dead one: %v", err)
			}
		}
		h = w.home(shop + third)
		r, file := w.removal(h, shop+third, "a-db3", dead)
		result, err := w.run(h, Remove(h, r), "")
		if err != nil || !result.Verified {
			t.Fatalf("dead %v: %+v, %v", dead, result, err)
		}
		if *file != shop || w.voters() != "a-db1 a-db2 a-lb1" || slices.Contains(w.known, "a-db3") || slices.Contains(w.vault.Nodes(), "a-db3") {
			t.Errorf("dead %v: file\n%s\nvotes %s, Patroni %q, store %q", dead, *file, w.voters(), w.known, w.vault.Nodes())
		}
		if _, err := os.Stat(filepath.Join(w.dir, "seeds", "a-db3.nocloud.iso")); err == nil {
			t.Error("its seed is still there")
		}
		p, err := w.vault.Plan()
		if err != nil || len(p.Revoked) != 1 || len(p.Nodes) != 3 {
			t.Errorf("the plan revokes %q, %v", p.Revoked, err)
		}
	}
}

func TestAnInterruptedRemovalGoesOn(t *testing.T) {
	for step := 2; step <= 9; step++ {
		w := newTown(t)
		h := w.home(shop + third)
		if _, err := w.run(h, Add(h, "a-db3"), ""); err != nil {
			t.Fatal(err)
		}
		h = w.home(shop + third)
		r, file := w.removal(h, shop+third, "a-db3", false)
		at := fmt.Sprintf("%d/9 ", step)
		if result, err := w.run(h, Remove(h, r), at); err == nil {
			t.Fatalf("broken at %s: %+v", at, result)
		}
		// As the command reads it anew: the file may be without the node already.
		h = w.home(*file)
		if again := (Removal{Node: "a-db3", Without: h.Topology, Edited: true, Write: func() error { return nil }}); *file == shop {
			r = again
		} else {
			r, file = w.removal(h, *file, "a-db3", false)
		}
		before, err := w.vault.PlanWith("a-db3")
		w.must(err)
		if before == nil { // the last step was done, too
			if _, err := w.run(h, Remove(h, r), ""); step != 9 || fault.Of(err) != fault.Usage || !strings.Contains(err.Error(), "it is gone already") {
				t.Errorf("after a break at %s: %v", at, err)
			}
			continue
		}
		if n, err := before.Node("a-db3"); err == nil {
			h.Cluster.Also = []plan.Node{n}
		}
		result, err := w.run(h, Remove(h, r), "")
		if err != nil || !result.Verified || *file != shop || w.voters() != "a-db1 a-db2 a-lb1" || slices.Contains(w.known, "a-db3") || slices.Contains(w.vault.Nodes(), "a-db3") {
			t.Errorf("after a break at %s: %+v, %v; votes %s, Patroni %q, store %q", at, result, err, w.voters(), w.known, w.vault.Nodes())
		}
	}
}

func TestAReplacedMachineCountsNoMoreAndStopsByItself(t *testing.T) {
	w := newTown(t)
	h := w.home(shop)
	if _, err := w.run(h, Replace(h, "a-db2"), ""); fault.Of(err) != fault.Failed || !strings.Contains(err.Error(), "a-db2 answers: it is not dead") {
		t.Errorf("a node that answers: %v", err)
	}
	w.mu.Lock()
	old := w.machines["192.0.2.12"]
	w.mu.Unlock()
	old.off()
	h = w.home(shop)
	result, err := w.run(h, Replace(h, "a-db2"), "")
	if err != nil || !result.Verified {
		t.Fatalf("%+v, %v", result, err)
	}
	if !slices.Contains(w.did, "a-db1: expel a-db2") && !slices.Contains(w.did, "a-lb1: expel a-db2") || !slices.Contains(w.did, "a-db1: forget a-db2") {
		t.Errorf("done: %q", w.did)
	}
	if w.vault.Replacing("a-db2") {
		t.Error("the store takes it for one that is being replaced still")
	}
	// The machine before comes back at its address, and the fresh one is off.
	w.mu.Lock()
	fresh := w.machines["192.0.2.12"]
	w.mu.Unlock()
	fresh.off()
	back := &house{world: w, name: old.name, id: old.id, block: old.block, membership: old.membership, node: old.node}
	back.listener = listen(t)
	back.power("192.0.2.12")
	t.Cleanup(back.off)
	h = w.home(shop)
	n, _ := w.look(h).Node("a-db2")
	if n.Report != nil || !strings.Contains(n.Problem, "was replaced") {
		t.Errorf("the machine before is taken for the node: %+v", n)
	}
	until(t, "the machine before has learned that it was replaced", func() bool {
		back.mu.Lock()
		defer back.mu.Unlock()
		return strings.Contains(back.member.Retired, "was replaced")
	})
}

func TestReplacingGoesOnAfterAnInterruptionWithTheSameCertificates(t *testing.T) {
	w := newTown(t)
	w.mu.Lock()
	old := w.machines["192.0.2.12"]
	w.mu.Unlock()
	old.off()
	h := w.home(shop)
	if _, err := w.run(h, Replace(h, "a-db2"), "3/"); err == nil {
		t.Fatal("it was not interrupted")
	}
	issue := w.vault.Issue("a-db2")
	h = w.home(shop)
	if _, err := w.run(h, Replace(h, "a-db2"), ""); err != nil {
		t.Fatal(err)
	}
	if got := w.vault.Issue("a-db2"); got != issue || issue == 0 {
		t.Errorf("issue %d, after the interruption %d", issue, got)
	}
}

func TestCertificatesAreRotatedOnAllNodesAndAnInterruptionMakesNoThirdOnes(t *testing.T) {
	w := newTown(t)
	h := w.home(shop)
	before, err := seeding.Credentials(h.Topology, w.vault, "a-db1")
	w.must(err)
	if _, err := w.run(h, RotateCertificates(h), "3/"); err == nil {
		t.Fatal("it was not interrupted")
	}
	between, err := seeding.Credentials(h.Topology, w.vault, "a-db1")
	w.must(err)
	h = w.home(shop)
	result, err := w.run(h, RotateCertificates(h), "")
	if err != nil || !result.Verified {
		t.Fatalf("%+v, %v", result, err)
	}
	after, err := seeding.Credentials(h.Topology, w.vault, "a-db1")
	w.must(err)
	for purpose, pair := range after.Certificates {
		if pair == before.Certificates[purpose] || pair != between.Certificates[purpose] {
			t.Errorf("%s: changed %v, again after the interruption %v", purpose, pair != before.Certificates[purpose], pair != between.Certificates[purpose])
		}
	}
	for _, m := range w.machines {
		m.mu.Lock()
		if m.member.Issue != w.vault.Issue(m.name) || m.member.Issue == 0 {
			t.Errorf("%s has issue %d", m.name, m.member.Issue)
		}
		m.mu.Unlock()
	}
	if w.vault.Renewing() {
		t.Error("the store takes the rotation for one that goes on")
	}
}

func TestPasswordsAreRotatedOnceHoweverOftenItIsInterrupted(t *testing.T) {
	w := newTown(t)
	secret := func() string {
		s, err := w.vault.Secret("database-app")
		w.must(err)
		return s
	}
	before := secret()
	h := w.home(shop)
	if _, err := w.run(h, RotateSecrets(h, []string{"database-app"}), "3/"); err == nil {
		t.Fatal("it was not interrupted")
	}
	between := secret()
	if got := w.vault.Exchanging(); len(got) != 1 {
		t.Errorf("under way: %q", got)
	}
	h = w.home(shop)
	result, err := w.run(h, RotateSecrets(h, []string{"database-app"}), "")
	if err != nil || !result.Verified {
		t.Fatalf("%+v, %v", result, err)
	}
	if after := secret(); before == between || after != between || len(w.vault.Exchanging()) > 0 {
		t.Errorf("changed %v, again after the interruption %v, under way %q", before != between, after != between, w.vault.Exchanging())
	}
	for _, m := range w.machines {
		m.mu.Lock()
		if has, ok := m.member.Secrets["database-app"]; ok && has != between {
			t.Errorf("%s has the former one", m.name)
		}
		m.mu.Unlock()
		if log, err := os.ReadFile(m.node.Path("/var/lib/slipway/audit.jsonl")); err == nil && strings.Contains(string(log), between) {
			t.Errorf("the audit log of %s holds it", m.name)
		}
	}
	if _, err := w.run(h, RotateSecrets(h, []string{"guessed"}), ""); fault.Of(err) != fault.Usage {
		t.Errorf("a password that there is not: %v", err)
	}
}

func TestAFailoverWithinARotationOfPasswordsEndsWithTheNewOnesInUse(t *testing.T) {
	w := newTown(t)
	h := w.home(shop)
	if _, err := w.run(h, RotateSecrets(h, nil), "3/"); err == nil {
		t.Fatal("it was not interrupted")
	}
	wanted, err := w.vault.Secret(plan.ReplicationPassword)
	w.must(err)
	if w.look(h); w.password != wanted {
		t.Fatal("the primary has not taken the new one")
	}
	// The one that leads now has the former passwords, and sets them.
	w.mu.Lock()
	w.leader = "a-db2"
	w.mu.Unlock()
	w.look(h)
	word := w.look(h).Word("a-db2")
	if m, _ := word.Database.Member("a-db1"); w.password == wanted || m.Streams() {
		t.Fatalf("the former primary gets in: %+v", word.Database)
	}
	h = w.home(shop)
	result, err := w.run(h, RotateSecrets(h, nil), "")
	if err != nil || !result.Verified {
		t.Fatalf("%+v, %v", result, err)
	}
	after, err := w.vault.Secret(plan.ReplicationPassword)
	w.must(err)
	if after != wanted || w.password != wanted || len(w.vault.Exchanging()) > 0 {
		t.Errorf("third ones: %v; in use: %v; under way: %q", after != wanted, w.password == wanted, w.vault.Exchanging())
	}

	// All nodes have them, which does not say that the database has.
	w.mu.Lock()
	w.lazy = true
	w.mu.Unlock()
	var nodes []plan.Node
	for _, n := range h.Cluster.Plan.Nodes {
		if plan.DatabaseRole(n.Role) {
			nodes = append(nodes, n)
		}
	}
	if missing := strings.Join(h.taken(w.look(h), nodes), "; "); missing != "a-db2 has not set them in the database yet" {
		t.Errorf("missing is %q", missing)
	}
}

func TestNothingIsRotatedWhileANodeWouldBeLeftBehind(t *testing.T) {
	w := newTown(t)
	w.mu.Lock()
	gone := w.machines["192.0.2.12"]
	w.mu.Unlock()
	gone.off()
	h := w.home(shop)
	if _, err := w.run(h, RotateCertificates(h), ""); fault.Of(err) != fault.Network || !strings.Contains(err.Error(), "a-db2") {
		t.Errorf("certificates: %v", err)
	}
	if _, err := w.run(h, RotateSecrets(h, nil), ""); fault.Of(err) != fault.Network {
		t.Errorf("passwords: %v", err)
	}
}

func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !is(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not so: " + what)
		}
	}
}
