package apt

import (
	"bytes"
	"embed"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"gopkg.in/yaml.v3"

	"github.com/slipwayhq/slipway/builder/fetch"
	"github.com/slipwayhq/slipway/internal/fault"
)

// Distribution says where a distribution's packages come from and who may sign
// for them. It is read from a YAML file, so that another Debian-format
// distribution needs no code.
type Distribution struct {
	Name       string        `yaml:"name"`
	Arch       string        `yaml:"arch"`
	Components []string      `yaml:"components"`
	Archives   []ArchiveSpec `yaml:"archives"`
	Keys       []string      `yaml:"keys"`     // files beside this one, or "debian" for Debian's own
	Domain     string        `yaml:"domain"`   // of the distribution's own services; for Snapshot
	Snapshot   string        `yaml:"snapshot"` // URL with {domain}, {path} and {time}; optional

	Keyring openpgp.EntityList `yaml:"-"`
	File    string             `yaml:"-"`
}

// ArchiveSpec is one archive: a tree with dists/ and pool/ below one base URL.
type ArchiveSpec struct {
	Alias    string   `yaml:"alias"`     // what images.lock and --mirror call it
	Path     string   `yaml:"path"`      // last part of its usual base URL, by which mirrors are recognised
	Suites   []string `yaml:"suites"`    // suites to take packages from
	SignedBy []string `yaml:"signed_by"` // fingerprints of primary keys, any of which will do
}

// debianKeys are Debian's archive keys, as the package debian-archive-keyring
// has them.
//
//go:embed keys/*.asc
var debianKeys embed.FS

