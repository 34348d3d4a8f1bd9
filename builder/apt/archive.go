package apt

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/xi2/xz"
	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Limits on indices: Debian's largest has 10 MB, 57 MB unpacked, and needs a
// dictionary of 8 MiB.
const (
	maxIndex         = 256 << 20
	maxIndexUnpacked = 2 << 30
	maxDictionary    = 64 << 20
)

// Archive is a distribution as its mirrors serve it now, verified.
type Archive struct {
	Distribution *Distribution
	Locations    fetch.Locations
	Suites       []Suite
	Packages     []*Package // of all suites, in the order of the distribution file
	Warnings     []string   // what was accepted, though it is not as it should be
}

// Suite is one suite of an Archive.
type Suite struct {
	Alias, Name     string
	InReleaseSHA256 string
	Date            time.Time
	Signers         []string // fingerprints, sorted
	Indices         []Index
}

// Index is one Packages or Sources file of a suite.
type Index struct {
	Path   string // below the archive's base URL
	Size   int64
	SHA256 string
}

// LoadOptions are the settings of Load.
type LoadOptions struct {
	Now          time.Time // zero: the clock
	AllowExpired bool      // take a Release past its Valid-Until, with a warning
	States       []State   // of each suite, to be loaded out of the cache; nil: what the mirrors serve
	Fetch        fetch.Options
}

// State is one that a suite was in: its signed InRelease, by SHA-256.
type State struct {
	Alias     string `json:"alias"`
	Suite     string `json:"suite"`
	InRelease string `json:"in_release"`
}

