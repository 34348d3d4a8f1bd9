package store

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/mirror/catalog"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/volume"
	"github.com/slipwayhq/slipway/internal/progress"
)

// VerifyOptions are the settings of Verify.
type VerifyOptions struct {
	// Upstream are the keys of the archives' owners. They do not come from the mirror: what
	// vouches for it must come another way.
	Upstream openpgp.EntityList
	// Repair takes damaged files away, so that importing their volume again brings them anew.
	Repair   bool
	Progress progress.Reporter
}

// Report is what Verify found.
type Report struct {
	Site     string `json:"site"`
	Edition  int64  `json:"edition"`
	Files    int    `json:"files"`
	Size     int64  `json:"size"`     // bytes that were hashed
	Packages int    `json:"packages"` // listed under the site's signature
	Sources  int    `json:"sources"`  // source packages, likewise
	Proven   int    `json:"proven"`   // of both, covered by a signature of upstream
	// Unproven are the others: the path of each, for a source package that of the first of its files which is not covered. Nothing
	// but the site's key vouches for them. A package of the owner's that its archive no longer lists is among them too, so they are no flaw.
	Unproven []string `json:"unproven"`
	Images   int      `json:"images"` // OCI manifests
	Wrong    []Flaw   `json:"wrong"`
	More     int      `json:"more"` // flaws beyond the first maxFlaws of a file, which are not in Wrong
}

// maxFlaws is how many flaws of one file are listed: an index may have millions of paragraphs, and its signer
// need not mean well.
const maxFlaws = 20

// Flaw is one thing that is not as it must be.
type Flaw struct {
	What  string  `json:"what"`
	Path  string  `json:"path,omitempty"`  // in the tree
	Bring []Bring `json:"bring,omitempty"` // volumes, any of which mends it
}

// Bring names volumes of a bundle that are to be brought again.
type Bring struct {
	Edition int64 `json:"edition"`
	Volumes []int `json:"volumes"`
}

// String words a flaw for people.
func (f Flaw) String() string {
	s := f.What
	if f.Path != "" {
		s = f.Path + ": " + s
	}
	for i, b := range f.Bring {
		word := "; bring"
		if i > 0 {
			word = ", or"
		}
		s += fmt.Sprintf("%s volume %s of edition %d", word, Numbers(b.Volumes), b.Edition)
	}
	return s
}

// verifier is the work of Verify.
type verifier struct {
	*Store
	opts   VerifyOptions
	all    []*catalog.Catalog
	report *Report
	bad    map[string]bool // hashes of damaged files
	flaws  map[string]int  // how many there are, by path
}

// Verify reads everything that the mirror publishes and checks it: each file against the
// signed catalog, the tree against the files, the site's key → InRelease → index → package, upstream's
// key → InRelease → index → package, and the digests of the OCI layout.
func (s *Store) Verify(ctx context.Context, opts VerifyOptions) (_ *Report, err error) {
	defer func() { err = full(err) }()
	if opts.Progress == nil {
		opts.Progress = progress.None
	}
	c, err := s.current()
	if err != nil {
		return nil, err
	}
	v := &verifier{Store: s, opts: opts, bad: map[string]bool{}, flaws: map[string]int{},
		report: &Report{Site: s.state.Site, Edition: s.state.Edition, Unproven: []string{}, Wrong: []Flaw{}}}
	if v.all, err = s.catalogs(); err != nil {
		return nil, err
	}
	if c == nil {
		v.flaw("nothing is published yet", "")
		return v.report, nil
	}
	if err := v.blobs(ctx, c); err != nil {
		return nil, err
	}
	if err := v.tree(ctx, c); err != nil {
		return nil, err
	}
	v.records(c)
	proven, err := v.upstream(c)
	if err != nil {
		return nil, err
	}
	v.archives(c, proven)
	v.oci(c)
	if opts.Repair {
		if err := v.repair(); err != nil {
			return nil, err
		}
	}
	return v.report, nil
}

func (v *verifier) flaw(what, path string) {
	if v.flaws[path]++; v.flaws[path] > maxFlaws {
		v.report.More++
		return
	}
	v.report.Wrong = append(v.report.Wrong, Flaw{What: what, Path: path})
}

