//go:build long

package swarm

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/firstboot/role/roletest"
)

// served asks a node's address which node serves there.
func served(e *engine) (string, error) {
	client := http.Client{Timeout: 3 * time.Second}
	answer, err := client.Get("http://" + e.Member.Self.Address.String() + ":8080/")
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	return string(text), err
}

// settled is nil once all managers are in, reach each other, have rotated their
// tokens, and serve.
func settled(engines ...*engine) error {
	var cluster string
	for _, e := range engines {
		d := dial(e.Node.Node)
		defer d.close()
		own, err := d.local(e.t.Context())
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", e.Member.Self.Name, err)
		case !own.manages():
			return fmt.Errorf("%s is %s; it waits: %q", e.Member.Self.Name, own.LocalNodeState, e.Said.Waits[max(0, len(e.Said.Waits)-2):])
		case own.Cluster == nil || cluster != "" && own.Cluster.ID != cluster:
			return fmt.Errorf("%s is in another swarm", e.Member.Self.Name)
		}
		cluster = own.Cluster.ID
		if err := errors.Join(judge(e.t.Context(), e.Node.Node, d)...); err != nil {
			return err
		}
		c, err := d.cluster(e.t.Context())
		if err != nil || c.label(membersLabel) == "" {
			return fmt.Errorf("the tokens were not rotated: %v", err)
		}
		if at, err := served(e); err != nil || at != e.Member.Self.Name {
			return fmt.Errorf("at %s the service says %q, %v", e.Member.Self.Name, at, err)
		}
	}
	return nil
}

func TestASwarmMakesItselfBearsALossAndTakesTheReplacementIn(t *testing.T) {
	p, s := site(3), &street{}
	members := roletest.Members(t, p)
	var all []*engine
	for _, name := range []string{"d1", "d2", "d3"} {
		all = append(all, newEngine(t, members[name]))
	}
	digest := appliance(t, all...)
	began := time.Now()
	// The one that creates it comes last.
	for _, i := range []int{2, 1, 0} {
		all[i].power()
		all[i].work(s)
		if i > 0 {
			wait(t, "Docker runs", func() error { _, err := all[i].ask("info"); return err })
			if out, _ := all[i].ask("info", "--format", "{{.Swarm.LocalNodeState}}"); out != "inactive" {
				t.Errorf("%s is %s before the first is there", all[i].Member.Self.Name, out)
			}
		}
	}
	wait(t, "the swarm is complete", func() error { return settled(all...) })
	t.Logf("three managers serve %.0f s after the first was started", time.Since(began).Seconds())
	if out, err := all[0].ask("service", "inspect", "product_hello", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Image}}"); err != nil || out != "acme/hello@sha256:"+digest {
		t.Errorf("the service runs %s, %v", out, err)
	}

	// What travelled counts no more.
	token, err := all[0].ask("swarm", "join-token", "-q", "manager")
	if err != nil || !strings.HasPrefix(token, "SWMTKN-") {
		t.Fatal(token, err)
	}
	for _, e := range all {
		if out := strings.Join(e.Said.Changes, "\n") + strings.Join(e.Said.Waits, "\n"); strings.Contains(out, "SWMTKN") {
			t.Errorf("a token is in what %s says: %s", e.Member.Self.Name, out)
		}
	}
	rotated := 0
	for _, e := range all {
		rotated += strings.Count(strings.Join(e.Said.Changes, "\n"), "rotated the swarm's tokens")
	}
	if rotated != 1 {
		t.Errorf("the tokens were rotated %d times", rotated)
	}

	// One machine is lost for good, the leader; the others go on.
	lost := 0
	for i, e := range all {
		if out, _ := e.ask("node", "inspect", "self", "--format", "{{.ManagerStatus.Leader}}"); out == "true" {
			lost = i
		}
	}
	name := all[lost].Member.Self.Name
	began = time.Now()
	all[lost].crash()
	s.leave(name)
	for i, e := range all {
		if i == lost {
			continue
		}
		if at, err := served(e); err != nil {
			t.Errorf("right after the loss: %s says %q, %v", e.Member.Self.Name, at, err)
		}
		wait(t, "the others have a leader", func() error { _, err := e.ask("node", "ls"); return err })
	}
	t.Logf("after the loss of the leader another leads within %.0f s", time.Since(began).Seconds())

	// Another machine of its name takes its place, by itself.
	anew := newEngine(t, members[name])
	appliance(t, anew)
	all[lost] = anew
	anew.power()
	anew.work(s)
	began = time.Now()
	wait(t, "the replacement is in", func() error { return settled(all...) })
	t.Logf("the replacement is in after %.0f s", time.Since(began).Seconds())
	if out, err := anew.ask("node", "ls", "--format", "{{.Hostname}}"); err != nil || len(strings.Fields(out)) != 3 {
		t.Errorf("the swarm has %q, %v", out, err)
	}
	if now, err := all[0].ask("swarm", "join-token", "-q", "manager"); err != nil || now == token {
		t.Errorf("the token is still the one that lets machines in: %v", err)
	}

	// With autolock a manager that starts anew gets the key from the others.
	p.Swarm.Autolock = true
	wait(t, "autolock is on", func() error {
		out, err := anew.ask("info", "--format", "{{.Swarm.Cluster.Spec.EncryptionConfig.AutoLockManagers}}")
		if out != "true" {
			return fmt.Errorf("%s, %v", out, err)
		}
		return nil
	})
	anew.rest()
	anew.halt()
	anew.power()
	wait(t, "it is locked", func() error {
		out, err := anew.ask("info", "--format", "{{.Swarm.LocalNodeState}}")
		if out != "locked" {
			return fmt.Errorf("%s, %v", out, err)
		}
		return nil
	})
	anew.work(s)
	wait(t, "it is unlocked", func() error { return settled(all...) })
}

// TestAnImageThatLostItsFilesIsBroughtAnew takes from a real Docker what a power cut may
// take: the files of an image that it goes on to know.
func TestAnImageThatLostItsFilesIsBroughtAnew(t *testing.T) {
	p, s := site(1), &street{}
	e := newEngine(t, roletest.Members(t, p)["d1"])
	appliance(t, e)
	e.power()
	e.work(s)
	wait(t, "it serves", func() error { return settled(e) })
	note := e.File(t, keptPath)

	// A node whose agent has noted nothing so far keeps the image that its containers run from.
	e.rest()
	if _, err := e.Remove(keptPath); err != nil {
		t.Fatal(err)
	}
	e.work(s)
	wait(t, "it is noted again", func() error {
		if got, err := e.Read(keptPath); err != nil || string(got) != note {
			return fmt.Errorf("the note says %q, %v", got, err)
		}
		return nil
	})
	if at, err := served(e); err != nil || at != "d1" {
		t.Errorf("meanwhile the service says %q, %v", at, err)
	}

	e.rest()
	e.halt()
	lost := 0
	for _, dir := range engineDirs {
		filepath.WalkDir(e.Path(dir), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() && strings.Contains(path, "/snapshots/") && os.Remove(path) == nil {
				lost++
			}
			return nil
		})
	}
	if lost == 0 {
		t.Fatal("no file of the image was found")
	}
	if _, err := e.Remove(keptPath); err != nil {
		t.Fatal(err)
	}
	e.power()
	e.work(s)
	wait(t, "it serves again", func() error { return settled(e) })
}
