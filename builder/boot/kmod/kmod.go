// Package kmod answers which files the kernel must be given, and in which
// order, for a module to load. It reads the text indices that depmod writes
// into /usr/lib/modules/<release>: modules.dep, modules.alias and
// modules.softdep (depmod.d(5), modules.dep(5)).
//
// The build uses it to choose what goes into the initramfs, and the init uses
// it there to load what the machine has.
package kmod

import (
	"bufio"
	"bytes"
	"fmt"
	"path"
	"sort"
	"strings"
)

// maxLine bounds a line of an index: the longest that Debian's kernels have is
// below 4 KiB.
const maxLine = 64 << 10

// Index holds the modules of one kernel release.
type Index struct {
	files   map[string]string   // module name → path relative to the release's directory
	deps    map[string][]string // path → paths that it needs, nearest first
	soft    map[string][]string // module name → names or aliases to load before it
	aliases map[string][]alias  // by what stands before the first colon
}

type alias struct {
	pattern, module string
}

// Parse reads the three indices. Alias and softdep may be empty.
func Parse(dep, aliasText, softdep []byte) (*Index, error) {
	x := &Index{
		files: map[string]string{}, deps: map[string][]string{},
		soft: map[string][]string{}, aliases: map[string][]alias{},
	}
	err := eachLine("modules.dep", dep, func(line string) error {
		file, needs, ok := strings.Cut(line, ":")
		if !ok || file == "" {
			return fmt.Errorf("%q has no colon after the module's path", line)
		}
		x.files[Name(file)] = file
		x.deps[file] = strings.Fields(needs)
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = eachLine("modules.alias", aliasText, func(line string) error {
		f := strings.Fields(line)
		if len(f) != 3 || f[0] != "alias" {
			return fmt.Errorf("%q is not \"alias PATTERN MODULE\"", line)
		}
		k := bus(f[1])
		x.aliases[k] = append(x.aliases[k], alias{f[1], Name(f[2])})
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = eachLine("modules.softdep", softdep, func(line string) error {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "softdep" {
			return fmt.Errorf("%q is not \"softdep MODULE pre: MODULE…\"", line)
		}
		pre := false
		for _, word := range f[2:] {
			switch word {
			case "pre:":
				pre = true
			case "post:":
				pre = false
			default:
				if pre {
					x.soft[Name(f[1])] = append(x.soft[Name(f[1])], word)
				}
			}
		}
		return nil
	})
	return x, err
}

func eachLine(file string, text []byte, use func(string) error) error {
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, maxLine)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if err := use(line); err != nil {
			return fmt.Errorf("%s line %d: %w", file, n, err)
		}
	}
	if err := sc.Err(); err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return nil
}

// Name is the name that the kernel gives the module of a file or a spelling of
// its name: hyphens are underscores, and there is no suffix.
func Name(file string) string {
	base := path.Base(file)
	if i := strings.Index(base, ".ko"); i > 0 {
		base = base[:i]
	}
	return strings.ReplaceAll(base, "-", "_")
}

// Files lists the paths of all modules, sorted.
func (x *Index) Files() []string {
	out := make([]string, 0, len(x.deps))
	for f := range x.deps {
		out = append(out, f)
	}
	sort.Strings(out)
	return out
}

// Needs returns the modules that the one at file cannot do without, by path,
// as modules.dep has them.
func (x *Index) Needs(file string) []string { return x.deps[file] }

// Lookup returns the names of the modules that serve a device's modalias, an
// alias such as "crypto-crc32c", or a module name; sorted, without repetition.
func (x *Index) Lookup(name string) []string {
	if _, ok := x.files[Name(name)]; ok && !strings.ContainsAny(name, ":/") {
		return []string{Name(name)}
	}
	seen := map[string]bool{}
	var out []string
	for _, a := range x.aliases[bus(name)] {
		if !seen[a.module] && match(a.pattern, name) {
			seen[a.module] = true
			out = append(out, a.module)
		}
	}
	sort.Strings(out)
	return out
}

// Order lists the files to load for a module, itself last: what it needs, and
// what its soft dependencies ask to have before it. A name that is in no index
// gives nothing, for it may be built into the kernel.
func (x *Index) Order(module string) []string {
	var out []string
	done := map[string]bool{}
	var visit func(file string)
	visit = func(file string) {
		if done[file] {
			return
		}
		done[file] = true
		for _, word := range x.soft[Name(file)] {
			for _, m := range x.Lookup(word) {
				if f, ok := x.files[m]; ok {
					visit(f)
				}
			}
		}
		needs := x.deps[file]
		for i := len(needs) - 1; i >= 0; i-- {
			visit(needs[i])
		}
		out = append(out, file)
	}
	if file, ok := x.files[Name(module)]; ok {
		visit(file)
	}
	return out
}

// bus is what stands before the first colon of an alias; aliases without one
// share a bucket.
func bus(a string) string {
	before, _, ok := strings.Cut(a, ":")
	if !ok || strings.ContainsAny(before, "*?[") {
		return ""
	}
	return before
}

// match is fnmatch(3) without flags, as far as aliases use it: "*", "?" and
// "[…]" with ranges; a slash is a character like any other.
func match(pattern, s string) bool {
	star, mark := -1, 0
	p, i := 0, 0
	for i < len(s) {
		if p < len(pattern) {
			if pattern[p] == '*' {
				star, mark = p, i
				p++
				continue
			}
			if ok, width := matchOne(pattern[p:], s[i]); ok {
				p += width
				i++
				continue
			}
		}
		if star < 0 {
			return false
		}
		mark++
		p, i = star+1, mark
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// matchOne compares the pattern's first element with one byte and says how
// long the element is.
func matchOne(pattern string, c byte) (ok bool, width int) {
	switch pattern[0] {
	case '?':
		return true, 1
	case '[':
		end := strings.IndexByte(pattern, ']')
		if end < 2 {
			return pattern[0] == c, 1
		}
		set := pattern[1:end]
		for k := 0; k < len(set); k++ {
			if k+2 < len(set) && set[k+1] == '-' {
				ok = ok || (set[k] <= c && c <= set[k+2])
				k += 2
			} else {
				ok = ok || set[k] == c
			}
		}
		return ok, end + 1
	}
	return pattern[0] == c, 1
}