// blobs hashes every file once.
func (v *verifier) blobs(ctx context.Context, c *catalog.Catalog) (err error) {
	names := map[string]string{}
	var total int64
	for _, f := range c.Files {
		if _, ok := names[f.SHA256]; !ok {
			names[f.SHA256] = f.Path
			total += f.Size
		}
	}
	task := v.opts.Progress.Start("verify", total, progress.Bytes)
	defer func() { task.Done(err) }()
	sizes := c.Blobs()
	for _, sum := range slices.Sorted(maps.Keys(names)) {
		if err := ctx.Err(); err != nil {
			return err
		}
		size := sizes[sum]
		what := ""
		if st, err := os.Lstat(v.blob(sum)); err != nil || !st.Mode().IsRegular() {
			what = "is missing"
		} else if st.Size() != size {
			what = fmt.Sprintf("has %d bytes, want %d", st.Size(), size)
		} else if got, err := volume.HashFile(ctx, v.blob(sum), 0, size); err != nil && ctx.Err() == nil {
			what = "cannot be read: " + err.Error()
		} else if err == nil && got != sum {
			what = "is damaged: SHA-256 " + got
		}
		task.Add(size)
		v.report.Files++
		v.report.Size += size
		if what != "" {
			v.bad[sum] = true
			v.report.Wrong = append(v.report.Wrong, Flaw{What: what, Path: names[sum], Bring: v.bring(sum)})
		}
	}
	return nil
}

// bring finds the volumes that hold a file: of the newest bundle, and of older ones.
func (v *verifier) bring(sum string) []Bring {
	var all []Bring
	for _, c := range v.all {
		if volumes := c.VolumesOf(sum); len(volumes) > 0 {
			all = append(all, Bring{c.Edition, volumes})
		}
	}
	return all
}

