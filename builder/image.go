package builder

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/boot"
	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/disk"
	"github.com/slipwayhq/slipway/builder/export"
	"github.com/slipwayhq/slipway/builder/lock"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/profile"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// espSize leaves room for several versions beside each other: an upgrade adds a
// version, and only the layers that changed. The disk is thin, so it costs nothing.
const espSize = 3 << 30

// Format is a file format that images are written in.
type Format string

// The formats.
const (
	QCOW2 Format = "qcow2"
	OVA   Format = "ova"
	VMDK  Format = "vmdk"
	Raw   Format = "raw"
)

// ParseFormats reads a comma-separated list of formats.
func ParseFormats(list string) ([]Format, error) {
	var out []Format
	for _, name := range strings.Split(list, ",") {
		switch f := Format(strings.TrimSpace(name)); f {
		case QCOW2, OVA, VMDK, Raw:
			out = append(out, f)
		default:
			return nil, fault.New(fault.Usage, "there is no format %q", name).WithMend("use any of qcow2, ova, vmdk, raw, separated by commas")
		}
	}
	return out, nil
}

// version is one version of a role, complete: what a disk will hold of it.
type version struct {
	manifest manifest.Manifest
	layers   []string // paths of the layer files, in the manifest's order
	kernel   []byte
	initrd   []byte
	loader   loader
}

// initramfs makes the archive with the init and the modules that find the disk.
func (b *build) initramfs(base madeLayer, initDigest string) (digest string, err error) {
	key := hashKey(recipe, boot.RulesDigest(), base.Digest, initDigest, b.date())
	if data, ok := b.Cache.Record(initrdRecord, key); ok {
		if _, ok := b.Cache.Blob(string(data)); ok {
			return string(data), nil
		}
	}
	program, err := b.readBlob(initDigest)
	if err != nil {
		return "", err
	}
	root, file, err := b.layerTree(base)
	if err != nil {
		return "", err
	}
	defer file.Close()
	var out bytes.Buffer
	if err := boot.Initramfs(&out, boot.InitramfsInput{Init: program, Root: root, Release: base.Kernel, Date: b.date()}); err != nil {
		return "", err
	}
	if digest, err = b.putBytes(out.Bytes()); err != nil {
		return "", err
	}
	return digest, b.Cache.PutRecord(initrdRecord, key, []byte(digest))
}

// config makes a role's config layer: overlays, Butane, agent, command, role marker.
func (b *build) config(ctx context.Context, role *profile.Profile, ls *layers, images ociLayer, agentDigest, commandDigest string) (madeLayer, error) {
	agentPath, ok := b.Cache.Blob(agentDigest)
	if !ok {
		return madeLayer{}, gone("agent")
	}
	commandPath := ""
	if role.Slipway {
		if commandPath, ok = b.Cache.Blob(commandDigest); !ok {
			return madeLayer{}, gone("command")
		}
	}
	below := stackOf(ls, role, images)
	in := profile.Input{
		Overlays: filepath.Join(b.Project, "overlays"), Date: b.date(), Agent: agentPath, Command: commandPath,
		Archives: archives(b.Distribution),
	}
	for _, l := range below {
		in.LowerKeys = append(in.LowerKeys, l.Digest)
	}
	inputs, err := b.profiles.Key(role, in)
	if err != nil {
		return madeLayer{}, err
	}
	l := madeLayer{key: hashKey(recipe, "config", inputs)}
	if b.cachedLayer(l.key, &l) {
		return l, nil
	}
	for _, lower := range below {
		t, file, err := b.layerTree(lower)
		if err != nil {
			return madeLayer{}, err
		}
		defer file.Close()
		in.Lower = append(in.Lower, t)
	}
	t, err := b.profiles.Config(role, in)
	if err != nil {
		return madeLayer{}, err
	}
	return b.compress(ctx, plan{name: "config", title: role.Role + " config"}, l, t)
}

// archives are a distribution's, as the role marker has them.
func archives(d *apt.Distribution) []manifest.Archive {
	var out []manifest.Archive
	for _, a := range d.Archives {
		out = append(out, manifest.Archive{Path: a.Path, Suites: a.Suites, Components: d.Components})
	}
	return out
}

// version puts a role's layers, kernel and initramfs together.
func (b *build) version(role *profile.Profile, ls *layers, images ociLayer, config madeLayer, initrd string) (*version, error) {
	m := manifest.Manifest{
		Format: manifest.Format, Role: b.profiles.Marker(role), Created: b.lock.Date().UTC(),
		Kernel: ls.base.Kernel, Lock: b.lock.Checksum(), Builder: Version,
	}
	stack := append(stackOf(ls, role, images), config)
	identity := []any{role.Role, ls.base.Vmlinuz, initrd, ls.loader, Version}
	for _, l := range stack {
		m.Layers = append(m.Layers, l.Layer)
		identity = append(identity, l.Digest)
	}
	m.Images = images.list
	m.Packages = append(packagesOf(b.lock.Closure("base"), "base"), packagesOf(b.lock.Own(role.Role), "packages")...)
	// The date is for people, the hash for machines: two versions with one name
	// are the same bytes.
	m.Version = m.Created.Format("20060102") + "-" + hashKey(identity...)[:12]

	v := &version{manifest: m, loader: ls.loader}
	var err error
	if v.kernel, err = b.readBlob(ls.base.Vmlinuz); err != nil {
		return nil, err
	}
	if v.initrd, err = b.readBlob(initrd); err != nil {
		return nil, err
	}
	for _, l := range stack {
		path, ok := b.Cache.Blob(l.Digest)
		if !ok {
			return nil, gone(l.Digest)
		}
		v.layers = append(v.layers, path)
	}
	return v, nil
}