var (
	aliasPattern       = regexp.MustCompile(`^[a-z][a-z0-9-]*$`)
	suitePattern       = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~+-]*(/[A-Za-z0-9._~+-]+)*$`)
	fingerprintPattern = regexp.MustCompile(`^[0-9A-F]{40}$|^[0-9A-F]{64}$`)
)

// LoadDistribution reads a distribution file and the keys that it names. Its
// errors are of class Input and name the file and field.
func LoadDistribution(file string) (*Distribution, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fault.New(fault.Input, "reading the distribution: %w", err).
			WithMend("run slipway in the directory that holds profiles/")
	}
	bad := func(format string, args ...any) (*Distribution, error) {
		return nil, fault.New(fault.Input, "%s: %w", file, fault.New(fault.Input, format, args...)).
			WithMend("see docs/formats.md for what a distribution file holds")
	}
	d := &Distribution{File: file}
	decoder := yaml.NewDecoder(bytes.NewReader(b))
	decoder.KnownFields(true)
	if err := decoder.Decode(d); err != nil {
		return bad("%w", err)
	}
	switch {
	case !aliasPattern.MatchString(d.Name):
		return bad("name: %q: want lower-case letters, digits and hyphens", d.Name)
	case !aliasPattern.MatchString(d.Arch):
		return bad("arch: %q: want a Debian architecture such as amd64", d.Arch)
	case len(d.Components) == 0:
		return bad("components: want at least one, such as main")
	case len(d.Archives) == 0:
		return bad("archives: want at least one")
	}
	for _, c := range d.Components {
		if !suitePattern.MatchString(c) {
			return bad("components: %q is not a component name", c)
		}
	}
	if d.Keyring, err = readKeys(filepath.Dir(file), d.Keys); err != nil {
		return bad("keys: %w", err)
	}
	seen := map[string]bool{}
	for i, a := range d.Archives {
		switch {
		case !aliasPattern.MatchString(a.Alias) || seen[a.Alias]:
			return bad("archives: alias %q: want a name of its own, of lower-case letters, digits and hyphens", a.Alias)
		case a.Alias == ProjectAlias:
			return bad("archives: alias %q is what the lock calls the project's own directories of packages", a.Alias)
		case len(a.Suites) == 0:
			return bad("archives: %s: suites: want at least one", a.Alias)
		case len(a.SignedBy) == 0:
			return bad("archives: %s: signed_by: want at least one fingerprint; unsigned archives are not supported", a.Alias)
		}
		seen[a.Alias] = true
		for _, s := range a.Suites {
			if !suitePattern.MatchString(s) {
				return bad("archives: %s: suites: %q is not a suite name", a.Alias, s)
			}
		}
		for j, fpr := range a.SignedBy {
			fpr = strings.ToUpper(strings.ReplaceAll(fpr, " ", ""))
			if !fingerprintPattern.MatchString(fpr) {
				return bad("archives: %s: signed_by: %q is not a fingerprint", a.Alias, fpr)
			}
			if !hasKey(d.Keyring, fpr) {
				return bad("archives: %s: signed_by: %s is in none of the keys", a.Alias, fpr)
			}
			d.Archives[i].SignedBy[j] = fpr
		}
	}
	return d, nil
}

func hasKey(keyring openpgp.EntityList, fpr string) bool {
	for _, e := range keyring {
		if fingerprint(e) == fpr {
			return true
		}
	}
	return false
}

// readKeys reads key files (armoured or not) that stand in dir, and "debian".
func readKeys(dir string, names []string) (openpgp.EntityList, error) {
	var keyring openpgp.EntityList
	for _, name := range names {
		if name == "debian" {
			keys, err := DebianKeys()
			if err != nil {
				return nil, err
			}
			keyring = append(keyring, keys...)
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, filepath.FromSlash(name)))
		if err != nil {
			return nil, err
		}
		keys, err := parseKeys(b)
		if err != nil {
			return nil, fault.New(fault.Input, "%s: %w", name, err)
		}
		keyring = append(keyring, keys...)
	}
	if len(keyring) == 0 {
		return nil, errors.New("want at least one")
	}
	return keyring, nil
}

// DebianKeys are Debian's archive keys, as they come with slipway.
func DebianKeys() (openpgp.EntityList, error) {
	files, err := fs.Glob(debianKeys, "keys/*.asc")
	if err != nil {
		return nil, err
	}
	var keyring openpgp.EntityList
	for _, f := range files {
		b, err := debianKeys.ReadFile(f)
		if err != nil {
			return nil, err
		}
		keys, err := parseKeys(b)
		if err != nil {
			return nil, fault.New(fault.Internal, "%s: %w", path.Base(f), err)
		}
		keyring = append(keyring, keys...)
	}
	return keyring, nil
}

func parseKeys(b []byte) (openpgp.EntityList, error) {
	if bytes.HasPrefix(bytes.TrimSpace(b), []byte("-----BEGIN")) {
		return openpgp.ReadArmoredKeyRing(bytes.NewReader(b))
	}
	return openpgp.ReadKeyRing(io.LimitReader(bytes.NewReader(b), 16<<20))
}

// Trust has keys count beside those that each archive names: those of a mirror that signs its own
// indices of what it carries.
func (d *Distribution) Trust(keys openpgp.EntityList) {
	d.Keyring = append(d.Keyring, keys...)
	for i := range d.Archives {
		for _, e := range keys {
			d.Archives[i].SignedBy = append(d.Archives[i].SignedBy, fingerprint(e))
		}
	}
}

// Archive returns the spec of an alias.
func (d *Distribution) Archive(alias string) (ArchiveSpec, bool) {
	for _, a := range d.Archives {
		if a.Alias == alias {
			return a, true
		}
	}
	return ArchiveSpec{}, false
}

// SnapshotLocations returns where the public snapshot service has each archive
// as it stood shortly after the given time of its alias. The service imports an
// archive some hours after its Release is dated and serves the newest import
// that is not younger than what is asked for, so two times are tried.
func (d *Distribution) SnapshotLocations(dates map[string]time.Time) fetch.Locations {
	locations := fetch.Locations{}
	if d.Snapshot == "" {
		return locations
	}
	for _, a := range d.Archives {
		date, known := dates[a.Alias]
		if !known {
			continue
		}
		for _, after := range []time.Duration{6 * time.Hour, 0} {
			locations[a.Alias] = append(locations[a.Alias], strings.NewReplacer(
				"{domain}", d.Domain, "{path}", a.Path, "{time}", date.Add(after).UTC().Format("20060102T150405Z")).Replace(d.Snapshot))
		}
	}
	return locations
}
