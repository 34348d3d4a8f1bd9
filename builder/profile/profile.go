// Package profile models what an appliance is made of: the packages of a role,
// the file trees laid over them, its users and systemd units, the directories that
// outlive a version, its firewall and its virtual machine.
//
// In: a directory of YAML files, one a profile, with a Butane config beside each
// that needs one; and the overlays/ directory. Out: a Set of checked profiles
// (Load), and for a role the tree of its config layer (Set.Config), the last and
// smallest layer of an appliance, made in pure Go on any operating system.
//
// Two profiles are not roles: "base" is what all roles stand on, "tools" is what
// the build runs and never ships. The format is described in docs/formats.md
// ("Profiles"). Butane is the Fedora CoreOS variant ("Fedora CoreOS
// Specification v1.6.0") or the Flatcar variant; it is translated to Ignition
// ("Configuration Specification v3.5.0") and what an image can hold of that is
// applied at build time. What it cannot hold is refused with its line.
package profile

import (
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Names of the two profiles that are not roles.
const (
	BaseName  = "base"
	ToolsName = "tools"
)

// DistributionFile stands among the profiles and is not one: it names the
// archive that packages come from.
const DistributionFile = "distribution.yaml"

// Profile is one file of profiles/.
type Profile struct {
	Role    string `yaml:"role"`
	Summary string `yaml:"summary"`
	// Packages are the roots that the lock resolves. A role's come on top of
	// base's; roles with equal lists and preseeds share a layer.
	Packages []string `yaml:"packages"`
	// Overlays name directories of overlays/, laid in this order.
	Overlays []string `yaml:"overlays"`
	// Butane is the name of a Butane config in the profiles directory, or "".
	Butane string `yaml:"butane"`
	// State lists directories that outlive a version.
	State []string `yaml:"state"`
	// Ports is what the node's firewall lets in.
	Ports []manifest.Port `yaml:"ports"`
	// Services are the units that make the role's service.
	Services []string `yaml:"services"`
	VM       VM       `yaml:"vm"`
	// Debs are directories of the project with packages that no archive has, by their
	// paths below it.
	Debs []string `yaml:"debs"`
	// Images are the OCI images that ride in the appliance.
	Images []Image `yaml:"images"`
	// Product is what the agent does for the product.
	Product manifest.Product `yaml:"product"`
	// Slipway puts the command slipway itself into the appliance.
	Slipway bool `yaml:"slipway"`
	// Preseed is files, by absolute path, that stand before maintainer scripts
	// run, such as answers that a package's postinst reads.
	Preseed map[string]string `yaml:"preseed"`

	file string // path it was read from, for messages
}

// VM is the machine that a role asks for by default.
type VM struct {
	CPUs   int  `yaml:"cpus"`
	Memory Size `yaml:"memory"`
	Disk   Size `yaml:"disk"`
}

// Image is an OCI image and where it comes from: one of Go, Registry, Layout and
// Tarball.
type Image struct {
	// Name is what the node knows the image by, such as acme/portal or acme/portal:2.
	Name string `yaml:"name"`
	// Go is the path of a command of the project's Go module, such as ./service, which
	// becomes the image's only program.
	Go string `yaml:"go"`
	// Registry is a reference: HOST/REPOSITORY:TAG or HOST/REPOSITORY@DIGEST.
	Registry string `yaml:"registry"`
	// Layout is a directory of the project with an OCI image layout of one image.
	Layout string `yaml:"layout"`
	// Tarball is a file of the project as docker save writes it, or an OCI image
	// layout in a tar archive.
	Tarball string `yaml:"tarball"`
}

// File is the path that the profile was read from.
func (p *Profile) File() string { return p.file }

// Set is all profiles of a directory.
type Set struct {
	Base  *Profile
	Tools *Profile
	Roles []*Profile // sorted by name
	dir   string
}

// Load reads and checks every profile of dir. Its errors are of class Input and
// name the file, line and field.
func Load(dir string) (*Set, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil {
		return nil, fault.New(fault.Internal, "listing profiles: %w", err)
	}
	if len(names) == 0 {
		return nil, fault.New(fault.Input, "no profiles in %s", dir).
			WithMend("run slipway in the directory that holds profiles/, or name it with --project")
	}
	set := &Set{dir: dir}
	for _, name := range names {
		if filepath.Base(name) == DistributionFile {
			continue
		}
		data, err := os.ReadFile(name)
		if err != nil {
			return nil, fault.New(fault.Input, "reading a profile: %w", err)
		}
		p, err := parse(name, data)
		if err != nil {
			return nil, err
		}
		switch p.Role {
		case BaseName:
			set.Base = p
		case ToolsName:
			set.Tools = p
		default:
			set.Roles = append(set.Roles, p)
		}
	}
	for what, p := range map[string]*Profile{BaseName: set.Base, ToolsName: set.Tools} {
		if p == nil {
			return nil, fault.New(fault.Input, "%s: there is no %s.yaml", dir, what).
				WithMend("add %s; every role needs it", filepath.Join(dir, what+".yaml"))
		}
	}
	sort.Slice(set.Roles, func(i, j int) bool { return set.Roles[i].Role < set.Roles[j].Role })
	return set, set.check()
}

// check looks at what only all profiles together show.
func (s *Set) check() error {
	inBase := map[string]bool{}
	for _, name := range s.Base.Packages {
		inBase[name] = true
	}
	for _, p := range s.Roles {
		for _, name := range p.Packages {
			if inBase[name] {
				return fault.New(fault.Input, "%s: packages: %s is in %s already", p.file, name, s.Base.file).
					WithMend("remove it from the role: every role stands on base")
			}
		}
	}
	return s.checkSameImages()
}

// checkSameImages refuses an image that two roles have from different places: the
// lock has one digest for each name.
func (s *Set) checkSameImages() error {
	type named struct {
		image Image
		file  string
	}
	known := map[string]named{}
	for _, p := range s.Roles {
		for _, im := range p.Images {
			was, ok := known[im.Name]
			if ok && was.image != im {
				return fault.New(fault.Input, "%s: images: %s comes from elsewhere in %s", p.file, im.Name, was.file).
					WithMend("name the same place in both, or give one of the images another name")
			}
			known[im.Name] = named{im, p.file}
		}
	}
	return nil
}

// Names lists the roles, sorted.
func (s *Set) Names() []string {
	names := make([]string, len(s.Roles))
	for i, p := range s.Roles {
		names[i] = p.Role
	}
	return names
}

// Role finds a role by name. The error for an unknown one lists those that exist
// and the nearest.
func (s *Set) Role(name string) (*Profile, error) {
	for _, p := range s.Roles {
		if p.Role == name {
			return p, nil
		}
	}
	known := strings.Join(s.Names(), ", ")
	err := fault.New(fault.Input, "there is no role %q; the roles are %s", name, known)
	if near := Nearest(name, s.Names()); near != "" {
		return nil, err.WithMend("did you mean %s?", near)
	}
	return nil, err.WithMend("name one of them, or add %s", filepath.Join(s.dir, name+".yaml"))
}

// Marker is what the appliance of a role knows of itself: the role's own facts
// with those of base before them.
func (s *Set) Marker(p *Profile) manifest.Role {
	state := append(append([]string{}, s.Base.State...), p.State...)
	sort.Strings(state)
	return manifest.Role{
		Format:   manifest.Format,
		Name:     p.Role,
		Summary:  p.Summary,
		State:    state,
		Ports:    append(append([]manifest.Port{}, s.Base.Ports...), p.Ports...),
		Services: append(append([]string{}, s.Base.Services...), p.Services...),
		Product:  p.Product,
		VM:       manifest.VM{CPUs: p.VM.CPUs, Memory: int64(p.VM.Memory), Disk: int64(p.VM.Disk)},
	}
}
