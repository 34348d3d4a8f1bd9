package inspect

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/squashfs"
	"github.com/slipwayhq/slipway/builder/tree"
	"github.com/slipwayhq/slipway/internal/fault"
)

// espType is the partition type of an EFI system partition.
const espType = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"

// maxManifest bounds a manifest: real ones have a few hundred KiB.
const maxManifest = 64 << 20

// Image is an appliance's image file. Its exported fields are what "slipway
// inspect --json" prints.
type Image struct {
	Path       string      `json:"path"`
	Format     string      `json:"format"`
	FileSize   int64       `json:"file_size"`
	DiskSize   int64       `json:"disk_size"`
	Partitions []Partition `json:"partitions"`
	Boot       Boot        `json:"boot"`
	Files      []File      `json:"files"`
	Versions   []Version   `json:"versions"` // sorted by version id

	f     *os.File
	esp   *fat
	files map[string]file
}

// Boot is which version GRUB starts.
type Boot struct {
	Good  string `json:"good"`            // known to work
	Try   string `json:"try,omitempty"`   // on trial
	Tries int    `json:"tries,omitempty"` // starts that the trial has left
}

// File is a file of the boot partition.
type File struct {
	Path string `json:"path"`
	Size int64  `json:"size"`
}

// Version is one version that the image holds.
type Version struct {
	manifest.Manifest
	// Verified says that Verify found every layer as the manifest has it.
	Verified bool `json:"verified"`
}

// Open reads what an image file says of itself. The caller closes the image.
// Errors name the file and are of class Input if it is no appliance and of class
// Integrity if it is damaged.
func Open(name string) (*Image, error) {
	f, size, err := openFile(name)
	if err != nil {
		return nil, err
	}
	im, err := read(f, size)
	if err != nil {
		f.Close()
		return nil, named(name, err)
	}
	im.Path, im.f = name, f
	return im, nil
}

// named puts the file's name before an error and keeps its class and mend.
func named(name string, err error) error {
	out := fault.New(fault.Of(err), "%s: %w", name, err)
	if mend := fault.Mend(err); mend != "" {
		return out.WithMend("%s", mend)
	}
	if out.Class == fault.Integrity {
		return out.WithMend("copy or build the file again")
	}
	return out
}

// read goes from the file to the disk, to its boot partition, to the manifests.
func read(f io.ReaderAt, size int64) (*Image, error) {
	o, err := openDisk(f, size)
	if err != nil {
		return nil, err
	}
	im := &Image{Format: o.format, FileSize: size, DiskSize: o.size}
	if im.Partitions, err = readPartitions(o.disk, o.size); err != nil {
		return nil, err
	}
	if im.esp, err = openESP(o.disk, im.Partitions); err != nil {
		return nil, err
	}
	list, err := im.esp.files()
	if err != nil {
		return nil, err
	}
	im.files = map[string]file{}
	for _, e := range list {
		im.files[e.path] = e
		im.Files = append(im.Files, File{e.path, e.size})
	}
	if err := im.readBoot(); err != nil {
		return nil, err
	}
	return im, im.readVersions()
}

func openESP(disk io.ReaderAt, partitions []Partition) (*fat, error) {
	for _, p := range partitions {
		if p.Type == espType {
			return openFAT(io.NewSectionReader(disk, p.Start, p.Size), p.Size)
		}
	}
	return nil, fault.New(fault.Input, "the disk has no EFI system partition, so it is no appliance of slipway").
		WithMend("name a file that slipway build wrote")
}

// readFile reads a small file of the boot partition.
func (im *Image) readFile(name string, limit int64) ([]byte, error) {
	e, ok := im.files[name]
	if !ok {
		return nil, fault.New(fault.Input, "the boot partition has no %s, so this is no appliance of slipway", name)
	}
	if e.size > limit {
		return nil, badFAT("%s has %d bytes, more than %d", name, e.size, limit)
	}
	r, err := im.esp.open(e)
	if err != nil {
		return nil, err
	}
	b := make([]byte, e.size)
	if _, err := r.ReadAt(b, 0); err != nil && !(errors.Is(err, io.EOF) && e.size == 0) {
		return nil, badFAT("%s: %w", name, err)
	}
	return b, nil
}

func (im *Image) readBoot() error {
	block, err := im.readFile("grub/grubenv", grubenv.Size)
	if err != nil {
		return err
	}
	env, err := grubenv.Parse(block)
	if err != nil {
		return fault.New(fault.Integrity, "grub/grubenv: %w", err)
	}
	im.Boot = Boot{Good: env.Good, Try: env.Try, Tries: env.Tries}
	return nil
}

