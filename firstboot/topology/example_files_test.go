package topology

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// examples are the topologies that come with slipway.
func examples(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("../../examples/*/cluster.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	return files
}

func TestTheExamplesHaveNoMistakeAndNoWarning(t *testing.T) {
	for _, file := range examples(t) {
		got, err := Load(file)
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		if len(got.Warnings) > 0 {
			t.Errorf("%v", got.Warnings)
		}
		if got.Path() != file {
			t.Errorf("%s says it was read from %s", file, got.Path())
		}
	}
}

func TestTheExamplesNameTheSchemaForEditors(t *testing.T) {
	for _, file := range examples(t) {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if want := []byte("# yaml-language-server: $schema=../cluster.schema.json\n"); !bytes.HasPrefix(data, want) {
			t.Errorf("%s does not begin with %q", file, want)
		}
	}
	published, err := os.ReadFile("../../examples/cluster.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(published, Schema()) {
		t.Error("examples/cluster.schema.json is not what slipway schema prints; write it anew with slipway schema > examples/cluster.schema.json")
	}
}

// TestTheDocumentationHasEveryField holds docs/topology.md to the parser.
func TestTheDocumentationHasEveryField(t *testing.T) {
	text, err := os.ReadFile("../../docs/topology.md")
	if err != nil {
		t.Fatal(err)
	}
	for kind, known := range keys {
		for _, key := range known {
			if kind == "roles" {
				key = "roles." + key
			}
			if !bytes.Contains(text, []byte("| `"+key+"` |")) {
				t.Errorf("docs/topology.md has no line for %s of %s", key, kind)
			}
		}
	}
}

// yamlBlock is the first example in a page.
func yamlBlock(page string) string {
	_, rest, _ := strings.Cut(page, "```yaml\n")
	block, _, _ := strings.Cut(rest, "```")
	return block
}

func TestTheDocumentedTopologyIsRight(t *testing.T) {
	text, err := os.ReadFile("../../docs/topology.md")
	if err != nil {
		t.Fatal(err)
	}
	block := strings.Replace(yamlBlock(string(text)), "ssh-ed25519 AAAA… ops@example.org", testKey, 1)
	if got, mistakes := Parse("docs/topology.md", []byte(block)); got == nil || len(mistakes) > 0 {
		t.Errorf("%v", mistakes)
	}
}
