package oci

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/internal/fault"
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func fetcher(t testing.TB) Fetcher {
	t.Helper()
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return Fetcher{Project: t.TempDir(), Cache: c}
}

// image is a random one for a platform.
func image(t testing.TB, architecture string) v1.Image {
	t.Helper()
	im := must(random.Image(500, 2))
	config := must(im.ConfigFile()).DeepCopy()
	config.OS, config.Architecture = "linux", architecture
	return must(mutate.ConfigFile(im, config))
}

// index holds an image for appliances beside others.
func index(t testing.TB, ours v1.Image) v1.ImageIndex {
	t.Helper()
	add := func(im v1.Image, os, architecture string) mutate.IndexAddendum {
		return mutate.IndexAddendum{Add: im, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: os, Architecture: architecture}}}
	}
	return mutate.AppendManifests(empty.Index, add(image(t, "arm64"), "linux", "arm64"), add(ours, "linux", "amd64"), add(image(t, "unknown"), "unknown", "unknown"))
}

func digestOf(t testing.TB, im v1.Image) string {
	t.Helper()
	return must(im.Digest()).Hex
}

func save(t testing.TB, file string, im v1.Image) {
	t.Helper()
	if err := tarball.WriteToFile(file, must(name.NewTag("acme/portal:1")), im); err != nil {
		t.Fatal(err)
	}
}

// pack writes a directory as a tar archive.
func pack(t testing.TB, file, dir string) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestAnImageIsTakenFromEverySourceAndThenFromTheCache(t *testing.T) {
	f := fetcher(t)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	host := strings.TrimPrefix(server.URL, "http://")
	ours := image(t, "amd64")
	many := index(t, ours)
	if err := remote.WriteIndex(must(name.ParseReference(host+"/acme/portal:1")), many); err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(must(name.ParseReference(host+"/acme/single:1")), ours); err != nil {
		t.Fatal(err)
	}
	must(layout.Write(filepath.Join(f.Project, "layout"), many))
	pack(t, filepath.Join(f.Project, "layout.tar"), filepath.Join(f.Project, "layout"))

	for _, s := range []Source{{Registry, host + "/acme/portal:1"}, {Registry, host + "/acme/single:1"}, {Layout, "layout"}, {Tarball, "layout.tar"}} {
		t.Run(s.String(), func(t *testing.T) {
			own := f
			own.Cache = fetcher(t).Cache
			digest, err := own.Resolve(t.Context(), s)
			if err != nil || digest != digestOf(t, ours) {
				t.Fatalf("resolved to %s, %v; want %s", digest, err, digestOf(t, ours))
			}
			if complete(own.Cache, digest) {
				t.Error("to resolve it got the whole image")
			}
			if err := own.Fetch(t.Context(), s, digest); err != nil || !complete(own.Cache, digest) {
				t.Fatalf("not fetched: %v", err)
			}
			if err := own.Fetch(t.Context(), Source{Registry, "gone.invalid/acme:1"}, digest); err != nil {
				t.Errorf("what the cache has was looked for elsewhere: %v", err)
			}
		})
	}
	t.Run("a tag that moved", func(t *testing.T) {
		if err := remote.Write(must(name.ParseReference(host+"/acme/single:1")), image(t, "amd64")); err != nil {
			t.Fatal(err)
		}
		own := fetcher(t)
		if err := own.Fetch(t.Context(), Source{Registry, host + "/acme/single:1"}, digestOf(t, ours)); err != nil {
			t.Errorf("the locked digest is still there: %v", err)
		}
	})
	server.Close()
	if err := fetcher(t).Fetch(t.Context(), Source{Registry, host + "/acme/portal:1"}, digestOf(t, ours)); fault.Of(err) != fault.Network {
		t.Errorf("without the registry: %v", err)
	}
}

