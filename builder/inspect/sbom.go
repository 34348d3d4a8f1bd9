package inspect

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/spdx/tools-golang/spdx/v2/common"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"

	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/builder/tree"
)

// noAssertion is SPDX's word for "not looked into".
const noAssertion = "NOASSERTION"

// SBOM writes the bill of materials of the version that the image starts: SPDX 2.3
// as JSON ("The Software Package Data Exchange Specification Version 2.3"). The
// appliance contains its layers, a layer contains its Debian packages. The same
// image gives the same bytes: the date is the manifest's, the namespace its hash.
//
// A package's licence is what its debian/copyright declares, where that is machine
// readable and every licence in it has an SPDX name; else NOASSERTION.
func (im *Image) SBOM(w io.Writer) error {
	v := im.Current()
	licences := map[string]string{}
	for _, l := range v.Layers {
		t, err := im.Layer(l)
		if err != nil {
			return err
		}
		for _, p := range v.Packages {
			if p.Layer == l.Name {
				licences[p.Name] = declaredLicence(t, p.Name)
			}
		}
	}
	doc, err := document(&v.Manifest, licences)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(doc)
}

// declaredLicence reads a package's copyright file out of the layer that holds it.
func declaredLicence(t *tree.Tree, name string) string {
	path := "usr/share/doc/" + name
	if e := t.Get(path); e != nil && e.Kind == tree.Symlink && !strings.Contains(e.Target, "/") {
		path = "usr/share/doc/" + e.Target // one source package, one directory
	}
	e := t.Get(path + "/copyright")
	if e == nil || e.Kind != tree.Regular || e.Size > maxCopyright {
		return noAssertion
	}
	data, err := t.ReadFile(path + "/copyright")
	if err != nil {
		return noAssertion
	}
	return licenceOf(string(data))
}

// document builds the SPDX document of a version.
func document(m *manifest.Manifest, licences map[string]string) (*v2_3.Document, error) {
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(raw)
	name := m.Role.Name + "-" + m.Version
	doc := &v2_3.Document{
		SPDXVersion:       v2_3.Version,
		DataLicense:       v2_3.DataLicense,
		SPDXIdentifier:    "DOCUMENT",
		DocumentName:      name,
		DocumentNamespace: "https://spdx.org/spdxdocs/" + url.PathEscape(name) + "-" + hex.EncodeToString(sum[:16]),
		CreationInfo: &v2_3.CreationInfo{
			Created:  m.Created.UTC().Format("2006-01-02T15:04:05Z"),
			Creators: []common.Creator{{CreatorType: "Tool", Creator: "slipway-" + m.Builder}},
		},
	}
	ids := identifiers{}
	root := ids.new("Appliance-" + name)
	doc.Packages = append(doc.Packages, &v2_3.Package{
		PackageName: m.Role.Name, PackageSPDXIdentifier: root, PackageVersion: m.Version,
		PackageSummary: m.Role.Summary, PrimaryPackagePurpose: "OPERATING_SYSTEM",
		PackageDownloadLocation: noAssertion, PackageLicenseConcluded: noAssertion,
		PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion,
	})
	relate := func(a common.ElementID, how string, b common.ElementID) {
		doc.Relationships = append(doc.Relationships, &v2_3.Relationship{
			RefA: common.DocElementID{ElementRefID: a}, RefB: common.DocElementID{ElementRefID: b}, Relationship: how,
		})
	}
	relate("DOCUMENT", common.TypeRelationshipDescribe, root)
	layers := map[string]common.ElementID{}
	for _, l := range m.Layers {
		id := ids.new("Layer-" + l.Name)
		layers[l.Name] = id
		doc.Packages = append(doc.Packages, &v2_3.Package{
			PackageName: l.Name, PackageSPDXIdentifier: id, PackageFileName: l.File(), PrimaryPackagePurpose: "ARCHIVE",
			PackageChecksums:        []common.Checksum{{Algorithm: common.SHA256, Value: l.Digest}},
			PackageDownloadLocation: noAssertion, PackageLicenseConcluded: noAssertion,
			PackageLicenseDeclared: noAssertion, PackageCopyrightText: noAssertion,
		})
		relate(root, common.TypeRelationshipContains, id)
	}
	for _, p := range m.Packages {
		id := ids.new("Package-" + p.Name + "-" + p.Arch)
		doc.Packages = append(doc.Packages, debianPackage(p, id, licences[p.Name]))
		if layer, ok := layers[p.Layer]; ok {
			relate(layer, common.TypeRelationshipContains, id)
		} else {
			relate(root, common.TypeRelationshipContains, id)
		}
	}
	return doc, nil
}

func debianPackage(p manifest.Package, id common.ElementID, licence string) *v2_3.Package {
	if licence == "" {
		licence = noAssertion
	}
	out := &v2_3.Package{
		PackageName: p.Name, PackageSPDXIdentifier: id, PackageVersion: p.Version,
		PackageSupplier:         &common.Supplier{SupplierType: "Organization", Supplier: "Debian"},
		PackageDownloadLocation: noAssertion,
		PackageChecksums:        []common.Checksum{{Algorithm: common.SHA256, Value: p.SHA256}},
		PackageLicenseConcluded: noAssertion, PackageLicenseDeclared: licence, PackageCopyrightText: noAssertion,
		PackageExternalReferences: []*v2_3.PackageExternalReference{{
			Category: common.CategoryPackageManager, RefType: common.TypePackageManagerPURL, Locator: purl(p),
		}},
	}
	if p.Source != "" {
		out.PackageSourceInfo = "built from Debian source package " + p.Source
	}
	return out
}

// purl is the package URL (package-url/purl-spec, "deb" in PURL-TYPES).
func purl(p manifest.Package) string {
	escape := func(s string) string {
		// Everything but unreserved characters is escaped, and the colon of an
		// epoch, too, as the specification's own example of Debian has it.
		return strings.ReplaceAll(url.QueryEscape(s), "%7E", "~")
	}
	return "pkg:deb/debian/" + escape(p.Name) + "@" + escape(p.Version) + "?arch=" + escape(p.Arch)
}

// identifiers hands out SPDX identifiers: letters, digits, "." and "-" only
// (SPDX 2.3, 7.2), each once.
type identifiers map[common.ElementID]bool

func (ids identifiers) new(name string) common.ElementID {
	var b strings.Builder
	for _, r := range name {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '.', r == '-':
			b.WriteRune(r)
		case r == '+':
			b.WriteString(".plus")
		default:
			b.WriteByte('.')
		}
	}
	id := common.ElementID(b.String())
	for n := 2; ids[id]; n++ {
		id = common.ElementID(fmt.Sprintf("%s.%d", b.String(), n))
	}
	ids[id] = true
	return id
}
