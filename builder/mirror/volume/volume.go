// Package volume is one carried medium of a bundle: a directory with parts of files,
// the bundle's catalog, and a signed manifest that lists both by SHA-256.
//
//	VOLUME                 the manifest, clear-signed
//	CATALOG                the bundle's catalog, the same on all its volumes
//	data/ab/abcdef…        parts, by their SHA-256
//
// A volume is checked alone, and by hand if need be: gpgv checks VOLUME, sha256sum the rest.
// Names have at most 64 characters, as Joliet allows. The format is in
// docs/formats.md ("Mirror: volume"). What stands on a volume is input from outside:
// every size is limited, and nothing but regular files below the volume is read.
package volume

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/mirror/catalog"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Names of a volume's own files.
const (
	ManifestName = "VOLUME"
	CatalogName  = "CATALOG"
	dataDir      = "data"
)

const (
	formatLine  = "slipway-volume 1"
	maxManifest = 64 << 20
)

// Manifest is what a volume says of itself, under a signature.
type Manifest struct {
	Site    string
	Edition int64
	Bundle  string // the catalog's SHA-256
	Volume  int    // counted from 1
	Volumes int
	Date    time.Time
	Catalog Sum
	Parts   []Sum // sorted by hash
}

// Sum is the hash and size of a file.
type Sum struct {
	SHA256 string
	Size   int64
}

// Text is the manifest before it is signed.
func (m *Manifest) Text() []byte {
	slices.SortFunc(m.Parts, func(a, b Sum) int { return strings.Compare(a.SHA256, b.SHA256) })
	var b bytes.Buffer
	fmt.Fprintln(&b, "Format:", formatLine)
	fmt.Fprintln(&b, "Site:", m.Site)
	fmt.Fprintln(&b, "Edition:", m.Edition)
	fmt.Fprintln(&b, "Bundle:", m.Bundle)
	fmt.Fprintln(&b, "Volume:", m.Volume)
	fmt.Fprintln(&b, "Volumes:", m.Volumes)
	fmt.Fprintln(&b, "Date:", m.Date.UTC().Format(time.RFC3339))
	fmt.Fprintln(&b, "SHA256:")
	fmt.Fprintln(&b, "", m.Catalog.SHA256, m.Catalog.Size, CatalogName)
	for _, p := range m.Parts {
		fmt.Fprintln(&b, "", p.SHA256, p.Size, PartPath(p.SHA256))
	}
	return b.Bytes()
}

// PartPath is where a part stands on a volume.
func PartPath(hash string) string { return dataDir + "/" + hash[:2] + "/" + hash }

// ParseManifest reads the text of a manifest. Errors are of class Integrity.
func ParseManifest(text []byte) (*Manifest, error) {
	if len(text) > maxManifest {
		return nil, fault.New(fault.Integrity, "%s: more than %d bytes", ManifestName, maxManifest)
	}
	var m *Manifest
	err := apt.EachParagraph(bytes.NewReader(text), func(p *apt.Paragraph) (err error) {
		if m != nil {
			return fmt.Errorf("line %d: a second paragraph", p.Line)
		}
		m, err = manifestOf(p)
		return err
	})
	if err == nil && m == nil {
		err = errors.New("empty")
	}
	if err == nil && !bytes.Equal(bytes.TrimSuffix(m.Text(), []byte("\n")), bytes.TrimSuffix(text, []byte("\n"))) {
		err = errors.New("not as slipway writes it")
	}
	if err != nil {
		return nil, fault.New(fault.Integrity, "%s: %w", ManifestName, err)
	}
	return m, nil
}

func manifestOf(p *apt.Paragraph) (*Manifest, error) {
	if got := p.Get("Format"); got != formatLine {
		return nil, fmt.Errorf("format %q, of which this slipway knows only %q", got, formatLine)
	}
	m := &Manifest{Site: p.Get("Site"), Bundle: p.Get("Bundle")}
	var errs [4]error
	m.Edition, errs[0] = strconv.ParseInt(p.Get("Edition"), 10, 64)
	m.Volume, errs[1] = strconv.Atoi(p.Get("Volume"))
	m.Volumes, errs[2] = strconv.Atoi(p.Get("Volumes"))
	m.Date, errs[3] = time.Parse(time.RFC3339, p.Get("Date"))
	if err := cmp.Or(errs[:]...); err != nil {
		return nil, err
	}
	if m.Edition < 1 || m.Volume < 1 || m.Volume > m.Volumes || m.Volumes > catalog.MaxVolumes {
		return nil, fmt.Errorf("volume %d of %d of edition %d cannot be", m.Volume, m.Volumes, m.Edition)
	}
	for i, line := range p.Lines("SHA256") {
		words := strings.Fields(line)
		if len(words) != 3 || len(words[0]) != 64 {
			return nil, fmt.Errorf("field SHA256: %.80q: want hash, size and path", line)
		}
		if _, err := hex.DecodeString(words[0]); err != nil || strings.ToLower(words[0]) != words[0] {
			return nil, fmt.Errorf("field SHA256: %.80q is no hash", words[0])
		}
		size, err := strconv.ParseInt(words[1], 10, 64)
		if err != nil || size < 0 || size > 1<<40 {
			return nil, fmt.Errorf("field SHA256: %.80q: bad size", line)
		}
		sum := Sum{words[0], size}
		switch {
		case i == 0 && words[2] == CatalogName:
			m.Catalog = sum
		case i > 0 && words[2] == PartPath(sum.SHA256):
			if n := len(m.Parts); n > 0 && m.Parts[n-1].SHA256 >= sum.SHA256 {
				return nil, fmt.Errorf("field SHA256: %s stands twice or not in its place", sum.SHA256)
			}
			m.Parts = append(m.Parts, sum)
		default:
			return nil, fmt.Errorf("field SHA256: %.80q is not where slipway puts it", words[2])
		}
	}
	if m.Catalog.SHA256 != m.Bundle || m.Bundle == "" {
		return nil, errors.New("field Bundle: it is not the catalog's hash")
	}
	return m, nil
}

