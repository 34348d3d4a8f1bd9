package profile

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// keepFile is how git keeps an empty directory; it is not laid.
const keepFile = ".gitkeep"

// inMemory is the size up to which an overlay file is read at once. Larger ones
// are opened again when the layer is written.
const inMemory = 1 << 20

// layOverlay lays overlays/name over what is there. A file is 0755 if its owner may
// execute it and else 0644: the one bit that git keeps. The umask of whoever
// checked it out plays no part.
func (b *build) layOverlay(p *Profile, name string) error {
	root := filepath.Join(b.in.Overlays, name)
	if info, err := os.Stat(root); err != nil || !info.IsDir() {
		err := fault.New(fault.Input, "%s: overlays: there is no directory %s", p.file, root)
		if near := Nearest(name, directories(b.in.Overlays)); near != "" {
			return err.WithMend("did you mean %s?", near)
		}
		return err.WithMend("make it, or remove %s from the list", name)
	}
	return filepath.WalkDir(root, func(full string, d fs.DirEntry, err error) error {
		if err != nil {
			return fault.New(fault.Input, "overlay %s: %w", name, err)
		}
		rel, err := filepath.Rel(root, full)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if rel == "." || d.Name() == keepFile {
			return nil
		}
		e, err := overlayEntry(full, rel, d)
		if err != nil {
			return err
		}
		if err := b.put(e); err != nil {
			return fault.New(fault.Input, "overlay %s: %w", name, err)
		}
		return nil
	})
}

func directories(dir string) (names []string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names
}

func overlayEntry(full, rel string, d fs.DirEntry) (*tree.Entry, error) {
	switch {
	case d.IsDir():
		return &tree.Entry{Path: rel, Kind: tree.Dir, Perm: 0o755}, nil
	case d.Type() == fs.ModeSymlink:
		target, err := os.Readlink(full)
		if err != nil {
			return nil, fault.New(fault.Input, "overlay: %w", err)
		}
		return &tree.Entry{Path: rel, Kind: tree.Symlink, Perm: 0o777, Target: filepath.ToSlash(target)}, nil
	case d.Type().IsRegular():
		return overlayFile(full, rel)
	}
	return nil, fault.New(fault.Input, "overlay: %s is not a file, directory or symbolic link", full).
		WithMend("remove it: devices and sockets are made on the node")
}

func overlayFile(full, rel string) (*tree.Entry, error) {
	info, err := os.Stat(full)
	if err != nil {
		return nil, fault.New(fault.Input, "overlay: %w", err)
	}
	e := &tree.Entry{Path: rel, Kind: tree.Regular, Perm: 0o644, Size: info.Size()}
	if info.Mode()&0o100 != 0 {
		e.Perm = 0o755
	}
	if e.Size > inMemory {
		e.Open = func() (io.ReadCloser, error) { return os.Open(full) }
		return e, nil
	}
	content, err := os.ReadFile(full)
	if err != nil {
		return nil, fault.New(fault.Input, "overlay: %w", err)
	}
	setContent(e, content)
	return e, nil
}

func setContent(e *tree.Entry, content []byte) {
	e.Size = int64(len(content))
	e.Open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }
}
