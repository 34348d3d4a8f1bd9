package versions

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/status"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Try puts a version on trial: the next start is its own. manifest is the hash of the manifest that
// the administrator means. It reports whether the node has to start anew for it.
func (s *Store) Try(ctx context.Context, version, manifest string) (restart bool, err error) {
	if !s.mu.TryLock() {
		return false, errBusy
	}
	defer s.mu.Unlock()
	v, err := s.whole(version)
	if err != nil {
		return false, err
	}
	if v.Manifest != manifest {
		return false, fault.New(fault.Integrity, "the node's version %s has the manifest %.8s, not %.8s", version, v.Manifest, manifest)
	}
	env, err := ReadEnv(s.node)
	if err != nil || v.Running && env.Good == version && env.Try == "" {
		return false, err
	}
	if v.Running && env.OnTrial(version) {
		return false, nil // its trial goes on
	}
	return true, s.start(ctx, env, version)
}

// start writes that a version is to be tried. What an earlier trial of it left to tell goes.
func (s *Store) start(ctx context.Context, env grubenv.Env, version string) error {
	for _, file := range []string{lastWords, bootfacts.FailurePath} {
		if _, err := s.node.Remove(file); err != nil {
			return err
		}
	}
	return WriteEnv(ctx, s.node, env.Start(version))
}

// whole finds a version that can be started.
func (s *Store) whole(version string) (status.Version, error) {
	list, err := s.List()
	if err != nil {
		return status.Version{}, err
	}
	i := slices.IndexFunc(list, func(v status.Version) bool { return v.Version == version })
	if i < 0 || list[i].Incomplete {
		return status.Version{}, fault.New(fault.Failed, "the node has no whole version %q", version).WithMend("see slipway versions")
	}
	return list[i], nil
}

// Back is a way back.
type Back struct {
	From    string `json:"from"`
	To      string `json:"to"`
	Restart bool   `json:"restart"` // the node has to start anew for it
}

// Rollback goes back: out of a trial to the good version, else to the version that was
// good before, which is tried in its turn; asked again on the way there, it goes on. A
// trial that has failed is only ended, for the node has gone back by itself.
func (s *Store) Rollback(ctx context.Context) (*Back, error) {
	return s.back(ctx, "")
}

// Abandon goes back out of the trial of a version, if that is still on.
func (s *Store) Abandon(ctx context.Context, version string) (*Back, error) {
	return s.back(ctx, version)
}

func (s *Store) back(ctx context.Context, abandon string) (*Back, error) {
	if !s.mu.TryLock() {
		return nil, errBusy
	}
	defer s.mu.Unlock()
	env, err := ReadEnv(s.node)
	if err != nil {
		return nil, err
	}
	running := s.node.Boot.Version
	switch {
	case abandon != "" && env.Try != abandon:
		return &Back{From: abandon, To: running}, nil
	case abandon == "" && env.Try != "" && env.Try == env.Previous && !env.Failed():
		return &Back{From: env.Good, To: env.Try, Restart: env.Try != running}, nil
	case env.Try == running && running != env.Good:
		if _, err := s.whole(env.Good); err != nil {
			return nil, err
		}
		return &Back{From: running, To: env.Good, Restart: true}, WriteEnv(ctx, s.node, env.End())
	case env.Try != "":
		return &Back{From: env.Try, To: running}, WriteEnv(ctx, s.node, env.End())
	case env.Previous == "" || env.Previous == running:
		return nil, fault.New(fault.Failed, "the node has had no other good version than %s", running).WithMend("slipway upgrade takes it to another one")
	}
	if _, err := s.whole(env.Previous); err != nil {
		return nil, err
	}
	return &Back{From: running, To: env.Previous, Restart: true}, s.start(ctx, env, env.Previous)
}

// lastWords is what the agent of a version on trial said last.
const lastWords = "/var/lib/slipway/trial.json"

// words are the record at lastWords.
type words struct {
	Version string       `json:"version"`
	At      time.Time    `json:"at"`
	State   status.State `json:"state"`
	Why     string       `json:"why"`
}

// Recorder writes down, while a version is on trial, what keeps it from being ready, so that the
// version that the node falls back to can tell.
type Recorder struct {
	Node *node.Node
	last words
}

// Show implements status.Watcher.
func (r *Recorder) Show(rep status.Report) {
	if !rep.Trial {
		return
	}
	now := words{Version: rep.Version, State: rep.State, Why: holdsUp(rep)}
	if now == r.last {
		return
	}
	r.last, now.At = now, time.Now().UTC()
	// What cannot be kept is no reason to stop.
	if text, err := json.Marshal(now); err == nil {
		_ = atomicfile.WriteBytes(r.Node.Path(lastWords), 0o600, text)
	}
}

// Line implements status.Watcher.
func (r *Recorder) Line(status.Level, string) {}

// holdsUp is what keeps a node from being ready.
func holdsUp(rep status.Report) string {
	var out []string
	for _, s := range rep.Steps {
		switch {
		case s.State == status.Broken:
			out = append(out, s.Name+": "+s.Error)
		case s.State == status.Running && s.WaitingFor != "":
			out = append(out, s.Name+": "+s.WaitingFor)
		case s.State == status.Running:
			out = append(out, s.Name)
		}
	}
	text := strings.Join(out, "; ")
	return strings.ToValidUTF8(text[:min(len(text), 2000)], "")
}

// Failure tells why a version did not come up when it was tried, as far as anybody got
// round to writing it down.
func Failure(n *node.Node, version string) string {
	var init bootfacts.Failure
	if text, err := os.ReadFile(n.Path(bootfacts.FailurePath)); err == nil && json.Unmarshal(text, &init) == nil && init.Version == version {
		return "it could not be started: " + oneLine(init.Why)
	}
	var last words
	if text, err := os.ReadFile(n.Path(lastWords)); err == nil && json.Unmarshal(text, &last) == nil && last.Version == version {
		if last.Why == "" {
			last.Why = "nothing in particular"
		}
		return fmt.Sprintf("its agent ran, was %s, and was last seen at %s with: %s (sudo journalctl --list-boots has its log)", last.State, last.At.Format("15:04:05 UTC"), oneLine(last.Why))
	}
	return "it did not get as far as its agent; the console showed why"
}

func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
