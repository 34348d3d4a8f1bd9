package mirror

import (
	"os"
	"path/filepath"
	"strings"

	"github.com/slipwayhq/slipway/firstboot/node"
)

// asideDir keeps the sources of the world as long as there is a mirror. apt does not look there.
const asideDir = "/etc/apt/online-sources"

// setAside moves files that name archives of the world out of apt's way. What is on
// the node itself (file:, copy:, cdrom:) stays.
func setAside(n *node.Node) error {
	files, err := sourceFiles(n, "/etc/apt")
	if err != nil {
		return err
	}
	for _, path := range files {
		data, err := n.Read(path)
		if err != nil {
			return err
		}
		if path == sourcesPath || !online(path, string(data)) {
			continue
		}
		if err := move(n, path, asideDir+strings.TrimPrefix(path, "/etc/apt")); err != nil {
			return err
		}
	}
	return nil
}

// putBack brings them back, but where somebody has written a file of that name since.
func putBack(n *node.Node) error {
	files, err := sourceFiles(n, asideDir)
	if err != nil {
		return err
	}
	for _, path := range files {
		to := "/etc/apt" + strings.TrimPrefix(path, asideDir)
		if n.Exists(to) {
			continue
		}
		if err := move(n, path, to); err != nil {
			return err
		}
	}
	return nil
}

// sourceFiles are the files of a directory that apt takes sources from (sources.list(5)).
func sourceFiles(n *node.Node, dir string) ([]string, error) {
	var files []string
	for _, pattern := range []string{"sources.list", "sources.list.d/*.list", "sources.list.d/*.sources"} {
		found, err := filepath.Glob(n.Path(dir + "/" + pattern))
		if err != nil {
			return nil, err
		}
		for _, path := range found {
			files = append(files, dir+strings.TrimPrefix(path, n.Path(dir)))
		}
	}
	return files, nil
}

func move(n *node.Node, from, to string) error {
	if err := os.MkdirAll(filepath.Dir(n.Path(to)), 0o755); err != nil {
		return err
	}
	if err := os.Rename(n.Path(from), n.Path(to)); err != nil {
		return err
	}
	n.Changed("moved %s to %s", from, to)
	return nil
}

// online reports whether a file of sources names an archive that is not on the node.
func online(path, text string) bool {
	uris := false // within the field of that name, which may go on on indented lines
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n")
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		words := strings.Fields(line)
		if strings.HasSuffix(path, ".sources") {
			if !strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "\t") {
				name, value, _ := strings.Cut(line, ":")
				uris = strings.EqualFold(strings.TrimSpace(name), "URIs")
				words = strings.Fields(value)
			}
			if !uris {
				continue
			}
		} else if len(words) < 2 || words[0] != "deb" && words[0] != "deb-src" {
			continue
		}
		for _, word := range words {
			if away(word) {
				return true
			}
		}
	}
	return false
}

// away reports whether a word is a URI that leads elsewhere.
func away(word string) bool {
	scheme, _, ok := strings.Cut(word, ":")
	if !ok || strings.ContainsAny(scheme, "[]=/") {
		return false
	}
	switch strings.ToLower(scheme) {
	case "file", "copy", "cdrom":
		return false
	}
	return true
}
