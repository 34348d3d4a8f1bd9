package lock

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

// formatVersion is the number in the file's first fact.
const formatVersion = "1"

// maxFile bounds what is read as a lock: some 100,000 packages.
const maxFile = 32 << 20

const header = `# images.lock: what the appliances are made of. Written by slipway lock; do not edit.
# suite, index: the signed archive state that the packages were chosen from.
# set, root: the package lists of the profiles. deb: every package, by hash.
`

const relock = "run `slipway lock` to write it anew, or `git checkout %s` to have it back as it was"

// Bytes is the lock as its file has it.
func (l *Lock) Bytes() []byte {
	l.normalize()
	var b bytes.Buffer
	b.WriteString(header)
	line := func(words ...string) {
		text := strings.Join(words, " ")
		b.WriteString(text + " #" + mark(text) + "\n")
	}
	line("format", formatVersion)
	line("distribution", l.Distribution, l.Arch)
	line("date", formatTime(l.Created))
	for _, s := range l.Suites {
		line("suite", s.Alias, s.Name, formatTime(s.Date), s.InRelease, strings.Join(s.Signers, ","))
	}
	for _, s := range l.Suites {
		for _, i := range s.Indices {
			line("index", s.Alias, s.Name, i.Path, strconv.FormatInt(i.Size, 10), i.SHA256)
		}
	}
	for _, s := range l.Sets {
		words := []string{"set", s.Name, "file=" + escape(s.File)}
		if s.Extends != "" {
			words = append(words, "extends="+s.Extends)
		}
		line(words...)
	}
	for _, s := range l.Sets {
		for _, p := range s.Packages {
			line("root", s.Name, p)
		}
	}
	for _, p := range l.Packages {
		line("deb", p.Name, p.Version, p.Arch, strconv.FormatInt(p.Size, 10), p.SHA256, p.Path, p.Alias,
			"source="+p.Source, "installed="+strconv.FormatInt(p.InstalledSize, 10), "sets="+strings.Join(p.Sets, ","))
	}
	for _, im := range l.Images {
		line("image", im.Name, "sha256:"+im.Digest, "source="+escape(im.Source), "sets="+strings.Join(im.Sets, ","))
	}
	l.checksum = checksumOf(b.Bytes())
	b.WriteString("checksum " + l.checksum + "\n")
	return b.Bytes()
}

// mark is short: it need only tell an edited line from one that is as written.
func mark(text string) string { return checksumOf([]byte(text))[:4] }

func checksumOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// escape keeps a file name one word.
func escape(s string) string {
	return strings.NewReplacer("%", "%25", " ", "%20", "\t", "%09", "\n", "%0A", "\r", "%0D", "#", "%23").Replace(s)
}

func unescape(s string) string {
	return strings.NewReplacer("%20", " ", "%09", "\t", "%0A", "\n", "%0D", "\r", "%23", "#", "%25", "%").Replace(s)
}

// WriteFile writes the lock in one step.
func (l *Lock) WriteFile(path string) error {
	if old, err := os.ReadFile(path); err == nil && bytes.Equal(old, l.Bytes()) {
		return nil // keeps the file's time: nothing changed
	}
	return atomicfile.WriteBytes(path, 0o644, l.Bytes())
}

// Read reads and checks a lock. Its errors are of class Input and name the line.
func Read(path string) (*Lock, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Input, "reading the lock: %w", err).WithMend("run `slipway lock` to write it")
	}
	if err != nil {
		return nil, fault.New(fault.Input, "reading the lock: %w", err)
	}
	return Parse(path, b)
}

