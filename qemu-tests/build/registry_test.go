package buildtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/registry"
)

// programsOnly makes a cache that holds nothing but the shared one's compiled init
// and agent: no package, no layer.
func programsOnly(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(tempDir(t, os.Getuid()), "cache")
	take := func(rel string) {
		dst := filepath.Join(dir, rel)
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			t.Fatal(err)
		}
		// What a garbage collection took of an older source's programs is not missed.
		if err := copyFile(dst, filepath.Join(shared, rel)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	records, err := filepath.Glob(filepath.Join(shared, "records", "agent", "*"))
	if err != nil || len(records) == 0 {
		t.Fatalf("the shared cache has no compiled programs (%v)", err)
	}
	for _, path := range records {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var programs map[string]string
		if err := json.Unmarshal(data, &programs); err != nil {
			t.Fatal(err)
		}
		take(filepath.Join("records", "agent", filepath.Base(path)))
		for _, digest := range programs {
			take(filepath.Join("blobs", digest[:2], digest))
		}
	}
	return dir
}

// withoutNamespaces runs a command where no further user namespace can be made, as
// on a site that forbids them, and returns its standard output.
func withoutNamespaces(t *testing.T, cmd *exec.Cmd) []byte {
	t.Helper()
	const script = `echo 0 >/proc/sys/user/max_user_namespaces && ! unshare -U true 2>/dev/null && exec "$@"`
	inner := exec.CommandContext(t.Context(), "unshare", append([]string{"-U", "-r", "sh", "-c", script, "sh"}, cmd.Args...)...)
	var stderr bytes.Buffer
	inner.Dir, inner.Env, inner.Stderr = cmd.Dir, cmd.Env, &stderr
	stdout, err := inner.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, stderr.Bytes())
	}
	return stdout
}

func TestLayersFromARegistryGiveTheSameImageWithoutAnyPackage(t *testing.T) {
	const role = "balancer"
	warm(t, role)
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	repository := strings.TrimPrefix(server.URL, "http://") + "/slipway/layers"

	maker := runner{dir: copyProject(t, os.Getuid())}
	made, pulled := t.TempDir(), t.TempDir()
	maker.succeed(t, "build", role, "--format", "qcow2", "--output", made)
	maker.succeed(t, "push", repository, role)

	// Making a layer would need packages, which nobody has here, and a namespace,
	// which nobody gets here.
	elsewhere := runner{dir: maker.dir, cache: programsOnly(t), env: []string{"SLIPWAY_MIRROR=http://127.0.0.1:9/debian"}}
	stdout := withoutNamespaces(t, elsewhere.command(t.Context(), "build", role, "--format", "qcow2", "--output", pulled, "--layers", repository, "--json"))
	var report struct {
		Layers []struct {
			Name   string
			Cached bool
		}
	}
	if err := json.Unmarshal(stdout, &report); err != nil {
		t.Fatalf("--json printed no JSON: %v\n%s", err, stdout)
	}
	for _, l := range report.Layers {
		if want := l.Name != "config"; l.Cached != want {
			t.Errorf("layer %s: cached is %v, want %v", l.Name, l.Cached, want)
		}
	}
	const image = role + ".qcow2"
	a, b := hashes(t, made)[image], hashes(t, pulled)[image]
	if a == "" || a != b {
		t.Errorf("%s is %q from layers made here and %q from the registry's", image, a, b)
	}
}
