package builder

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/sirupsen/logrus"

	"github.com/slipwayhq/slipway/builder/agent"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/registry"
	"github.com/slipwayhq/slipway/internal/progress"
)

// testBuild is a build with an empty cache and a log to read.
func testBuild(t *testing.T, repository string) (*build, *bytes.Buffer) {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	r, err := registry.New(repository)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	logger := logrus.New()
	logger.SetOutput(&out)
	return &build{Means: Means{Cache: c, Progress: progress.None, Log: logger, Registry: r}}, &out
}

func testStack() stack {
	return stack{
		base: plan{name: "base", title: "base", key: hashKey("base")}, tools: plan{name: "tools", title: "tools", key: hashKey("tools")},
		packages: map[string]plan{hashKey("balancer"): {name: "packages", title: "balancer", key: hashKey("balancer")}},
	}
}

func TestABuildFindsInTheRegistryWhatAnotherPushed(t *testing.T) {
	server := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	repository := strings.TrimPrefix(server.URL, "http://") + "/layers"
	st := testStack()

	maker, _ := testBuild(t, repository)
	put := func(content string) string {
		digest, err := maker.putBytes([]byte(content))
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	base := madeLayer{Kernel: "6.12.48+deb13-amd64", Vmlinuz: put("kernel")}
	base.Name, base.Digest, base.Size = "base", put("base layer"), int64(len("base layer"))
	var packages madeLayer
	packages.Name, packages.Digest, packages.Size = "packages", put("package layer"), int64(len("package layer"))
	boot := loader{Boot: put("boot"), Core: put("core"), Files: map[string]string{"EFI/BOOT/BOOTX64.EFI": put("shim"), "EFI/debian/shimx64.efi": put("shim")}}
	for _, r := range []struct {
		kind, key string
		value     any
	}{{layerRecord, st.base.key, base}, {layerRecord, hashKey("balancer"), packages}, {loaderRecord, st.tools.key, boot}} {
		if err := maker.putRecord(r.kind, r.key, r.value); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range st.wanted() {
		a, ok, err := registry.Find(maker.Cache, w.kind, w.key)
		if err != nil || !ok {
			t.Fatalf("%s: found is %v: %v", w.describe(), ok, err)
		}
		if err := maker.Registry.Push(t.Context(), maker.Cache, a, w.title, progress.None); err != nil {
			t.Fatal(err)
		}
	}

	b, _ := testBuild(t, repository)
	if err := b.pull(t.Context(), st); err != nil {
		t.Fatal(err)
	}
	var gotBase, gotPackages madeLayer
	var gotBoot loader
	if !b.cachedLayer(st.base.key, &gotBase) || !b.cachedLayer(hashKey("balancer"), &gotPackages) || !b.cachedLoader(st.tools.key, &gotBoot) {
		t.Fatal("something did not arrive")
	}
	if !gotBase.cached || gotBase.Layer != base.Layer || gotBase.Kernel != base.Kernel || gotPackages.Layer != packages.Layer || gotBoot.Core != boot.Core {
		t.Errorf("what arrived is not what was pushed: %+v %+v %+v", gotBase, gotPackages, gotBoot)
	}
}

func TestABuildTakesTheAgentThatAnotherCompiled(t *testing.T) {
	server := httptest.NewServer(ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	repository := strings.TrimPrefix(server.URL, "http://") + "/layers"
	project, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	key, err := agent.Key(project)
	if err != nil {
		t.Fatal(err)
	}
	maker, _ := testBuild(t, repository)
	var want agent.Binaries
	for name, digest := range map[string]*string{"init": &want.Init, "firstboot": &want.Firstboot} {
		if *digest, err = maker.putBytes([]byte("program " + name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := maker.putRecord(agent.RecordKind, key, want); err != nil {
		t.Fatal(err)
	}
	a, ok, err := registry.Find(maker.Cache, agentKind(), key)
	if err != nil || !ok {
		t.Fatalf("found is %v: %v", ok, err)
	}
	if err := maker.Registry.Push(t.Context(), maker.Cache, a, "agent", progress.None); err != nil {
		t.Fatal(err)
	}
	b, _ := testBuild(t, repository)
	b.Project = project
	t.Setenv("PATH", t.TempDir()) // no Go here
	if got, err := b.programs(t.Context()); err != nil || got != want {
		t.Errorf("got %+v (%v), want %+v", got, err, want)
	}
}

func TestARegistryThatDoesNotAnswerIsOneWarning(t *testing.T) {
	b, out := testBuild(t, "127.0.0.1:9/layers")
	if err := b.pull(t.Context(), testStack()); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(out.String(), "level=warning"); n != 1 || !strings.Contains(out.String(), "127.0.0.1:9") {
		t.Errorf("%d warnings, want one:\n%s", n, out)
	}
}

func TestARecordThatIsNotOursIsRefused(t *testing.T) {
	digest := strings.Repeat("ab", 32)
	for name, c := range map[string]struct {
		kind   registry.Kind
		record string
	}{
		"packages as base":     {baseKind(), `{"name":"packages","digest":"` + digest + `","size":3}`},
		"base without kernel":  {baseKind(), `{"name":"base","digest":"` + digest + `","size":3}`},
		"a kernel with a path": {baseKind(), `{"name":"base","digest":"` + digest + `","size":3,"kernel":"../6","vmlinuz":"` + digest + `"}`},
		"packages with kernel": {packagesKind(), `{"name":"packages","digest":"` + digest + `","size":3,"kernel":"6.12"}`},
		"an empty layer":       {packagesKind(), `{"name":"packages","digest":"` + digest + `","size":0}`},
		"an unknown field":     {packagesKind(), `{"name":"packages","digest":"` + digest + `","size":3,"run":"x"}`},
		"two values":           {packagesKind(), `{"name":"packages","digest":"` + digest + `","size":3}{}`},
		"a loader outside EFI": {loaderKind(), `{"boot":"` + digest + `","core":"` + digest + `","files":{"grub/grub.cfg":"` + digest + `"}}`},
		"an agent with more":   {agentKind(), `{"init":"` + digest + `","firstboot":"` + digest + `","more":"x"}`},
		"a loader that climbs": {loaderKind(), `{"boot":"` + digest + `","core":"` + digest + `","files":{"EFI/../x":"` + digest + `"}}`},
	} {
		if blobs, err := c.kind.Blobs([]byte(c.record)); err == nil {
			t.Errorf("%s: taken as %+v", name, blobs)
		}
	}
}

func FuzzRecord(f *testing.F) {
	digest := strings.Repeat("ab", 32)
	f.Add([]byte(`{"name":"base","digest":"` + digest + `","size":3,"kernel":"6.12","vmlinuz":"` + digest + `"}`))
	f.Add([]byte(`{"boot":"` + digest + `","core":"` + digest + `","files":{"EFI/BOOT/BOOTX64.EFI":"` + digest + `"}}`))
	f.Fuzz(func(t *testing.T, record []byte) {
		for _, kind := range []registry.Kind{baseKind(), packagesKind(), loaderKind(), agentKind()} {
			blobs, err := kind.Blobs(record)
			if err == nil && !json.Valid(record) {
				t.Errorf("%q is taken as %+v", record, blobs)
			}
		}
	})
}
