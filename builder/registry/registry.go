// Package registry keeps finished layers in an OCI registry, so that a machine
// with an empty cache, or without user namespaces, need not make them.
//
// What goes in is a record of the cache and the blobs that the record names; what
// comes out, on another machine, is the same record and the same blobs. Each is
// one artifact: its config is the record, its layers are the blobs, its tag is
// KIND-KEY. The key is the hash of all that went into the making, so a tag is
// never moved to other content. The artifact follows the OCI Image Specification
// v1.1, "Guidance for Artifacts Usage"; requests follow the OCI Distribution
// Specification v1.1, "Pulling manifests", "Pulling blobs" and "Push".
//
// Every blob is checked against its digest and size. Nothing ties a key to a
// digest, though: who may write to the repository decides what is in the layers,
// just as who may write to a cache directory does.
package registry

import (
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Media types of blobs. A record's is Kind.MediaType.
const (
	Squashfs = "application/vnd.slipway.squashfs.v1" // a layer's file system
	Kernel   = "application/vnd.slipway.kernel.v1"   // the kernel image of a base layer
	BootFile = "application/vnd.slipway.boot.v1"     // one file of a boot loader
	Program  = "application/vnd.slipway.program.v1"  // an executable that runs in appliances
)

// keyAnnotation repeats the key inside the manifest, which shows a tag that was
// put on the wrong artifact.
const keyAnnotation = "com.github.slipwayhq.slipway.key"

// titleAnnotation is the OCI annotation that other clients take a file name from.
const titleAnnotation = "org.opencontainers.image.title"

// Limits on what a registry may make us read.
const (
	maxManifest = 1 << 20
	maxRecord   = 1 << 20
	maxBlobs    = 256
	// MaxBlob is the largest blob: a layer must fit on the boot partition.
	MaxBlob = 3 << 30
)

// Kind is a kind of the cache's records that travels.
type Kind struct {
	Name string // as the cache calls it
	// Blobs reads a record and returns what it names. It refuses a record that
	// could not be slipway's, since records come from registries too.
	Blobs func(record []byte) ([]Blob, error)
}

// MediaType is the type of the kind's records.
func (k Kind) MediaType() string { return "application/vnd.slipway." + k.Name + ".v1+json" }

// Blob is one file that a record names.
type Blob struct {
	Digest    string `json:"digest"` // SHA-256, hexadecimal
	Size      int64  `json:"size"`   // bytes; negative if the record does not say
	MediaType string `json:"media_type"`
	Title     string `json:"title"` // a file name for people
	Limit     int64  `json:"-"`     // refused if larger; 0 stands for MaxBlob
}

// Artifact is one thing of the cache, ready to be pushed.
type Artifact struct {
	Kind   Kind
	Key    string
	Record []byte
	Blobs  []Blob // each digest once, with its size
}

// Tag is the artifact's tag.
func (a Artifact) Tag() string { return tag(a.Kind, a.Key) }

// Size is how many bytes the blobs have.
func (a Artifact) Size() int64 {
	var sum int64
	for _, b := range a.Blobs {
		sum += b.Size
	}
	return sum
}

func tag(kind Kind, key string) string { return kind.Name + "-" + key }

// Repository is a place in a registry, such as ci.example.org/images/layers.
type Repository struct {
	repo      name.Repository
	transport http.RoundTripper
}

// New reads the name of a repository. The registry's host is part of it: there is
// no default one.
func New(repository string) (*Repository, error) {
	repo, err := name.NewRepository(repository, name.StrictValidation)
	if err == nil && strings.Contains(repository, "://") { // it would be a host named "http:"
		err = errors.New("it has no scheme")
	}
	if err != nil {
		return nil, fault.New(fault.Usage, "%q does not name a repository: %w", repository, err).
			WithMend("write HOST[:PORT]/PATH in lower case, without a tag")
	}
	return &Repository{repo: repo, transport: newTransport()}, nil
}

// Through has requests go another way than over the network.
func (r *Repository) Through(t http.RoundTripper) *Repository {
	return &Repository{repo: r.repo, transport: t}
}

// String is the repository's full name.
func (r *Repository) String() string { return r.repo.Name() }

var (
	digestPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	tagPattern    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`) // Distribution Specification, "Pulling manifests"
)

// Find looks an artifact up in the cache; it counts only if all of its blobs are there.
func Find(c *cache.Cache, kind Kind, key string) (Artifact, bool, error) {
	record, ok := c.Record(kind.Name, key)
	if !ok {
		return Artifact{}, false, nil
	}
	named, err := named(kind, record)
	if err != nil {
		return Artifact{}, false, fault.New(fault.Integrity, "record %s in the cache: %w", tag(kind, key), err).
			WithMend("run `slipway cache gc --unused 0`, then build again")
	}
	a := Artifact{Kind: kind, Key: key, Record: record}
	for _, b := range named {
		size, ok, err := blobSize(c, b.Digest)
		if err != nil || !ok {
			return Artifact{}, false, err
		}
		b.Size = size
		a.Blobs = append(a.Blobs, b)
	}
	return a, true, nil
}

// named is what a record names, each digest once.
func named(kind Kind, record []byte) ([]Blob, error) {
	all, err := kind.Blobs(record)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 || len(all) > maxBlobs {
		return nil, fmt.Errorf("it names %d blobs, want 1 to %d", len(all), maxBlobs)
	}
	seen := map[string]bool{}
	var out []Blob
	for _, b := range all {
		if !digestPattern.MatchString(b.Digest) {
			return nil, fmt.Errorf("%q of %s is no SHA-256", b.Digest, b.Title)
		}
		if b.Limit == 0 {
			b.Limit = MaxBlob
		}
		if !seen[b.Digest] {
			out = append(out, b)
		}
		seen[b.Digest] = true
	}
	return out, nil
}
