// Package apttest makes small signed archives for tests: a key, a distribution
// file that trusts it, and suites with the packages that a test describes.
package apttest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/ulikunitz/xz"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/fetch"
)

// Archive is a made-up archive below a directory: the alias "main" with one
// suite "test", and whatever Beside adds.
type Archive struct {
	Dir  string // base URL is fetch.FileURL(Dir)
	Date time.Time
	// Sources are source packages that Publish adds, each as name_version.
	Sources []string
	// Fields are put into the Release file as they are, each a line.
	Fields []string
	// Tamper, if set, gets the signed InRelease before it is written.
	Tamper func([]byte) []byte

	alias, suite string
	beside       []*Archive
	key          *openpgp.Entity
	t            testing.TB
}

// New makes an archive without packages; call Publish next.
func New(t testing.TB) *Archive {
	t.Helper()
	key, err := openpgp.NewEntity("Test", "", "test@example.org", config())
	if err != nil {
		t.Fatal(err)
	}
	return &Archive{Dir: t.TempDir(), Date: time.Date(2026, 11, 1, 12, 0, 0, 0, time.UTC), alias: "main", suite: "test", key: key, t: t}
}

// Beside adds an archive of another alias, signed by the same key, to the distribution. Its suite is
// called test-ALIAS. A package that both publish with one version is one .deb. Call it before Distribution.
func (a *Archive) Beside(alias string) *Archive {
	b := &Archive{Dir: a.t.TempDir(), Date: a.Date, alias: alias, suite: "test-" + alias, key: a.key, t: a.t}
	a.beside = append(a.beside, b)
	return b
}

func config() *packet.Config {
	when := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	return &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return when }}
}

// Fingerprint is that of the archive's key.
func (a *Archive) Fingerprint() string {
	return strings.ToUpper(hex.EncodeToString(a.key.PrimaryKey.Fingerprint))
}

// Distribution writes and loads a distribution file that trusts the archive.
func (a *Archive) Distribution() *apt.Distribution {
	a.t.Helper()
	dir := a.t.TempDir()
	var key bytes.Buffer
	w, err := armor.Encode(&key, openpgp.PublicKeyType, nil)
	a.must(err)
	a.must(a.key.Serialize(w))
	a.must(w.Close())
	a.must(os.WriteFile(filepath.Join(dir, "test.asc"), key.Bytes(), 0o644))
	file := filepath.Join(dir, "distribution.yaml")
	text := "name: test\narch: amd64\ncomponents: [main]\nkeys: [test.asc]\narchives:\n"
	for _, one := range append([]*Archive{a}, a.beside...) {
		path := "debian"
		if one != a {
			path += "-" + one.alias
		}
		text += fmt.Sprintf("  - alias: %s\n    path: %s\n    suites: [%s]\n    signed_by: [%s]\n", one.alias, path, one.suite, one.Fingerprint())
	}
	a.must(os.WriteFile(file, []byte(text), 0o644))
	d, err := apt.LoadDistribution(file)
	a.must(err)
	return d
}

// Locations are where the archive and those beside it are.
func (a *Archive) Locations() fetch.Locations {
	l := fetch.Locations{a.alias: {fetch.FileURL(a.Dir)}}
	for _, b := range a.beside {
		l[b.alias] = []string{fetch.FileURL(b.Dir)}
	}
	return l
}

// Publish makes the suite consist of these packages. Each is a block of control
// fields; what is missing of Version, Architecture and the rest is made up, and
// so is the .deb.
func (a *Archive) Publish(packages ...string) {
	a.t.Helper()
	var index strings.Builder
	for _, fields := range packages {
		index.WriteString(a.paragraph(strings.TrimSpace(fields)) + "\n\n")
	}
	a.publish(map[string][]byte{"main/binary-amd64/Packages.xz": a.compress(index.String()), "main/source/Sources.xz": a.compress(a.sources())})
}

func (a *Archive) compress(text string) []byte {
	a.t.Helper()
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	a.must(err)
	_, err = w.Write([]byte(text))
	a.must(err)
	a.must(w.Close())
	return b.Bytes()
}