func (im *Image) readVersions() error {
	for _, e := range im.Files {
		dir, base := path.Split(e.Path)
		if base != "manifest.json" || path.Dir(path.Clean(dir)) != "images" {
			continue
		}
		data, err := im.readFile(e.Path, maxManifest)
		if err != nil {
			return err
		}
		m, err := manifest.Parse(data)
		if err != nil {
			return fault.New(fault.Integrity, "%s: %w", e.Path, err)
		}
		if m.Version != path.Base(dir) {
			return fault.New(fault.Integrity, "%s: describes version %q", e.Path, m.Version)
		}
		im.Versions = append(im.Versions, Version{Manifest: *m})
	}
	if len(im.Versions) == 0 {
		return fault.New(fault.Input, "the boot partition holds no version, so this is no appliance of slipway")
	}
	sort.Slice(im.Versions, func(i, j int) bool { return im.Versions[i].Version < im.Versions[j].Version })
	return nil
}

// Close closes the file.
func (im *Image) Close() error { return im.f.Close() }

// Current is the version that the image starts: the one on trial, else the good
// one, else the last.
func (im *Image) Current() *Version {
	want := im.Boot.Good
	if im.Boot.Try != "" && im.Boot.Tries > 0 {
		want = im.Boot.Try
	}
	for i := range im.Versions {
		if im.Versions[i].Version == want {
			return &im.Versions[i]
		}
	}
	return &im.Versions[len(im.Versions)-1]
}

// layer gives access to a layer's squashfs where it stands.
func (im *Image) layer(l manifest.Layer) (io.ReaderAt, error) {
	e, ok := im.files[l.File()]
	if !ok {
		return nil, fault.New(fault.Integrity, "layer %s: %s is missing on the boot partition", l.Name, l.File())
	}
	if e.size != l.Size {
		return nil, fault.New(fault.Integrity, "layer %s: %s has %d bytes, the manifest says %d", l.Name, l.File(), e.size, l.Size)
	}
	return im.esp.open(e)
}

// Layer returns the files of one layer.
func (im *Image) Layer(l manifest.Layer) (*tree.Tree, error) {
	r, err := im.layer(l)
	if err != nil {
		return nil, named(im.Path, err)
	}
	s, err := squashfs.Open(r, l.Size)
	if err != nil {
		return nil, named(im.Path, fault.New(fault.Integrity, "layer %s: %w", l.Name, err))
	}
	t, err := s.Tree()
	if err != nil {
		return nil, named(im.Path, fault.New(fault.Integrity, "layer %s: %w", l.Name, err))
	}
	return t, nil
}

// Content gives access to a file of the boot partition where it stands.
func (im *Image) Content(name string) (*io.SectionReader, error) {
	e, ok := im.files[name]
	if !ok {
		return nil, named(im.Path, fault.New(fault.Integrity, "%s is missing on the boot partition", name))
	}
	r, err := im.esp.open(e)
	if err != nil {
		return nil, named(im.Path, err)
	}
	return io.NewSectionReader(r, 0, e.size), nil
}

// Verify reads every layer and compares its hash with the manifests. It marks the
// versions that are whole; the error names every layer that is not.
func (im *Image) Verify(ctx context.Context) error {
	layers := map[string]manifest.Layer{}
	for _, v := range im.Versions {
		for _, l := range v.Layers {
			layers[l.Digest] = l
		}
	}
	digests := make([]string, 0, len(layers))
	for d := range layers {
		digests = append(digests, d)
	}
	sort.Strings(digests)
	problems := make([]error, len(digests))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i, d := range digests {
		group.Go(func() error {
			problems[i] = im.verifyLayer(ctx, layers[d])
			return ctx.Err()
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	bad := map[string]bool{}
	var messages []string
	for i, p := range problems {
		if p != nil {
			bad[digests[i]] = true
			messages = append(messages, p.Error())
		}
	}
	for i := range im.Versions {
		im.Versions[i].Verified = true
		for _, l := range im.Versions[i].Layers {
			im.Versions[i].Verified = im.Versions[i].Verified && !bad[l.Digest]
		}
	}
	if len(messages) > 0 {
		return named(im.Path, fault.New(fault.Integrity, "%s", strings.Join(messages, "; ")))
	}
	return nil
}

func (im *Image) verifyLayer(ctx context.Context, l manifest.Layer) error {
	r, err := im.layer(l)
	if err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, contextReader{ctx, io.NewSectionReader(r, 0, l.Size)}); err != nil {
		return fmt.Errorf("layer %s: %w", l.Name, err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != l.Digest {
		return fmt.Errorf("layer %s: the content's SHA-256 is %s, the manifest says %s", l.Name, got, l.Digest)
	}
	return nil
}

// contextReader stops a long copy when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}
