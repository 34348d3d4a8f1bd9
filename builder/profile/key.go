package profile

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/internal/fault"
)

// configFormat changes whenever the same inputs would make another tree, so that
// cached layers of an older slipway are not taken for current ones.
const configFormat = 1

// Key is the hash of all that goes into a role's config layer: the role marker, the
// overlays, the Butane files and what they include, the agent, the command, the date and the
// layers below by digest. Two calls with equal keys make equal trees.
func (s *Set) Key(p *Profile, in Input) (string, error) {
	h := sha256.New()
	marker, err := json.Marshal(s.marker(p, in))
	if err != nil {
		return "", err
	}
	fmt.Fprintf(h, "config %d\ndate %d\nmarker %s\n", configFormat, in.Date, marker)
	for _, key := range in.LowerKeys {
		fmt.Fprintf(h, "lower %s\n", key)
	}
	for _, part := range []*Profile{s.Base, p} {
		for _, name := range part.Overlays {
			if err := hashPath(h, filepath.Join(in.Overlays, name)); err != nil {
				return "", err
			}
		}
		if part.Butane == "" {
			continue
		}
		file := filepath.Join(s.dir, part.Butane)
		if err := hashPath(h, file); err != nil {
			return "", err
		}
		for _, name := range included(file) {
			if err := hashPath(h, filepath.Join(filepath.Dir(filepath.Clean(in.Overlays)), filepath.FromSlash(name))); err != nil {
				return "", err
			}
		}
	}
	if in.Agent != "" {
		if err := hashPath(h, in.Agent); err != nil {
			return "", err
		}
	}
	if p.Slipway && in.Command != "" {
		if err := hashPath(h, in.Command); err != nil {
			return "", err
		}
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// Reads lists the files and directories of the project, beside profiles and overlays, that the profiles have a build read:
// packages of its own, what Butane files take in, and commands that images are made of. Paths start at the project's directory.
func (s *Set) Reads() (names []string) {
	for _, p := range append([]*Profile{s.Base, s.Tools}, s.Roles...) {
		names = append(names, p.Debs...)
		for _, im := range p.Images {
			if im.Go != "" {
				names = append(names, im.Go)
			}
		}
		if p.Butane != "" {
			names = append(names, included(filepath.Join(s.dir, p.Butane))...)
		}
	}
	return names
}

// included lists the files and directories that a Butane file takes in. A file
// that cannot be parsed includes nothing: Config says what is wrong with it.
func included(file string) (names []string) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	doc, err := parseDocument(file, data)
	if err != nil {
		return nil
	}
	var walk func(n *yaml.Node)
	walk = func(n *yaml.Node) {
		for i, c := range n.Content {
			if n.Kind == yaml.MappingNode && i%2 == 1 && c.Kind == yaml.ScalarNode {
				if key := n.Content[i-1].Value; key == "local" || key == "contents_local" {
					names = append(names, c.Value)
				}
			}
			walk(c)
		}
	}
	walk(doc.root)
	return names
}

// hashPath feeds a file, or a directory with all below it: names, kinds, the
// executable bit, link targets and content.
func hashPath(h hash.Hash, root string) error {
	err := filepath.WalkDir(root, func(full string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, full)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %v %t\n", filepath.ToSlash(rel), d.Type(), info.Mode()&0o100 != 0)
		switch {
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(full)
			fmt.Fprintf(h, "%q\n", target)
			return err
		case d.Type().IsRegular():
			return hashFile(h, full)
		}
		return nil
	})
	if err != nil {
		return fault.New(fault.Input, "reading what goes into the config layer: %w", err).
			WithMend("add the file, or remove its name from the profile")
	}
	return nil
}

// hashFile feeds a file's size and content; with the size before it, no two
// sequences of files feed the same bytes.
func hashFile(h hash.Hash, full string) error {
	f, err := os.Open(full)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	fmt.Fprintf(h, "%d\n", info.Size())
	_, err = io.Copy(h, f)
	return err
}