// Load gets every suite's InRelease and indices from the mirrors and verifies
// them. Indices go through the cache.
func Load(ctx context.Context, c *cache.Cache, d *Distribution, locations fetch.Locations, opts LoadOptions) (*Archive, error) {
	if opts.Now.IsZero() {
		opts.Now = time.Now()
	}
	type result struct {
		suite    Suite
		packages []*Package
		warning  string
	}
	type job struct {
		spec  ArchiveSpec
		suite string
	}
	var jobs []job
	for _, spec := range d.Archives {
		for _, suite := range spec.Suites {
			jobs = append(jobs, job{spec, suite})
		}
	}
	results := make([]result, len(jobs))
	group, ctx := errgroup.WithContext(ctx)
	for i, j := range jobs {
		group.Go(func() (err error) {
			r := &results[i]
			r.suite, r.packages, r.warning, err = loadSuite(ctx, c, d, locations, j.spec, j.suite, opts)
			if err != nil {
				return fmt.Errorf("suite %s of archive %s: %w", j.suite, j.spec.Alias, err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	a := &Archive{Distribution: d, Locations: locations}
	for _, r := range results {
		a.Suites = append(a.Suites, r.suite)
		a.Packages = append(a.Packages, r.packages...)
		if r.warning != "" {
			a.Warnings = append(a.Warnings, r.warning)
		}
	}
	return a, nil
}

func loadSuite(ctx context.Context, c *cache.Cache, d *Distribution, locations fetch.Locations, spec ArchiveSpec, name string, opts LoadOptions) (s Suite, packages []*Package, warning string, err error) {
	data, from, err := inRelease(ctx, c, locations, spec, name, opts)
	if err != nil {
		return s, nil, "", err
	}
	text, signers, err := VerifyInRelease(data, d.Keyring, spec.SignedBy, opts.Now)
	if err != nil {
		return s, nil, "", fmt.Errorf("%s: %w", fetch.Redacted(from), err)
	}
	rel, err := ParseRelease(text)
	if err == nil {
		err = rel.Check(name, opts.Now)
	}
	if errors.Is(err, ErrExpired) && opts.AllowExpired {
		warning, err = err.Error(), nil
	}
	if err != nil {
		return s, nil, "", fmt.Errorf("%s: %w", fetch.Redacted(from), err)
	}
	s = Suite{Alias: spec.Alias, Name: name, InReleaseSHA256: hashOf(data), Date: rel.Date, Signers: signers}
	// Kept, since the mirror will serve another one tomorrow: it is what proves to the far side
	// of an air gap where the packages come from.
	if err := c.PutBlob(s.InReleaseSHA256, int64(len(data)), bytes.NewReader(data)); err != nil {
		return s, nil, "", err
	}
	for _, component := range d.Components {
		item, index, unpacked, err := chooseIndex(rel, spec.Alias, name, component+"/binary-"+d.Arch+"/", "Packages")
		if err != nil {
			return s, nil, "", err
		}
		if err := fetch.Fetch(ctx, c, locations, []fetch.Item{item}, opts.Fetch); err != nil {
			return s, nil, "", err
		}
		found, err := ReadIndex(c, index, unpacked, spec.Alias, name, d.Arch)
		if err != nil {
			return s, nil, "", err
		}
		s.Indices = append(s.Indices, index)
		packages = append(packages, found...)
	}
	return s, packages, warning, nil
}

// inRelease gets a suite's signed file, and says where from.
func inRelease(ctx context.Context, c *cache.Cache, locations fetch.Locations, spec ArchiveSpec, name string, opts LoadOptions) (data []byte, from string, err error) {
	if opts.States == nil {
		return fetch.Get(ctx, locations[spec.Alias], "dists/"+name+"/InRelease", maxInRelease, opts.Fetch)
	}
	i := slices.IndexFunc(opts.States, func(s State) bool { return s.Alias == spec.Alias && s.Suite == name })
	if i < 0 {
		return nil, "", fault.New(fault.Input, "the distribution file did not have this suite when its state was noted")
	}
	path, ok := c.Blob(opts.States[i].InRelease)
	if !ok {
		return nil, "", fault.New(fault.Missing, "its InRelease with SHA-256 %s is no longer in the cache", opts.States[i].InRelease)
	}
	if data, err = os.ReadFile(path); err == nil && hashOf(data) != opts.States[i].InRelease {
		err = fault.New(fault.Integrity, "%s is damaged", path)
	}
	return data, path, err
}

// SourceIndex is the Sources file of a component that is smallest to get, with the
// item that gets it. alias and suite are those of the Release.
func SourceIndex(rel *Release, alias, suite, component string) (fetch.Item, Index, error) {
	item, index, _, err := chooseIndex(rel, alias, suite, component+"/source/", "Sources")
	return item, index, err
}

// chooseIndex picks the variant of the index called name in dir, which is below the suite's directory, that is
// smallest to get. unpacked is what the Release says of the file once decompressed, if it does.
func chooseIndex(rel *Release, alias, suite, dir, name string) (item fetch.Item, index Index, unpacked *FileSum, err error) {
	if plain, ok := rel.Files[dir+name]; ok {
		unpacked = &plain
	}
	for _, ext := range []string{".xz", ".gz", ""} {
		file := dir + name + ext
		sum, ok := rel.Files[file]
		if !ok {
			continue
		}
		if sum.Size > maxIndex {
			return item, index, nil, fault.New(fault.Integrity, "%s has %d bytes, more than any real index", file, sum.Size)
		}
		base := "dists/" + suite + "/"
		index = Index{Path: base + file, Size: sum.Size, SHA256: sum.SHA256}
		item = fetch.Item{Name: suite + " " + file, Path: index.Path, Alias: alias, Size: sum.Size, SHA256: sum.SHA256}
		if rel.ByHash {
			item.First = base + dir + "by-hash/SHA256/" + sum.SHA256
		}
		return item, index, unpacked, nil
	}
	return item, index, nil, fault.New(fault.Input, "the Release of %s lists no %s%s", suite, dir, name).
		WithMend("check components and arch in the distribution file")
}

// ReadIndex reads an index that is in the cache. If unpacked is not nil, the
// decompressed bytes must have that size and hash.
func ReadIndex(c *cache.Cache, index Index, unpacked *FileSum, alias, suite, arch string) (packages []*Package, err error) {
	err = readIndex(c, index, unpacked, func(r io.Reader) error {
		packages, err = ReadPackages(r, alias, suite, arch)
		return err
	})
	if err != nil {
		return nil, err
	}
	return packages, nil
}

// EachInIndex calls each for every paragraph of an index that is in the cache, as
// EachParagraph does.
func EachInIndex(c *cache.Cache, index Index, each func(*Paragraph) error) error {
	return readIndex(c, index, nil, func(r io.Reader) error { return EachParagraph(r, each) })
}

// readIndex decompresses an index for read.
func readIndex(c *cache.Cache, index Index, unpacked *FileSum, read func(io.Reader) error) error {
	path, ok := c.CheckedBlob(index.SHA256, index.Size)
	if !ok {
		return fault.New(fault.Integrity, "%s is not in the cache", index.Path)
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return Decompress(f, index, unpacked, read)
}

// Decompress hands the decompressed bytes of an index to read, going by its name, with the
// limits on what indices may hold. If unpacked is not nil, they must have that size and hash; a size
// above the limits is refused before anything is read, whoever signed it.
func Decompress(f io.Reader, index Index, unpacked *FileSum, read func(io.Reader) error) error {
	limit := int64(maxIndexUnpacked)
	if unpacked != nil {
		limit = unpacked.Size
	}
	if limit > maxIndexUnpacked {
		return fault.New(fault.Integrity, "%s: the Release says that it unpacks to %d bytes, more than the %d that an index may have", index.Path, limit, int64(maxIndexUnpacked))
	}
	r, err := f, error(nil)
	switch {
	case strings.HasSuffix(index.Path, ".xz"):
		r, err = xz.NewReader(f, maxDictionary)
	case strings.HasSuffix(index.Path, ".gz"):
		r, err = gzip.NewReader(f)
	}
	if err != nil {
		return fault.New(fault.Integrity, "%s: %w", index.Path, err)
	}
	h := sha256.New()
	counter := &limited{r: io.TeeReader(r, h), left: limit}
	if err := read(counter); err != nil {
		return fault.New(fault.Integrity, "%s: %w", index.Path, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); unpacked != nil && got != unpacked.SHA256 {
		return fault.New(fault.Integrity, "%s: unpacked it has SHA-256 %s, the Release says %s", index.Path, got, unpacked.SHA256)
	}
	return nil
}

// limited fails a reader that yields more than it may.
type limited struct {
	r    io.Reader
	left int64
}

func (l *limited) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, errors.New("unpacks to more than it may")
	}
	return n, err
}
