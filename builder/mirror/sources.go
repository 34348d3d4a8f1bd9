package mirror

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/builder/mirror/repository"
)

// source names a source package of an archive.
type source struct{ alias, name, version string }

func sourceOf(alias string, get func(string) string) source {
	name, version := apt.SourceOf(get)
	return source{alias, name, version}
}

// sources collects the source packages that the packages were built from, if they are asked for. The lock does not
// name them: they are found in the indices beside those that the packages were found in.
func (g *gatherer) sources(ctx context.Context) error {
	if !g.Sources {
		return nil
	}
	missing := maps.Clone(g.built)
	for _, s := range g.order {
		s.sources = map[string][]repository.Paragraph{}
		for i := range s.evidence {
			if err := g.sourcesOf(ctx, s, &s.evidence[i], missing); err != nil {
				return err
			}
		}
	}
	g.plan.Sources = len(g.built) - len(missing)
	g.plan.NoSource = slices.Sorted(maps.Values(missing))
	return nil
}

// sourcesOf takes what is missing out of one state of a suite, whose indices of sources go along as evidence.
func (g *gatherer) sourcesOf(ctx context.Context, s *suite, e *evidence, missing map[source]string) error {
	for _, component := range g.Distribution.Components {
		item, index, err := apt.SourceIndex(e.release, s.spec.Alias, s.name, component)
		if err != nil {
			return err
		}
		if had, err := g.try(ctx, item); err != nil {
			return err
		} else if !had {
			continue // the archive has moved on; today's state comes after this one
		}
		e.indices = append(e.indices, index)
		err = apt.EachInIndex(g.Cache, index, func(p *apt.Paragraph) error {
			src := source{s.spec.Alias, p.Get("Package"), p.Get("Version")}
			if _, wanted := missing[src]; !wanted {
				return nil
			}
			files, err := apt.SourceFiles(p)
			if err != nil {
				return fmt.Errorf("source package %s: %w", src.name, err)
			}
			for path, sum := range files {
				if err := g.plan.add(Base(s.spec)+"/"+path, sum.SHA256, sum.Size); err != nil {
					return err
				}
				g.plan.Items = append(g.plan.Items, fetch.Item{Name: path, Path: path, Alias: s.spec.Alias, Size: sum.Size, SHA256: sum.SHA256})
			}
			delete(missing, src)
			s.sources[component] = append(s.sources[component], repository.Paragraph{Name: src.name, Version: src.version, Text: p.AppendText(nil)})
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s of %s: %w", index.Path, s.spec.Alias, err)
		}
	}
	return nil
}
