package inspect

import (
	"slices"
	"strings"
)

// maxCopyright bounds a copyright file; the largest in Debian has some hundred KiB.
const maxCopyright = 4 << 20

// spdxNames maps Debian's short names (copyright-format 1.0, "Short name") to
// SPDX's. A name that is not here makes the whole package NOASSERTION: a wrong
// licence is worse than none.
var spdxNames = map[string]string{
	"apache-2.0": "Apache-2.0", "artistic": "Artistic-1.0-Perl", "artistic-2.0": "Artistic-2.0",
	"bsd-2-clause": "BSD-2-Clause", "bsd-3-clause": "BSD-3-Clause", "bsd-4-clause": "BSD-4-Clause", "bsl-1.0": "BSL-1.0",
	"cc0-1.0": "CC0-1.0", "cc-by-3.0": "CC-BY-3.0", "cc-by-4.0": "CC-BY-4.0", "cc-by-sa-3.0": "CC-BY-SA-3.0", "cc-by-sa-4.0": "CC-BY-SA-4.0",
	"expat": "MIT", "mit": "MIT", "isc": "ISC", "zlib": "Zlib", "curl": "curl", "0bsd": "0BSD", "unlicense": "Unlicense",
	"gpl-1": "GPL-1.0-only", "gpl-1+": "GPL-1.0-or-later", "gpl-2": "GPL-2.0-only", "gpl-2+": "GPL-2.0-or-later",
	"gpl-3": "GPL-3.0-only", "gpl-3+": "GPL-3.0-or-later", "agpl-3": "AGPL-3.0-only", "agpl-3+": "AGPL-3.0-or-later",
	"lgpl-2": "LGPL-2.0-only", "lgpl-2+": "LGPL-2.0-or-later", "lgpl-2.1": "LGPL-2.1-only", "lgpl-2.1+": "LGPL-2.1-or-later",
	"lgpl-3": "LGPL-3.0-only", "lgpl-3+": "LGPL-3.0-or-later",
	"gfdl-1.2": "GFDL-1.2-only", "gfdl-1.2+": "GFDL-1.2-or-later", "gfdl-1.3": "GFDL-1.3-only", "gfdl-1.3+": "GFDL-1.3-or-later",
	"mpl-1.1": "MPL-1.1", "mpl-2.0": "MPL-2.0", "openssl": "OpenSSL", "psf-2": "PSF-2.0", "python-2.0": "Python-2.0", "w3c": "W3C",
	"postgresql": "PostgreSQL", "vim": "Vim",
}

// licenceOf reads a debian/copyright file ("Machine-readable debian/copyright
// file", version 1.0) and returns an SPDX expression of all its licences, or
// NOASSERTION.
func licenceOf(copyright string) string {
	if !strings.HasPrefix(copyright, "Format:") || !strings.Contains(firstLine(copyright), "copyright-format/1.0") {
		return noAssertion
	}
	seen := map[string]bool{}
	for _, stanza := range strings.Split(copyright, "\n\n") {
		if !strings.HasPrefix(strings.TrimLeft(stanza, "\n"), "Files:") {
			continue
		}
		for _, line := range strings.Split(stanza, "\n") {
			name, ok := strings.CutPrefix(line, "License:")
			if !ok {
				continue
			}
			expression := translate(name)
			if expression == "" {
				return noAssertion
			}
			seen[expression] = true
		}
	}
	if len(seen) == 0 {
		return noAssertion
	}
	all := make([]string, 0, len(seen))
	for e := range seen {
		all = append(all, e)
	}
	slices.Sort(all)
	for i, e := range all {
		if strings.Contains(e, " OR ") && len(all) > 1 {
			all[i] = "(" + e + ")"
		}
	}
	return strings.Join(all, " AND ")
}

// translate turns "GPL-2+ or Artistic" into "GPL-2.0-or-later OR
// Artistic-1.0-Perl". It returns "" for what it does not know, and for a mix of
// "and" and "or", whose grouping the format leaves to commas.
func translate(debian string) string {
	words := strings.Fields(debian)
	var out []string
	joiner := ""
	for i, word := range words {
		if i%2 == 0 {
			name, ok := spdxNames[strings.ToLower(word)]
			if !ok {
				return ""
			}
			out = append(out, name)
			continue
		}
		if word != "or" && word != "and" || joiner != "" && joiner != word {
			return ""
		}
		joiner = word
	}
	if len(words)%2 == 0 {
		return ""
	}
	return strings.Join(out, " "+strings.ToUpper(joiner)+" ")
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
