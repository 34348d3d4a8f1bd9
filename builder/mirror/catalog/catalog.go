// Package catalog is what a mirror holds after a bundle was imported: every file of
// the published tree by path, size and SHA-256, and on which volume of the bundle the
// parts are that make it up.
//
// A copy of it is on every volume, named by hash in the volume's signed manifest. So
// any one volume tells what the whole bundle is, which volumes are missing, and which
// to bring again when a file is damaged. Its SHA-256 is the bundle's id.
//
// The format is in docs/formats.md ("Mirror: catalog"): text, one fact a line, sorted.
package catalog

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Limits on catalogs from outside. The whole of a Debian release for one architecture has
// 66,000 packages; a file of 1 TiB is more than any medium holds.
const (
	MaxBytes   = 256 << 20
	MaxVolumes = 9999
	maxSize    = 1 << 40
	maxPath    = 1024
)

const magic = "slipway-catalog 1"

// Catalog is the content of a bundle and of the mirror after it.
type Catalog struct {
	Site    string
	Edition int64
	// Base is the bundle that the other side acknowledged; a bundle without one is full.
	// An importer needs no base as long as it has the files.
	Base    Base
	Date    time.Time
	Volumes int
	Files   []File // sorted by path
	Parts   []Part // sorted by file and offset; only of files that the bundle brings
}

// Base names an earlier bundle. The zero Base is none.
type Base struct {
	Edition int64
	ID      string
}

// File is one file of the published tree.
type File struct {
	Path   string
	Size   int64
	SHA256 string
}

// Part is a piece of a file, as it stands on a volume. Most files are one part, whose
// hash is the file's.
type Part struct {
	Volume int // counted from 1
	SHA256 string
	Size   int64
	File   string // SHA-256 of the file
	Offset int64
}

// Bytes is the catalog as its file has it; equal catalogs give equal bytes.
func (c *Catalog) Bytes() []byte {
	slices.SortFunc(c.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(c.Parts, func(a, b Part) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Offset, b.Offset))
	})
	var b bytes.Buffer
	fmt.Fprintln(&b, magic)
	fmt.Fprintln(&b, "site", c.Site)
	fmt.Fprintln(&b, "edition", c.Edition)
	fmt.Fprintln(&b, "base", c.Base.Edition, cmp.Or(c.Base.ID, "-"))
	fmt.Fprintln(&b, "date", c.Date.UTC().Format(time.RFC3339))
	fmt.Fprintln(&b, "volumes", c.Volumes)
	for _, f := range c.Files {
		fmt.Fprintln(&b, "file", f.SHA256, f.Size, f.Path)
	}
	for _, p := range c.Parts {
		fmt.Fprintln(&b, "part", p.Volume, p.SHA256, p.Size, p.File, p.Offset)
	}
	return b.Bytes()
}

// ID is the bundle's id: the SHA-256 of the catalog's bytes.
func (c *Catalog) ID() string { return ID(c.Bytes()) }

// ID is the SHA-256 of a catalog as it was read.
func ID(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

var (
	hashPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	sitePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)
	pathPattern = regexp.MustCompile(`^[A-Za-z0-9._~+:%@=,-]+(/[A-Za-z0-9._~+:%@=,-]+)*$`)
)

// CheckPath refuses paths that could lead out of a tree or that a line cannot hold.
func CheckPath(p string) error {
	if len(p) > maxPath || !pathPattern.MatchString(p) {
		return fmt.Errorf("bad path %q", clip(p))
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == "." || part == ".." || len(part) > 255 {
			return fmt.Errorf("bad path %q", clip(p))
		}
	}
	return nil
}

// Parse reads a catalog and refuses one that contradicts itself. Errors are of class
// Integrity and name the line.
func Parse(data []byte) (*Catalog, error) {
	if len(data) > MaxBytes {
		return nil, fault.New(fault.Integrity, "catalog: more than %d bytes", MaxBytes)
	}
	c := &Catalog{}
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if err := c.line(n, string(line)); err != nil {
			return nil, fault.New(fault.Integrity, "catalog:%d: %w", n, err)
		}
	}
	if err := c.check(); err != nil {
		return nil, fault.New(fault.Integrity, "catalog: %w", err)
	}
	if !bytes.Equal(c.Bytes(), data) {
		return nil, fault.New(fault.Integrity, "catalog: not as slipway writes it: lines are not sorted, or numbers not in their shortest form")
	}
	return c, nil
}

