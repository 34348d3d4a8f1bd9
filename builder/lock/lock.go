// Package lock is images.lock: every package that goes into the appliances, by
// hash, and the signed archive state that it was chosen from.
//
// In: a distribution's archive and the package lists of the profiles. Out: a
// text file with one fact a line, sorted, so that a diff of two locks reads as a
// change log. Builds read the file and never resolve. A lock that was edited, or
// that no longer answers what the profiles ask, is refused with the line and
// what to do.
//
// The format is specified in docs/formats.md ("images.lock"). In short, each
// line is a keyword, words, and a mark: the first four hexadecimal digits of the
// SHA-256 of what stands before it. The mark tells which line was edited; the
// last line's checksum covers the whole file.
package lock

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// FileName is the lock's usual name.
const FileName = "images.lock"

// Lock is the content of images.lock.
type Lock struct {
	Distribution string
	Arch         string
	Created      time.Time // the newest date of the suites; builds clamp times to it
	Suites       []Suite   // sorted by alias and name
	Sets         []Set     // sorted by name, base first
	Packages     []Package // sorted by name and version
	Images       []Image   // sorted by name

	checksum string
	salvaged bool // read from a file that is not whole
}

// Suite is the state of one suite that packages were chosen from.
type Suite struct {
	Alias, Name string
	Date        time.Time
	InRelease   string   // SHA-256 of the signed file
	Signers     []string // fingerprints
	Indices     []Index
}

// Index is one index of a suite.
type Index struct {
	Path   string
	Size   int64
	SHA256 string
}

// Want is what the lock must answer.
type Want struct {
	Distribution string // its name; "": any will do
	Sets         []Set
	Images       []Image
}

// Set is a list of wanted packages that become one tree: the base, the packages
// of a role on top of it, or the build's tools.
type Set struct {
	Name     string
	File     string   // the profile that asks, for messages
	Extends  string   // "" or the set that it is installed on top of
	Packages []string // wanted names; the lock keeps them sorted
}

// Package is one locked .deb.
type Package struct {
	Name, Version, Arch string
	Size                int64 // bytes of the .deb
	InstalledSize       int64 // bytes once unpacked, by the package's own estimate
	SHA256              string
	Path                string // below the archive's base URL
	Alias               string // archive
	Source              string // source package
	Sets                []string
	Line                int // in the file it was read from; 0: not read
}

// ID names the package with its version, as messages do.
func (p Package) ID() string { return p.Name + " " + p.Version }

// Date is what builds clamp times to.
func (l *Lock) Date() time.Time { return l.Created }

// Checksum covers everything in the lock. It is a hash in hexadecimal.
func (l *Lock) Checksum() string {
	if l.checksum == "" {
		l.Bytes() // sets it
	}
	return l.checksum
}

// Clone is a copy of its own.
func (l *Lock) Clone() *Lock {
	copied := *l
	copied.Suites, copied.Sets = slices.Clone(l.Suites), slices.Clone(l.Sets)
	copied.Packages, copied.Images = slices.Clone(l.Packages), slices.Clone(l.Images)
	return &copied
}

// Set returns the set of that name.
func (l *Lock) Set(name string) (Set, bool) {
	for _, s := range l.Sets {
		if s.Name == name {
			return s, true
		}
	}
	return Set{}, false
}

// Own returns the packages of a set, without those of the set that it extends,
// sorted by name.
func (l *Lock) Own(set string) []Package {
	var own []Package
	for _, p := range l.Packages {
		if slices.Contains(p.Sets, set) {
			own = append(own, p)
		}
	}
	return own
}

// Closure returns all packages of a set with those of the sets it extends,
// sorted by name.
func (l *Lock) Closure(set string) []Package {
	all := l.Own(set)
	if s, ok := l.Set(set); ok && s.Extends != "" {
		all = append(all, l.Closure(s.Extends)...)
		slices.SortFunc(all, func(a, b Package) int { return strings.Compare(a.Name, b.Name) })
	}
	return all
}

// Dates returns the newest date of each archive's suites.
func (l *Lock) Dates() map[string]time.Time {
	dates := map[string]time.Time{}
	for _, s := range l.Suites {
		if s.Date.After(dates[s.Alias]) {
			dates[s.Alias] = s.Date
		}
	}
	return dates
}

// normalize sorts everything as the file has it.
func (l *Lock) normalize() {
	slices.SortFunc(l.Suites, func(a, b Suite) int {
		return cmp.Or(strings.Compare(a.Alias, b.Alias), strings.Compare(a.Name, b.Name))
	})
	for i := range l.Suites {
		slices.Sort(l.Suites[i].Signers)
		slices.SortFunc(l.Suites[i].Indices, func(a, b Index) int { return strings.Compare(a.Path, b.Path) })
	}
	slices.SortFunc(l.Sets, compareSets)
	for i := range l.Sets {
		l.Sets[i].Packages = sortedSet(l.Sets[i].Packages)
	}
	slices.SortFunc(l.Images, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	for i := range l.Images {
		l.Images[i].Sets = sortedSet(l.Images[i].Sets)
	}
	slices.SortFunc(l.Packages, comparePackages)
	for i := range l.Packages {
		l.Packages[i].Sets = sortedSet(l.Packages[i].Sets)
	}
}

// compareSets puts sets that others extend first.
func compareSets(a, b Set) int {
	rank := func(s Set) int {
		if s.Extends == "" {
			return 0
		}
		return 1
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.Name, b.Name))
}

func comparePackages(a, b Package) int {
	return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(a.Version, b.Version), strings.Compare(a.SHA256, b.SHA256))
}

func sortedSet(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names)
}
