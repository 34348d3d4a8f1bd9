package main

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// warm fills every builder's package cache.
func (b *bench) warm() error {
	if err := b.installMkosi(); err != nil {
		return err
	}
	say("warming the package caches")
	if _, err := b.run(b.slipway, "--cache", b.cache("warm"), "build", "--all", "--format", "qcow2", "--output", b.path("warm")); err != nil {
		return err
	}
	for packages, peer := range map[string]func() (sample, error){
		filepath.Join(b.tree(), "work/packages"): func() (sample, error) { return b.mkosi("--force") },
		b.path("mmdebstrap-packages"):            b.mmdebstrap,
	} {
		if held, err := os.ReadDir(packages); err == nil && len(held) > 0 {
			continue // an earlier run filled it
		}
		if _, err := peer(); err != nil {
			return err
		}
	}
	return nil
}

// cold is a build with nothing but packages in the cache.
func (b *bench) cold() error {
	say("cold builds from cached packages")
	ours := func() (sample, error) { return b.coldBuild("qcow2", role) }
	theirs := func() (sample, error) { return b.mkosi("--force") }
	got, err := b.median(ours, theirs, b.mmdebstrap)
	if err != nil {
		return err
	}
	b.compare("cold build, one role", got[0].seconds, "mkosi", got[1].seconds, "s", 1.0/6)
	b.compare("cold build, one role", got[0].seconds, "mmdebstrap+mke2fs+qemu-img", got[2].seconds, "s", 0)
	b.compare("peak memory of a cold build", mib(got[0].peak), "", 0, "MiB", 300)
	return nil
}

// edit is a rebuild after a change to one overlay file.
func (b *bench) edit() error {
	say("rebuilds after an overlay edit")
	project := b.path("project")
	if err := os.RemoveAll(project); err != nil {
		return err
	}
	if _, err := b.run("cp", "-a", "profiles", "overlays", "cmd", "firstboot", "builder", "internal", "go.mod", "go.sum", "images.lock", mkdir(project)); err != nil {
		return err
	}
	n := 0
	change := func(path string) error {
		n++
		return os.WriteFile(path, []byte(strconv.Itoa(n)+"\n"), 0o644)
	}
	ours := func() (sample, error) {
		if err := change(filepath.Join(project, "overlays/base/etc/bench")); err != nil {
			return sample{}, err
		}
		return b.run(b.slipway, "--cache", b.cache("warm"), "--project", project, "build", role, "--format", "qcow2", "--output", b.path("edit"))
	}
	theirs := func() (sample, error) {
		if err := change(filepath.Join(b.tree(), "work/extra/etc/bench")); err != nil {
			return sample{}, err
		}
		return b.mkosi("--incremental=yes", "--force")
	}
	for _, c := range []func() (sample, error){ours, theirs} { // the first run fills the incremental caches
		if _, err := c(); err != nil {
			return err
		}
	}
	got, err := b.median(ours, theirs)
	if err != nil {
		return err
	}
	b.compare("rebuild after an overlay edit", got[0].seconds, "mkosi Incremental=yes", got[1].seconds, "s", 1.0/60)
	return nil
}

// roles is all six roles in two formats against one.
func (b *bench) roles() error {
	say("all roles in two formats")
	got, err := b.median(
		func() (sample, error) { return b.coldBuild("qcow2,ova", "--all") },
		func() (sample, error) { return b.coldBuild("qcow2,ova", role) })
	if err != nil {
		return err
	}
	b.compare("cold build, six roles, two formats", got[0].seconds, "one role, two formats", got[1].seconds, "s", 2)
	b.compare("peak memory, six roles", mib(got[0].peak), "", 0, "MiB", 300)
	return nil
}

// assemble is a build of cached layers against a plain copy of its output.
func (b *bench) assemble() error {
	say("assembling from cached layers")
	out := b.path("assembled")
	for _, format := range []string{"qcow2", "ova", "qcow2,ova"} {
		got, err := b.median(
			func() (sample, error) {
				if err := os.RemoveAll(out); err != nil {
					return sample{}, err
				}
				return b.run(b.slipway, "--cache", b.cache("warm"), "build", role, "--format", format, "--output", out)
			},
			func() (sample, error) {
				copied := b.path("copied")
				if err := os.RemoveAll(copied); err != nil {
					return sample{}, err
				}
				return b.run("sh", "-c", `cp -r --reflink=never "$1" "$2" && sync -f "$2"`, "sh", out, copied)
			})
		if err != nil {
			return err
		}
		b.compare("assembling "+format, got[0].seconds, "cp and sync of its output", got[1].seconds, "s", 1.5)
	}
	return nil
}

// sizes compares what is downloaded or carried.
func (b *bench) sizes() error {
	say("sizes")
	raw := filepath.Join(b.tree(), "work/out/bench.raw")
	vmdk, qcow2 := b.path("mkosi.vmdk"), b.path("mkosi.qcow2")
	if _, err := b.run("qemu-img", "convert", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, vmdk); err != nil {
		return err
	}
	if _, err := b.run("qemu-img", "convert", "-c", "-O", "qcow2", "-o", "compression_type=zstd", raw, qcow2); err != nil {
		return err
	}
	b.compare("size of the OVA", mib(size(b.path("assembled/"+role+".ova"))), "mkosi, streamOptimized VMDK", mib(size(vmdk)), "MiB", 1)
	b.compare("size of the qcow2", mib(size(b.path("assembled/"+role+".qcow2"))), "mkosi, zstd qcow2", mib(size(qcow2)), "MiB", 1)
	b.compare("size of the qcow2", mib(size(b.path("assembled/"+role+".qcow2"))), "mmdebstrap, zstd qcow2", mib(size(b.path("mmdebstrap.qcow2"))), "MiB", 0)
	return nil
}

// coldBuild runs slipway with a cache that holds packages and programs only.
func (b *bench) coldBuild(formats string, args ...string) (sample, error) {
	cache := b.cache("cold")
	if err := os.RemoveAll(cache); err != nil {
		return sample{}, err
	}
	for _, kind := range []string{"blobs", "stamps", "records/agent"} {
		if err := linkTree(filepath.Join(b.cache("warm"), kind), filepath.Join(cache, kind)); err != nil {
			return sample{}, err
		}
	}
	argv := append([]string{b.slipway, "--cache", cache, "build", "--format", formats, "--output", b.path("cold")}, args...)
	return b.run(argv...)
}

// linkTree makes a copy of a directory out of hard links.
func linkTree(src, dst string) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			return os.MkdirAll(filepath.Join(dst, rel), 0o755)
		}
		return os.Link(path, filepath.Join(dst, rel))
	})
}

// mkosi runs the peer in its tree.
func (b *bench) mkosi(flags ...string) (sample, error) {
	argv := append([]string{filepath.Join(b.dir, "enter"), b.tree(), "mkosi"}, flags...)
	return b.run(append(argv, "build")...)
}

// mmdebstrap runs the other peer.
func (b *bench) mmdebstrap() (sample, error) {
	return b.run(filepath.Join(b.dir, "mmdebstrap-image"), b.mirror, strings.Join(b.packages, ","), b.path("mmdebstrap-packages"), b.path("mmdebstrap.qcow2"))
}

func (b *bench) path(name string) string  { return filepath.Join(b.dir, name) }
func (b *bench) cache(name string) string { return filepath.Join(b.dir, "cache-"+name) }

func mkdir(dir string) string {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		panic(fmt.Sprintf("making %s: %v", dir, err))
	}
	return dir
}

func size(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

func mib(n int64) float64 { return float64(n) / (1 << 20) }

func middle(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}
