package boot

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"path"
	"strings"
)

//go:embed modules.keep
var keepList string

// ModulePolicy decides which kernel modules an appliance keeps. The rules are
// the file modules.keep beside this source.
type ModulePolicy struct {
	rules []rule
}

type rule struct {
	pattern string // without a trailing slash
	dir     bool
	drop    bool
}

// RulesDigest stands for the lists of modules, in the appliance and in its
// initramfs: what was made by other lists is not what would be made now.
func RulesDigest() string {
	sum := sha256.Sum256([]byte(keepList + "\x00" + initramfsList))
	return hex.EncodeToString(sum[:])
}

// NewModulePolicy returns the policy that all appliances follow.
func NewModulePolicy() (*ModulePolicy, error) { return parsePolicy("modules.keep", keepList) }

func parsePolicy(file, text string) (*ModulePolicy, error) {
	var p ModulePolicy
	for i, line := range strings.Split(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		var r rule
		r.pattern, r.drop = strings.CutPrefix(line, "!")
		r.pattern, r.dir = strings.CutSuffix(r.pattern, "/")
		if _, err := path.Match(r.pattern, ""); err != nil {
			return nil, fmt.Errorf("%s line %d: pattern %q: %w", file, i+1, line, err)
		}
		p.rules = append(p.rules, r)
	}
	return &p, nil
}

// Keep says whether the file at p, a path inside the root file system, stays.
// Files that are no kernel modules always do. It is safe for concurrent use.
func (m *ModulePolicy) Keep(p string) bool {
	name, ok := moduleName(p)
	if !ok {
		return true
	}
	return m.keeps(name)
}

func (m *ModulePolicy) keeps(name string) bool {
	keep := false
	for _, r := range m.rules {
		if r.matches(name) {
			keep = !r.drop
		}
	}
	return keep
}

// matches compares a module's path with the rule; for a directory it compares
// as many leading parts as the pattern has.
func (r rule) matches(name string) bool {
	if r.dir {
		parts := strings.Count(r.pattern, "/") + 1
		end := 0
		for range parts {
			next := strings.IndexByte(name[end:], '/')
			if next < 0 {
				return false
			}
			end += next + 1
		}
		name = name[:end-1]
	}
	ok, _ := path.Match(r.pattern, name) // the pattern was checked when it was read
	return ok
}

// moduleName turns usr/lib/modules/6.12.1-amd64/kernel/fs/ext4/ext4.ko.xz into
// fs/ext4/ext4, and says whether the path is a module's at all.
func moduleName(p string) (string, bool) {
	p = strings.TrimPrefix(path.Clean("/"+p), "/")
	p = strings.TrimPrefix(p, "usr/")
	rest, ok := strings.CutPrefix(p, "lib/modules/")
	if !ok {
		return "", false
	}
	_, rest, ok = strings.Cut(rest, "/kernel/")
	if !ok {
		return "", false
	}
	for _, suffix := range []string{".ko", ".ko.xz", ".ko.zst", ".ko.gz"} {
		if name, ok := strings.CutSuffix(rest, suffix); ok {
			return name, true
		}
	}
	return "", false
}
