// Package receipt is the small file that the isolated side gives back: what its mirror
// holds, by SHA-256, after every byte of it was checked.
//
// A differential bundle is made against a receipt and never against what was sent, so that
// a lost bundle costs nothing but its own contents. A receipt is not signed: one that lies makes
// a bundle that lacks something, and the importer sees that. The format is in docs/formats.md ("Mirror: receipt").
package receipt

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/internal/fault"
)

// maxBytes is far above what a whole Debian release makes: 66,000 lines.
const maxBytes = 64 << 20

const magic = "slipway-receipt 1"

// Receipt is what a mirror holds.
type Receipt struct {
	Site    string
	Store   string // random name of the mirror, the same as long as it lives
	Edition int64  // what it publishes; 0: nothing yet
	Bundle  string // the catalog's SHA-256; "" with edition 0
	Date    time.Time
	Have    map[string]int64 // size by SHA-256; also files of bundles that are not complete yet
}

// Bytes is the receipt as its file has it.
func (r *Receipt) Bytes() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, magic)
	fmt.Fprintln(&b, "site", r.Site)
	fmt.Fprintln(&b, "store", r.Store)
	fmt.Fprintln(&b, "edition", r.Edition, cmp.Or(r.Bundle, "-"))
	fmt.Fprintln(&b, "date", r.Date.UTC().Format(time.RFC3339))
	hashes := make([]string, 0, len(r.Have))
	for h := range r.Have {
		hashes = append(hashes, h)
	}
	slices.Sort(hashes)
	for _, h := range hashes {
		fmt.Fprintln(&b, "have", h, r.Have[h])
	}
	sum := sha256.Sum256(b.Bytes())
	fmt.Fprintln(&b, "checksum", hex.EncodeToString(sum[:]))
	return b.Bytes()
}

var (
	hashPattern  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	sitePattern  = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)
	storePattern = regexp.MustCompile(`^[0-9a-f]{32}$`)
)

// ReadFile reads the receipt in a file, which comes from a medium: it wants a regular file, does not wait for a pipe, and
// takes no more memory than a receipt may need. Errors are of class Input and name the file.
func ReadFile(path string) (*Receipt, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fault.New(fault.Input, "reading the receipt: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		return nil, fault.New(fault.Input, "reading the receipt: %s is not a regular file (%s)", path, st.Mode().Type()).
			WithMend("name the file that `slipway mirror receipt` wrote on the isolated side")
	}
	var data []byte
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(f, maxBytes+1))
	}
	if err != nil {
		return nil, fault.New(fault.Input, "reading the receipt: %w", err)
	}
	r, err := Parse(data)
	if err != nil {
		return nil, fault.New(fault.Input, "%s: %w", path, err)
	}
	return r, nil
}

// Parse reads a receipt and refuses one that was cut off or damaged on its way. Errors are of
// class Input.
func Parse(data []byte) (*Receipt, error) {
	bad := func(n int, format string, args ...any) (*Receipt, error) {
		return nil, fault.New(fault.Input, "receipt:%d: %w", n, fmt.Errorf(format, args...)).
			WithMend("write it anew on the isolated side with `slipway mirror receipt` and carry it again")
	}
	if len(data) > maxBytes {
		return bad(1, "more than %d bytes", maxBytes)
	}
	text := strings.ReplaceAll(string(data), "\r\n", "\n") // a mail or a foreign system may have changed line ends
	r := &Receipt{Have: map[string]int64{}}
	head := []string{"slipway-receipt", "site", "store", "edition", "date"}
	want := map[string]int{"slipway-receipt": 2, "site": 2, "store": 2, "edition": 3, "date": 2, "have": 3, "checksum": 2}
	n, ended := 0, false
	for line := range strings.Lines(text) {
		n++
		line, whole := strings.CutSuffix(line, "\n")
		words := strings.Split(line, " ")
		keyword := words[0]
		switch {
		case !whole:
			return bad(n, "it was cut off")
		case ended:
			return bad(n, "text after the checksum")
		case n <= len(head) && keyword != head[n-1], n > len(head) && keyword != "have" && keyword != "checksum":
			return bad(n, "unexpected %.80q", keyword)
		case len(words) != want[keyword]:
			return bad(n, "%s: want %d words, found %d", keyword, want[keyword], len(words))
		}
		var err error
		switch keyword {
		case "slipway-receipt":
			if line != magic {
				return bad(n, "format %.80q, of which this slipway knows only %q", line, magic)
			}
		case "site":
			if r.Site = words[1]; !sitePattern.MatchString(r.Site) {
				return bad(n, "site: %.80q", r.Site)
			}
		case "store":
			if r.Store = words[1]; !storePattern.MatchString(r.Store) {
				return bad(n, "store: %.80q", r.Store)
			}
		case "edition":
			if r.Edition, err = strconv.ParseInt(words[1], 10, 64); err != nil || r.Edition < 0 || r.Edition > 1<<53 {
				return bad(n, "edition: %.80q", words[1])
			}
			if words[2] != "-" {
				r.Bundle = words[2]
			}
			if (r.Edition == 0) != (r.Bundle == "") || r.Bundle != "" && !hashPattern.MatchString(r.Bundle) {
				return bad(n, "edition: want a number and a hash, or 0 -")
			}
		case "date":
			if r.Date, err = time.Parse(time.RFC3339, words[1]); err != nil {
				return bad(n, "%w", err)
			}
		case "have":
			size, err := strconv.ParseInt(words[2], 10, 64)
			if err != nil || size < 0 || !hashPattern.MatchString(words[1]) {
				return bad(n, "have: want a hash and a size")
			}
			r.Have[words[1]] = size
		case "checksum":
			ended = true
		}
	}
	if !ended {
		return bad(n+1, "it ends before its checksum")
	}
	if string(r.Bytes()) != text {
		return bad(n, "the checksum is not right: the file was changed")
	}
	return r, nil
}
