package mirror

import (
	"errors"
	"fmt"
	"os"

	"github.com/slipwayhq/slipway/builder/mirror/repository"
	"github.com/slipwayhq/slipway/internal/fault"
)

// repositories makes the indices of every suite, and puts the evidence beside.
func (g *gatherer) repositories() error {
	for _, s := range g.order {
		r := repository.Suite{Name: s.name, Date: g.Date, Arch: g.Distribution.Arch, Components: g.Distribution.Components, Packages: s.paragraphs, Sources: s.sources, Keys: g.Keys}
		if s.release == nil {
			r.Codename = s.name // the lock has nothing of it
		} else {
			r.Origin, r.Label, r.Suite, r.Codename, r.Version = s.release.Origin, s.release.Label, s.release.Suite, s.release.Codename, s.release.Version
			r.NotAutomatic, r.ButAutomaticUpgrades = s.release.NotAutomatic, s.release.ButAutomaticUpgrades
		}
		files, err := repository.Files(r)
		if err != nil {
			return err
		}
		for _, f := range files {
			if err := g.plan.generate(Base(s.spec)+"/"+f.Path, f.Content); err != nil {
				return err
			}
		}
		for i, e := range s.evidence {
			if err := g.evidence(s, i, e); err != nil {
				return err
			}
		}
	}
	return nil
}

// evidence puts upstream's files into the tree: the first state of a suite at its own path, a second
// one below its date's name.
func (g *gatherer) evidence(s *suite, n int, e evidence) error {
	base := fmt.Sprintf("%s/%s/", UpstreamPath, s.spec.Alias)
	if n > 0 {
		base = fmt.Sprintf("%s/%s@%d/", UpstreamPath, s.spec.Alias, n+1)
	}
	path, ok := g.Cache.Blob(e.inRelease)
	if !ok {
		return fault.New(fault.Integrity, "%s left the cache while it was needed", e.inRelease)
	}
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	err = g.plan.add(base+"dists/"+s.name+"/InRelease", e.inRelease, st.Size())
	for _, i := range e.indices {
		err = errors.Join(err, g.plan.add(base+i.Path, i.SHA256, i.Size))
	}
	return err
}
