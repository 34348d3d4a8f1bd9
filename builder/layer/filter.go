package layer

import (
	"path"
	"strings"
)

// dpkgConfigPath is where dpkg reads its options from, in the appliance too.
const dpkgConfigPath = "etc/dpkg/dpkg.cfg.d/slipway"

// dpkgConfig tells dpkg in the appliance to leave out what KeepDefault leaves
// out: later installations do likewise, and dpkg --verify does not miss it.
const dpkgConfig = `# An appliance carries no manuals, translations or examples (dpkg(1), path-exclude).
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
path-exclude=/usr/share/man/*
path-include=/usr/share/man/man[1-9]
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/en*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/lintian/*
path-exclude=/usr/share/linda/*
path-exclude=/usr/share/bug/*
path-exclude=/usr/share/doc-base/*
path-exclude=/usr/share/gnome/help/*
path-exclude=/usr/share/help/*
force-unsafe-io
`

// dropped are directories of which KeepDefault keeps but what is said there.
var dropped = []string{
	"usr/share/doc/", "usr/share/man/", "usr/share/info/", "usr/share/locale/", "usr/share/lintian/", "usr/share/linda/",
	"usr/share/bug/", "usr/share/doc-base/", "usr/share/gnome/help/", "usr/share/help/",
}

// KeepDefault is the policy for what an appliance carries: no documentation
// but copyright files, no manuals, no translations but English.
func KeepDefault(p string) bool {
	for _, prefix := range dropped {
		rest, ok := strings.CutPrefix(p, prefix)
		if !ok {
			continue
		}
		switch prefix {
		case "usr/share/doc/":
			// A package's directory, or the link to that of another one.
			return !strings.Contains(rest, "/") || path.Base(rest) == "copyright"
		case "usr/share/man/":
			// Scripts that link to manuals want the directories.
			return len(rest) == len("man1") && strings.HasPrefix(rest, "man")
		case "usr/share/locale/":
			return strings.HasPrefix(rest, "en") || rest == "locale.alias"
		}
		return false
	}
	return true
}
