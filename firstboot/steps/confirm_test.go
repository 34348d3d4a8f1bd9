package steps

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/slipwayhq/slipway/builder/boot/bootfacts"
	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/firstboot/versions"
)

// noMounts plays the remounting; waited keeps what a step waits for.
type noMounts struct{}

func (noMounts) Run(context.Context, node.Command) (string, error) { return "", nil }

type waited struct {
	node.Reporter
	why []string
}

func (w *waited) Waiting(why string) { w.why = append(w.why, why) }
func (w *waited) Changed(string)     {}

func TestAVersionIsNotConfirmedBeforeItsPartInTheClusterIsUp(t *testing.T) {
	w := &waited{}
	n := &node.Node{Root: t.TempDir(), Run: noMounts{}, Report: w, Boot: bootfacts.Facts{Version: "v2", Trial: true}}
	for _, dir := range []string{"/usr/bin", filepath.Dir(versions.EnvPath)} {
		if err := os.MkdirAll(n.Path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	block, err := grubenv.Env{Good: "v1"}.Start("v2").Bytes()
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"/usr/bin/mount": nil, versions.EnvPath: block} {
		if err := os.WriteFile(n.Path(name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	trial := func() bool {
		e, err := versions.ReadEnv(n)
		if err != nil {
			t.Fatal(err)
		}
		return e.OnTrial("v2")
	}
	// The agent ends before the database is up: the trial goes on.
	ended, end := context.WithCancel(t.Context())
	if err := (Confirmer{Missing: func() string { end(); return "the database is not up" }}).Apply(ended, n); err == nil || !trial() {
		t.Errorf("confirmed: %v, on trial: %v", err, trial())
	}
	left := 2
	err = Confirmer{Missing: func() string {
		if left--; left == 0 {
			return ""
		}
		if !trial() {
			t.Error("confirmed before the database is up")
		}
		return "the database is not up"
	}}.Apply(t.Context(), n)
	if err != nil || trial() || n.Boot.Trial || !slices.Contains(w.why, "the database is not up") || w.why[len(w.why)-1] != "" {
		t.Errorf("%v, on trial: %v, waited %q", err, trial(), w.why)
	}
}
