package apt

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"pault.ag/go/debian/version"
)

// ProjectAlias stands for an archive's where a package is a file of the project.
const ProjectAlias = "project"

// Package is one paragraph of a Packages index.
type Package struct {
	Name          string
	Version       string
	Arch          string
	Source        string // source package, without its version
	Size          int64  // bytes of the .deb
	InstalledSize int64  // bytes, by the package's own estimate
	SHA256        string
	Path          string // below the archive's base URL
	Alias         string // archive it comes from
	Suite         string

	Priority  string
	MultiArch string
	Essential bool
	Protected bool // Protected or Important: wanted nearly as much as Essential

	// Relationship fields, as written.
	PreDepends, Depends, Recommends, Suggests, Enhances string
	Conflicts, Breaks, Replaces, Provides               string

	Parsed version.Version // Version, parsed
}

// ID names the package with its version, as messages do.
func (p *Package) ID() string { return p.Name + " " + p.Version }

var sha256Pattern = regexp.MustCompile(`^[0-9a-f]{64}$`)

// ReadPackages reads a Packages index. Paragraphs for architectures other than
// arch and "all" are left out.
func ReadPackages(r io.Reader, alias, suite, arch string) ([]*Package, error) {
	var packages []*Package
	err := EachParagraph(r, func(p *Paragraph) error {
		a := p.Get("Architecture")
		if a != arch && a != "all" {
			return nil
		}
		pkg, err := packageOf(p)
		if err != nil {
			return fmt.Errorf("paragraph at line %d: %w", p.Line, err)
		}
		pkg.Alias, pkg.Suite = alias, suite
		packages = append(packages, pkg)
		return nil
	})
	return packages, err
}

func packageOf(p *Paragraph) (*Package, error) {
	pkg := &Package{
		Name: p.Get("Package"), Version: p.Get("Version"), Arch: p.Get("Architecture"),
		SHA256: p.Get("SHA256"), Path: p.Get("Filename"),
		Priority: p.Get("Priority"), MultiArch: p.Get("Multi-Arch"),
		Essential:  p.Get("Essential") == "yes",
		Protected:  p.Get("Protected") == "yes" || p.Get("Important") == "yes",
		PreDepends: p.Get("Pre-Depends"), Depends: p.Get("Depends"), Recommends: p.Get("Recommends"), Suggests: p.Get("Suggests"), Enhances: p.Get("Enhances"),
		Conflicts: p.Get("Conflicts"), Breaks: p.Get("Breaks"), Replaces: p.Get("Replaces"), Provides: p.Get("Provides"),
	}
	if !ValidName(pkg.Name) {
		return nil, fmt.Errorf("bad package name %q", clip([]byte(pkg.Name)))
	}
	// A package's name, version and path stand in images.lock as words.
	var err error
	if pkg.Parsed, err = version.Parse(pkg.Version); err != nil || strings.ContainsAny(pkg.Version, " \t\n") {
		return nil, fmt.Errorf("package %s: version %q: %w", pkg.Name, clip([]byte(pkg.Version)), err)
	}
	if !sha256Pattern.MatchString(pkg.SHA256) {
		return nil, fmt.Errorf("package %s: no SHA256", pkg.Name)
	}
	if err := checkPath(pkg.Path); err != nil {
		return nil, fmt.Errorf("package %s: Filename: %w", pkg.Name, err)
	}
	if pkg.Size, err = strconv.ParseInt(p.Get("Size"), 10, 64); err != nil || pkg.Size < 0 {
		return nil, fmt.Errorf("package %s: bad Size %q", pkg.Name, clip([]byte(p.Get("Size"))))
	}
	if kib, err := strconv.ParseInt(p.Get("Installed-Size"), 10, 64); err == nil && kib > 0 && kib < 1<<40 {
		pkg.InstalledSize = kib << 10 // the field counts KiB
	}
	if pkg.Source, _ = SourceOf(p.Get); !ValidName(pkg.Source) {
		return nil, fmt.Errorf("package %s: bad source name %q", pkg.Name, clip([]byte(pkg.Source)))
	}
	return pkg, nil
}

// SourceFiles are the files of a source package, by a paragraph of a Sources index: size and hash by path below
// the archive's base URL (dsc(5), "Checksums-Sha256").
func SourceFiles(p *Paragraph) (map[string]FileSum, error) {
	files := map[string]FileSum{}
	for _, line := range p.Lines("Checksums-Sha256") {
		words := strings.Fields(line)
		if len(words) != 3 || !sha256Pattern.MatchString(words[0]) {
			return nil, fmt.Errorf("field Checksums-Sha256: %q: want hash, size and name", clip([]byte(line)))
		}
		size, err := strconv.ParseInt(words[1], 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("field Checksums-Sha256: %q: bad size", clip([]byte(line)))
		}
		path := p.Get("Directory") + "/" + words[2]
		if err := checkPath(path); err != nil {
			return nil, fmt.Errorf("field Directory or Checksums-Sha256: %w", err)
		}
		files[path] = FileSum{Size: size, SHA256: words[0]}
	}
	if len(files) == 0 {
		return nil, errors.New("field Checksums-Sha256: it names no file")
	}
	return files, nil
}

// SourceOf is the name and version of the source package that a package was built from, by the fields of its
// paragraph (deb-control(5), "Source").
func SourceOf(get func(field string) string) (name, version string) {
	name, version, _ = strings.Cut(get("Source"), " ")
	if name == "" {
		name = get("Package")
	}
	if version = strings.Trim(version, "()"); version == "" {
		version = get("Version")
	}
	return name, version
}

// checkPath refuses paths that could lead out of the archive, or that a line of
// words could not hold.
func checkPath(p string) error {
	if p == "" || strings.HasPrefix(p, "/") || strings.ContainsAny(p, " \t\n\\\x00") {
		return fmt.Errorf("bad path %q", clip([]byte(p)))
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." || part == "" {
			return fmt.Errorf("bad path %q", clip([]byte(p)))
		}
	}
	return nil
}