func TestATarballOfDockerSaveKeepsItsDigest(t *testing.T) {
	f := fetcher(t)
	save(t, filepath.Join(f.Project, "saved.tar"), image(t, "amd64"))
	first := must(f.Resolve(t.Context(), Source{Tarball, "saved.tar"}))
	again := must(fetcher(t).withProject(f.Project).Resolve(t.Context(), Source{Tarball, "saved.tar"}))
	if first != again {
		t.Errorf("%s, then %s", first, again)
	}
	if err := f.Fetch(t.Context(), Source{Tarball, "saved.tar"}, first); err != nil {
		t.Fatal(err)
	}
	save(t, filepath.Join(f.Project, "saved.tar"), image(t, "amd64"))
	if err := fetcher(t).withProject(f.Project).Fetch(t.Context(), Source{Tarball, "saved.tar"}, first); fault.Of(err) != fault.Integrity || !strings.Contains(fault.Mend(err), "slipway lock") {
		t.Errorf("another tarball in its place: %v", err)
	}
}

func (f Fetcher) withProject(dir string) Fetcher { f.Project = dir; return f }

// oldSave is a tarball as docker save wrote it up to version 24: uncompressed layers,
// the second one a link to the first.
func oldSave(t testing.TB, link string) []byte {
	t.Helper()
	im := image(t, "amd64")
	layer := must(io.ReadAll(must(must(im.Layers())[0].Uncompressed())))
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(h tar.Header, content []byte) {
		h.Size = int64(len(content))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		must(w.Write(content))
	}
	add(tar.Header{Name: "a/layer.tar", Typeflag: tar.TypeReg}, layer)
	add(tar.Header{Name: "b/layer.tar", Typeflag: tar.TypeSymlink, Linkname: link}, nil)
	add(tar.Header{Name: "config.json", Typeflag: tar.TypeReg}, must(im.RawConfigFile()))
	add(tar.Header{Name: "manifest.json", Typeflag: tar.TypeReg},
		must(json.Marshal([]savedImage{{Config: "config.json", Layers: []string{"a/layer.tar", "b/layer.tar"}}})))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestLinksOfATarballStayInsideIt(t *testing.T) {
	f := fetcher(t)
	file := filepath.Join(f.Project, "old.tar")
	for link, fine := range map[string]bool{"../a/layer.tar": true, "../../../../../../etc/hostname": false, "/etc/hostname": false, "layer.tar": false} {
		if err := os.WriteFile(file, oldSave(t, link), 0o644); err != nil {
			t.Fatal(err)
		}
		digest, err := f.Resolve(t.Context(), Source{Tarball, "old.tar"})
		if (err == nil) != fine {
			t.Errorf("%s: %v", link, err)
		}
		if fine {
			if err := f.Fetch(t.Context(), Source{Tarball, "old.tar"}, digest); err != nil {
				t.Errorf("%s: %v", link, err)
			}
		}
	}
}

func TestWhatIsNoImageIsRefused(t *testing.T) {
	f := fetcher(t)
	must(layout.Write(filepath.Join(f.Project, "arm"), mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image(t, "arm64")})))
	must(layout.Write(filepath.Join(f.Project, "two"), mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: image(t, "amd64")}, mutate.IndexAddendum{Add: image(t, "amd64")})))
	for name, content := range map[string]string{"text.tar": "no archive at all", "empty.tar": ""} {
		if err := os.WriteFile(filepath.Join(f.Project, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		s    Source
		says string
	}{
		{Source{Layout, "arm"}, "linux/arm64"}, {Source{Layout, "two"}, "2 images"}, {Source{Layout, "gone"}, "gone"}, {Source{Tarball, "gone.tar"}, "gone.tar"},
		{Source{Tarball, "text.tar"}, "text.tar"}, {Source{Tarball, "empty.tar"}, "neither"}, {Source{Registry, "NOT A NAME"}, "does not name an image"},
	} {
		_, err := f.Resolve(t.Context(), c.s)
		if err == nil || !strings.Contains(err.Error(), c.says) || fault.Of(err) != fault.Input {
			t.Errorf("%s: %v, want %q", c.s, err, c.says)
		}
	}
}

func TestAProgramsImageHasTheSameBytesAnywhere(t *testing.T) {
	var digests []string
	for range 2 {
		f := fetcher(t)
		w := must(f.Cache.NewBlob())
		must(w.Write([]byte("\x7fELF, so to say")))
		program, _, err := w.Commit()
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, must(Program(f.Cache, "./vendor/probe", program, 1700000000)))
		m, _, err := Manifest(f.Cache, digests[0])
		if err != nil || !complete(f.Cache, digests[0]) {
			t.Fatalf("%+v, %v", m, err)
		}
		config := must(os.ReadFile(first(f.Cache.Blob(m.Config.Digest.Hex))))
		for _, want := range []string{`"User":"65532:65532"`, `"Entrypoint":["/probe"]`, `"architecture":"amd64"`} {
			if !bytes.Contains(config, []byte(want)) {
				t.Errorf("the configuration has no %s: %s", want, config)
			}
		}
	}
	if digests[0] != digests[1] {
		t.Error("the images differ")
	}
}

