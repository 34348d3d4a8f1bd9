package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/mirror/repository"
	"github.com/slipwayhq/slipway/internal/fault"
)

// suite is a suite of the mirror in the making.
type suite struct {
	spec       apt.ArchiveSpec
	name       string
	release    *apt.Release // upstream's fields
	indices    []apt.Index  // those of the lock first
	evidence   []evidence
	paragraphs map[string][]repository.Paragraph // by component
	sources    map[string][]repository.Paragraph // by component; nil: no sources are carried
	listed     map[string]bool                   // component and hash, to have each once
}

// evidence is an upstream InRelease with the indices that it vouches for.
type evidence struct {
	inRelease string
	release   *apt.Release
	indices   []apt.Index
}

// Base is where an archive stands in the tree.
func Base(spec apt.ArchiveSpec) string {
	if spec.Path != "" {
		return spec.Path
	}
	return spec.Alias
}

// indices finds the signed indices that the lock was made from. What the cache has not and the
// mirrors no longer serve is replaced by what they serve now.
func (g *gatherer) indices(ctx context.Context) error {
	used := map[string]bool{KeysPath: true, UpstreamPath: true, OCIPath: true, SlipwayPath: true, "keys": true}
	for _, spec := range g.Distribution.Archives {
		if top, _, _ := strings.Cut(Base(spec), "/"); used[top] {
			return fault.New(fault.Input, "%s: archives: %s: the path %q is the mirror's own", g.Distribution.File, spec.Alias, Base(spec))
		}
		for _, name := range spec.Suites {
			s := &suite{spec: spec, name: name, paragraphs: map[string][]repository.Paragraph{}, listed: map[string]bool{}}
			g.order = append(g.order, s)
			g.suites[spec.Alias+" "+name] = s
		}
	}
	now := len(g.Extra) > 0 || len(g.All) > 0 || g.Bootstrap || g.Sources
	for _, ls := range g.Lock.Suites {
		s, ok := g.suites[ls.Alias+" "+ls.Name]
		if !ok {
			return fault.New(fault.Input, "the lock has the suite %s of archive %s, which %s has not", ls.Name, ls.Alias, g.Distribution.File).WithMend("run `slipway lock`")
		}
		have, err := g.lockedSuite(ctx, s, ls)
		if err != nil {
			return err
		}
		now = now || !have
	}
	if now {
		return g.today(ctx)
	}
	return nil
}

// lockedSuite takes a suite in the state that the lock was made from, if it is still to be had.
func (g *gatherer) lockedSuite(ctx context.Context, s *suite, ls lock.Suite) (bool, error) {
	data, err := g.inRelease(ctx, ls)
	if err != nil || data == nil {
		return false, err
	}
	e := evidence{inRelease: ls.InRelease}
	if e.release, err = g.verified(s, data, ls.Date); err != nil {
		return false, err
	}
	for _, i := range ls.Indices {
		item := fetch.Item{Name: ls.Name + " " + i.Path, Path: i.Path, Alias: ls.Alias, Size: i.Size, SHA256: i.SHA256}
		if at := strings.LastIndex(i.Path, "/"); at > 0 {
			item.First = i.Path[:at] + "/by-hash/SHA256/" + i.SHA256
		}
		if had, err := g.try(ctx, item); err != nil || !had {
			return false, err
		}
		e.indices = append(e.indices, apt.Index(i))
	}
	s.evidence = append(s.evidence, e)
	s.indices = append(s.indices, e.indices...)
	return true, nil
}

// try gets what may no longer be to be had.
func (g *gatherer) try(ctx context.Context, item fetch.Item) (had bool, err error) {
	if err := fetch.Fetch(ctx, g.Cache, g.Locations, []fetch.Item{item}, g.Fetch); err != nil {
		g.Log.Debugf("%s: %v", item.Name, err)
		return false, ctx.Err()
	}
	return true, nil
}

// inRelease is the signed file of a suite that the lock names; nil if nobody has it any more.
func (g *gatherer) inRelease(ctx context.Context, ls lock.Suite) ([]byte, error) {
	if path, ok := g.Cache.Blob(ls.InRelease); ok {
		return os.ReadFile(path)
	}
	if g.Fetch.Offline && !slices.ContainsFunc(g.Locations[ls.Alias], func(b string) bool { return strings.HasPrefix(b, "file:") }) {
		return nil, nil
	}
	bases := slices.Concat(g.Locations[ls.Alias], g.Fetch.Snapshot[ls.Alias])
	opts := g.Fetch
	opts.Tries = 1
	for _, base := range bases {
		data, _, err := fetch.Get(ctx, []string{base}, "dists/"+ls.Name+"/InRelease", 16<<20, opts)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		sum := sha256.Sum256(data)
		if err == nil && hex.EncodeToString(sum[:]) == ls.InRelease {
			return data, g.Cache.PutBlob(ls.InRelease, int64(len(data)), bytes.NewReader(data))
		}
	}
	return nil, nil
}

// verified reads the fields of an upstream Release, as of the time it was current.
func (g *gatherer) verified(s *suite, data []byte, when time.Time) (*apt.Release, error) {
	text, _, err := apt.VerifyInRelease(data, g.Distribution.Keyring, s.spec.SignedBy, when.Add(time.Hour))
	if err != nil {
		return nil, fmt.Errorf("upstream's InRelease of %s: %w", s.name, err)
	}
	s.release, err = apt.ParseRelease(text)
	return s.release, err
}

// today loads the archives as the mirrors serve them now, or as they did when the bundle was begun.
func (g *gatherer) today(ctx context.Context) error {
	archive, err := apt.Load(ctx, g.Cache, g.Distribution, g.Locations, apt.LoadOptions{Now: g.Now, AllowExpired: true, Fetch: g.Fetch, States: g.States})
	if err != nil {
		return fmt.Errorf("beside the lock, the bundle needs the archives' indices: %w", err)
	}
	for _, as := range archive.Suites {
		g.plan.States = append(g.plan.States, apt.State{Alias: as.Alias, Suite: as.Name, InRelease: as.InReleaseSHA256})
		s := g.suites[as.Alias+" "+as.Name]
		if slices.ContainsFunc(s.evidence, func(e evidence) bool { return e.inRelease == as.InReleaseSHA256 }) {
			continue
		}
		if len(s.evidence) == 0 {
			g.Log.Warnf("%s: the signed state that the lock was made from (%s) is no longer to be had; today's goes along", as.Name, as.Alias)
		}
		path, ok := g.Cache.Blob(as.InReleaseSHA256)
		if !ok {
			return fault.New(fault.Integrity, "%s left the cache while it was needed", as.InReleaseSHA256)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		release, err := g.verified(s, data, as.Date)
		if err != nil {
			return err
		}
		s.evidence = append(s.evidence, evidence{as.InReleaseSHA256, release, as.Indices})
		for _, i := range as.Indices {
			if !slices.Contains(s.indices, i) {
				s.indices = append(s.indices, i)
			}
		}
	}
	// Of packages that the lock does not have, today's are the ones to be had.
	return g.choose(archive)
}