// Volume is an opened medium whose manifest and catalog were verified; its parts
// were not yet.
type Volume struct {
	*Manifest
	Dir         string
	Signers     []string
	Content     *catalog.Catalog
	CatalogData []byte

	root *os.Root
}

// Name is what people call the volume.
func (v *Volume) Name() string { return Name(v.Site, v.Edition, v.Volume, v.Volumes) }

// Name words which volume of which bundle.
func Name(site string, edition int64, volume, volumes int) string {
	return fmt.Sprintf("volume %d of %d, edition %d of %s", volume, volumes, edition, site)
}

// Bring is the advice for a medium that cannot be used.
const Bring = "bring this volume again: copy it anew from the side that made it, onto another medium"

// Open verifies the manifest and the catalog of the volume in dir. The catalog is the same on all volumes of a bundle and may
// be large: in memory the volume shares that of one that is open already.
func Open(dir string, ring sign.Ring, open ...*Volume) (_ *Volume, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fault.New(fault.Input, "opening the volume: %w", err).WithMend("name the directory that holds %s", ManifestName)
	}
	v := &Volume{Dir: dir, root: root}
	defer func() {
		if err != nil {
			root.Close()
		}
	}()
	signed, err := v.read(ManifestName, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Input, "%s holds no volume: there is no %s in it", dir, ManifestName).
			WithMend("name the directory of one volume; if it is one, its copy was cut off: bring it again")
	}
	if err != nil {
		return nil, err
	}
	checked, err := sign.Verify(signed, ring)
	if err != nil {
		return nil, fault.New(fault.Integrity, "%s/%s: %w", dir, ManifestName, err).
			WithMend("if the site's key is right, %s", Bring)
	}
	if !sign.Canonical(signed) {
		return nil, fault.New(fault.Integrity, "%s/%s: it is not, byte for byte, what was signed", dir, ManifestName).WithMend(Bring)
	}
	if v.Manifest, err = ParseManifest(checked.Text); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	v.Signers = checked.Signers
	if v.CatalogData, err = v.read(CatalogName, min(v.Manifest.Catalog.Size+1, catalog.MaxBytes+1)); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Integrity, "%s/%s is missing", dir, CatalogName).WithMend(Bring)
	} else if err != nil {
		return nil, err
	}
	if got := catalog.ID(v.CatalogData); got != v.Bundle || int64(len(v.CatalogData)) != v.Manifest.Catalog.Size {
		return nil, fault.New(fault.Integrity, "%s/%s: SHA-256 %s, its manifest says %s", dir, CatalogName, got, v.Bundle).WithMend(Bring)
	}
	if i := slices.IndexFunc(open, func(o *Volume) bool { return o.Bundle == v.Bundle }); i >= 0 {
		v.CatalogData, v.Content = open[i].CatalogData, open[i].Content
	} else if v.Content, err = catalog.Parse(v.CatalogData); err != nil {
		return nil, fmt.Errorf("%s: %w", dir, err)
	}
	c := v.Content
	if c.Site != v.Site || c.Edition != v.Edition || c.Volumes != v.Volumes || !c.Date.Equal(v.Date) {
		return nil, fault.New(fault.Integrity, "%s: manifest and catalog contradict each other", dir)
	}
	want := map[Sum]bool{}
	for _, p := range c.Parts {
		if p.Volume == v.Volume {
			want[Sum{p.SHA256, p.Size}] = true
		}
	}
	for _, p := range v.Parts {
		if !want[p] {
			return nil, fault.New(fault.Integrity, "%s: the manifest lists %s, which the catalog has not on this volume", dir, p.SHA256)
		}
		delete(want, p)
	}
	if len(want) > 0 {
		return nil, fault.New(fault.Integrity, "%s: the catalog has %d parts on this volume that its manifest does not list", dir, len(want))
	}
	return v, nil
}

// Close ends the use of a volume.
func (v *Volume) Close() error { return v.root.Close() }