// packagesOf lists locked packages as the manifest does.
func packagesOf(packages []lock.Package, layer string) []manifest.Package {
	out := make([]manifest.Package, 0, len(packages))
	for _, p := range packages {
		m := manifest.Package{Name: p.Name, Version: p.Version, Arch: p.Arch, Layer: layer,
			Size: p.Size, InstalledSize: p.InstalledSize, SHA256: p.SHA256}
		if p.Source != p.Name {
			m.Source = p.Source
		}
		out = append(out, m)
	}
	return out
}

// seed decides the GUIDs and ids of a version's disk.
func (v *version) seed() [32]byte {
	return sha256.Sum256([]byte("disk " + v.manifest.Role.Name + " " + v.manifest.Version))
}

// disk lays the version out. The image reads from the layer files, which stay
// open until done is called.
func (b *build) disk(v *version) (im *disk.Image, done func(), err error) {
	var open []io.Closer
	done = func() {
		for _, c := range open {
			c.Close()
		}
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	var files []disk.File
	add := func(path string, content []byte) {
		files = append(files, disk.File{Path: path, Size: int64(len(content)), Src: bytes.NewReader(content)})
	}
	for to, digest := range v.loader.Files {
		content, err := b.readBlob(digest)
		if err != nil {
			return nil, nil, err
		}
		add(to, content)
	}
	config, err := boot.ConfigFiles(v.manifest.Version)
	if err != nil {
		return nil, nil, err
	}
	dir := boot.VersionDir(v.manifest.Version)
	entry, err := boot.BootConfig("slipway " + v.manifest.Role.Name + " " + v.manifest.Version)
	if err != nil {
		return nil, nil, err
	}
	entry.Path = path.Join(dir, entry.Path)
	for _, f := range append(config, entry) {
		add(f.Path, f.Content)
	}
	record, err := json.MarshalIndent(v.manifest, "", "  ")
	if err != nil {
		return nil, nil, err
	}
	add(path.Join(dir, "manifest.json"), append(record, '\n'))
	add(path.Join(dir, "vmlinuz"), v.kernel)
	add(path.Join(dir, "initrd"), v.initrd)
	for i, l := range v.manifest.Layers {
		f, err := os.Open(v.layers[i])
		if err != nil {
			return nil, nil, err
		}
		open = append(open, f)
		files = append(files, disk.File{Path: l.File(), Size: l.Size, Src: f})
	}
	bootImg, err := b.readBlob(v.loader.Boot)
	if err != nil {
		return nil, nil, err
	}
	coreImg, err := b.readBlob(v.loader.Core)
	if err != nil {
		return nil, nil, err
	}
	im, err = disk.Layout(disk.LayoutInput{
		Size: v.manifest.Role.VM.Disk, Seed: v.seed(), BootImg: bootImg, CoreImg: coreImg,
		ESPSize: espSize, Files: files, Date: v.manifest.Created,
	})
	return im, done, err
}

// export writes a version's disk in every format asked for, all at once.
func (b *build) export(ctx context.Context, v *version) ([]Image, error) {
	if err := os.MkdirAll(b.Output, 0o755); err != nil {
		return nil, err
	}
	im, done, err := b.disk(v)
	if err != nil {
		return nil, err
	}
	defer done()
	task := b.Progress.Start("write "+v.manifest.Role.Name, int64(len(b.Formats)), progress.Items)
	images := make([]Image, len(b.Formats))
	g, ctx := errgroup.WithContext(ctx)
	for i, format := range b.Formats {
		g.Go(func() error {
			name := v.manifest.Role.Name + "." + string(format)
			file := filepath.Join(b.Output, name)
			err := atomicfile.Write(file, 0o644, func(f *os.File) error { return v.write(ctx, f, im, format) })
			if err != nil {
				return cache.Classify(fmt.Errorf("writing %s: %w", file, err))
			}
			st, err := os.Stat(file)
			if err != nil {
				return err
			}
			images[i] = Image{Role: v.manifest.Role.Name, Version: v.manifest.Version, Format: format, Path: file, Size: st.Size()}
			task.Add(1)
			return nil
		})
	}
	err = g.Wait()
	task.Done(err)
	return images, err
}

// write writes the disk in one format.
func (v *version) write(ctx context.Context, f *os.File, im *disk.Image, format Format) error {
	role := v.manifest.Role
	switch format {
	case QCOW2:
		return export.QCOW2(ctx, f, im)
	case Raw:
		return export.Raw(ctx, f, im)
	case VMDK:
		return export.VMDK(ctx, f, im, export.VMDKOptions{Name: role.Name + ".vmdk", Seed: v.seed()})
	case OVA:
		return export.OVA(ctx, f, export.OVAInput{
			Name: role.Name, Product: "slipway " + role.Name, Summary: role.Summary, Version: v.manifest.Version,
			Image: im, VM: role.VM, Seed: v.seed(), Date: v.manifest.Created,
		})
	}
	return fmt.Errorf("format %q has no writer", format)
}