func first(path string, _ bool) string { return path }

func TestTheTreeIsALayoutThatOthersReadAndHoldsEachBlobOnce(t *testing.T) {
	f := fetcher(t)
	one := image(t, "amd64")
	two := must(mutate.Config(one, v1.Config{Cmd: []string{"other"}})) // of the same layers
	for dir, im := range map[string]v1.Image{"one": one, "two": two} {
		must(layout.Write(filepath.Join(f.Project, dir), mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: im})))
		if err := f.Fetch(t.Context(), Source{Layout, dir}, digestOf(t, im)); err != nil {
			t.Fatal(err)
		}
	}
	tr, err := Tree(f.Cache, []Named{{"portal", digestOf(t, one)}, {"acme/other:2", digestOf(t, two)}}, 1700000000)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	blobs := 0
	for _, e := range tr.Sorted() {
		if e.Open == nil {
			continue
		}
		if strings.Contains(e.Path, "/blobs/") {
			blobs++
		}
		to := filepath.Join(dir, strings.TrimPrefix(e.Path, manifest.ImagesDir))
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, must(io.ReadAll(must(e.Open()))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if blobs != 2+2+2 {
		t.Errorf("%d blobs: want two manifests, two configurations and the two layers that both have", blobs)
	}
	index := must(layout.ImageIndexFromPath(dir))
	names := map[string]string{}
	for _, d := range must(index.IndexManifest()).Manifests {
		names[d.Annotations["io.containerd.image.name"]] = d.Digest.Hex
		if err := validate.Image(must(index.Image(d.Digest))); err != nil {
			t.Error(err)
		}
	}
	if names["docker.io/library/portal:latest"] != digestOf(t, one) || names["docker.io/acme/other:2"] != digestOf(t, two) {
		t.Errorf("the images are named %v", names)
	}
	var list []loaded
	if err := json.Unmarshal(must(os.ReadFile(filepath.Join(dir, "manifest.json"))), &list); err != nil || len(list) != 2 || len(list[0].Layers) != 2 {
		t.Errorf("manifest.json: %+v, %v", list, err)
	}
}

func TestNamesAreThoseOfDocker(t *testing.T) {
	for short, full := range map[string]string{
		"portal": "docker.io/library/portal:latest", "portal:2": "docker.io/library/portal:2", "acme/portal": "docker.io/acme/portal:latest",
		"acme.example/portal:3": "acme.example/portal:3",
	} {
		if got := Full(short); got != full {
			t.Errorf("%s: %s, want %s", short, got, full)
		}
	}
	if got := Reference("acme/portal:2", "00"); got != "acme/portal@sha256:00" {
		t.Errorf("got %s", got)
	}
}

func FuzzTarball(f *testing.F) {
	f.Add(oldSave(f, "../a/layer.tar"))
	f.Add([]byte("x"))
	fetch := fetcher(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		file := filepath.Join(t.TempDir(), "x.tar")
		if err := os.WriteFile(file, data, 0o644); err != nil {
			t.Fatal(err)
		}
		im, done, err := fetch.fromTarball(t.Context(), file)
		if err != nil {
			return
		}
		defer done()
		if check(im) == nil {
			fetch.store(im)
		}
	})
}

func FuzzParseSource(f *testing.F) {
	f.Add("registry:host/repo:1")
	f.Fuzz(func(t *testing.T, text string) {
		if s, err := ParseSource(text); err == nil && s.String() != text {
			t.Errorf("%q became %q", text, s)
		}
	})
}
