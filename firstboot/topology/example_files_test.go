package topology

import (
	"bytes"
	"os"
	"path/filepath"
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