// Parse is Read for bytes; path is for messages.
func Parse(path string, b []byte) (*Lock, error) {
	l := &Lock{}
	fail := func(n int, format string, args ...any) (*Lock, error) {
		return nil, fault.New(fault.Input, "%s:%d: %w", path, n, fmt.Errorf(format, args...)).WithMend(relock, filepath.Base(path))
	}
	if len(b) > maxFile {
		return fail(1, "more than %d bytes", maxFile)
	}
	lines := strings.Split(string(b), "\n")
	for i, text := range lines {
		for _, m := range []string{"<<<<<<<", "=======", ">>>>>>>", "|||||||"} {
			if strings.HasPrefix(text, m) {
				return nil, fault.New(fault.Input, "%s:%d: the mark of a merge conflict (%s)", path, i+1, m).
					WithMend("run `slipway lock`: it keeps the lines that are whole and resolves the rest")
			}
		}
	}
	seenChecksum := false
	for i, text := range lines {
		n := i + 1
		switch {
		case seenChecksum && text != "":
			return fail(n, "text after the checksum")
		case text == "" && i == len(lines)-1, strings.HasPrefix(text, "#"):
			continue
		case strings.HasPrefix(text, "checksum "):
			seenChecksum = true
			l.checksum = strings.TrimPrefix(text, "checksum ")
			continue
		}
		fact, m, ok := cutMark(text)
		if !ok {
			return fail(n, "%q was not written by slipway: no mark at its end", clip(text))
		}
		if mark(fact) != m {
			return fail(n, "the line was edited: %q", clip(text))
		}
		if err := l.fact(fact, n); err != nil {
			return fail(n, "%w", err)
		}
	}
	if !seenChecksum {
		return fail(len(lines), "the file ends before its checksum")
	}
	if err := l.consistent(); err != nil {
		return fail(len(lines)-1, "%w", err)
	}
	said := l.checksum
	again := l.Bytes()
	if said != l.checksum || !bytes.Equal(again, b) {
		return fail(firstDifference(b, again), "lines were added, removed or moved: the checksum is not right")
	}
	return l, nil
}

// Salvage reads what is whole in a lock that Read refuses: one that was edited,
// or that holds a merge conflict. It is for locking anew; lines that are not as
// slipway wrote them count for nothing. Only a file that cannot be read at all
// is an error.
func Salvage(path string) (*Lock, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fault.New(fault.Input, "reading the lock: %w", err)
	}
	l := &Lock{salvaged: true}
	for i, text := range strings.Split(string(b[:min(len(b), maxFile)]), "\n") {
		if fact, m, ok := cutMark(text); ok && mark(fact) == m {
			l.fact(fact, i+1) // an error leaves the line out, which is the point
		}
	}
	l.Packages = slices.CompactFunc(l.Packages, func(a, b Package) bool { return a.Name == b.Name && a.Version == b.Version })
	return l, nil
}

// firstDifference is the first line where the file is not as slipway would
// write it; if it is the checksum, lines are missing somewhere above.
func firstDifference(got, want []byte) int {
	a, b := bytes.Split(got, []byte("\n")), bytes.Split(want, []byte("\n"))
	for i := range min(len(a), len(b)) {
		if !bytes.Equal(a[i], b[i]) {
			return i + 1
		}
	}
	return min(len(a), len(b))
}

