// Package manifest holds the two records that travel inside an appliance: the
// manifest of an image version, which stands beside its kernel on the boot
// partition, and the role marker, which stands in the root file system.
//
// Both are JSON. Readers ignore fields that they do not know, so that an older
// agent can read what a newer builder wrote; Format changes only when an old
// reader would be wrong.
package manifest

import (
	"encoding/json"
	"fmt"
	"time"
)

// Format is the version of both records' layout.
const Format = 1

// RolePath is where the role marker stands in the root file system.
const RolePath = "usr/lib/slipway/role.json"

// Layer is one squashfs of a version's root file system.
type Layer struct {
	Name   string `json:"name"`   // base, packages, images or config
	Digest string `json:"digest"` // SHA-256 of the file, hexadecimal
	Size   int64  `json:"size"`   // bytes
}

// File is the layer's path on the boot partition.
func (l Layer) File() string { return "layers/" + l.Digest + ".sqfs" }

// Package is one Debian package that is in the version.
type Package struct {
	Name          string `json:"name"`
	Version       string `json:"version"`
	Arch          string `json:"arch"`
	Source        string `json:"source,omitempty"` // source package, if named otherwise
	Layer         string `json:"layer"`            // name of the layer that holds it
	Size          int64  `json:"size"`             // bytes of the .deb
	InstalledSize int64  `json:"installed_size"`   // bytes once unpacked, by the package's own word
	SHA256        string `json:"sha256"`           // of the .deb
}

// Image is one OCI image that is in the version.
type Image struct {
	Name   string `json:"name"`
	Digest string `json:"digest"` // of its manifest, SHA-256 in hexadecimal
	Source string `json:"source"` // registry:REFERENCE, layout:PATH, tarball:PATH or go:PACKAGE
}

// Manifest describes one version of one role, completely.
type Manifest struct {
	Format   int       `json:"format"`
	Version  string    `json:"version"`
	Role     Role      `json:"role"`
	Created  time.Time `json:"created"` // the lock's date: builds have no date of their own
	Kernel   string    `json:"kernel"`  // release, as uname -r prints it
	Layers   []Layer   `json:"layers"`  // bottom first
	Packages []Package `json:"packages"`
	Images   []Image   `json:"images,omitempty"`
	Lock     string    `json:"lock"`    // checksum of images.lock
	Builder  string    `json:"builder"` // slipway's version
}

// Port is one entry of the node's firewall.
type Port struct {
	Port  string `json:"port" yaml:"port"`   // "5432" or "7000-7100"
	Proto string `json:"proto" yaml:"proto"` // tcp, udp or vrrp (which has no port)
	From  string `json:"from" yaml:"from"`   // any: the whole world; cluster: the node's peers; clients: the networks that the topology names
	Why   string `json:"why" yaml:"why"`     // what listens there
}

// VM is the machine that a role asks for.
type VM struct {
	CPUs   int   `json:"cpus"`
	Memory int64 `json:"memory"` // bytes
	Disk   int64 `json:"disk"`   // bytes, thin
}

// Role is the role marker: what the init and the agent must know of the role
// that they run in.
type Role struct {
	Format   int      `json:"format"`
	Name     string   `json:"name"`
	Summary  string   `json:"summary"`
	State    []string `json:"state"`    // directories that outlive a version, absolute
	Ports    []Port   `json:"ports"`    // what the firewall lets in
	Services []string `json:"services"` // systemd units that make the role's service
	VM       VM       `json:"vm"`
	Product  Product  `json:"product,omitzero"`
	// Archives are what the image's packages are from.
	Archives []Archive `json:"archives,omitempty"`
}

// Archive is a Debian archive, without the place where it is to be had.
type Archive struct {
	Path       string   `json:"path"` // last part of its usual base URL, such as debian-security
	Suites     []string `json:"suites"`
	Components []string `json:"components"`
}

// Parse reads a manifest and refuses one of a format that it does not know.
func Parse(data []byte) (*Manifest, error) {
	var m Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		return nil, fmt.Errorf("image manifest: %w", err)
	}
	if m.Format != Format {
		return nil, fmt.Errorf("image manifest: format %d is not known, this slipway reads format %d", m.Format, Format)
	}
	return &m, nil
}

// ParseRole reads a role marker.
func ParseRole(data []byte) (*Role, error) {
	var r Role
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, fmt.Errorf("role marker: %w", err)
	}
	if r.Format != Format {
		return nil, fmt.Errorf("role marker: format %d is not known, this agent reads format %d", r.Format, Format)
	}
	return &r, nil
}
