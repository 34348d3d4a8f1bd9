package boot

import (
	"bytes"
	"context"
	_ "embed"
	"os"
	"path"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

var (
	//go:embed grub.cfg
	grubConfig []byte
	//go:embed debian.cfg
	debianConfig []byte
	//go:embed boot.cfg.tmpl
	bootTemplate string
	//go:embed kernel.args
	kernelArgs string
)

// Env and ParseEnv are the boot counting's record; see package grubenv.
type Env = grubenv.Env

// ParseEnv reads GRUB's environment block.
func ParseEnv(block []byte) (Env, error) { return grubenv.Parse(block) }

// biosModules are what grub.cfg needs, built into the core image for BIOS; the
// boot partition holds no others.
var biosModules = [...]string{
	"biosdisk", "part_gpt", "fat", "normal", "configfile", "linux", "loadenv", "test", "regexp", "probe",
	"echo", "serial", "terminal", "minicmd", "reboot", "halt", "ls", "cat", "sleep", "keystatus",
}

// Runner runs a program of the tools' tree in the sandbox. dir is a directory
// of the host that the program sees as WorkDir, for what it reads and writes.
type Runner func(ctx context.Context, dir string, argv []string) error

// WorkDir is where a Runner's dir stands inside the sandbox.
const WorkDir = "/work"

// BIOS is the boot code for machines without UEFI.
type BIOS struct {
	Boot []byte // boot.img: the boot sector, 512 bytes
	Core []byte // core.img: what the BIOS boot partition holds
}

// MakeBIOS runs grub-mkimage of the tools' tree. scratch is a directory that
// it may write to.
func MakeBIOS(ctx context.Context, tools *tree.Tree, run Runner, scratch string) (*BIOS, error) {
	boot, err := readTool(tools, "usr/lib/grub/i386-pc/boot.img", "grub-pc-bin")
	if err != nil {
		return nil, err
	}
	argv := append([]string{"/usr/bin/grub-mkimage", "-O", "i386-pc", "-d", "/usr/lib/grub/i386-pc",
		// No drive before the comma: the one that the BIOS booted from.
		"-p", "(,gpt2)/grub", "-o", WorkDir + "/core.img"}, biosModules[:]...)
	if err := run(ctx, scratch, argv); err != nil {
		return nil, fault.New(fault.Failed, "making GRUB's core image: %w", err)
	}
	core, err := os.ReadFile(filepath.Join(scratch, "core.img"))
	if err != nil {
		return nil, fault.New(fault.Failed, "grub-mkimage left no core image: %w", err)
	}
	return &BIOS{Boot: boot, Core: core}, nil
}

// File is a file of the boot partition.
type File struct {
	Path    string // without a leading slash
	Content []byte
}

// ConfigFiles returns GRUB's configuration, and an environment block in which
// good is the version known to work.
func ConfigFiles(good string) ([]File, error) {
	env, err := Env{Good: good}.Bytes()
	if err != nil {
		return nil, err
	}
	return []File{
		{"EFI/debian/grub.cfg", debianConfig},
		{"grub/grub.cfg", grubConfig},
		{"grub/grubenv", env},
	}, nil
}

// LoaderFiles returns the boot loaders for UEFI, out of the tools' tree.
func LoaderFiles(tools *tree.Tree) ([]File, error) {
	var files []File
	const (
		shim = "usr/lib/shim/shimx64.efi.signed"
		mok  = "usr/lib/shim/mmx64.efi.signed"
		grub = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"
	)
	for _, f := range []struct{ from, pkg, to string }{
		{shim, "shim-signed", "EFI/BOOT/BOOTX64.EFI"},
		{mok, "shim-helpers-amd64-signed", "EFI/BOOT/mmx64.efi"},
		{grub, "grub-efi-amd64-signed", "EFI/BOOT/grubx64.efi"},
		// For firmware entries that an installed Debian would have made.
		{shim, "shim-signed", "EFI/debian/shimx64.efi"},
		{grub, "grub-efi-amd64-signed", "EFI/debian/grubx64.efi"},
	} {
		content, err := readTool(tools, f.from, f.pkg)
		if err != nil {
			return nil, err
		}
		files = append(files, File{f.to, content})
	}
	return files, nil
}

// BootConfig returns the boot.cfg of a version, to stand beside its kernel.
// extra are kernel arguments on top of those that every appliance has.
func BootConfig(title string, extra ...string) (File, error) {
	args := make([]string, 0, 8)
	for _, line := range strings.Split(kernelArgs, "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			args = append(args, line)
		}
	}
	args = append(args, extra...)
	for _, s := range append([]string{title}, args...) {
		if strings.ContainsAny(s, "\"$\\`'\n") {
			return File{}, fault.New(fault.Input, "%q cannot stand in GRUB's configuration", s).
				WithMend("leave out quotes, dollar signs, backslashes and line breaks")
		}
	}
	t, err := template.New("boot.cfg").Parse(bootTemplate)
	if err != nil {
		return File{}, err
	}
	var b bytes.Buffer
	err = t.Execute(&b, struct{ Title, Args string }{title, strings.Join(args, " ")})
	return File{Path: "boot.cfg", Content: b.Bytes()}, err
}

// VersionDir is the directory of a version on the boot partition.
func VersionDir(version string) string { return path.Join("images", version) }

func readTool(tools *tree.Tree, file, pkg string) ([]byte, error) {
	b, err := tools.ReadFile(file)
	if err != nil {
		return nil, fault.New(fault.Input, "the tools' tree: %w", err).
			WithMend("let the package %s be among the tools and lock again", pkg)
	}
	return b, nil
}
