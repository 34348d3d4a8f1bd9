package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"sync/atomic"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// Push uploads an artifact of the cache. Blobs that the registry has are not sent
// again; the tag appears once all are there.
func (r *Repository) Push(ctx context.Context, c *cache.Cache, a Artifact, title string, reporter progress.Reporter) (err error) {
	if !tagPattern.MatchString(a.Tag()) {
		return fault.New(fault.Internal, "%q cannot be a tag", a.Tag())
	}
	pusher, err := remote.NewPusher(remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(r.transport))
	if err != nil {
		return err
	}
	task := reporter.Start("push "+title, a.Size(), progress.Bytes)
	defer func() { task.Done(err) }()
	what := r.String() + ":" + a.Tag()
	for _, b := range a.Blobs {
		task.Detail(b.Title)
		path, ok := c.CheckedBlob(b.Digest, b.Size)
		if !ok {
			return fault.New(fault.Integrity, "%s left the cache while it was needed", b.Digest).WithMend("build again, then push")
		}
		l := &file{path: path, blob: b, task: task}
		if err := pusher.Upload(ctx, r.repo, l); err != nil {
			return failed(ctx, what, err)
		}
		l.count(b.Size)
	}
	record := static.NewLayer(a.Record, types.MediaType(a.Kind.MediaType()))
	if err := pusher.Upload(ctx, r.repo, record); err != nil {
		return failed(ctx, what, err)
	}
	m, err := newManifest(a)
	if err != nil {
		return err
	}
	if err := pusher.Put(ctx, r.repo.Tag(a.Tag()), m); err != nil {
		return failed(ctx, what, err)
	}
	return nil
}

// rawManifest is a manifest as it is sent.
type rawManifest []byte

func (m rawManifest) RawManifest() ([]byte, error)        { return m, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return types.OCIManifestSchema1, nil }

// Manifest is the OCI manifest of an artifact, as a registry has it.
func Manifest(a Artifact) ([]byte, error) { return newManifest(a) }

// newManifest describes an artifact. Equal artifacts give equal bytes.
func newManifest(a Artifact) (rawManifest, error) {
	digest, size, err := v1.SHA256(bytes.NewReader(a.Record))
	if err != nil {
		return nil, err
	}
	m := v1.Manifest{
		SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: a.Kind.MediaType(),
		Config:      v1.Descriptor{MediaType: types.MediaType(a.Kind.MediaType()), Size: size, Digest: digest},
		Annotations: map[string]string{keyAnnotation: a.Key},
	}
	for _, b := range a.Blobs {
		m.Layers = append(m.Layers, v1.Descriptor{
			MediaType: types.MediaType(b.MediaType), Size: b.Size, Digest: hash(b.Digest),
			Annotations: map[string]string{titleAnnotation: b.Title},
		})
	}
	return json.Marshal(m)
}

func hash(digest string) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: digest} }

// file is a cache file as go-containerregistry uploads one: opened anew for each
// attempt, never held in memory.
type file struct {
	path string
	blob Blob
	task progress.Task
	sent atomic.Int64 // of the attempt under way, as the task was told
}

var _ v1.Layer = (*file)(nil)

func (f *file) Digest() (v1.Hash, error)             { return hash(f.blob.Digest), nil }
func (f *file) DiffID() (v1.Hash, error)             { return hash(f.blob.Digest), nil }
func (f *file) Size() (int64, error)                 { return f.blob.Size, nil }
func (f *file) MediaType() (types.MediaType, error)  { return types.MediaType(f.blob.MediaType), nil }
func (f *file) Uncompressed() (io.ReadCloser, error) { return f.Compressed() }

func (f *file) Compressed() (io.ReadCloser, error) {
	in, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	return &attempt{file: f, in: in}, nil
}

// count tells the task that n bytes of the file are sent in all.
func (f *file) count(n int64) { f.task.Add(n - f.sent.Swap(n)) }

// attempt is one try to send a file.
type attempt struct {
	file *file
	in   *os.File
	at   int64
}

func (a *attempt) Read(p []byte) (int, error) {
	n, err := a.in.Read(p)
	a.at += int64(n)
	a.file.count(a.at)
	return n, err
}

func (a *attempt) Close() error { return a.in.Close() }
