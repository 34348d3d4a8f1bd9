package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// Puller takes artifacts out of a repository. Its methods may be called from
// several goroutines.
type Puller struct {
	r      *Repository
	client *http.Client
}

// Puller finds out whether the registry answers and logs in to it.
//
// Blobs are read with a client of our own over go-containerregistry's transport:
// its readers report a wrong digest and a broken connection alike, and for us one
// is an attack and the other is weather.
func (r *Repository) Puller(ctx context.Context) (*Puller, error) {
	auth, err := authn.Resolve(ctx, authn.DefaultKeychain, r.repo)
	if err != nil {
		return nil, failed(ctx, "credentials for "+r.String(), err)
	}
	tr, err := transport.NewWithContext(ctx, r.repo.Registry, auth, transport.NewRetry(r.transport), []string{r.repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, failed(ctx, r.String(), err)
	}
	return &Puller{r: r, client: &http.Client{Transport: tr}}, nil
}

// Image finds an OCI image by its digest in another repository of the same registry.
func (r *Repository) Image(ctx context.Context, repository, digest string) (v1.Image, error) {
	ref := r.repo.Registry.Repo(repository).Digest("sha256:" + digest)
	return remote.Image(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithTransport(r.transport))
}

// Pull brings an artifact into the cache, its record last. That the repository does
// not have it is no error: found is false. Wrong bytes are of class
// fault.Integrity, a registry that does not serve is of class fault.Network.
func (p *Puller) Pull(ctx context.Context, c *cache.Cache, kind Kind, key, title string, reporter progress.Reporter) (found bool, err error) {
	what := p.r.String() + ":" + tag(kind, key)
	raw, err := p.bytes(ctx, "manifests/"+tag(kind, key), what, maxManifest)
	if isMissing(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	m, err := parseManifest(raw, kind, key)
	if err != nil {
		return false, wrong(what, err)
	}
	record, err := p.bytes(ctx, "blobs/"+m.Config.Digest.String(), what, m.Config.Size)
	if err != nil {
		return false, err
	}
	if sum := sha256.Sum256(record); hex.EncodeToString(sum[:]) != m.Config.Digest.Hex {
		return false, wrong(what, fmt.Errorf("its record has SHA-256 %x, want %s", sum, m.Config.Digest.Hex))
	}
	blobs, err := match(kind, record, m)
	if err != nil {
		return false, wrong(what, err)
	}
	task := reporter.Start("pull "+title, Artifact{Blobs: blobs}.Size(), progress.Bytes)
	defer func() { task.Done(err) }()
	for _, b := range blobs {
		task.Detail(b.Title)
		if err := p.blob(ctx, c, b, what, task); err != nil {
			return false, err
		}
	}
	return true, c.PutRecord(kind.Name, key, record)
}

// parseManifest reads an artifact's manifest and refuses one of another kind or
// key, or with sizes beyond the limits.
func parseManifest(raw []byte, kind Kind, key string) (*v1.Manifest, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	if m.Config.MediaType != types.MediaType(kind.MediaType()) {
		return nil, fmt.Errorf("manifest: config has media type %q, want %q", m.Config.MediaType, kind.MediaType())
	}
	if got := m.Annotations[keyAnnotation]; got != key {
		return nil, fmt.Errorf("manifest: %s is %q, want %q", keyAnnotation, got, key)
	}
	if m.Config.Size < 1 || m.Config.Size > maxRecord {
		return nil, fmt.Errorf("manifest: config of %d bytes, want 1 to %d", m.Config.Size, maxRecord)
	}
	if len(m.Layers) > maxBlobs {
		return nil, fmt.Errorf("manifest: %d layers, want at most %d", len(m.Layers), maxBlobs)
	}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if d.Digest.Algorithm != "sha256" || !digestPattern.MatchString(d.Digest.Hex) {
			return nil, fmt.Errorf("manifest: digest %q, want one by sha256", d.Digest)
		}
	}
	return m, nil
}

// match returns what the record names, with sizes by the manifest. A record that
// names anything else than the artifact's layers is refused.
func match(kind Kind, record []byte, m *v1.Manifest) ([]Blob, error) {
	blobs, err := named(kind, record)
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	sizes := map[string]int64{}
	for _, d := range m.Layers {
		sizes[d.Digest.Hex] = d.Size
	}
	for i, b := range blobs {
		size, ok := sizes[b.Digest]
		switch {
		case !ok:
			return nil, fmt.Errorf("record: it names %s (%s), which is not among the artifact's layers", b.Digest, b.Title)
		case size < 0 || size > b.Limit:
			return nil, fmt.Errorf("manifest: %s has %d bytes, want at most %d", b.Title, size, b.Limit)
		case b.Size >= 0 && b.Size != size:
			return nil, fmt.Errorf("%s has %d bytes by the record and %d by the manifest", b.Title, b.Size, size)
		}
		blobs[i].Size = size
	}
	return blobs, nil
}

// blob brings one blob into the cache, unless it is there.
func (p *Puller) blob(ctx context.Context, c *cache.Cache, b Blob, what string, task progress.Task) error {
	if _, ok := c.CheckedBlob(b.Digest, b.Size); ok {
		task.Add(b.Size)
		return nil
	}
	return p.get(ctx, "blobs/sha256:"+b.Digest, what, func(resp *http.Response, in *body) error {
		if resp.ContentLength >= 0 && resp.ContentLength != b.Size {
			return wrong(what, fmt.Errorf("%s comes with %d bytes, want %d", b.Title, resp.ContentLength, b.Size))
		}
		// One byte more than wanted is enough to know that it is too many.
		err := c.PutBlob(b.Digest, b.Size, io.TeeReader(io.LimitReader(in, b.Size+1), counter{task}))
		if err != nil && fault.Of(err) == fault.Integrity {
			return wrong(what, fmt.Errorf("%s: %w", b.Title, err))
		}
		return err
	})
}

// bytes reads something small.
func (p *Puller) bytes(ctx context.Context, path, what string, limit int64) (data []byte, err error) {
	err = p.get(ctx, path, what, func(_ *http.Response, in *body) error {
		if data, err = io.ReadAll(io.LimitReader(in, limit+1)); err != nil {
			return err
		}
		if int64(len(data)) > limit {
			return wrong(what, fmt.Errorf("%s has more than %d bytes", path, limit))
		}
		return nil
	})
	return data, err
}

// get asks for one thing of the repository and has read take its answer.
func (p *Puller) get(ctx context.Context, path, what string, read func(*http.Response, *body) error) error {
	reqCtx, quit := context.WithCancel(ctx)
	defer quit()
	url := p.r.repo.Scheme() + "://" + p.r.repo.RegistryStr() + "/v2/" + p.r.repo.RepositoryStr() + "/" + path
	req, err := http.NewRequestWithContext(reqCtx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", string(types.OCIManifestSchema1)+", application/octet-stream;q=0.9, */*;q=0.1")
	resp, err := p.client.Do(req)
	if err != nil {
		return failed(ctx, what, err)
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, http.StatusOK); err != nil {
		return failed(ctx, what, err)
	}
	in := watch(resp.Body, quit)
	defer in.timer.Stop()
	err = read(resp, in)
	if in.err != nil {
		return failed(ctx, what, in.err)
	}
	return err
}

// isMissing says whether err is a registry's word that it has no such thing.
func isMissing(err error) bool {
	var answer *transport.Error
	return errors.As(err, &answer) && answer.StatusCode == http.StatusNotFound
}

// wrong is the error for an artifact that cannot be what slipway pushed.
func wrong(what string, err error) error {
	return fault.New(fault.Integrity, "%s: %w", what, err).
		WithMend("nothing of it was believed; remove the tag and push again from a machine that you trust, or build without --layers")
}

// counter adds what is written to it to a task.
type counter struct{ task progress.Task }

func (c counter) Write(p []byte) (int, error) {
	c.task.Add(int64(len(p)))
	return len(p), nil
}

// blobSize is the size of a blob in the cache.
func blobSize(c *cache.Cache, digest string) (size int64, ok bool, err error) {
	path, ok := c.Blob(digest)
	if !ok {
		return 0, false, nil
	}
	st, err := os.Stat(path)
	if err != nil {
		return 0, false, err
	}
	return st.Size(), true, nil
}
