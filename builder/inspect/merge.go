package inspect

import (
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/tree"
)

// opaque is the attribute of a directory that hides what layers below have in it
// (kernel, "Overlay Filesystem", "whiteouts and opaque directories").
const opaque = "trusted.overlay.opaque"

// rootFS is a version's root file system as the appliance sees it: the layers
// laid over each other, and for each path the digest of the layer it comes from.
type rootFS struct {
	tree *tree.Tree
	from map[string]string
}

// rootFS reads and stacks the layers of a version.
func (im *Image) rootFS(v *Version) (*rootFS, error) {
	out := &rootFS{tree.New(), map[string]string{}}
	for _, l := range v.Layers {
		t, err := im.Layer(l)
		if err != nil {
			return nil, err
		}
		if err := out.lay(l, t); err != nil {
			return nil, named(im.Path, err)
		}
	}
	return out, nil
}

// lay puts one layer over what is there.
func (r *rootFS) lay(l manifest.Layer, t *tree.Tree) error {
	for _, e := range t.Sorted() {
		whiteout := e.Kind == tree.Char && e.Major == 0 && e.Minor == 0
		if whiteout || string(e.Xattrs[opaque]) == "y" {
			r.tree.Remove(e.Path)
		}
		if whiteout {
			delete(r.from, e.Path)
			continue
		}
		c := *e
		if c.LinkTo != "" {
			// A hard link's content is its own layer's, whatever later layers
			// put at the path it links to.
			if target := t.Get(c.LinkTo); target != nil {
				c.Open, c.Size, c.LinkTo = target.Open, target.Size, ""
			}
		}
		if err := r.tree.Put(&c); err != nil {
			return err
		}
		r.from[c.Path] = l.Digest
	}
	return nil
}
