package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/internal/fault"
)

// project is a module with a command in ./service, which imports the package named.
func project(t *testing.T, imported string) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, fstest.MapFS{
		"go.mod":                  {Data: []byte("module example.org/project\n\ngo 1.24\n")},
		"elsewhere/words.go":      {Data: []byte("package words\n\nvar Word = 1\n")},
		"service/words/words.go":  {Data: []byte("package words\n\nvar Word = 2\n")},
		"service/main.go":         {Data: []byte("package main\n\nimport \"" + imported + "\"\n\nfunc main() { println(words.Word) }\n")},
		"vendor/acme/agent_1.deb": {Data: []byte("what a vendor brings is no matter of Go's\n")},
	}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestACommandIsCompiledOnceForItsSource(t *testing.T) {
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	dir := project(t, "example.org/project/service/words")
	first, err := Command(t.Context(), dir, "./service", c)
	if err != nil {
		t.Fatal(err)
	}
	tools := os.Getenv("PATH")
	t.Setenv("PATH", t.TempDir()) // no Go
	if again, err := Command(t.Context(), dir, "./service", c); err != nil || again != first {
		t.Errorf("again: %s, %v; want %s", again, err, first)
	}
	words := filepath.Join(dir, "service/words/words.go")
	if err := os.WriteFile(words, []byte("package words\n\nvar Word = 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Command(t.Context(), dir, "./service", c); fault.Of(err) != fault.Missing {
		t.Errorf("changed source without Go: %v", err)
	}
	t.Setenv("PATH", tools)
	if changed, err := Command(t.Context(), dir, "./service", c); err != nil || changed == first {
		t.Errorf("changed source: %s, %v", changed, err)
	}
}

func TestACommandImportsWhatItsKeyTellsOfAlone(t *testing.T) {
	c, err := cache.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	_, err = Command(t.Context(), project(t, "example.org/project/elsewhere"), "./service", c)
	if fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "./service imports example.org/project/elsewhere") || fault.Mend(err) == "" {
		t.Errorf("an import from beside the command: %v", err)
	}
}
