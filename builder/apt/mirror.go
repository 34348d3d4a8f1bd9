package apt

import (
	"net/url"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Mirrors returns the base URLs of each archive of the distribution. The first
// that says anything wins: options (the values of --mirror), env (the value of
// SLIPWAY_MIRROR, several separated by commas or spaces), sources (the
// machine's own). A value is one of
//
//	http://host/debian       the first archive; its siblings are found by their paths
//	file:///path/debian      the same, on disk
//	security=URL             the archive of that alias
func Mirrors(d *Distribution, options []string, env string, sources []Source) (fetch.Locations, error) {
	if len(options) == 0 {
		options = strings.FieldsFunc(env, func(r rune) bool { return r == ',' || r == ' ' })
	}
	locations := fetch.Locations{}
	if len(options) > 0 {
		for _, value := range options {
			if err := addMirror(d, locations, value); err != nil {
				return nil, err
			}
		}
	} else {
		for _, s := range sources {
			if a, ok := archiveOf(d, s); ok {
				appendNew(locations, a, strings.TrimSuffix(s.URI, "/"))
			}
		}
	}
	for _, a := range d.Archives {
		if len(locations[a.Alias]) == 0 {
			return nil, fault.New(fault.Usage, "no mirror is known for the archive %q of %s (suites %s)", a.Alias, d.Name, strings.Join(a.Suites, ", ")).
				WithMend("give one with --mirror %s=URL, or set SLIPWAY_MIRROR; this machine's apt sources name none", a.Alias)
		}
	}
	return locations, nil
}

// addMirror takes one value of --mirror.
func addMirror(d *Distribution, locations fetch.Locations, value string) error {
	alias, raw, named := strings.Cut(value, "=")
	if !named || !aliasPattern.MatchString(alias) {
		alias, raw, named = d.Archives[0].Alias, value, false
	}
	u, err := url.Parse(raw)
	if err != nil || !slices.Contains([]string{"http", "https", "file"}, u.Scheme) || u.Scheme == "file" && u.Host != "" {
		return fault.New(fault.Usage, "mirror %q is not a URL that slipway can read", value).
			WithMend("write http://host/path, https://host/path, file:///path, or one of these after ALIAS=")
	}
	if _, ok := d.Archive(alias); !ok {
		return fault.New(fault.Usage, "mirror %q: %s has no archive %q", value, d.Name, alias).
			WithMend("use one of the aliases in %s", d.File)
	}
	base := strings.TrimSuffix(raw, "/")
	if named {
		appendNew(locations, alias, base)
		return nil
	}
	// A mirror of Debian has its archives side by side: …/debian, …/debian-security.
	for _, a := range d.Archives {
		if a.Path != "" && strings.HasSuffix(base, "/"+a.Path) {
			root := strings.TrimSuffix(base, a.Path)
			appendNew(locations, a.Alias, base)
			for _, sibling := range d.Archives {
				if sibling.Path != "" {
					appendNew(locations, sibling.Alias, root+sibling.Path)
				}
			}
			return nil
		}
	}
	appendNew(locations, alias, base)
	return nil
}

func appendNew(locations fetch.Locations, alias, base string) {
	if !slices.Contains(locations[alias], base) {
		locations[alias] = append(locations[alias], base)
	}
}

// archiveOf finds which archive of the distribution a source of the machine is
// a mirror of: one that lists the same suite, or has the same last path part.
// The machine may run another release of the distribution than the one built.
func archiveOf(d *Distribution, s Source) (alias string, ok bool) {
	u, err := url.Parse(s.URI)
	if err != nil || !slices.Contains([]string{"http", "https", "file"}, u.Scheme) {
		return "", false
	}
	for _, a := range d.Archives {
		for _, suite := range s.Suites {
			if slices.Contains(a.Suites, suite) {
				return a.Alias, true
			}
		}
	}
	for _, a := range d.Archives {
		if a.Path != "" && strings.HasSuffix(strings.TrimSuffix(u.Path, "/"), "/"+a.Path) {
			return a.Alias, true
		}
	}
	return "", false
}
