package serve_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/slipwayhq/slipway/builder/mirror/serve"
	"github.com/slipwayhq/slipway/builder/mirror/store"
)

// mirror is a published tree with a package and an image, and a server for it.
func mirror(t testing.TB) (url string, img v1.Image, dir string, access *bytes.Buffer) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "public")
	pool := filepath.Join(dir, "debian/pool")
	must(t, os.MkdirAll(pool, 0o755))
	must(t, os.WriteFile(filepath.Join(pool, "a_1+b_amd64.deb"), []byte("0123456789"), 0o644))
	must(t, os.WriteFile(filepath.Join(dir, "../secret"), []byte("the secret outside"), 0o644))
	must(t, os.Symlink("../../secret", filepath.Join(dir, "debian/out")))
	must(t, os.WriteFile(filepath.Join(pool, ".link-x"), []byte("half"), 0o644))
	img, err := random.Image(1000, 3)
	must(t, err)
	l, err := layout.Write(filepath.Join(dir, "oci"), emptyIndex(t))
	must(t, err)
	must(t, l.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "acme/session:4.1"})))
	access = &bytes.Buffer{}
	s, err := serve.New(dir, serve.Options{Access: access, Status: func() (store.Status, map[string]time.Time, error) {
		return store.Status{Site: "plant-7", Edition: 3}, map[string]time.Time{"AB": time.Unix(5, 0)}, nil
	}})
	must(t, err)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return server.URL, img, dir, access
}

func emptyIndex(t testing.TB) v1.ImageIndex {
	t.Helper()
	i, err := random.Index(1, 0, 0)
	must(t, err)
	return i
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ask sends a request with headers in pairs.
func ask(t *testing.T, method, url string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, url, nil)
	must(t, err)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp, string(body)
}

func TestFilesComeWholeInRangesAndOnlyWhenNew(t *testing.T) {
	url, _, dir, _ := mirror(t)
	file := url + "/debian/pool/a_1%2bb_amd64.deb"
	whole, body := ask(t, "GET", file)
	if whole.StatusCode != 200 || body != "0123456789" {
		t.Fatalf("%d %q", whole.StatusCode, body)
	}
	if part, body := ask(t, "GET", file, "Range", "bytes=4-"); part.StatusCode != 206 || body != "456789" {
		t.Errorf("a range: %d %q", part.StatusCode, body)
	}
	if head, body := ask(t, "HEAD", file); head.StatusCode != 200 || body != "" || head.ContentLength != 10 {
		t.Errorf("HEAD: %d %q", head.StatusCode, body)
	}
	tag := whole.Header.Get("ETag")
	if same, _ := ask(t, "GET", file, "If-None-Match", tag); same.StatusCode != 304 {
		t.Errorf("nothing new: %d", same.StatusCode)
	}
	// A new bundle replaces the file by another one, of the same size and an older time.
	path := filepath.Join(dir, "debian/pool/a_1+b_amd64.deb")
	must(t, os.WriteFile(path+".new", []byte("abcdefghij"), 0o644))
	must(t, os.Chtimes(path+".new", time.Unix(1, 0), time.Unix(1, 0)))
	must(t, os.Rename(path+".new", path))
	if next, body := ask(t, "GET", file, "If-None-Match", tag); next.StatusCode != 200 || body != "abcdefghij" {
		t.Errorf("something new: %d %q", next.StatusCode, body)
	}
	// apt asks by time alone.
	if next, body := ask(t, "GET", file, "If-Modified-Since", whole.Header.Get("Last-Modified")); next.StatusCode != 200 || body != "abcdefghij" {
		t.Errorf("something new, by its time: %d %q", next.StatusCode, body)
	}
	if same, _ := ask(t, "GET", file, "If-Modified-Since", "Thu, 01 Jan 1970 00:00:01 GMT"); same.StatusCode != 304 {
		t.Errorf("nothing new, by its time: %d", same.StatusCode)
	}
}

func TestNothingButThePublishedTreeIsServed(t *testing.T) {
	url, _, _, _ := mirror(t)
	for _, p := range []string{"/secret", "/../secret", "/%2e%2e/secret", "/debian/%2e%2e/%2e%2e/secret", "/debian/out", "/debian/pool/.link-x", "/debian", "/debian/pool/", "/debian//pool/a_1+b_amd64.deb", "/oci/blobs/sha256/none", "/v3/", "/v2/acme/session/blobs/sha256:../../../secret", "/v2/acme/session/blobs/none", "/v2/../secret"} {
		if resp, body := ask(t, "GET", url+p); resp.StatusCode < 400 && resp.StatusCode != 301 || strings.Contains(body, "the secret outside") {
			t.Errorf("%s: %d %q", p, resp.StatusCode, body)
		}
	}
	for _, method := range []string{"PUT", "POST", "DELETE", "PATCH", "OPTIONS"} {
		for _, p := range []string{"/debian/pool/a_1+b_amd64.deb", "/v2/acme/session/manifests/4.1", "/v2/acme/session/blobs/uploads/"} {
			if resp, _ := ask(t, method, url+p); resp.StatusCode != 405 {
				t.Errorf("%s %s: %d", method, p, resp.StatusCode)
			}
		}
	}
}

