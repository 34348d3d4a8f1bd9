package boot

import (
	"bytes"
	"debug/elf"
	"path"
	"sort"
	"strings"

	"github.com/slipwayhq/slipway/builder/boot/kmod"
	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// CheckModules makes sure that every kernel module in root has the modules
// that it names as its dependencies, in root or built into the kernel. depmod
// does not: of a pruned tree it writes indices that look whole. A new kernel
// that splits a module in two is so found at build time.
func CheckModules(root *tree.Tree) error {
	have := map[string]bool{}
	var modules []*tree.Entry
	for _, e := range root.Sorted() {
		if name, ok := moduleName(e.Path); ok && e.Kind == tree.Regular {
			have[kmod.Name(name)] = true
			modules = append(modules, e)
		}
		if path.Base(e.Path) == "modules.builtin" {
			text, err := root.ReadFile(e.Path)
			if err != nil {
				return err
			}
			for _, line := range strings.Fields(string(text)) {
				have[kmod.Name(line)] = true
			}
		}
	}
	missing := map[string][]string{}
	for _, e := range modules {
		needs, err := moduleNeeds(root, e.Path)
		if err != nil {
			return fault.New(fault.Input, "kernel module /%s: %w", e.Path, err)
		}
		for _, n := range needs {
			if !have[kmod.Name(n)] {
				missing[n] = append(missing[n], kmod.Name(e.Path))
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	names := make([]string, 0, len(missing))
	for n, by := range missing {
		names = append(names, n+" (needed by "+strings.Join(by, ", ")+")")
	}
	sort.Strings(names)
	return fault.New(fault.Input, "kernel modules are kept that need ones which are dropped: %s", strings.Join(names, "; ")).
		WithMend("keep these too in builder/boot/modules.keep, or drop the ones that need them")
}

// moduleNeeds reads "depends=" in the module's .modinfo section, which modpost
// of the kernel's build writes.
func moduleNeeds(root *tree.Tree, file string) ([]string, error) {
	content, err := root.ReadFile(file)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, nil
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for _, field := range strings.Split(string(info), "\x00") {
		if list, ok := strings.CutPrefix(field, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
