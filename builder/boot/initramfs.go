package boot

import (
	"bufio"
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"path"
	"sort"
	"strings"
	"time"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"

	"github.com/slipwayhq/slipway/builder/boot/kmod"
	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

//go:embed initramfs.modules
var initramfsList string

const modulesDir = "usr/lib/modules"

// InitramfsInput is what an initramfs is made from.
type InitramfsInput struct {
	// Init is the statically linked program that becomes /init.
	Init []byte
	// Root is a tree that holds /usr/lib/modules/<release> after depmod, with
	// the modules uncompressed; the base layer's.
	Root *tree.Tree
	// Release is the kernel's, as uname -r prints it; see KernelRelease.
	Release string
	// Date is the time of every file, in Unix seconds.
	Date int64
}

// KernelRelease returns the release of the one kernel whose modules are in root.
func KernelRelease(root *tree.Tree) (string, error) {
	var found []string
	for _, e := range root.Sorted() {
		if e.Kind == tree.Dir && path.Dir(e.Path) == modulesDir {
			found = append(found, path.Base(e.Path))
		}
	}
	if len(found) != 1 {
		return "", fault.New(fault.Input, "/%s holds %d kernels %v, want exactly one", modulesDir, len(found), found).
			WithMend("let exactly one linux-image package be in the base packages of the profile")
	}
	return found[0], nil
}

// Initramfs writes the archive that the kernel unpacks and whose /init it
// starts: cpio (newc), compressed with zstd. Equal inputs give equal bytes.
func Initramfs(w io.Writer, in InitramfsInput) error {
	files, err := initramfsFiles(in)
	if err != nil {
		return err
	}
	// One encoder thread, since the archive is small and its bytes must not
	// hang on how many processors there are.
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedBestCompression), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return err
	}
	if err := writeCPIO(z, files, in.Date); err != nil {
		return err
	}
	return z.Close()
}

func initramfsFiles(in InitramfsInput) (*tree.Tree, error) {
	out := tree.New()
	for _, dir := range []string{"dev", "proc", "sys", "run", "root"} {
		if err := out.Put(&tree.Entry{Path: dir, Kind: tree.Dir, Perm: 0o755}); err != nil {
			return nil, err
		}
	}
	if err := out.PutFile("init", 0o755, in.Date, in.Init); err != nil {
		return nil, err
	}
	base := path.Join(modulesDir, in.Release)
	index, text, err := readIndex(in.Root, base)
	if err != nil {
		return nil, err
	}
	chosen, err := chooseModules(index)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, file := range chosen {
		e := in.Root.Get(path.Join(base, file))
		if e != nil && e.LinkTo != "" {
			e = in.Root.Get(e.LinkTo)
		}
		if e == nil || e.Kind != tree.Regular {
			return nil, fault.New(fault.Input, "/%s/modules.dep names %s, which is not in the tree", base, file).
				WithMend("run depmod after the modules were pruned")
		}
		names[kmod.Name(file)] = true
		c := *e
		c.Path, c.Perm, c.UID, c.GID, c.Xattrs, c.LinkTo = path.Join(base, file), 0o644, 0, 0, nil, ""
		if err := out.Put(&c); err != nil {
			return nil, err
		}
	}
	indices := map[string]string{
		"modules.dep": filterLines(text["modules.dep"], func(f []string) bool {
			return names[kmod.Name(strings.TrimSuffix(f[0], ":"))]
		}),
		"modules.alias": filterLines(text["modules.alias"], func(f []string) bool {
			return len(f) == 3 && names[kmod.Name(f[2])]
		}),
		"modules.softdep": filterLines(text["modules.softdep"], func(f []string) bool {
			return len(f) > 1 && names[kmod.Name(f[1])]
		}),
	}
	for name, content := range indices {
		if err := out.PutFile(path.Join(base, name), 0o644, in.Date, []byte(content)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func readIndex(root *tree.Tree, base string) (*kmod.Index, map[string][]byte, error) {
	text := map[string][]byte{}
	for _, name := range []string{"modules.dep", "modules.alias", "modules.softdep"} {
		b, err := root.ReadFile(path.Join(base, name))
		if err != nil {
			return nil, nil, fault.New(fault.Input, "kernel modules: %w", err).
				WithMend("run depmod in the base layer; the kernel package's maintainer script does")
		}
		text[name] = b
	}
	index, err := kmod.Parse(text["modules.dep"], text["modules.alias"], text["modules.softdep"])
	if err != nil {
		return nil, nil, fault.New(fault.Input, "/%s: %w", base, err)
	}
	return index, text, nil
}

// chooseModules lists the modules that initramfs.modules asks for, with all
// that they need.
func chooseModules(index *kmod.Index) ([]string, error) {
	policy, err := parsePolicy("initramfs.modules", initramfsList)
	if err != nil {
		return nil, err
	}
	chosen := map[string]bool{}
	for _, file := range index.Files() {
		if name, ok := moduleName(path.Join(modulesDir, "any", file)); ok && policy.keeps(name) {
			for _, f := range index.Order(file) {
				chosen[f] = true
			}
		}
	}
	out := make([]string, 0, len(chosen))
	for f := range chosen {
		out = append(out, f)
	}
	sort.Strings(out)
	return out, nil
}

func filterLines(text []byte, keep func(fields []string) bool) string {
	var out strings.Builder
	sc := bufio.NewScanner(bytes.NewReader(text))
	for sc.Scan() {
		if f := strings.Fields(sc.Text()); len(f) > 0 && f[0][0] != '#' && keep(f) {
			out.WriteString(sc.Text() + "\n")
		}
	}
	return out.String()
}

// writeCPIO writes a tree of directories and regular files as a newc archive.
func writeCPIO(w io.Writer, files *tree.Tree, date int64) error {
	cw := cpio.NewWriter(w)
	for i, e := range files.Sorted() {
		if e.Path == "." {
			continue
		}
		h := &cpio.Header{
			Name: e.Path, Mode: cpio.FileMode(e.Perm), Inode: int64(i), Links: 1,
			ModTime: time.Unix(date, 0), Size: e.Size,
		}
		switch e.Kind {
		case tree.Dir:
			h.Mode |= cpio.TypeDir
			h.Links = 2
		case tree.Regular:
			h.Mode |= cpio.TypeReg
		default:
			return fmt.Errorf("initramfs: %s is neither a file nor a directory", e.Path)
		}
		if err := cw.WriteHeader(h); err != nil {
			return fmt.Errorf("initramfs: %s: %w", e.Path, err)
		}
		if e.Kind == tree.Regular && e.Open != nil {
			if err := copyEntry(cw, e); err != nil {
				return fmt.Errorf("initramfs: %s: %w", e.Path, err)
			}
		}
	}
	return cw.Close()
}

func copyEntry(w io.Writer, e *tree.Entry) error {
	r, err := e.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(w, r)
	if err == nil && n != e.Size {
		err = fmt.Errorf("has %d bytes, the tree says %d", n, e.Size)
	}
	return err
}
