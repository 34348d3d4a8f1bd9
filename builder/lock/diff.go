package lock

import (
	"fmt"
	"slices"
	"strings"

	"pault.ag/go/debian/version"
)

// Summary is how one lock differs from another. As JSON it has the same fields.
type Summary struct {
	Added      []Change `json:"added"`
	Removed    []Change `json:"removed"`
	Upgraded   []Change `json:"upgraded"`
	Downgraded []Change `json:"downgraded"`
	Moved      []Change `json:"moved"` // same package, other sets
	// Images are OCI images whose digest, name or roles differ; From and To are digests.
	Images    []Change `json:"images"`
	Download  int64    `json:"download_delta"`
	Installed int64    `json:"installed_delta"`
}

// Change is one package that differs. From or To is empty if only one lock has it.
type Change struct {
	Name     string   `json:"name"`
	From     string   `json:"from,omitempty"` // version
	To       string   `json:"to,omitempty"`
	Sets     []string `json:"sets"`
	FromSets []string `json:"from_sets,omitempty"` // if they changed
	Delta    int64    `json:"installed_delta"`
}

// Diff compares two locks. A nil lock is an empty one.
func Diff(a, b *Lock) Summary {
	s := Summary{}
	old, new := byName(a), byName(b)
	for name, p := range new {
		q, ok := old[name]
		change := Change{Name: name, From: q.Version, To: p.Version, Sets: p.Sets, Delta: p.InstalledSize - q.InstalledSize}
		if ok && !slices.Equal(p.Sets, q.Sets) {
			change.FromSets = q.Sets
		}
		switch order := compareVersions(p.Version, q.Version); {
		case !ok:
			s.Added = append(s.Added, change)
		case order > 0 || order == 0 && p.SHA256 != q.SHA256:
			s.Upgraded = append(s.Upgraded, change)
		case order < 0:
			s.Downgraded = append(s.Downgraded, change)
		case change.FromSets != nil:
			s.Moved = append(s.Moved, change)
		}
		s.Download += p.Size - q.Size
		s.Installed += change.Delta
	}
	for name, q := range old {
		if _, ok := new[name]; !ok {
			s.Removed = append(s.Removed, Change{Name: name, From: q.Version, Sets: q.Sets, Delta: -q.InstalledSize})
			s.Download -= q.Size
			s.Installed -= q.InstalledSize
		}
	}
	s.Images = diffImages(a, b)
	for _, list := range [][]Change{s.Added, s.Removed, s.Upgraded, s.Downgraded, s.Moved} {
		slices.SortFunc(list, func(a, b Change) int { return strings.Compare(a.Name, b.Name) })
	}
	return s
}

// diffImages lists the images that two locks do not have alike.
func diffImages(a, b *Lock) (out []Change) {
	old := map[string]Image{}
	if a != nil {
		for _, im := range a.Images {
			old[im.Name] = im
		}
	}
	if b != nil {
		for _, im := range b.Images {
			was, ok := old[im.Name]
			delete(old, im.Name)
			if !ok || was.Digest != im.Digest || was.Source != im.Source || !slices.Equal(was.Sets, im.Sets) {
				out = append(out, Change{Name: im.Name, From: was.Digest, To: im.Digest, Sets: im.Sets})
			}
		}
	}
	for _, was := range old {
		out = append(out, Change{Name: was.Name, From: was.Digest, Sets: was.Sets})
	}
	slices.SortFunc(out, func(a, b Change) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// short is enough of a digest to tell two apart.
func short(digest string) string {
	if digest == "" {
		return "none"
	}
	return digest[:min(len(digest), 12)]
}

func byName(l *Lock) map[string]Package {
	m := map[string]Package{}
	if l != nil {
		for _, p := range l.Packages {
			m[p.Name] = p
		}
	}
	return m
}

// compareVersions orders versions as dpkg does.
func compareVersions(a, b string) int {
	va, errA := version.Parse(a)
	vb, errB := version.Parse(b)
	if errA != nil || errB != nil {
		return strings.Compare(a, b)
	}
	return version.Compare(va, vb)
}

// Empty says that the locks have the same packages in the same sets.
func (s Summary) Empty() bool {
	return len(s.Added)+len(s.Removed)+len(s.Upgraded)+len(s.Downgraded)+len(s.Moved)+len(s.Images) == 0
}

// String words the summary for people: one package a line, then the totals. It
// is empty if nothing differs.
func (s Summary) String() string {
	if s.Empty() {
		return ""
	}
	var b strings.Builder
	for _, c := range s.Added {
		fmt.Fprintf(&b, "added     %s %s (%s)\n", c.Name, c.To, strings.Join(c.Sets, ", "))
	}
	for _, c := range s.Removed {
		fmt.Fprintf(&b, "removed   %s %s (%s)\n", c.Name, c.From, strings.Join(c.Sets, ", "))
	}
	for _, c := range s.Upgraded {
		fmt.Fprintf(&b, "upgraded  %s %s → %s (%s)\n", c.Name, c.From, c.To, strings.Join(c.Sets, ", "))
	}
	for _, c := range s.Downgraded {
		fmt.Fprintf(&b, "downgraded %s %s → %s (%s)\n", c.Name, c.From, c.To, strings.Join(c.Sets, ", "))
	}
	for _, c := range s.Moved {
		fmt.Fprintf(&b, "moved     %s (%s → %s)\n", c.Name, strings.Join(c.FromSets, ", "), strings.Join(c.Sets, ", "))
	}
	for _, c := range s.Images {
		fmt.Fprintf(&b, "image     %s %s → %s (%s)\n", c.Name, short(c.From), short(c.To), strings.Join(c.Sets, ", "))
	}
	fmt.Fprintf(&b, "%d added, %d removed, %d upgraded, %d downgraded; download %s, installed %s\n",
		len(s.Added), len(s.Removed), len(s.Upgraded), len(s.Downgraded), signed(s.Download), signed(s.Installed))
	return b.String()
}

// signed writes a difference of sizes in MiB.
func signed(n int64) string { return fmt.Sprintf("%+.1f MiB", float64(n)/(1<<20)) }
