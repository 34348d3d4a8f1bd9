package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// list is the record of the tests' kind: what it names, and of which size.
type list struct {
	Blobs map[string]int64 `json:"blobs"` // by digest
}

// testKind stands for layers and loaders alike; builder tests the real ones.
func testKind(name string) Kind {
	return Kind{Name: name, Blobs: func(record []byte) ([]Blob, error) {
		var l list
		if err := json.Unmarshal(record, &l); err != nil {
			return nil, err
		}
		var out []Blob
		for digest, size := range l.Blobs {
			out = append(out, Blob{Digest: digest, Size: size, MediaType: Squashfs, Title: "file", Limit: 1 << 20})
		}
		return out, nil
	}}
}

var key = strings.Repeat("5a", 32)

func digestOf(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

func openCache(t *testing.T) *cache.Cache {
	t.Helper()
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// fill puts contents and a record that names them into a cache.
func fill(t *testing.T, c *cache.Cache, kind Kind, contents ...[]byte) Artifact {
	t.Helper()
	l := list{Blobs: map[string]int64{}}
	for _, content := range contents {
		digest := digestOf(content)
		l.Blobs[digest] = int64(len(content))
		if err := c.PutBlob(digest, int64(len(content)), bytes.NewReader(content)); err != nil {
			t.Fatal(err)
		}
	}
	record, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.PutRecord(kind.Name, key, record); err != nil {
		t.Fatal(err)
	}
	a, ok, err := Find(c, kind, key)
	if err != nil || !ok {
		t.Fatalf("what was put into the cache is not found: %v %v", ok, err)
	}
	return a
}

// serve starts a registry in memory, behind a filter if there is one.
func serve(t *testing.T, filter func(http.Handler) http.Handler) *Repository {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir()) // nobody's credentials
	handler := ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0)))
	if filter != nil {
		handler = filter(handler)
	}
	s := httptest.NewServer(handler)
	t.Cleanup(s.Close)
	r, err := New(strings.TrimPrefix(s.URL, "http://") + "/test/layers")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func push(t *testing.T, r *Repository, c *cache.Cache, a Artifact) {
	t.Helper()
	if err := r.Push(t.Context(), c, a, "test", progress.None); err != nil {
		t.Fatal(err)
	}
}

func pull(t *testing.T, ctx context.Context, r *Repository, c *cache.Cache, kind Kind) (bool, error) {
	t.Helper()
	p, err := r.Puller(ctx)
	if err != nil {
		return false, err
	}
	return p.Pull(ctx, c, kind, key, "test", progress.None)
}

func TestWhatIsPushedIsPulledAsItWas(t *testing.T) {
	for _, name := range []string{"layer", "loader"} {
		kind := testKind(name)
		r := serve(t, nil)
		from, to := openCache(t), openCache(t)
		contents := [][]byte{bytes.Repeat([]byte("layer "), 100_000), []byte("kernel")}
		a := fill(t, from, kind, contents...)
		push(t, r, from, a)
		push(t, r, from, a) // a second push changes nothing
		found, err := pull(t, t.Context(), r, to, kind)
		if err != nil || !found {
			t.Fatalf("%s: found is %v: %v", name, found, err)
		}
		record, _ := to.Record(name, key)
		if !bytes.Equal(record, a.Record) {
			t.Errorf("%s: the record became %s, was %s", name, record, a.Record)
		}
		for _, want := range contents {
			path, ok := to.Blob(digestOf(want))
			got, err := os.ReadFile(path)
			if !ok || err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: a blob of %d bytes did not arrive whole: %v", name, len(want), err)
			}
		}
	}
}

