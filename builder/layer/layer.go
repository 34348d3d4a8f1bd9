// Package layer turns locked Debian packages into the file trees that
// appliances are stacked from: base, a role's packages, and the tools that a
// build itself uses.
//
// # Model
//
// A layer is a directory. The base layer is a whole system; any other is an
// overlay's upper directory: what its packages add to the base, with the
// merged dpkg database of both. Owners and capabilities stand in extended
// attributes (package ownership), so that root and ordinary users make the same
// layer. FromDir reads a layer back as a tree.Tree.
//
// # How packages become a layer
//
// dpkg spends most of an installation on unpacking one package after another
// and on flushing each file. So Build does dpkg's first half itself, all
// packages in parallel, and leaves its database as dpkg leaves it after
// "dpkg --unpack" (deb-src: dpkg, src/main/unpack.c): status, file lists, control
// files, triggers. Then dpkg does the second half, "dpkg --configure", in the
// sandbox, with every maintainer script and trigger as on any Debian system.
//
//  1. Packages are read and checked against what the lock says of them.
//  2. What dpkg-deb needs is unpacked in pure Go; dpkg-deb, in the sandbox,
//     decompresses the rest (measurement: package deb).
//  3. Unpacked first are all packages without a preinst, and Essential ones with
//     what they need, whose preinst runs after unpacking, as debootstrap does.
//  4. The others follow in waves: their Pre-Depends are configured, the preinst
//     runs, then they are unpacked, with the diversions that stand by then
//     (Debian Policy, 6.6 "Details of unpack phase").
//  5. dpkg configures all that is left; dpkg --audit must find nothing.
//  6. What differs from build to build is removed or set right.
//
// In: packages, a lower layer or none, policies for what to leave out. Out: a
// directory and what is installed in it. An error names the package and the
// script that failed, and where its log is.
package layer

import (
	"io"
	"time"

	"github.com/slipwayhq/slipway/builder/deb"
	"github.com/slipwayhq/slipway/internal/progress"
)

// Deb is one package file.
type Deb struct {
	Name, Version, Arch string
	Path                string // of the .deb
}

// Transform gives a file another name and content on its way to disk, such as
// a kernel module without its compression. An empty name leaves it as it is.
type Transform func(path string) (string, deb.Convert)

// Input is what a layer is made of.
type Input struct {
	Name string // for messages and the log's name
	Debs []Deb
	// Lower is the directory of the layer below, "" for the base layer. Debs then
	// are the packages to add to it.
	Lower string
	// Dir is where the layer goes; it must be empty or absent. Work is a
	// directory for temporary files, on the same file system.
	Dir, Work string
	// Date is the lock's date, in seconds since the Unix epoch.
	Date int64
	// Keep tells whether a path of a package (without leading slash) is laid
	// down; nil is KeepDefault.
	Keep func(path string) bool
	// Transform may be nil.
	Transform Transform
	// Preseed are files that stand before any script of this layer runs, by path.
	Preseed map[string][]byte
	// Log gets what scripts print, as they print it; may be nil. All of it is
	// also written to LogFile, which is NAME.log in Work if empty.
	Log     io.Writer
	LogFile string
	// ShellOnFailure opens a shell in the sandbox when a script fails.
	ShellOnFailure bool
	Progress       progress.Reporter // nil is progress.None
	// Spool, if not nil, is where packages are decompressed ahead of their use
	// while scripts leave processors idle: this layer's own, then those of Ahead,
	// which layers built later with the same Spool will unpack.
	Spool *Spool
	Ahead []Deb
}

// Package is what dpkg holds installed in a layer.
type Package struct {
	Name, Version, Arch string
	Source              string // source package, if named otherwise
	InstalledSize       int64  // bytes, by the package's own word
}

// Result is a finished layer.
type Result struct {
	Dir string
	// Packages are those that this layer added, by name.
	Packages []Package
	Log      string  // path of the log
	Stages   []Stage // how long each step took
}

// Stage is one step of a build and how long it took.
type Stage struct {
	Name string
	Took time.Duration
}

// FromDirOptions say how a directory is read.
type FromDirOptions struct {
	// Date is the time of all directories and the latest time of all files.
	Date int64
	// Upper says that the directory is an overlay's upper: devices 0:0 are
	// whiteouts, and opaque directories keep their mark, spelled as a mount by
	// root wants it.
	Upper bool
	// Skip leaves out a path and all below it; may be nil.
	Skip func(path string) bool
}