// tree compares the published tree with the catalogs.
func (v *verifier) tree(ctx context.Context, c *catalog.Catalog) error {
	for _, f := range c.Files {
		p := filepath.Join(v.Public(), filepath.FromSlash(f.Path))
		if v.bad[f.SHA256] || sameFile(p, v.blob(f.SHA256)) {
			continue
		}
		// Another file of the same bytes is as good: a copy of a mirror has no hard links.
		if has(p, f.Size) {
			if got, err := volume.HashFile(ctx, p, 0, f.Size); err == nil && got == f.SHA256 {
				continue
			}
		}
		v.flaw("the published file is missing or another; importing any volume of this bundle again publishes it anew", f.Path)
	}
	known := map[string]bool{}
	for _, c := range v.all {
		for _, f := range c.Files {
			known[f.Path] = true
		}
	}
	err := walk(ctx, v.Public(), func(p string, d fs.DirEntry) error {
		rel, err := filepath.Rel(v.Public(), p)
		if err == nil && !known[filepath.ToSlash(rel)] {
			v.flaw("is published and no bundle brought it; slipway mirror gc removes it", filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil && ctx.Err() == nil { // a disk that fails; what else is found counts all the same
		v.flaw(err.Error(), "")
		return nil
	}
	return err
}

// records checks the keys that the store trusts, and what it says of the published bundle.
func (v *verifier) records(c *catalog.Catalog) {
	if v.state.Site != c.Site || !v.state.Date.Equal(c.Date) {
		v.flaw(stateName+" tells of another site or date than the published bundle; importing any volume of it again mends it", "")
	}
	f, ok := c.File(keysPath)
	if ok && v.state.Keys != nil {
		keys, whole := v.read(f, maxMeta)
		if ring, err := sign.ParseRing(keys); whole && (err != nil || !slices.Equal(ring.Fingerprints(), v.state.Keys)) {
			v.flaw(stateName+" tells of other keys than the published bundle brought; importing any volume of it again mends it", "")
		}
	}
	keys, err := os.ReadFile(filepath.Join(v.dir, trustName))
	if err != nil {
		v.flaw(err.Error(), "")
		return
	}
	if !ok || catalog.ID(keys) != f.SHA256 {
		v.flaw(trustName+" is not what the published bundle brought; importing any volume of it again mends it", "")
	}
}

// read returns a small file of the tree, if it is not damaged.
func (v *verifier) read(f catalog.File, limit int64) ([]byte, bool) {
	if v.bad[f.SHA256] || f.Size > limit {
		return nil, false
	}
	data, err := os.ReadFile(v.blob(f.SHA256))
	return data, err == nil
}

const (
	maxInRelease = 16 << 20
	maxManifest  = 4 << 20
)

// upstream verifies the evidence and returns the packages that it covers: hashes.
func (v *verifier) upstream(c *catalog.Catalog) (map[string]bool, error) {
	proven := map[string]bool{}
	trusted := sign.Ring(v.opts.Upstream).Fingerprints()
	for _, f := range c.Files {
		rest, ok := strings.CutPrefix(f.Path, "upstream/")
		if !ok || path.Base(f.Path) != "InRelease" {
			continue
		}
		data, ok := v.read(f, maxInRelease)
		if !ok {
			continue // said before
		}
		checked, err := sign.Verify(data, sign.Ring(v.opts.Upstream))
		if err != nil {
			v.flaw(fmt.Sprintf("upstream's signature is not right by any of %d known keys: %v", len(trusted), err), f.Path)
			continue
		}
		base, _, _ := strings.Cut(rest, "/dists/")
		v.indices(c, "upstream/"+base+"/", path.Dir(f.Path)+"/", checked.Text, f.Path, func(_ string, files map[string]apt.FileSum) {
			for _, sum := range files {
				proven[sum.SHA256] = true
			}
		})
	}
	return proven, nil
}

// archives follows the site's signature to the packages; proven are the hashes that upstream's covers.
func (v *verifier) archives(c *catalog.Catalog, proven map[string]bool) {
	listed := map[string]bool{}
	for _, f := range c.Files {
		base, _, ok := strings.Cut(f.Path, "/dists/")
		if !ok || strings.HasPrefix(f.Path, "upstream/") || path.Base(f.Path) != "InRelease" {
			continue
		}
		data, ok := v.read(f, maxInRelease)
		if !ok {
			continue
		}
		checked, err := sign.Verify(data, v.ring)
		if err != nil {
			v.flaw("the site's signature is not right: "+err.Error(), f.Path)
			continue
		}
		v.indices(c, base+"/", path.Dir(f.Path)+"/", checked.Text, f.Path, func(index string, files map[string]apt.FileSum) {
			fresh, uncovered := false, ""
			for _, name := range slices.Sorted(maps.Keys(files)) {
				file, sum := base+"/"+name, files[name]
				if have, ok := c.File(file); !ok || have.SHA256 != sum.SHA256 || have.Size != sum.Size {
					v.flaw(fmt.Sprintf("lists %.200q, which the mirror has not in that form", file), index)
					return
				}
				if uncovered == "" && !proven[sum.SHA256] {
					uncovered = file
				}
				fresh = fresh || !listed[file]
				listed[file] = true
			}
			switch {
			case !fresh:
				return // another suite lists it too
			case isSources(index):
				v.report.Sources++
			default:
				v.report.Packages++
			}
			if uncovered == "" {
				v.report.Proven++
			} else {
				v.report.Unproven = append(v.report.Unproven, uncovered)
			}
		})
	}
	for _, f := range c.Files {
		if strings.Contains(f.Path, "/pool/") && !listed[f.Path] {
			v.flaw("no index under the site's signature lists it", f.Path)
		}
	}
	slices.Sort(v.report.Unproven)
}

// isSources says whether an index is one of source packages.
func isSources(index string) bool { return strings.HasPrefix(path.Base(index), "Sources") }

// filesOf are the files of a package, by its paragraph in an index.
func filesOf(index string, p *apt.Paragraph) (map[string]apt.FileSum, error) {
	if isSources(index) {
		return apt.SourceFiles(p)
	}
	size, err := strconv.ParseInt(p.Get("Size"), 10, 64)
	return map[string]apt.FileSum{p.Get("Filename"): {Size: size, SHA256: p.Get("SHA256")}}, err
}

// indices checks the indices that a signed Release names, and calls each with the files of every package of them. base is
// the archive's place in the tree, dir the suite's.
func (v *verifier) indices(c *catalog.Catalog, base, dir string, release []byte, from string, each func(index string, files map[string]apt.FileSum)) {
	rel, err := apt.ParseRelease(release)
	if err != nil {
		v.flaw(err.Error(), from)
		return
	}
	read := 0
	for _, name := range slices.Sorted(maps.Keys(rel.Files)) {
		sum := rel.Files[name]
		f, ok := c.File(dir + name)
		if !ok {
			continue // upstream has many more than are carried
		}
		if f.SHA256 != sum.SHA256 || f.Size != sum.Size {
			v.flaw("is not the file that "+from+" signs", f.Path)
			continue
		}
		if !indexPattern.MatchString(name) || rel.Files[name+".xz"].SHA256 != "" || v.bad[f.SHA256] {
			continue
		}
		read++
		if err := v.index(f, rel, name, each); err != nil {
			v.flaw(err.Error(), f.Path)
		}
	}
	if read == 0 && !strings.HasPrefix(base, "upstream/") {
		v.flaw("names no index that is here", from)
	}
}

// indexPattern is what indices of packages are called.
var indexPattern = regexp.MustCompile(`/(Packages|Sources)(\.xz|\.gz)?$`)

func (v *verifier) index(f catalog.File, rel *apt.Release, name string, each func(string, map[string]apt.FileSum)) error {
	in, err := os.Open(v.blob(f.SHA256))
	if err != nil {
		return err
	}
	defer in.Close()
	var unpacked *apt.FileSum
	if plain, ok := rel.Files[strings.TrimSuffix(strings.TrimSuffix(name, ".xz"), ".gz")]; ok {
		unpacked = &plain
	}
	return apt.Decompress(in, apt.Index{Path: f.Path}, unpacked, func(r io.Reader) error {
		return apt.EachParagraph(r, func(p *apt.Paragraph) error {
			files, err := filesOf(name, p)
			if err == nil {
				each(f.Path, files)
			}
			return err
		})
	})
}

// oci checks the image layout: blobs are what their names say, and manifests name only what is here.
func (v *verifier) oci(c *catalog.Catalog) {
	const blobs = "oci/blobs/sha256/"
	for _, f := range c.Files {
		if name, ok := strings.CutPrefix(f.Path, blobs); ok && name != f.SHA256 {
			v.flaw("its bytes have another digest than its name", f.Path)
		}
	}
	f, ok := c.File("oci/index.json")
	if !ok {
		return
	}
	data, ok := v.read(f, maxManifest)
	if !ok {
		return
	}
	var index v1.IndexManifest
	if err := json.Unmarshal(data, &index); err != nil {
		v.flaw(err.Error(), f.Path)
		return
	}
	for _, d := range index.Manifests {
		v.report.Images++
		mf, ok := c.File(blobs + d.Digest.Hex)
		if !ok || mf.Size != d.Size {
			v.flaw(fmt.Sprintf("names the manifest %s, which is not here", d.Digest), f.Path)
			continue
		}
		data, ok := v.read(mf, maxManifest)
		if !ok {
			continue
		}
		m, err := v1.ParseManifest(bytes.NewReader(data))
		if err != nil {
			v.flaw(err.Error(), mf.Path)
			continue
		}
		for _, part := range append([]v1.Descriptor{m.Config}, m.Layers...) {
			if bf, ok := c.File(blobs + part.Digest.Hex); !ok || bf.Size != part.Size {
				v.flaw(fmt.Sprintf("names the blob %s, which is not here", part.Digest), mf.Path)
			}
		}
	}
}

// repair removes what is damaged.
func (v *verifier) repair() error {
	for sum := range v.bad {
		if err := os.Remove(v.blob(sum)); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}

// Since is for reports: how old a bundle is.
func Since(date, now time.Time) string {
	days := int(now.Sub(date).Hours() / 24)
	if days < 0 {
		return fmt.Sprintf("%d days ahead of this machine's clock", -days)
	}
	return fmt.Sprintf("%d days ago", days)
}