func TestTheManifestIsAnArtifactsBySpecification(t *testing.T) {
	kind := testKind("layer")
	c := openCache(t)
	raw, err := newManifest(fill(t, c, kind, []byte("content")))
	if err != nil {
		t.Fatal(err)
	}
	var m struct {
		SchemaVersion           int
		MediaType, ArtifactType string
		Config                  struct{ MediaType string }
		Layers                  []struct{ MediaType string }
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	const config = "application/vnd.slipway.layer.v1+json"
	if m.SchemaVersion != 2 || m.MediaType != "application/vnd.oci.image.manifest.v1+json" ||
		m.ArtifactType != config || m.Config.MediaType != config || len(m.Layers) != 1 || m.Layers[0].MediaType != Squashfs {
		t.Errorf("%s", raw)
	}
}

func TestATagThatIsMissingIsNoError(t *testing.T) {
	found, err := pull(t, t.Context(), serve(t, nil), openCache(t), testKind("layer"))
	if found || err != nil {
		t.Errorf("found is %v: %v", found, err)
	}
}

// answering replaces the bodies of what the registry says to GETs of paths that
// contain part.
func answering(part string, replace func([]byte) []byte) func(http.Handler) http.Handler {
	return func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method != http.MethodGet || !strings.Contains(req.URL.Path, part) {
				inner.ServeHTTP(w, req)
				return
			}
			rec := httptest.NewRecorder()
			inner.ServeHTTP(rec, req)
			w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
			w.WriteHeader(rec.Code)
			w.Write(replace(rec.Body.Bytes()))
		})
	}
}

func TestWrongBytesAreRefusedAndNothingIsRecorded(t *testing.T) {
	content := bytes.Repeat([]byte("layer "), 50_000)
	blob := "/blobs/sha256:" + digestOf(content)
	for name, c := range map[string]struct {
		part    string
		replace func([]byte) []byte
	}{
		"a changed byte":             {blob, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }},
		"a shorter blob":             {blob, func(b []byte) []byte { return b[:len(b)-1] }},
		"a longer blob":              {blob, func(b []byte) []byte { return append(b, 0) }},
		"a record of other bytes":    {"/blobs/", func(b []byte) []byte { return bytes.Replace(b, []byte("{"), []byte("["), 1) }},
		"a manifest that is no JSON": {"/manifests/", func(b []byte) []byte { return b[1:] }},
		"a manifest without an end":  {"/manifests/", func(b []byte) []byte { return make([]byte, maxManifest+1) }},
		"another key's artifact":     {"/manifests/", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(key), []byte(strings.Repeat("b4", 32))) }},
		"another kind's artifact":    {"/manifests/", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte("slipway.layer"), []byte("slipway.loader")) }},
		"a huge record":              {"/manifests/", resize(func(m *v1.Manifest) { m.Config.Size = maxRecord + 1 })},
		"a huge layer":               {"/manifests/", resize(func(m *v1.Manifest) { m.Layers[0].Size = 1 << 40 })},
		"a negative size":            {"/manifests/", resize(func(m *v1.Manifest) { m.Layers[0].Size = -1 })},
	} {
		t.Run(name, func(t *testing.T) {
			kind := testKind("layer")
			r := serve(t, answering(c.part, c.replace))
			from, to := openCache(t), openCache(t)
			push(t, r, from, fill(t, from, kind, content))
			found, err := pull(t, t.Context(), r, to, kind)
			if found || fault.Of(err) != fault.Integrity || fault.Mend(err) == "" {
				t.Errorf("found is %v, class %s, mend %q: %v", found, fault.Of(err), fault.Mend(err), err)
			}
			if _, ok := to.Record("layer", key); ok {
				t.Error("a record was written")
			}
			if _, ok := to.Blob(digestOf(content)); ok {
				t.Error("a blob was kept")
			}
		})
	}
}

// resize edits a manifest on its way.
func resize(edit func(*v1.Manifest)) func([]byte) []byte {
	return func(raw []byte) []byte {
		m, err := v1.ParseManifest(bytes.NewReader(raw))
		if err != nil {
			return raw
		}
		edit(m)
		raw, _ = json.Marshal(m)
		return raw
	}
}

func TestARecordThatNamesForeignDigestsIsRefused(t *testing.T) {
	kind := testKind("layer")
	r := serve(t, nil)
	from, to := openCache(t), openCache(t)
	a := fill(t, from, kind, []byte("one"), []byte("two"))
	a.Blobs = a.Blobs[:1] // the record still names both
	push(t, r, from, a)
	_, err := pull(t, t.Context(), r, to, kind)
	if fault.Of(err) != fault.Integrity || !strings.Contains(err.Error(), "not among the artifact's layers") {
		t.Errorf("class %s: %v", fault.Of(err), err)
	}
}

func TestARegistryThatIsDownIsANetworkError(t *testing.T) {
	r, err := New("127.0.0.1:9/test/layers")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	if _, err := pull(t, t.Context(), r, openCache(t), testKind("layer")); fault.Of(err) != fault.Network {
		t.Errorf("pull: class %s: %v", fault.Of(err), err)
	}
	c := openCache(t)
	a := fill(t, c, testKind("layer"), []byte("content"))
	if err := r.Push(t.Context(), c, a, "test", progress.None); fault.Of(err) != fault.Network {
		t.Errorf("push: class %s: %v", fault.Of(err), err)
	}
}

