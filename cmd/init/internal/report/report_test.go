package report

import (
	"os"
	"path/filepath"
	"testing"
)

func TestEveryConsoleGetsEachLineOnce(t *testing.T) {
	sys, dev := t.TempDir(), t.TempDir()
	if err := os.MkdirAll(filepath.Join(sys, "class/tty/console"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(sys, "class/tty/console/active"), []byte("tty0 ttyS0\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"tty0", "ttyS0", "kmsg", "console"} {
		if err := os.WriteFile(filepath.Join(dev, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	r := New(sys, dev)
	r.Say("step %d", 1)
	r.Alarm("one\ntwo\n")
	for name, want := range map[string]string{
		"tty0":    "slipway: step 1\r\nslipway: *** one\r\nslipway: *** two\r\n",
		"ttyS0":   "slipway: step 1\r\nslipway: *** one\r\nslipway: *** two\r\n",
		"kmsg":    "<7>slipway: step 1\n<7>slipway: *** one\n<7>slipway: *** two\n",
		"console": "",
	} {
		if got, err := os.ReadFile(filepath.Join(dev, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestAMachineWithoutConsolesStillBoots(t *testing.T) {
	New(t.TempDir(), t.TempDir()).Say("nobody hears this")
}
