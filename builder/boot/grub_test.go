package boot

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

func toolsTree(t *testing.T) *tree.Tree {
	t.Helper()
	root := tree.New()
	for _, f := range []string{
		"usr/lib/shim/shimx64.efi.signed", "usr/lib/shim/mmx64.efi.signed",
		"usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed", "usr/lib/grub/i386-pc/boot.img",
	} {
		if err := root.PutFile(f, 0o644, 0, []byte(filepath.Base(f))); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestGRUBAcceptsTheConfigurations(t *testing.T) {
	c, err := BootConfig("db-master 2026-11-20")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"grub.cfg": grubConfig, "debian.cfg": debianConfig, "boot.cfg": c.Content} {
		file := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(tool(t, "grub-script-check", "grub-common"), file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestAVersionHasItsTitleAndArguments(t *testing.T) {
	c, err := BootConfig("db-master 1", "quiet")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`set title="db-master 1"`, `console=tty0 console=ttyS0,115200 panic=30 gpt`, ` quiet"`} {
		if !strings.Contains(string(c.Content), want) {
			t.Errorf("lacks %q:\n%s", want, c.Content)
		}
	}
	for _, bad := range []string{`a"b`, "$x", "a\nb", `a\b`} {
		if _, err := BootConfig(bad); fault.Of(err) != fault.Input {
			t.Errorf("title %q: %v", bad, err)
		}
	}
}

func TestTheLoadersStandWhereFirmwareLooks(t *testing.T) {
	loaders, err := LoaderFiles(toolsTree(t))
	if err != nil {
		t.Fatal(err)
	}
	configs, err := ConfigFiles("v1")
	if err != nil {
		t.Fatal(err)
	}
	files := append(loaders, configs...)
	got := map[string]string{}
	for _, f := range files {
		got[f.Path] = string(f.Content)
	}
	if got["EFI/BOOT/BOOTX64.EFI"] != "shimx64.efi.signed" || got["EFI/BOOT/grubx64.efi"] != "grubx64.efi.signed" {
		t.Errorf("loaders: %q", got)
	}
	env, err := ParseEnv([]byte(got["grub/grubenv"]))
	if err != nil || env.Good != "v1" || env.Try != "" {
		t.Errorf("environment: %+v, %v", env, err)
	}
	broken := toolsTree(t)
	broken.Remove("usr/lib/shim")
	if _, err := LoaderFiles(broken); !strings.Contains(fault.Mend(err), "shim-signed") {
		t.Errorf("without shim: %v, mend %q", err, fault.Mend(err))
	}
}

func TestTheCoreImageIsMadeInTheSandbox(t *testing.T) {
	scratch := t.TempDir()
	var ran []string
	run := func(_ context.Context, dir string, argv []string) error {
		ran = argv
		return os.WriteFile(filepath.Join(dir, "core.img"), []byte("core"), 0o600)
	}
	b, err := MakeBIOS(t.Context(), toolsTree(t), run, scratch)
	if err != nil {
		t.Fatal(err)
	}
	if string(b.Core) != "core" || string(b.Boot) != "boot.img" {
		t.Errorf("%q, %q", b.Core, b.Boot)
	}
	if ran[0] != "/usr/bin/grub-mkimage" || !slices.Contains(ran, "(,gpt2)/grub") || !slices.Contains(ran, "/work/core.img") {
		t.Errorf("ran %q", ran)
	}
}