func cutMark(text string) (fact, m string, ok bool) {
	i := strings.LastIndex(text, " #")
	if i < 0 {
		return "", "", false
	}
	return text[:i], text[i+2:], true
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

var (
	hashPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	wordPattern = regexp.MustCompile(`^[^\s#]+$`)
	pathPattern = regexp.MustCompile(`^[^\s#/][^\s#]*$`)
)

// fact takes one line, without its mark.
func (l *Lock) fact(text string, n int) error {
	words := strings.Split(text, " ")
	keyword, words := words[0], words[1:]
	want := map[string]int{"format": 1, "distribution": 2, "date": 1, "suite": 5, "index": 5, "root": 2, "deb": 10, "image": 4}
	if count, ok := want[keyword]; ok && len(words) != count {
		return fmt.Errorf("%s: want %d words, found %d", keyword, count, len(words))
	}
	for _, w := range words {
		if !wordPattern.MatchString(w) {
			return fmt.Errorf("%s: bad word %q", keyword, clip(w))
		}
	}
	var err error
	switch keyword {
	case "format":
		if words[0] != formatVersion {
			return fmt.Errorf("format %s, of which this slipway knows only %s: use the slipway that wrote it", words[0], formatVersion)
		}
	case "distribution":
		l.Distribution, l.Arch = words[0], words[1]
	case "date":
		l.Created, err = time.Parse(time.RFC3339, words[0])
	case "suite":
		s := Suite{Alias: words[0], Name: words[1], InRelease: words[3], Signers: strings.Split(words[4], ",")}
		if s.Date, err = time.Parse(time.RFC3339, words[2]); err == nil && !hashPattern.MatchString(s.InRelease) {
			err = errors.New("suite: bad hash")
		}
		l.Suites = append(l.Suites, s)
	case "index":
		err = l.indexFact(words)
	case "set":
		err = l.setFact(words)
	case "root":
		i := slices.IndexFunc(l.Sets, func(s Set) bool { return s.Name == words[0] })
		if i < 0 {
			return fmt.Errorf("root: there is no set %s above", words[0])
		}
		l.Sets[i].Packages = append(l.Sets[i].Packages, words[1])
	case "deb":
		err = l.debFact(words, n)
	case "image":
		err = l.imageFact(words)
	default:
		err = fmt.Errorf("unknown keyword %q", clip(keyword))
	}
	return err
}

func (l *Lock) indexFact(words []string) error {
	i := slices.IndexFunc(l.Suites, func(s Suite) bool { return s.Alias == words[0] && s.Name == words[1] })
	if i < 0 {
		return fmt.Errorf("index: there is no suite %s %s above", words[0], words[1])
	}
	size, err := parseSize(words[3])
	if err != nil || !hashPattern.MatchString(words[4]) || !safePath(words[2]) {
		return errors.New("index: bad path, size or hash")
	}
	l.Suites[i].Indices = append(l.Suites[i].Indices, Index{words[2], size, words[4]})
	return nil
}

func (l *Lock) setFact(words []string) error {
	if len(words) < 2 || len(words) > 3 {
		return errors.New("set: want NAME file=FILE [extends=NAME]")
	}
	s := Set{Name: words[0]}
	file, ok := strings.CutPrefix(words[1], "file=")
	if !ok {
		return errors.New("set: want file=FILE")
	}
	s.File = unescape(file)
	if len(words) == 3 {
		if s.Extends, ok = strings.CutPrefix(words[2], "extends="); !ok {
			return errors.New("set: want extends=NAME")
		}
	}
	l.Sets = append(l.Sets, s)
	return nil
}

func (l *Lock) debFact(w []string, n int) error {
	p := Package{Name: w[0], Version: w[1], Arch: w[2], SHA256: w[4], Path: w[5], Alias: w[6], Line: n}
	var errs [2]error
	p.Size, errs[0] = parseSize(w[3])
	source, ok1 := strings.CutPrefix(w[7], "source=")
	installed, ok2 := strings.CutPrefix(w[8], "installed=")
	sets, ok3 := strings.CutPrefix(w[9], "sets=")
	p.InstalledSize, errs[1] = parseSize(installed)
	p.Source, p.Sets = source, strings.Split(sets, ",")
	switch {
	case !ok1 || !ok2 || !ok3:
		return errors.New("deb: want source=, installed= and sets= at the end")
	case errs[0] != nil || errs[1] != nil:
		return errors.New("deb: bad size")
	case !hashPattern.MatchString(p.SHA256):
		return errors.New("deb: bad hash")
	case !safePath(p.Path):
		return fmt.Errorf("deb: bad path %q", clip(p.Path))
	}
	l.Packages = append(l.Packages, p)
	return nil
}

func parseSize(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err == nil && (n < 0 || strconv.FormatInt(n, 10) != s) {
		err = errors.New("bad number")
	}
	return n, err
}

// safePath refuses paths that lead out of the archive.
func safePath(p string) bool {
	return pathPattern.MatchString(p) && !slices.Contains(strings.Split(p, "/"), "..")
}

// consistent checks what no single line shows.
func (l *Lock) consistent() error {
	names := map[string]bool{}
	for _, s := range l.Sets {
		if names[s.Name] {
			return fmt.Errorf("set %s stands twice", s.Name)
		}
		names[s.Name] = true
	}
	for _, s := range l.Sets {
		if s.Extends != "" {
			below, ok := l.Set(s.Extends)
			if !ok || below.Extends != "" {
				return fmt.Errorf("set %s extends %s, which is no set that stands alone", s.Name, s.Extends)
			}
		}
	}
	in := map[string]bool{}
	for _, p := range l.Packages {
		for _, s := range p.Sets {
			if !names[s] {
				return fmt.Errorf("package %s is in the set %q, which does not exist", p.Name, s)
			}
			if in[s+" "+p.Name] {
				return fmt.Errorf("package %s is in the set %s twice", p.Name, s)
			}
			in[s+" "+p.Name] = true
		}
	}
	images := map[string]bool{}
	for _, im := range l.Images {
		if images[im.Name] {
			return fmt.Errorf("image %s stands twice", im.Name)
		}
		images[im.Name] = true
		for _, s := range im.Sets {
			if !names[s] {
				return fmt.Errorf("image %s is in the set %q, which does not exist", im.Name, s)
			}
		}
	}
	return nil
}
