package mirror_test

import (
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/mirror"
	"github.com/slipwayhq/slipway/builder/mirror/serve"
	"github.com/slipwayhq/slipway/builder/oci"
)

// image is a small image for linux on amd64, in OCI's own media types.
func image(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(2000, 2)
	must(t, err)
	config, err := img.ConfigFile()
	must(t, err)
	config.OS, config.Architecture = "linux", "amd64"
	img, err = mutate.ConfigFile(img, config)
	must(t, err)
	return mutate.MediaType(mutate.ConfigMediaType(img, types.OCIConfigJSON), types.OCIManifestSchema1)
}

func digestOf(t *testing.T, img v1.Image) string {
	t.Helper()
	d, err := img.Digest()
	must(t, err)
	return d.String()
}

// TestImagesTravelWithTheirDigests carries images from each kind of source over the gap, and pulls them with
// go-containerregistry and with skopeo.
func TestImagesTravelWithTheirDigests(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Fatalf("skopeo is needed: %v", err)
	}
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	dir := t.TempDir()
	inLayout, inRegistry, saved, locked, other := image(t), image(t), image(t), image(t), image(t)

	// A layout that holds an image for two platforms, as docker buildx makes them.
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "arm64"}}},
		mutate.IndexAddendum{Add: inLayout, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "amd64"}}})
	_, err := layout.Write(filepath.Join(dir, "layout"), mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: index}))
	must(t, err)
	_, err = layout.Write(filepath.Join(dir, "locked"), mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: locked}))
	must(t, err)
	upstream := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer upstream.Close()
	pushed, err := name.ParseReference(strings.TrimPrefix(upstream.URL, "http://") + "/vendor/agent:7")
	must(t, err)
	must(t, remote.Write(pushed, inRegistry))
	tag, err := name.NewTag("vendor/saved:1")
	must(t, err)
	must(t, tarball.WriteToFile(filepath.Join(dir, "saved.tar"), tag, saved))

	s, a := newSide(t, 1<<20)
	c, err := cache.Open(s.Cache)
	must(t, err)
	for as, source := range map[string]string{"acme/layout:4": "oci:" + filepath.Join(dir, "layout"), "acme/agent": pushed.String(), "acme/saved:1": "docker-archive:" + filepath.Join(dir, "saved.tar")} {
		img, err := mirror.LoadImage(t.Context(), c, as, source)
		must(t, err)
		s.images = append(s.images, img)
	}
	// What the lock pins comes along without being asked for.
	l := &lock.Lock{Images: []lock.Image{{Name: "acme/locked", Source: "layout:locked", Digest: strings.TrimPrefix(digestOf(t, locked), "sha256:")}}}
	pinned, err := mirror.LockedImages(t.Context(), l, oci.Fetcher{Project: dir, Cache: c})
	must(t, err)
	s.images = append(s.images, pinned...)
	for _, wrong := range []struct{ as, source string }{
		{"Acme/x:1", "oci:" + filepath.Join(dir, "layout")}, {"acme/../x:1", "oci:" + filepath.Join(dir, "layout")},
		{"acme/x:1", "oci:" + dir}, {"acme/x:1", "docker-archive:" + filepath.Join(dir, "none.tar")}, {"acme/x:1", upstream.URL}, {"acme/x:1", strings.TrimPrefix(upstream.URL, "http://") + "/none:1"},
	} {
		if _, err := mirror.LoadImage(t.Context(), c, wrong.as, wrong.source); err == nil {
			t.Errorf("%s from %s is taken", wrong.as, wrong.source)
		}
	}
	c.Close()
	upstream.Close() // what is carried is carried

	media, _ := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, media)
	if r := mustBeWhole(t, far, a.Key()); r.Images != 4 {
		t.Errorf("%d images arrived, want 4", r.Images)
	}
	handler, err := serve.New(filepath.Join(far, "public"), serve.Options{})
	must(t, err)
	server := httptest.NewServer(handler)
	defer server.Close()
	host := strings.TrimPrefix(server.URL, "http://")
	for ref, want := range map[string]string{"acme/layout:4": digestOf(t, inLayout), "acme/agent:latest": digestOf(t, inRegistry), "acme/locked:latest": digestOf(t, locked), "acme/saved:1": ""} {
		r, err := name.ParseReference(host + "/" + ref)
		must(t, err)
		got, err := remote.Image(r)
		must(t, err)
		must(t, validate.Image(got))
		if want != "" && digestOf(t, got) != want { // docker save keeps no manifest, so its digest is a new one
			t.Errorf("%s has digest %s, want %s", ref, digestOf(t, got), want)
		}
		to := filepath.Join(t.TempDir(), "copy")
		skopeo(t, "copy", "--src-tls-verify=false", "--preserve-digests", "docker://"+host+"/"+ref, "dir:"+to)
		manifest, err := os.ReadFile(filepath.Join(to, "manifest.json"))
		must(t, err)
		raw, err := got.RawManifest()
		must(t, err)
		if !slices.Equal(manifest, raw) {
			t.Errorf("skopeo copies another manifest of %s", ref)
		}
	}
	if tags := skopeo(t, "list-tags", "--tls-verify=false", "docker://"+host+"/acme/layout"); !strings.Contains(tags, `"4"`) {
		t.Errorf("skopeo lists the tags %s", tags)
	}
	// The layout is one for other tools too, with no server.
	skopeo(t, "inspect", "oci:"+filepath.Join(far, "public/oci")+":acme/layout:4")
}

// skopeo runs the real one, with no policy and no credentials of this machine.
func skopeo(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command("skopeo", append([]string{"--insecure-policy"}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}
