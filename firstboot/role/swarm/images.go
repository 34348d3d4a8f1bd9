package swarm

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/node"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

const maxIndex = 4 << 20

var digestPattern = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// image is one that rides in the appliance.
type image struct {
	repository string // as the profile names it, without its tag
	digest     string // of its manifest, with "sha256:"
}

// reference names it by digest, so that no registry is asked what the name means.
func (im image) reference() string { return im.repository + "@" + im.digest }

// variable is what a Compose file calls it by.
func (im image) variable() string {
	return "IMAGE_" + strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, im.repository)
}

// images are those of the appliance, by name; without a layout there are none.
func images(n *node.Node) ([]image, error) {
	f, err := os.Open(n.Path(filepath.Join("/", manifest.ImagesDir, "index.json")))
	if os.IsNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxIndex))
	if err != nil {
		return nil, err
	}
	return parseIndex(data)
}

// parseIndex reads a layout's index ("OCI Image Format Specification", image-index.md),
// as package oci of the builder writes it.
func parseIndex(data []byte) ([]image, error) {
	var index struct {
		Manifests []struct {
			Digest      string
			Annotations map[string]string
		}
	}
	if err := json.Unmarshal(data, &index); err != nil {
		return nil, fault.New(fault.Integrity, "the index of the appliance's images makes no sense: %w", err)
	}
	var out []image
	for _, m := range index.Manifests {
		name := strings.TrimPrefix(strings.TrimPrefix(m.Annotations["io.containerd.image.name"], "docker.io/"), "library/")
		repository, _, _ := strings.Cut(name, ":")
		if repository == "" || !digestPattern.MatchString(m.Digest) {
			return nil, fault.New(fault.Integrity, "the index of the appliance's images has one without a name or a digest")
		}
		out = append(out, image{repository, m.Digest})
	}
	slices.SortFunc(out, func(a, b image) int { return strings.Compare(a.reference(), b.reference()) })
	return out, nil
}

// missing are the images that Docker does not have.
func (d *docker) missing(ctx context.Context, list []image) (out []image, err error) {
	for _, im := range list {
		have, err := d.hasImage(ctx, im.reference())
		if err != nil {
			return nil, err
		}
		if !have {
			out = append(out, im)
		}
	}
	return out, nil
}

// keptPath names the images that are on the disk for good, a line each. Containerd writes
// down at once that it has an image, and leaves what it has unpacked to the kernel: after
// a power cut Docker may know an image whose files are empty.
const keptPath = "/var/lib/slipway/swarm-images"

// engineDirs are where Docker and containerd keep images.
var engineDirs = []string{"/var/lib/containerd", "/var/lib/docker"}

// bring has Docker take the appliance's images, unless it has them on the disk for good.
func bring(ctx context.Context, n *node.Node, d *docker) error {
	list, err := images(n)
	if err != nil || len(list) == 0 {
		return err
	}
	lacking, err := d.missing(ctx, list)
	if err != nil {
		return err
	}
	kept, err := n.Read(keptPath)
	if err != nil {
		return err
	}
	var doubtful []image
	for _, im := range list {
		if !slices.Contains(lacking, im) && !slices.Contains(strings.Fields(string(kept)), im.reference()) {
			doubtful = append(doubtful, im)
		}
	}
	if len(lacking)+len(doubtful) == 0 {
		return nil
	}
	n.Waiting("Docker takes the appliance's images")
	if _, err := n.Ensure(keptPath, 0, ""); err != nil {
		return err
	}
	for _, im := range doubtful {
		if err := d.discard(ctx, im); err != nil {
			return err
		}
	}
	if lacking, err = d.missing(ctx, list); err != nil {
		return err
	}
	if len(lacking) > 0 {
		if err := d.load(ctx, n.Path(filepath.Join("/", manifest.ImagesDir))); err != nil {
			return err
		}
		if lacking, err = d.missing(ctx, list); err != nil {
			return err
		}
		if len(lacking) > 0 {
			return fmt.Errorf("Docker has taken the appliance's images, and does not know %s", lacking[0].reference())
		}
		n.Changed("brought %d images into Docker", len(list))
	}
	for _, dir := range engineDirs {
		if err := syncFiles(n.Path(dir)); err != nil {
			return err
		}
	}
	var note strings.Builder
	for _, im := range list {
		note.WriteString(im.reference() + "\n")
	}
	_, err = n.Ensure(keptPath, 0o600, note.String())
	return err
}

// syncFiles has the file system of a directory written to the disk (syncfs(2)). One that
// is not there holds nothing.
func syncFiles(dir string) error {
	err := atomicfile.SyncFS(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("flushing the file system of %s: %w", dir, err)
	}
	return nil
}
