// Package versions looks after the versions of the image that a node has beside each
// other: what there is, putting another one there, trying it, going back.
//
// In goes an Image, which names everything that makes a version by SHA-256, and then the
// blobs that the node lacks; out comes a version that GRUB can start, and the environment
// block that makes it try it (package grubenv). The layout is that of docs/formats.md,
// "Image layout":
//
//	/upload/<sha256>.part     a blob on its way; where it ends, it goes on after an interruption
//	/layers/<sha256>.sqfs     a layer; it counts once a version names it
//	/images/<version>/        manifest.json, vmlinuz, initrd, and last of all boot.cfg,
//	                          without which GRUB does not see the version
//
// Every blob is read back from the disk and hashed before it moves out of /upload, and every
// layer of a version, new or not, before its boot.cfg is written. Each step is whole
// or absent after a power cut (package bootpart), and all of them can be done again.
//
// Three versions are kept at most: the one that runs or is good, the one that was good before,
// and the one that is tried. Clean goes with the next upgrade, never with the version that a
// fallback needs.
package versions

import (
	"fmt"
	"maps"
	"regexp"
	"slices"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Image is a version as an administrator offers it: its parts, by content.
type Image struct {
	Role    string          `json:"role"`
	Version string          `json:"version"`
	Files   map[string]Blob `json:"files"`  // those of Parts
	Layers  []Blob          `json:"layers"` // bottom first
}

// Blob is a file by its content.
type Blob struct {
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// Parts are the files beside the layers, in the order in which they are put there:
// GRUB sees a version by the last.
var Parts = []string{"manifest.json", "vmlinuz", "initrd", bootConfig}

const (
	bootConfig = "boot.cfg"
	manifestAt = "manifest.json"

	maxLayers   = 16
	maxLayer    = 3 << 30
	maxManifest = 16 << 20
)

// largest is how large a part may be.
var largest = map[string]int64{manifestAt: maxManifest, "vmlinuz": 256 << 20, "initrd": 256 << 20, bootConfig: 16 << 10}

var (
	hashForm    = regexp.MustCompile(`^[0-9a-f]{64}$`)
	versionForm = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z._+-]{0,63}$`)
	// GRUB runs a boot.cfg, so that it may say nothing but what the builder writes.
	configForm = regexp.MustCompile("^(#[^\n]*\n|set (title|args)=\"[^\"$\\\\`'\n]*\"\n)*$")
)

// Check says what is wrong with an offer.
func (i Image) Check() error {
	wrong := func(format string, args ...any) error {
		return fault.New(fault.Input, "the image: "+format, args...)
	}
	switch {
	case !versionForm.MatchString(i.Version):
		return wrong("%q cannot be a version's name", i.Version)
	case len(i.Layers) == 0 || len(i.Layers) > maxLayers:
		return wrong("%d layers; it has 1 to %d", len(i.Layers), maxLayers)
	case len(i.Files) != len(Parts):
		return wrong("its files are %q; they must be %q", slices.Sorted(maps.Keys(i.Files)), Parts)
	}
	for _, part := range Parts {
		if b, ok := i.Files[part]; !ok || !b.sound(largest[part]) {
			return wrong("its %s is missing or makes no sense: %+v", part, b)
		}
	}
	for _, b := range i.Layers {
		if !b.sound(maxLayer) {
			return wrong("the layer %+v makes no sense", b)
		}
	}
	return nil
}

func (b Blob) sound(most int64) bool {
	return hashForm.MatchString(b.SHA256) && b.Size > 0 && b.Size <= most
}

// blobs are all parts and layers, each once.
func (i Image) blobs() []Blob {
	all := slices.Clone(i.Layers)
	for _, part := range Parts {
		all = append(all, i.Files[part])
	}
	slices.SortFunc(all, func(a, b Blob) int {
		if a.SHA256 < b.SHA256 {
			return -1
		}
		return 1
	})
	return slices.Compact(all)
}

func staged(sha256 string) string { return "upload/" + sha256 + ".part" }

func layerFile(sha256 string) string { return "layers/" + sha256 + ".sqfs" }

func dirOf(version string) string { return "images/" + version }

// Name is the first eight digits of a hash, for people.
func (b Blob) Name() string { return b.SHA256[:min(8, len(b.SHA256))] }

// Offer is what a node says to an image.
type Offer struct {
	// Installed says that the version is there, whole, and can be tried.
	Installed bool      `json:"installed"`
	Missing   []Missing `json:"missing,omitempty"`
	Free      int64     `json:"free"` // bytes on the boot partition
	Removed   []string  `json:"removed,omitempty"`
}

// Missing is a blob that the node lacks, or has the beginning of.
type Missing struct {
	Blob
	Have int64 `json:"have"`
}

func (m Missing) String() string { return fmt.Sprintf("%s, %d of %d bytes", m.Name(), m.Have, m.Size) }