func (c *Catalog) line(n int, text string) (err error) {
	text, ended := strings.CutSuffix(text, "\n")
	if !ended {
		return fmt.Errorf("the last line does not end")
	}
	words := strings.Split(text, " ")
	head := []string{"slipway-catalog", "site", "edition", "base", "date", "volumes"}
	want := map[string]int{"slipway-catalog": 2, "site": 2, "edition": 2, "base": 3, "date": 2, "volumes": 2, "file": 4, "part": 6}
	keyword := words[0]
	if n <= len(head) && keyword != head[n-1] || n > len(head) && keyword != "file" && keyword != "part" {
		return fmt.Errorf("unexpected %q", clip(keyword))
	}
	if len(words) != want[keyword] {
		return fmt.Errorf("%s: want %d words, found %d", keyword, want[keyword], len(words))
	}
	switch keyword {
	case "slipway-catalog":
		if text != magic {
			return fmt.Errorf("format %q, of which this slipway knows only %q", clip(text), magic)
		}
	case "site":
		if c.Site = words[1]; !sitePattern.MatchString(c.Site) {
			return fmt.Errorf("site: %q", clip(c.Site))
		}
	case "edition":
		c.Edition, err = number(words[1], 1, 1<<53)
	case "base":
		if c.Base.Edition, err = number(words[1], 0, 1<<53); err == nil && words[2] != "-" {
			c.Base.ID = words[2]
		}
		if err == nil && (c.Base.Edition == 0) != (c.Base.ID == "") || c.Base.ID != "" && !hashPattern.MatchString(c.Base.ID) {
			err = fmt.Errorf("base: want a number and a hash, or 0 -")
		}
	case "date":
		c.Date, err = time.Parse(time.RFC3339, words[1])
	case "volumes":
		var v int64
		v, err = number(words[1], 1, MaxVolumes)
		c.Volumes = int(v)
	case "file":
		f := File{SHA256: words[1], Path: words[3]}
		if f.Size, err = number(words[2], 0, maxSize); err == nil {
			err = checkHash(f.SHA256)
		}
		if err == nil {
			err = CheckPath(f.Path)
		}
		c.Files = append(c.Files, f)
	case "part":
		p := Part{SHA256: words[2], File: words[4]}
		var v int64
		if v, err = number(words[1], 1, MaxVolumes); err == nil {
			p.Volume = int(v)
			p.Size, err = number(words[3], 0, maxSize)
		}
		if err == nil {
			p.Offset, err = number(words[5], 0, maxSize)
		}
		if err == nil {
			err = checkHash(p.SHA256)
		}
		if err == nil {
			err = checkHash(p.File)
		}
		c.Parts = append(c.Parts, p)
	}
	return err
}

func number(s string, least, most int64) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < least || n > most {
		return 0, fmt.Errorf("%q: want a number from %d to %d", clip(s), least, most)
	}
	return n, nil
}

func checkHash(h string) error {
	if !hashPattern.MatchString(h) {
		return fmt.Errorf("%q: want a SHA-256", clip(h))
	}
	return nil
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// check finds what no single line shows.
func (c *Catalog) check() error {
	if c.Volumes == 0 {
		return fmt.Errorf("it ends before its line volumes")
	}
	if c.Base.Edition >= c.Edition {
		return fmt.Errorf("edition %d cannot build on edition %d", c.Edition, c.Base.Edition)
	}
	sizes := map[string]int64{}
	dirs := map[string]bool{}
	for i, f := range c.Files {
		if i > 0 && c.Files[i-1].Path >= f.Path {
			return fmt.Errorf("file %s stands twice or not in its place", f.Path)
		}
		if size, ok := sizes[f.SHA256]; ok && size != f.Size {
			return fmt.Errorf("file %s has %d bytes, another with the same hash %d", f.Path, f.Size, size)
		}
		sizes[f.SHA256] = f.Size
		for i, r := range f.Path {
			if r == '/' {
				dirs[f.Path[:i]] = true
			}
		}
	}
	for _, f := range c.Files {
		if dirs[f.Path] {
			return fmt.Errorf("%s is a file and a directory", f.Path)
		}
	}
	ends := map[string]int64{}
	for _, p := range c.Parts {
		size, ok := sizes[p.File]
		switch {
		case !ok:
			return fmt.Errorf("a part of %s, which is no file of it", p.File)
		case p.Volume > c.Volumes:
			return fmt.Errorf("a part on volume %d of %d", p.Volume, c.Volumes)
		case p.Offset != ends[p.File]:
			return fmt.Errorf("a part of %s at %d, want %d", p.File, p.Offset, ends[p.File])
		case p.Size == 0 && size != 0, p.Size > size-p.Offset:
			return fmt.Errorf("a part of %s with %d bytes at %d, of %d", p.File, p.Size, p.Offset, size)
		case p.Size == size && p.SHA256 != p.File:
			return fmt.Errorf("%s is one part with another hash", p.File)
		}
		ends[p.File] = p.Offset + p.Size
	}
	for _, file := range slices.Sorted(maps.Keys(ends)) {
		if ends[file] != sizes[file] {
			return fmt.Errorf("the parts of %s end at %d of %d bytes", file, ends[file], sizes[file])
		}
	}
	return nil
}

// File finds a file by path.
func (c *Catalog) File(path string) (File, bool) {
	i, ok := slices.BinarySearchFunc(c.Files, path, func(f File, p string) int { return strings.Compare(f.Path, p) })
	if !ok {
		return File{}, false
	}
	return c.Files[i], true
}

// Blobs are the different contents of the files: size by SHA-256.
func (c *Catalog) Blobs() map[string]int64 {
	blobs := make(map[string]int64, len(c.Files))
	for _, f := range c.Files {
		blobs[f.SHA256] = f.Size
	}
	return blobs
}

// PartsOf are the parts of each file that the bundle brings, in order, by the file's SHA-256.
func (c *Catalog) PartsOf() map[string][]Part {
	parts := map[string][]Part{}
	for _, p := range c.Parts {
		parts[p.File] = append(parts[p.File], p)
	}
	return parts
}

// VolumesOf are the volumes that hold parts of the file with this SHA-256.
func (c *Catalog) VolumesOf(file string) []int {
	var volumes []int
	for _, p := range c.Parts {
		if p.File == file && !slices.Contains(volumes, p.Volume) {
			volumes = append(volumes, p.Volume)
		}
	}
	slices.Sort(volumes)
	return volumes
}
