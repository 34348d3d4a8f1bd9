package builder

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/slipwayhq/slipway/builder/boot"
	"github.com/slipwayhq/slipway/builder/layer"
	"github.com/slipwayhq/slipway/builder/sandbox"
	"github.com/slipwayhq/slipway/internal/fault"
)

// loader is what starts the kernel: made by the locked tools, once a lock.
type loader struct {
	Boot string `json:"boot"` // digest of GRUB's boot sector
	Core string `json:"core"` // digest of GRUB's core image
	// Files of the boot partition by path, the same for every version: shim, GRUB,
	// its configuration. Values are digests.
	Files map[string]string `json:"files"`
}

// makeLoader installs the tools and has them make the boot loaders.
func (b *build) makeLoader(ctx context.Context, pl plan, lower string) (loader, error) {
	upper, err := b.Cache.Scratch()
	if err != nil {
		return loader{}, err
	}
	defer os.RemoveAll(upper)
	if err := b.install(ctx, pl, upper, lower); err != nil {
		return loader{}, err
	}
	t, err := layer.FromDir(upper, layer.FromDirOptions{Date: b.date(), Upper: true})
	if err != nil {
		return loader{}, err
	}
	scratch, err := b.Cache.Scratch()
	if err != nil {
		return loader{}, err
	}
	defer os.RemoveAll(scratch)
	bios, err := boot.MakeBIOS(ctx, t, b.toolRunner(upper, lower), scratch)
	if err != nil {
		return loader{}, err
	}
	files, err := boot.LoaderFiles(t)
	if err != nil {
		return loader{}, err
	}
	out := loader{Files: map[string]string{}}
	if out.Boot, err = b.putBytes(bios.Boot); err != nil {
		return loader{}, err
	}
	if out.Core, err = b.putBytes(bios.Core); err != nil {
		return loader{}, err
	}
	for _, f := range files {
		if out.Files[f.Path], err = b.putBytes(f.Content); err != nil {
			return loader{}, err
		}
	}
	return out, b.putRecord(loaderRecord, pl.key, out)
}

// cachedLoader reads the loaders' record; it counts only if all files are there.
func (b *build) cachedLoader(key string, l *loader) bool {
	data, ok := b.Cache.Record(loaderRecord, key)
	if !ok || json.Unmarshal(data, l) != nil {
		return false
	}
	for _, digest := range append(slices.Collect(maps.Values(l.Files)), l.Boot, l.Core) {
		if _, ok := b.Cache.Blob(digest); !ok {
			return false
		}
	}
	return true
}

// toolRunner runs programs of the tools' tree, with dir shown as boot.WorkDir.
func (b *build) toolRunner(upper, lower string) boot.Runner {
	return func(ctx context.Context, dir string, argv []string) error {
		work, err := b.Cache.Scratch()
		if err != nil {
			return err
		}
		defer os.RemoveAll(work)
		if err := os.MkdirAll(filepath.Join(upper, boot.WorkDir), 0o755); err != nil {
			return err
		}
		session, err := sandbox.Start(ctx, sandbox.Config{
			Lower: []string{lower}, Upper: upper, Work: work, Date: b.date(),
			Binds: []sandbox.Bind{{Source: dir, Target: boot.WorkDir}},
		})
		if err != nil {
			return err
		}
		defer session.Close()
		var log bytes.Buffer
		if err := session.Run(ctx, sandbox.Cmd{Args: argv, Dir: boot.WorkDir, Stdout: &log, Stderr: &log}); err != nil {
			return fault.New(fault.Failed, "%s: %w\n%s", argv[0], err, log.Bytes())
		}
		return nil
	}
}
