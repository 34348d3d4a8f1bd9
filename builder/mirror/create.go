package mirror

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/mirror/site"
	"github.com/slipwayhq/slipway/builder/mirror/volume"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// Result tells what a bundle is.
type Result struct {
	Site     string   `json:"site"`
	Edition  int64    `json:"edition"`
	Base     int64    `json:"base"`   // edition that it builds on; 0: full
	Bundle   string   `json:"bundle"` // SHA-256 of the catalog; "" in a dry run
	Date     string   `json:"date"`
	Files    int      `json:"files"` // in the mirror after it
	Size     int64    `json:"size"`  // bytes of those
	Packages int      `json:"packages"`
	Sources  int      `json:"sources"`   // source packages
	Unproven []string `json:"unproven"`  // packages that upstream's signature does not cover
	NoSource []string `json:"no_source"` // packages whose source the archive no longer has, where sources were asked for
	Carried  int64    `json:"carried"`   // bytes of files that it brings
	Download int64    `json:"download"`  // bytes of packages that are not in the cache yet
	Volumes  []Volume `json:"volumes"`
}

// Volume is one volume of a Result.
type Volume struct {
	Number int    `json:"number"`
	Path   string `json:"path"`
	Files  int    `json:"files"`
	Size   int64  `json:"size"` // bytes of files
}

// Describe is the Result of a plan whose volumes are to stand in out.
func (p *Plan) Describe(out string) Result {
	c := p.Catalog
	r := Result{Site: c.Site, Edition: c.Edition, Base: c.Base.Edition, Date: c.Date.Format(time.RFC3339), Files: len(c.Files),
		Packages: p.Packages, Sources: p.Sources, Unproven: list(p.Unproven), NoSource: list(p.NoSource), Carried: p.Size(), Volumes: []Volume{}}
	if len(c.Parts) > 0 || len(p.Carried) == 0 {
		r.Bundle = c.ID()
	}
	for _, size := range c.Blobs() {
		r.Size += size
	}
	for _, i := range fetch.Missing(p.cache, p.Items) {
		r.Download += i.Size
	}
	for i, cuts := range p.Volumes {
		v := Volume{Number: i + 1, Path: filepath.Join(out, volume.DirName(i+1)), Files: len(cuts)}
		for _, c := range cuts {
			v.Size += c.Size
		}
		r.Volumes = append(r.Volumes, v)
	}
	return r
}

// list is a list that JSON has as one even if it is empty.
func list(l []string) []string { return append([]string{}, l...) }

// workName is the file in the output directory that a bundle in the making is known by.
const workName = ".slipway-bundle"

// work is a bundle in the making: what must stay the same when it is gone on with.
type work struct {
	Format  int         `json:"format"`
	Token   string      `json:"token"`
	Site    string      `json:"site"`
	Edition int64       `json:"edition"`
	Date    time.Time   `json:"date"`
	States  []apt.State `json:"states,omitempty"` // of the archives, that mirrors may no longer serve
	Bundle  string      `json:"bundle,omitempty"` // once its catalog is known
}

// Begun is what a bundle has from its beginning on, however often its making is cut off.
type Begun struct {
	Edition int64
	Date    time.Time
	States  []apt.State // that its packages were chosen from; nil: none were, or none are chosen yet
}

// Create makes a bundle in the directory out, or goes on with the one that was cut off there. plan works
// out the bundle. after is an edition that the other side is known to have. now dates a new bundle.
func Create(ctx context.Context, s *site.Site, out string, after int64, now time.Time, m Means, plan func(Begun) (*Plan, error)) (*Result, error) {
	if err := volume.MakeDir(out); err != nil {
		return nil, err
	}
	w, err := begin(s, out, after, now)
	if err != nil {
		return nil, err
	}
	p, err := plan(Begun{w.Edition, w.Date, w.States})
	if err != nil {
		if w.States != nil && fault.Of(err) == fault.Missing {
			err = fault.New(fault.Missing, "%s holds an unfinished bundle (edition %d) of archives that have moved on since: %w", out, w.Edition, err).
				WithMend("go on with the cache that it was begun with, or name an empty directory")
		}
		return nil, err
	}
	if w.States == nil {
		w.States = p.States
	}
	// Until here nothing is left behind, in out or of a number. The number is taken before anything carries it.
	if err := w.save(out); err != nil {
		return nil, err
	}
	if err := s.Reserve(w.Edition, w.Date, w.Token); err != nil {
		return nil, err
	}
	keys, err := s.Signers(w.Date)
	if err != nil {
		return nil, err
	}
	if err := fetch.Fetch(ctx, m.Cache, m.Locations, p.Items, m.Fetch); err != nil {
		return nil, err
	}
	task := m.Progress.Start("lay out", p.Size(), progress.Bytes)
	p.Catalog.Parts, err = volume.Cut(ctx, p.Volumes, p.Carried, p.source, task.Add)
	task.Done(err)
	if err != nil {
		return nil, err
	}
	id := p.Catalog.ID()
	if w.Bundle != "" && w.Bundle != id {
		return nil, fault.New(fault.Input, "%s holds an unfinished bundle of other content (edition %d)", out, w.Edition).
			WithMend("go on with the lock and options that it was begun with, or name an empty directory")
	}
	w.Bundle = id
	if err := w.save(out); err != nil {
		return nil, err
	}
	for n := 1; n <= p.Catalog.Volumes; n++ {
		r := p.Describe(out).Volumes[n-1]
		task := m.Progress.Start(fmt.Sprintf("volume %d of %d", n, p.Catalog.Volumes), r.Size, progress.Bytes)
		err := volume.Write(ctx, r.Path, p.Catalog, n, keys, p.source, task.Add)
		task.Done(err)
		if err != nil {
			return nil, fmt.Errorf("volume %d of %d: %w", n, p.Catalog.Volumes, err)
		}
	}
	r := p.Describe(out)
	return &r, nil
}

// begin finds the bundle in the making in out, or begins one.
func begin(s *site.Site, out string, after int64, now time.Time) (*work, error) {
	left, err := filepath.Glob(filepath.Join(out, ".tmp-"+workName+"-*")) // of a begin that was cut off
	if err != nil {
		return nil, err
	}
	for _, p := range left {
		if err := os.Remove(p); err != nil {
			return nil, err
		}
	}
	data, err := os.ReadFile(filepath.Join(out, workName))
	if errors.Is(err, fs.ErrNotExist) {
		if entries, err := os.ReadDir(out); err != nil || len(entries) > 0 {
			return nil, fault.New(fault.Usage, "%s is not an empty directory", out).WithMend("name an empty directory for the volumes")
		}
		var token [16]byte
		rand.Read(token[:])
		w := &work{Format: 1, Token: hex.EncodeToString(token[:]), Site: s.Name()}
		w.Edition, w.Date, err = s.Next(now, after)
		return w, err
	}
	if err != nil {
		return nil, err
	}
	w := &work{}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(w); err != nil || w.Format != 1 || w.Edition < 1 || w.Token == "" {
		return nil, fault.New(fault.Input, "%s is not what slipway wrote", filepath.Join(out, workName)).WithMend("name an empty directory for the volumes")
	}
	if w.Site != s.Name() {
		return nil, fault.New(fault.Usage, "%s holds a bundle of the site %s, not of %s", out, w.Site, s.Name()).WithMend("name an empty directory for the volumes")
	}
	return w, nil
}

func (w *work) save(out string) error {
	data, err := json.Marshal(w)
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(out, workName), 0o644, append(data, '\n'))
}
