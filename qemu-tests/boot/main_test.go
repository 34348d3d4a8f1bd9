package boottest

import (
	"os"
	"testing"

	"github.com/slipwayhq/slipway/qemu-tests/images"
	"github.com/slipwayhq/slipway/qemu-tests/lab"
)

func TestMain(m *testing.M) { os.Exit(images.Main(m)) }

// A probe that could not succeed would turn KVM off everywhere and unnoticed.
// TCG works on every machine, so the probe must say so.
func TestProbeSeesAKernelBoot(t *testing.T) {
	vm := lab.VM{Name: "probe", Image: images.Path(t, "gateway", "qcow2"), Dir: t.TempDir()}
	if works, reason, err := lab.Probe(t.Context(), lab.TCG, vm); err != nil || !works {
		t.Errorf("%v: %s, %v", works, reason, err)
	}
}