func TestAConnectionThatBreaksIsANetworkErrorAndNoWrongBytes(t *testing.T) {
	content := bytes.Repeat([]byte("layer "), 50_000)
	r := serve(t, func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet && strings.Contains(req.URL.Path, digestOf(content)) {
				w.Header().Set("Content-Length", fmt.Sprint(len(content)))
				w.Write(content[:1000])
				panic(http.ErrAbortHandler)
			}
			inner.ServeHTTP(w, req)
		})
	})
	kind := testKind("layer")
	from, to := openCache(t), openCache(t)
	push(t, r, from, fill(t, from, kind, content))
	_, err := pull(t, t.Context(), r, to, kind)
	if fault.Of(err) != fault.Network {
		t.Errorf("class %s: %v", fault.Of(err), err)
	}
}

func TestARefusalNamesTheLogin(t *testing.T) {
	r := serve(t, func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		})
	})
	_, err := pull(t, t.Context(), r, openCache(t), testKind("layer"))
	if fault.Of(err) != fault.Network || !strings.Contains(fault.Mend(err), "log in") {
		t.Errorf("class %s, mend %q: %v", fault.Of(err), fault.Mend(err), err)
	}
}

func TestAPullEndsWithItsContext(t *testing.T) {
	content := bytes.Repeat([]byte("layer "), 50_000)
	ctx, cancel := context.WithCancel(t.Context())
	r := serve(t, func(inner http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			if req.Method == http.MethodGet && strings.Contains(req.URL.Path, digestOf(content)) {
				w.Header().Set("Content-Length", fmt.Sprint(len(content)))
				w.Write(content[:1000])
				w.(http.Flusher).Flush()
				cancel()
				<-req.Context().Done()
				return
			}
			inner.ServeHTTP(w, req)
		})
	})
	kind := testKind("layer")
	from, to := openCache(t), openCache(t)
	push(t, r, from, fill(t, from, kind, content))
	if _, err := pull(t, ctx, r, to, kind); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestPlainHTTPIsForThisMachineOnly(t *testing.T) {
	for host, want := range map[string]bool{
		"127.0.0.1": true, "::1": true, "localhost": true, "a.localhost": true,
		"10.0.0.1": false, "192.168.1.1": false, "example.org": false, "localhost.example.org": false,
	} {
		if got := loopback(host); got != want {
			t.Errorf("%s: %v, want %v", host, got, want)
		}
	}
	req := httptest.NewRequest(http.MethodGet, "http://10.0.0.1/v2/", nil)
	if _, err := newTransport().RoundTrip(req); err == nil || !strings.Contains(err.Error(), "https") {
		t.Errorf("a private network: %v", err)
	}
}

func TestARepositoryNeedsItsHost(t *testing.T) {
	for _, bad := range []string{"", "layers", "ci.example.org/Layers", "http://ci.example.org/layers", "ci.example.org/layers:tag"} {
		if r, err := New(bad); fault.Of(err) != fault.Usage {
			t.Errorf("%q is taken as %v: %v", bad, r, err)
		}
	}
}

func FuzzManifest(f *testing.F) {
	kind := testKind("layer")
	content := digestOf([]byte("content"))
	record, _ := json.Marshal(list{Blobs: map[string]int64{content: 7}})
	raw, err := newManifest(Artifact{Kind: kind, Key: key, Record: record,
		Blobs: []Blob{{Digest: content, Size: 7, MediaType: Squashfs, Title: "file"}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(raw), record)
	f.Fuzz(func(t *testing.T, raw, record []byte) {
		m, err := parseManifest(raw, kind, key)
		if err != nil {
			return
		}
		if m.Config.MediaType != types.MediaType(kind.MediaType()) {
			t.Errorf("config of type %s", m.Config.MediaType)
		}
		blobs, err := match(kind, record, m)
		if err != nil {
			return
		}
		for _, b := range blobs {
			if b.Size < 0 || b.Size > b.Limit || !digestPattern.MatchString(b.Digest) {
				t.Errorf("%+v was let through", b)
			}
		}
	})
}