// open opens a regular file of the volume; links, devices and pipes are refused, so
// that no medium can make us read elsewhere or wait for ever.
//
// A file that is not there is fs.ErrNotExist; whatever else is wrong is of class Integrity.
func (v *Volume) open(name string) (*os.File, int64, error) {
	st, err := v.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, err
	}
	if err != nil {
		return nil, 0, unreadable(v.Dir, name, err)
	}
	if !st.Mode().IsRegular() {
		return nil, 0, fault.New(fault.Integrity, "%s/%s is not a regular file (%s)", v.Dir, name, st.Mode().Type()).WithMend(Bring)
	}
	f, err := v.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, unreadable(v.Dir, name, err)
	}
	if st, err = f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, 0, fault.New(fault.Integrity, "%s/%s changed while it was opened", v.Dir, name)
	}
	return f, st.Size(), nil
}

func (v *Volume) read(name string, limit int64) ([]byte, error) {
	f, size, err := v.open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > limit {
		return nil, fault.New(fault.Integrity, "%s/%s has %d bytes, more than it may", v.Dir, name, size).WithMend(Bring)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, unreadable(v.Dir, name, err)
	}
	return data, nil
}

// unreadable is for media that fail while they are read.
func unreadable(dir, name string, err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fault.New(fault.Integrity, "%s/%s may not be read: %w", dir, name, err).WithMend("let all users read the volume's files and directories")
	}
	return fault.New(fault.Integrity, "%s/%s cannot be read: %w", dir, name, err).WithMend(Bring)
}

// Copy writes a part to w and checks it. What was written is of no use if it fails. Damage
// is of class Integrity; an error of w is passed on.
func (v *Volume) Copy(ctx context.Context, w io.Writer, part Sum) error {
	name := PartPath(part.SHA256)
	f, size, err := v.open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Integrity, "%s/%s is missing", v.Dir, name).WithMend(Bring)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if size != part.Size {
		return fault.New(fault.Integrity, "%s/%s has %d bytes, want %d", v.Dir, name, size, part.Size).WithMend(Bring)
	}
	h := sha256.New()
	buf := make([]byte, 1<<20)
	left := part.Size
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.Read(buf)
		if left -= int64(n); left < 0 {
			return fault.New(fault.Integrity, "%s/%s grows while it is read", v.Dir, name)
		}
		h.Write(buf[:n])
		if _, werr := w.Write(buf[:n]); werr != nil {
			return werr
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return unreadable(v.Dir, name, err)
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != part.SHA256 {
		return fault.New(fault.Integrity, "%s/%s has SHA-256 %s", v.Dir, name, got).WithMend(Bring)
	}
	return nil
}

// Verify reads every part and returns what is wrong with the volume, one error each; what cannot be read keeps nothing else
// from being looked at. Each file that does not belong to it is one as well: a medium that was written twice
// is none to rely on. The second error is that of the context.
func (v *Volume) Verify(ctx context.Context, count func(int64)) ([]error, error) {
	var wrong []error
	for _, p := range v.Parts {
		err := v.Copy(ctx, countTo{count}, p)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			wrong = append(wrong, err)
		}
	}
	return append(wrong, v.extra()...), nil
}

type countTo struct{ count func(int64) }

func (c countTo) Write(p []byte) (int, error) {
	c.count(int64(len(p)))
	return len(p), nil
}

// extra finds what the manifest does not list below data/, and what cannot be looked at.
func (v *Volume) extra() (wrong []error) {
	listed := map[string]bool{}
	for _, p := range v.Parts {
		listed[PartPath(p.SHA256)] = true
	}
	// The function ends the walk with no error.
	_ = fs.WalkDir(v.root.FS(), dataDir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			wrong = append(wrong, unreadable(v.Dir, p, err))
		case d.IsDir() && strings.Count(p, "/") > 2:
			wrong = append(wrong, fault.New(fault.Integrity, "%s/%s does not belong to the volume", v.Dir, p))
			return fs.SkipDir
		case !d.IsDir() && !listed[p]:
			wrong = append(wrong, fault.New(fault.Integrity, "%s/%s does not belong to the volume", v.Dir, p))
		}
		return nil
	})
	return wrong
}

// Find returns the directories of volumes at or below dir: dir itself, or its
// subdirectories. It is how media/ stands for all its volumes.
func Find(dir string) ([]string, error) {
	has := func(d string) bool {
		_, err := os.Lstat(filepath.Join(d, ManifestName))
		return err == nil
	}
	if has(dir) {
		return []string{dir}, nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fault.New(fault.Input, "looking for volumes: %w", err)
	}
	var found []string
	for _, e := range entries {
		if d := filepath.Join(dir, e.Name()); e.IsDir() && has(d) {
			found = append(found, d)
		}
	}
	if len(found) == 0 {
		return nil, fault.New(fault.Input, "%s holds no volume: there is no %s in it or right below it", dir, ManifestName).
			WithMend("name the directory where the medium is mounted")
	}
	return found, nil
}

// DirName is how create names the directory of a volume.
func DirName(n int) string { return fmt.Sprintf("volume-%d", n) }
