// Package repository makes the indices of a partial Debian archive: the files below dists/
// of one suite that lists only some packages, signed with the site's key.
//
// In: the suite's fields as upstream has them, and the paragraphs of the packages, word for
// word as upstream's index has them. Out: Packages, plain and compressed, both also under
// their hash, Release, InRelease and Release.gpg, and Sources likewise where source packages are carried. Origin, Label, Suite, Codename, NotAutomatic and ButAutomaticUpgrades stay as upstream's,
// so that pins and policies of the clients go on to work. The format is the Debian wiki's
// "DebianRepository/Format".
//
// A Release that listed only Packages.xz would have apt see no package at all; one with a
// Valid-Until would end while nothing newer can come.
package repository

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ulikunitz/xz"

	"github.com/slipwayhq/slipway/builder/mirror/sign"
)

// Suite is one suite to be made.
type Suite struct {
	Name          string // its directory below dists/
	Origin, Label string
	Suite         string
	Codename      string
	Version       string
	Date          time.Time
	Arch          string
	Components    []string
	Packages      map[string][]Paragraph // by component
	Sources       map[string][]Paragraph // source packages by component; nil: no index of them
	Keys          []*sign.Key
	// NotAutomatic and ButAutomaticUpgrades are upstream's: without them apt would prefer backports to the suite itself.
	NotAutomatic, ButAutomaticUpgrades bool
}

// Paragraph is one package as an index has it.
type Paragraph struct {
	Name, Version string
	Text          []byte // fields, each line ended; no empty line
}

// File is one file of a suite.
type File struct {
	Path    string // below the archive
	Content []byte
}

// Files makes the suite, InRelease last. Equal suites give equal bytes.
func Files(s Suite) ([]File, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("suite %s: %w", s.Name, err)
	}
	base := "dists/" + s.Name + "/"
	var files []File
	var sums []string
	add := func(dir, name string, paragraphs []Paragraph) error {
		plain := index(paragraphs)
		compressed, err := compress(plain)
		if err != nil {
			return err
		}
		for _, f := range []File{{name, plain}, {name + ".xz", compressed}} {
			sum := hashOf(f.Content)
			files = append(files,
				File{base + dir + "by-hash/SHA256/" + sum, f.Content},
				File{base + dir + f.Path, f.Content})
			sums = append(sums, fmt.Sprintf(" %s %d %s", sum, len(f.Content), dir+f.Path))
		}
		return nil
	}
	for _, component := range s.Components {
		if err := add(component+"/binary-"+s.Arch+"/", "Packages", s.Packages[component]); err != nil {
			return nil, err
		}
		if s.Sources == nil {
			continue
		}
		if err := add(component+"/source/", "Sources", s.Sources[component]); err != nil {
			return nil, err
		}
	}
	text := s.release(sums)
	inline, err := sign.ClearSign(text, s.Keys, s.Date)
	if err != nil {
		return nil, err
	}
	detached, err := sign.Detach(text, s.Keys, s.Date)
	if err != nil {
		return nil, err
	}
	return append(files, File{base + "Release", text}, File{base + "Release.gpg", detached}, File{base + "InRelease", inline}), nil
}

func (s Suite) check() error {
	for _, f := range []string{s.Name, s.Origin, s.Label, s.Suite, s.Codename, s.Version, s.Arch, strings.Join(s.Components, " ")} {
		if strings.ContainsAny(f, "\n\r") || strings.TrimSpace(f) != f {
			return fmt.Errorf("%q cannot be the value of a field", f)
		}
	}
	if s.Name == "" || s.Codename == "" && s.Suite == "" || len(s.Components) == 0 {
		return errors.New("it has no name or no component")
	}
	return nil
}

// release is the text of the Release file.
func (s Suite) release(sums []string) []byte {
	var b bytes.Buffer
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(&b, "%s: %s\n", name, value)
		}
	}
	field("Origin", s.Origin)
	field("Label", s.Label)
	field("Suite", s.Suite)
	field("Version", s.Version)
	field("Codename", s.Codename)
	field("Date", s.Date.UTC().Format("Mon, 02 Jan 2006 15:04:05 UTC"))
	if s.NotAutomatic {
		field("NotAutomatic", "yes")
	}
	if s.ButAutomaticUpgrades {
		field("ButAutomaticUpgrades", "yes")
	}
	field("Acquire-By-Hash", "yes")
	field("Architectures", s.Arch)
	field("Components", strings.Join(s.Components, " "))
	b.WriteString("SHA256:\n")
	for _, line := range sums {
		b.WriteString(line + "\n")
	}
	return b.Bytes()
}

// index is the text of a Packages file.
func index(packages []Paragraph) []byte {
	packages = slices.Clone(packages)
	slices.SortStableFunc(packages, func(a, b Paragraph) int {
		if n := strings.Compare(a.Name, b.Name); n != 0 {
			return n
		}
		return strings.Compare(a.Version, b.Version)
	})
	var b bytes.Buffer
	for _, p := range packages {
		b.Write(p.Text)
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// compress is xz as Go's library writes it: the same bytes each time.
func compress(data []byte) ([]byte, error) {
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