func TestTheRegistryServesImagesToClients(t *testing.T) {
	url, want, _, _ := mirror(t)
	host := strings.TrimPrefix(url, "http://")
	digest, err := want.Digest()
	must(t, err)
	for _, ref := range []string{host + "/acme/session:4.1", host + "/acme/session@" + digest.String()} {
		r, err := name.ParseReference(ref)
		must(t, err)
		got, err := remote.Image(r)
		must(t, err)
		must(t, validate.Image(got)) // reads every blob and checks its digest
		if d, err := got.Digest(); err != nil || d != digest {
			t.Errorf("%s has digest %s (%v), want %s", ref, d, err, digest)
		}
	}
	repo, err := name.NewRepository(host + "/acme/session")
	must(t, err)
	if tags, err := remote.List(repo); err != nil || len(tags) != 1 || tags[0] != "4.1" {
		t.Errorf("tags %v (%v)", tags, err)
	}
	reg, err := name.NewRegistry(host)
	must(t, err)
	if all, err := remote.Catalog(context.Background(), reg); err != nil || len(all) != 1 || all[0] != "acme/session" {
		t.Errorf("catalog %v (%v)", all, err)
	}
	for _, p := range []string{"/acme/session:5", "/acme/other:4.1"} {
		r, err := name.ParseReference(host + p)
		must(t, err)
		if _, err := remote.Image(r); err == nil || !strings.Contains(err.Error(), "UNKNOWN") {
			t.Errorf("%s: %v", p, err)
		}
	}
	layers, err := want.Layers()
	must(t, err)
	layer, err := layers[0].Digest()
	must(t, err)
	if part, body := ask(t, "GET", url+"/v2/acme/session/blobs/"+layer.String(), "Range", "bytes=10-19"); part.StatusCode != 206 || len(body) != 10 {
		t.Errorf("a range of a layer: %d, %d bytes", part.StatusCode, len(body))
	}
}

func TestClientsOfTheSameProcessNeedNoNetwork(t *testing.T) {
	_, want, dir, _ := mirror(t)
	s, err := serve.New(dir, serve.Options{})
	must(t, err)
	r, err := name.ParseReference("mirror.invalid/acme/session:4.1")
	must(t, err)
	got, err := remote.Image(r, remote.WithTransport(s.Transport()))
	must(t, err)
	must(t, validate.Image(got))
	a, err := want.Digest()
	must(t, err)
	if b, err := got.Digest(); err != nil || a != b {
		t.Errorf("digest %s (%v), want %s", b, err, a)
	}
}

func TestTheAccessLogAndMetricsTellWhatWasAsked(t *testing.T) {
	url, _, _, access := mirror(t)
	ask(t, "GET", url+"/debian/pool/a_1+b_amd64.deb")
	ask(t, "GET", url+"/nothing%0aforged%20line")
	_, metrics := ask(t, "GET", url+"/metrics")
	for _, want := range []string{
		`slipway_mirror_answers_total{kind="files",status="200"} 1`, `slipway_mirror_answers_total{kind="files",status="404"} 1`,
		`slipway_mirror_edition{site="plant-7"} 3`, `slipway_mirror_key_end_timestamp_seconds{fingerprint="AB"} 5`,
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}
	lines := strings.Split(strings.TrimSpace(access.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], `"GET /debian/pool/a_1+b_amd64.deb HTTP/1.1" 200 10 `) || !strings.Contains(lines[1], "%0a") {
		t.Errorf("access log:\n%s", access)
	}
}

func TestServingEndsInGoodOrder(t *testing.T) {
	_, _, dir, _ := mirror(t)
	s, err := serve.New(dir, serve.Options{})
	must(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l, "", "") }()
	if resp, _ := ask(t, "GET", "http://"+l.Addr().String()+"/"); resp.StatusCode != 200 {
		t.Errorf("%d", resp.StatusCode)
	}
	stop()
	must(t, <-ended)
}

func FuzzRequests(f *testing.F) {
	_, _, dir, _ := mirror(f)
	s, err := serve.New(dir, serve.Options{})
	must(f, err)
	for _, p := range []string{"/debian/pool/a_1+b_amd64.deb", "/debian/out", "/../secret", "/v2/acme/session/manifests/4.1", "/v2/acme/session/blobs/sha256:00", "/v2/_catalog?n=1&last=a", "/v2/acme/session/tags/list"} {
		f.Add(p, "bytes=1-")
	}
	f.Fuzz(func(t *testing.T, target, ranges string) {
		u, err := url.ParseRequestURI(target)
		if err != nil {
			return
		}
		r := &http.Request{Method: http.MethodGet, URL: u, Header: http.Header{"Range": {ranges}}, Proto: "HTTP/1.1"}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code >= 500 || strings.Contains(w.Body.String(), "the secret outside") {
			t.Errorf("%q: %d %q", target, w.Code, w.Body)
		}
	})
}
