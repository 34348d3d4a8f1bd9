package apt

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Source is one place in the machine's apt sources that packages come from.
type Source struct {
	File   string // with line, for messages
	URI    string
	Suites []string
}

// MachineSources reads the apt sources of the machine (root is "/" but in
// tests): sources.list and *.list with one source a line, *.sources with one
// a paragraph (sources.list(5)). A machine without any gives none.
func MachineSources(root string) ([]Source, error) {
	etc := filepath.Join(root, "etc/apt")
	files := []string{filepath.Join(etc, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		found, err := filepath.Glob(filepath.Join(etc, "sources.list.d", pattern))
		if err != nil {
			return nil, err
		}
		files = append(files, found...)
	}
	var sources []Source
	for _, name := range files {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			continue
		}
		if err != nil {
			return nil, err
		}
		read := readList
		if strings.HasSuffix(name, ".sources") {
			read = readSources
		}
		found, err := read(f, name)
		f.Close()
		if err != nil {
			return nil, fault.New(fault.Input, "%s: %w", name, err).WithMend("mend the file, or give a mirror with --mirror URL")
		}
		sources = append(sources, found...)
	}
	return sources, nil
}

// readList reads the one-line format:
//
//	deb [ option=value ... ] uri suite component ...
func readList(r io.Reader, name string) ([]Source, error) {
	var sources []Source
	scanner := bufio.NewScanner(r)
	for n := 1; scanner.Scan(); n++ {
		line, _, _ := strings.Cut(scanner.Text(), "#")
		line = strings.TrimSpace(strings.ReplaceAll(line, "\t", " "))
		rest, isDeb := strings.CutPrefix(line, "deb ")
		if !isDeb {
			continue
		}
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			_, after, closed := strings.Cut(rest, "]")
			if !closed {
				return nil, fmt.Errorf("line %d: \"[\" with no \"]\"", n)
			}
			rest = after
		}
		words := strings.Fields(rest)
		if len(words) < 2 {
			return nil, fmt.Errorf("line %d: want deb URI SUITE COMPONENT…", n)
		}
		sources = append(sources, Source{fmt.Sprintf("%s:%d", name, n), words[0], words[1:2]})
	}
	return sources, scanner.Err()
}

// readSources reads the deb822 format.
func readSources(r io.Reader, name string) ([]Source, error) {
	var sources []Source
	err := EachParagraph(r, func(p *Paragraph) error {
		if strings.EqualFold(p.Get("Enabled"), "no") || !slices.Contains(strings.Fields(p.Get("Types")), "deb") {
			return nil
		}
		for _, uri := range strings.Fields(p.Get("URIs")) {
			sources = append(sources, Source{fmt.Sprintf("%s:%d", name, p.Line), uri, strings.Fields(p.Get("Suites"))})
		}
		return nil
	})
	return sources, err
}

// MachineAllowsExpired says whether the machine's own apt is configured not to
// mind an outdated Valid-Until, as machines with a frozen mirror are.
func MachineAllowsExpired(root string) bool {
	files, _ := filepath.Glob(filepath.Join(root, "etc/apt/apt.conf.d/*"))
	for _, name := range append(files, filepath.Join(root, "etc/apt/apt.conf")) {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			words := strings.Fields(strings.NewReplacer(`"`, " ", ";", " ").Replace(line))
			if len(words) == 2 && strings.EqualFold(words[0], "Acquire::Check-Valid-Until") &&
				slices.Contains([]string{"false", "no", "0", "off"}, strings.ToLower(words[1])) {
				return true
			}
		}
	}
	return false
}
