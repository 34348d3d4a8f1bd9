package inspect

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdx/v2/v2_3"
	"github.com/spdx/tools-golang/spdxlib"
)

func sbom(t *testing.T, format string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := mustOpen(t, sample().write(t, format)).SBOM(&out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestTheSBOMFollowsTheOfficialSchema(t *testing.T) {
	raw, err := os.ReadFile("testdata/spdx-schema-2.3.json")
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("spdx.json", parsed); err != nil {
		t.Fatal(err)
	}
	schema, err := compiler.Compile("spdx.json")
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(sbom(t, FormatQCOW2)))
	if err != nil {
		t.Fatal(err)
	}
	if err := schema.Validate(doc); err != nil {
		t.Error(err)
	}
	doc.(map[string]any)["packages"].([]any)[0].(map[string]any)["downloadLocation"] = 1
	if schema.Validate(doc) == nil {
		t.Error("the schema accepts a wrong document, so it judges nothing")
	}
}

func TestTheSBOMIsReadByTheReferenceLibrary(t *testing.T) {
	any, err := spdxjson.Read(bytes.NewReader(sbom(t, FormatQCOW2)))
	if err != nil {
		t.Fatal(err)
	}
	doc := any
	if err := spdxlib.ValidateDocument(doc); err != nil {
		t.Error(err)
	}
	roots, err := spdxlib.GetDescribedPackageIDs(doc)
	if err != nil || len(roots) != 1 {
		t.Errorf("it describes %v, %v; want the appliance alone", roots, err)
	}
	byName := map[string]*v2_3.Package{}
	for _, p := range doc.Packages {
		byName[p.PackageName] = p
	}
	p := byName["libfoo++"]
	if p == nil {
		t.Fatal("a package is missing")
	}
	if got := p.PackageExternalReferences[0].Locator; got != "pkg:deb/debian/libfoo%2B%2B@1%3A2.0~rc1-1?arch=amd64" {
		t.Errorf("its package URL is %s", got)
	}
	if p.PackageLicenseDeclared != "GPL-2.0-or-later AND MIT" || byName["tool"].PackageLicenseDeclared != noAssertion {
		t.Errorf("licences are %s and %s", p.PackageLicenseDeclared, byName["tool"].PackageLicenseDeclared)
	}
}

func TestTheSBOMDependsOnTheContentAlone(t *testing.T) {
	a, b := sbom(t, FormatQCOW2), sbom(t, FormatOVA)
	if !bytes.Equal(a, b) {
		t.Error("the same appliance in two formats gives two documents")
	}
	var doc struct {
		CreationInfo struct{ Created string }
	}
	if err := json.Unmarshal(a, &doc); err != nil || doc.CreationInfo.Created != "2026-11-20T12:00:00Z" {
		t.Errorf("created %q, %v; want the manifest's date", doc.CreationInfo.Created, err)
	}
}

func TestIdentifiersAreUniqueAndWellFormed(t *testing.T) {
	ids := identifiers{}
	var got []string
	for _, name := range []string{"g++", "g.plus.plus", "a_b", "a b"} {
		got = append(got, string(ids.new(name)))
	}
	if want := []string{"g.plus.plus", "g.plus.plus.2", "a.b", "a.b.2"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestLicencesAreOnlyDeclaredWhenKnown(t *testing.T) {
	const head = "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\n\n"
	for text, want := range map[string]string{
		"":                                   noAssertion,
		"This package is free.\n":            noAssertion,
		head:                                 noAssertion,
		head + "Files: *\nLicense: GPL-2+\n": "GPL-2.0-or-later",
		head + "Files: *\nLicense: GPL-1+ or Artistic\n\nFiles: x\nLicense: Expat\n": "(GPL-1.0-or-later OR Artistic-1.0-Perl) AND MIT",
		head + "Files: *\nLicense: GPL-2+ and Expat or ISC\n":                        noAssertion,
		head + "Files: *\nLicense: GPL-2+ with OpenSSL exception\n":                  noAssertion,
		head + "Files: *\nLicense: GPL-2+\n\nFiles: x\nLicense: home-made\n":         noAssertion,
		head + "Files: *\nLicense: Expat\n\nLicense: home-made\n text\n":             "MIT",
	} {
		if got := licenceOf(text); got != want {
			t.Errorf("%q is %s, want %s", text, got, want)
		}
	}
}
