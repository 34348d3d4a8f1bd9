package deb

import (
	"archive/tar"
	"fmt"
	"io"
	"path"
	"strings"
)

// Convert changes a file's content on its way to disk.
type Convert func(io.Reader) (io.Reader, error)

// Options say how a data archive is laid down. Every function may be nil. Paths
// are as in the archive, without a leading "./" or "/".
type Options struct {
	// Keep tells whether a path is laid down. What is not is not listed either:
	// dpkg would list what its path-exclude drops, and dpkg --verify would then
	// miss it.
	Keep func(path string) bool
	// Transform gives a regular file another name and content. An empty name
	// leaves the file as it is.
	Transform func(path string) (string, Convert)
	// Place says where a file stands, if not at its path: dpkg's diversions, and
	// configuration files that wait as .dpkg-new.
	Place func(path string) string
	// Sum asks for the MD5 of every regular file.
	Sum bool
	// Claim is asked before a path that is no directory is written; the path is
	// given without symbolic links in its directories. False leaves it alone.
	Claim func(path string) (bool, error)
}

// Contents is what an archive held, or what became of it.
type Contents struct {
	// Paths are all paths laid down, in archive order, as dpkg lists them: "/." first.
	Paths []string
	// Sums maps a path (as in Paths) to the MD5 of its content, for files that
	// were transformed, or for all if Options.Sum is set. Renamed maps the path
	// in the archive of a transformed file to its new one.
	Sums    map[string]string
	Renamed map[string]string
	// Dirs are the directories with the metadata that the archive gives them.
	Dirs []Dir
	// Bytes is the size of all files laid down.
	Bytes int64
}

// Dir is a directory of an archive.
type Dir struct {
	Path     string // without symbolic links
	Perm     uint32
	UID, GID uint32
}

// entryName turns an archive's spelling of a path into ours: "" is the root.
func entryName(raw string) (string, error) {
	if strings.IndexByte(raw, 0) >= 0 || len(raw) > 4096 {
		return "", fmt.Errorf("%.80q is no path", raw)
	}
	for _, part := range strings.Split(raw, "/") {
		if part == ".." {
			return "", fmt.Errorf("path %q leaves the package", raw)
		}
	}
	return path.Clean("/" + raw)[1:], nil
}

// target is where an entry goes on disk.
func (o *Options) target(name string) string {
	if o.Place != nil {
		return o.Place(name)
	}
	return name
}

func (o *Options) keep(name string) bool { return o.Keep == nil || o.Keep(name) }

func (o *Options) transform(name string) (string, Convert) {
	if o.Transform == nil {
		return "", nil
	}
	return o.Transform(name)
}

func (o *Options) claim(name string) (bool, error) {
	if o.Claim == nil {
		return true, nil
	}
	return o.Claim(name)
}

// Walk calls each for every entry of a data archive, within the limits that
// this package sets. The reader that it passes yields a regular file's content.
func Walk(stream io.Reader, each func(name string, h *tar.Header, content io.Reader) error) error {
	archive := tar.NewReader(io.LimitReader(stream, maxData))
	for count := 0; ; count++ {
		h, err := archive.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if count == maxEntries {
			return fmt.Errorf("more than %d entries", maxEntries)
		}
		if h.Size > maxFile {
			return fmt.Errorf("%q is %d bytes, more than %d", h.Name, h.Size, int64(maxFile))
		}
		name, err := entryName(h.Name)
		if err != nil {
			return err
		}
		if err := each(name, h, archive); err != nil {
			return err
		}
	}
}