// sources writes the source packages to the pool and returns their index.
func (a *Archive) sources() string {
	var index strings.Builder
	for _, s := range a.Sources {
		name, version, _ := strings.Cut(s, "_")
		fmt.Fprintf(&index, "Package: %s\nVersion: %s\nBinary: %s\nArchitecture: any\nFormat: 3.0 (native)\nDirectory: pool/%s\nChecksums-Sha256:\n", name, version, name, name)
		for _, ext := range []string{".dsc", ".tar.xz"} {
			content := []byte("the source " + s + ext)
			a.write("pool/"+name+"/"+s+ext, content)
			fmt.Fprintf(&index, " %s %d %s\n", hashOf(content), len(content), s+ext)
		}
		index.WriteString("\n")
	}
	return index.String()
}

// paragraph completes a package's fields and writes its .deb to the pool.
func (a *Archive) paragraph(fields string) string {
	value := func(name, otherwise string) string {
		for line := range strings.Lines(fields) {
			if v, ok := strings.CutPrefix(line, name+":"); ok {
				return strings.TrimSpace(v)
			}
		}
		fields += "\n" + name + ": " + otherwise
		return otherwise
	}
	name := value("Package", "hello")
	version := value("Version", "1")
	arch := value("Architecture", "amd64")
	deb := []byte(fmt.Sprintf("the package %s %s %s", name, version, arch))
	path := fmt.Sprintf("pool/%s_%s_%s.deb", name, version, arch)
	a.write(path, deb)
	value("Filename", path)
	value("Size", fmt.Sprint(len(deb)))
	value("SHA256", hashOf(deb))
	value("Installed-Size", "10")
	return fields
}

// PublishIndex writes a signed Release that lists one file with these bytes.
func (a *Archive) PublishIndex(path string, content []byte) {
	a.t.Helper()
	a.publish(map[string][]byte{path: content})
}

// publish writes a signed Release that lists these files.
func (a *Archive) publish(files map[string][]byte) {
	a.t.Helper()
	lines := append([]string{
		"Origin: Test", "Suite: " + a.suite, "Codename: " + a.suite, "Architectures: amd64", "Components: main",
		"Date: " + a.Date.UTC().Format("Mon, 02 Jan 2006 15:04:05 MST"),
	}, a.Fields...)
	lines = append(lines, "SHA256:")
	for _, path := range slices.Sorted(maps.Keys(files)) {
		a.write("dists/"+a.suite+"/"+path, files[path])
		lines = append(lines, fmt.Sprintf(" %s %d %s", hashOf(files[path]), len(files[path]), path))
	}
	a.PublishRelease(strings.Join(lines, "\n") + "\n")
}

// PublishRelease signs and writes a Release file.
func (a *Archive) PublishRelease(text string) {
	a.t.Helper()
	signed := a.Sign(text)
	if a.Tamper != nil {
		signed = a.Tamper(signed)
	}
	a.write("dists/"+a.suite+"/InRelease", signed)
}

// Sign clear-signs a text with the archive's key.
func (a *Archive) Sign(text string) []byte {
	a.t.Helper()
	var b bytes.Buffer
	w, err := clearsign.Encode(&b, a.key.PrivateKey, config())
	a.must(err)
	_, err = w.Write([]byte(text))
	a.must(err)
	a.must(w.Close())
	b.WriteByte('\n')
	return b.Bytes()
}

// Key is the archive's key as a keyring.
func (a *Archive) Key() openpgp.EntityList { return openpgp.EntityList{a.key} }

func (a *Archive) write(path string, content []byte) {
	a.t.Helper()
	path = filepath.Join(a.Dir, filepath.FromSlash(path))
	a.must(os.MkdirAll(filepath.Dir(path), 0o755))
	a.must(os.WriteFile(path, content, 0o644))
}

func (a *Archive) must(err error) {
	a.t.Helper()
	if err != nil {
		a.t.Fatal(err)
	}
}

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
