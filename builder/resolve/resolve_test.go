package resolve_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/resolve"
	"github.com/slipwayhq/slipway/internal/fault"
)

// archive reads packages that a test writes down as control fields.
func archive(t *testing.T, text string) []*apt.Package {
	t.Helper()
	var full []string
	for p := range strings.SplitSeq(strings.TrimSpace(text), "\n\n") {
		for _, field := range []string{"Version: 1", "Architecture: amd64", "Filename: pool/x.deb", "Size: 1", "SHA256: " + strings.Repeat("0", 64)} {
			name, _, _ := strings.Cut(field, ":")
			if !strings.Contains("\n"+p, "\n"+name+":") {
				p += "\n" + field
			}
		}
		full = append(full, p)
	}
	packages, err := apt.ReadPackages(strings.NewReader(strings.Join(full, "\n\n")), "main", "test", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	return packages
}

func names(packages []*apt.Package) string {
	var all []string
	for _, p := range packages {
		all = append(all, p.Name)
	}
	return strings.Join(all, " ")
}

func TestChoicesAreMadeAsAptMakesThem(t *testing.T) {
	for name, test := range map[string]struct{ packages, roots, want string }{
		"dependencies of dependencies": {"Package: a\nDepends: b\n\nPackage: b\nPre-Depends: c\n\nPackage: c\n\nPackage: d", "a", "a b c"},
		"a circle":                     {"Package: a\nDepends: b\n\nPackage: b\nDepends: a", "a", "a b"},
		"the first alternative":        {"Package: a\nDepends: b | c\n\nPackage: b\n\nPackage: c", "a", "a b"},
		"an alternative that is there": {"Package: a\nDepends: b | c\n\nPackage: b\n\nPackage: c", "a c", "a c"},
		"an alternative that can be":   {"Package: a\nDepends: b | c\n\nPackage: b\nDepends: gone\n\nPackage: c", "a", "a c"},
		"the real one before others":   {"Package: a\nDepends: v\n\nPackage: p\nProvides: v\n\nPackage: v", "a", "a v"},
		"a provider":                   {"Package: a\nDepends: v\n\nPackage: p\nProvides: v", "a", "a p"},
		"the more important provider":  {"Package: a\nDepends: v\n\nPackage: p\nProvides: v\nPriority: optional\n\nPackage: q\nProvides: v\nPriority: standard", "a", "a q"},
		"a provision with a version":   {"Package: a\nDepends: v (>= 2)\n\nPackage: p\nProvides: v\n\nPackage: q\nProvides: v (= 2)", "a", "a q"},
		"the highest version":          {"Package: a\nDepends: b (>= 2)\n\nPackage: b\nVersion: 1\n\nPackage: b\nVersion: 2", "a", "a b"},
		"a conflict avoided":           {"Package: a\nDepends: b | c\nConflicts: b\n\nPackage: b\n\nPackage: c", "a", "a c"},
		"no conflict with itself":      {"Package: a\nProvides: v\nConflicts: v", "a", "a"},
		"any architecture":             {"Package: a\nDepends: b:any\n\nPackage: b\nMulti-Arch: allowed", "a", "a b"},
		"nothing for Recommends":       {"Package: a\nRecommends: b\n\nPackage: b", "a", "a"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := resolve.NewUniverse(archive(t, test.packages), nil).Closure(resolve.Request{Roots: strings.Fields(test.roots)})
			if err != nil {
				t.Fatal(err)
			}
			if names(got) != test.want {
				t.Errorf("got %s, want %s", names(got), test.want)
			}
		})
	}
}

func TestWhatCannotBeSaysWhy(t *testing.T) {
	for name, test := range map[string]struct{ packages, roots, says, mend string }{
		"no such package":    {"Package: postgresql-17\n\nPackage: postgresql-15", "postgresql-16", "no package postgresql-16", "postgresql-15, postgresql-17"},
		"a virtual one":      {"Package: exim\nProvides: mta\n\nPackage: postfix\nProvides: mta", "mta", "provided by exim, postfix", "name one"},
		"missing dependency": {"Package: a\nDepends: b\n\nPackage: b\nDepends: gone (>= 2)", "a", "the archive has no gone", "roles.yaml"},
		"an older version":   {"Package: a\nDepends: b (>= 2)\n\nPackage: b", "a", "the archive has b 1", "roles.yaml"},
		"a conflict":         {"Package: a\nDepends: c\n\nPackage: b\n\nPackage: c\nConflicts: b", "a b", "conflicts with b", "roles.yaml"},
		"the chain":          {"Package: a\nDepends: m\n\nPackage: m\nDepends: c\n\nPackage: b\n\nPackage: c\nBreaks: b (<< 2)", "a b", "a → m", "roles.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := resolve.NewUniverse(archive(t, test.packages), nil).Closure(resolve.Request{Roots: strings.Fields(test.roots), File: "roles.yaml"})
			if fault.Of(err) != fault.Input || err == nil || !strings.Contains(err.Error(), test.says) || !strings.Contains(err.Error(), "roles.yaml") {
				t.Errorf("got %v, want %q", err, test.says)
			}
			if !strings.Contains(fault.Mend(err), test.mend) {
				t.Errorf("mend: %q, want %q", fault.Mend(err), test.mend)
			}
		})
	}
}

func TestInstalledPackagesCountAndStay(t *testing.T) {
	all := archive(t, "Package: a\nDepends: b | c, d\n\nPackage: b\n\nPackage: c\n\nPackage: d\nDepends: c\n\nPackage: e\nConflicts: c")
	u := resolve.NewUniverse(all, nil)
	installed := []*apt.Package{u.Candidate("c")}
	got, err := u.Closure(resolve.Request{Roots: []string{"a"}, Installed: installed})
	if err != nil || names(got) != "a d" {
		t.Errorf("got %s, %v", names(got), err)
	}
	_, err = u.Closure(resolve.Request{Roots: []string{"e"}, Installed: installed})
	if err == nil || !strings.Contains(err.Error(), "installed before") {
		t.Errorf("got %v", err)
	}
}

func TestAPinHoldsUntilItIsInTheWayAndThenIsNamed(t *testing.T) {
	all := archive(t, "Package: a\nVersion: 1\n\nPackage: a\nVersion: 2\n\nPackage: b\nDepends: a (>= 2)")
	u := resolve.NewUniverse(all, map[string]string{"a": "1"})
	if got := u.Candidate("a").Version; got != "1" {
		t.Errorf("candidate %s, want the pinned 1", got)
	}
	_, err := u.Closure(resolve.Request{Roots: []string{"b"}})
	var pin *resolve.PinError
	if !errors.As(err, &pin) || strings.Join(pin.Names, " ") != "a" {
		t.Errorf("got %v", err)
	}
}

func TestEssentialPackagesAreKnown(t *testing.T) {
	u := resolve.NewUniverse(archive(t, "Package: b\nEssential: yes\n\nPackage: a\nEssential: yes\n\nPackage: c"), nil)
	if got := strings.Join(u.Essential(), " "); got != "a b" {
		t.Errorf("got %s", got)
	}
}
