package builder

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/oci"
	"github.com/slipwayhq/slipway/builder/profile"
)

// vendorLayout writes an image for linux/amd64 as an OCI image layout.
func vendorLayout(t *testing.T, dir, says string) {
	t.Helper()
	config, err := empty.Image.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture, config.Config.Cmd = "linux", "amd64", []string{says}
	im, err := mutate.ConfigFile(empty.Image, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := layout.Write(dir, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: im})); err != nil {
		t.Fatal(err)
	}
}

// goProject is a module with one program.
func goProject(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module example.com/acme\n\ngo 1.26\n", "service/main.go": "package main\n\nfunc main() { println(\"acme\") }\n",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestTheImagesOfARoleAreOneLayerThatStaysTheSame(t *testing.T) {
	project := goProject(t)
	vendorLayout(t, filepath.Join(project, "vendor/agent"), "one")
	role := &profile.Profile{Role: "dispatcher", Images: []profile.Image{{Name: "acme/service", Go: "./service"}, {Name: "acme/agent", Layout: "vendor/agent"}}}
	set := &profile.Set{Base: &profile.Profile{}, Tools: &profile.Profile{}, Roles: []*profile.Profile{role, {Role: "gateway"}}}
	var digests []string
	for range 2 {
		b, _ := testBuild(t, "registry.example/layers")
		b.Project, b.profiles = project, set
		b.lock = &lock.Lock{Created: time.Unix(1700000000, 0)}
		if err := LockImages(t.Context(), oci.Fetcher{Project: project, Cache: b.Cache}, b.lock, wantedImages(set), nil, nil); err != nil {
			t.Fatal(err)
		}
		if len(b.lock.Images) != 1 || b.lock.Images[0].Name != "acme/agent" || !slices.Equal(b.lock.Images[0].Sets, []string{"dispatcher"}) {
			t.Fatalf("locked %+v", b.lock.Images)
		}
		made, err := b.images(t.Context(), role)
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, made.Digest)
		if again, err := b.images(t.Context(), role); err != nil || !again.cached || again.Digest != made.Digest || len(again.list) != 2 {
			t.Errorf("made anew: %+v, %v", again, err)
		}
		if stack := stackOf(&layers{packages: map[string]madeLayer{"dispatcher": {}}}, role, made); len(stack) != 3 || stack[2].Digest != made.Digest {
			t.Errorf("the layers are %+v", stack)
		}
		if none, err := b.images(t.Context(), set.Roles[1]); err != nil || len(none.list) != 0 || len(stackOf(&layers{}, set.Roles[1], none)) != 2 {
			t.Errorf("a role without images: %+v, %v", none, err)
		}
		files := filesOf(t, b, made.madeLayer)
		for _, im := range made.list {
			if !slices.Contains(files, manifest.ImagesDir+"/blobs/sha256/"+im.Digest) {
				t.Errorf("the manifest of %s is not in the layer: %v", im.Name, files)
			}
		}
		// The vendor's next version is not taken until it is locked.
		b, _ = testBuild(t, "registry.example/layers")
		b.Project, b.profiles, b.lock = project, set, &lock.Lock{Images: []lock.Image{{Name: "acme/agent", Digest: strings.Repeat("ab", 32), Source: "layout:vendor/agent"}}}
		if _, err := b.images(t.Context(), role); err == nil || !strings.Contains(err.Error(), "images.lock wants sha256:abab") {
			t.Errorf("an image that is not the locked one: %v", err)
		}
	}
	if digests[0] != digests[1] {
		t.Error("two caches make two layers")
	}
}

// TestAMirrorHasTheLockedImagesWhereTheirSourceIsOutOfReach builds with a registry that holds the layers' repository
// and the image, as slipway mirror serves them, and with a source that is gone.
func TestAMirrorHasTheLockedImagesWhereTheirSourceIsOutOfReach(t *testing.T) {
	mirror := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer mirror.Close()
	host := strings.TrimPrefix(mirror.URL, "http://")
	dir := filepath.Join(t.TempDir(), "layout")
	vendorLayout(t, dir, "one")
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	m, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	im, err := index.Image(m.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	to, err := name.ParseReference(host + "/acme/agent:7")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(to, im); err != nil {
		t.Fatal(err)
	}
	digest := m.Manifests[0].Digest.Hex
	role := &profile.Profile{Role: "dispatcher", Images: []profile.Image{{Name: "acme/agent:7", Registry: "127.0.0.1:9/vendor/agent"}}}
	b, _ := testBuild(t, host+"/slipway/layers")
	b.lock = &lock.Lock{Created: time.Unix(1700000000, 0), Images: []lock.Image{{Name: "acme/agent:7", Digest: digest, Source: "registry:127.0.0.1:9/vendor/agent"}}}
	made, err := b.images(t.Context(), role)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(filesOf(t, b, made.madeLayer), manifest.ImagesDir+"/blobs/sha256/"+digest) {
		t.Error("the image is not in the layer")
	}
}

// filesOf lists the files of a layer.
func filesOf(t *testing.T, b *build, l madeLayer) (names []string) {
	t.Helper()
	tr, f, err := b.layerTree(l)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, e := range tr.Sorted() {
		names = append(names, e.Path)
	}
	return names
}
