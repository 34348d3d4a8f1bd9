package disk

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"

	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	dirEntrySize = 32
	attrVolume   = 0x08
	attrDir      = 0x10
	attrArchive  = 0x20
	attrLongName = 0x0f
	longNameUnit = 13 // UTF-16 units in one long-name entry
	maxLongName  = 255
)

// dirEntry is one 32-byte slot of a directory: a piece of a long name, or the
// short entry that stands behind the pieces.
type dirEntry struct {
	to    *node // of a short entry; nil for a piece of a long name
	short [11]byte
	long  [dirEntrySize]byte
}

// nameEntries names the children of the directory at dir: each gets a short
// 8.3 name, unique in the directory, and a long name where the short one differs.
func nameEntries(dir string, children []*node) ([]dirEntry, error) {
	var out []dirEntry
	taken := map[[11]byte]bool{}
	folded := map[string]string{}
	// Names that are short as they stand come first, so that no alias takes them.
	for _, c := range children {
		if s, exact := shortName(c.name); exact {
			taken[s] = true
		}
	}
	for _, c := range children {
		if err := checkName(c.name); err != nil {
			return nil, fault.New(fault.Input, "boot partition: /%s/%s: %w", dir, c.name, err)
		}
		key := strings.ToUpper(c.name)
		if other, ok := folded[key]; ok {
			return nil, fault.New(fault.Input, "boot partition: /%s holds %q and %q, which are one name on FAT", dir, other, c.name)
		}
		folded[key] = c.name
		short, exact := shortName(c.name)
		if exact {
			out = append(out, dirEntry{to: c, short: short})
			continue
		}
		short = alias(c.name, taken)
		taken[short] = true
		out = append(out, longNameEntries(c.name, short)...)
		out = append(out, dirEntry{to: c, short: short})
	}
	return out, nil
}

func checkName(name string) error {
	if len(utf16.Encode([]rune(name))) > maxLongName {
		return fmt.Errorf("the name is longer than %d characters", maxLongName)
	}
	if i := strings.IndexFunc(name, func(r rune) bool { return r < 0x20 || strings.ContainsRune(`"*/:<>?\|`, r) || r == '\ufffd' }); i >= 0 {
		return fmt.Errorf("the name has a character that FAT does not allow, at byte %d", i+1)
	}
	if name == "" || strings.HasSuffix(name, ".") || strings.HasSuffix(name, " ") {
		return fmt.Errorf("a name on FAT cannot be empty or end in a dot or a blank")
	}
	return nil
}

// shortByte tells whether b may stand in a short name as it is.
func shortByte(b byte) bool {
	return b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || strings.IndexByte("$%'-_@~`!(){}^#&", b) >= 0
}

// shortName packs name as 8.3. It is exact if name needs no other spelling.
func shortName(name string) (s [11]byte, exact bool) {
	base, ext, _ := strings.Cut(name, ".")
	if len(base) == 0 || len(base) > 8 || len(ext) > 3 || strings.HasSuffix(name, ".") {
		return s, false
	}
	for _, b := range []byte(base + ext) {
		if !shortByte(b) {
			return s, false
		}
	}
	return pack83(base, ext), true
}

func pack83(base, ext string) (s [11]byte) {
	copy(s[:], "           ")
	copy(s[:8], base)
	copy(s[8:], ext)
	return s
}

// alias makes a short name for a long one (fatgen103, "The Basis-Name Generation
// Algorithm" and "The Numeric-Tail Generation Algorithm").
func alias(name string, taken map[[11]byte]bool) [11]byte {
	lossy := false
	fold := func(s string, limit int) string {
		var out []byte
		for _, r := range strings.ToUpper(s) {
			switch {
			case r == ' ' || r == '.':
				lossy = true
			case r < 0x80 && shortByte(byte(r)):
				out = append(out, byte(r))
			default:
				out = append(out, '_')
				lossy = true
			}
		}
		if len(out) > limit {
			out, lossy = out[:limit], true
		}
		return string(out)
	}
	stem, ext := strings.TrimLeft(name, "."), ""
	if i := strings.LastIndexByte(stem, '.'); i >= 0 {
		stem, ext = stem[:i], stem[i+1:]
	}
	base, ext := fold(stem, 8), fold(ext, 3)
	lossy = lossy || strings.HasPrefix(name, ".")
	if s := pack83(base, ext); !lossy && base != "" && !taken[s] {
		return s
	}
	for i := 1; ; i++ {
		tail := fmt.Sprintf("~%d", i)
		if s := pack83(base[:min(len(base), 8-len(tail))]+tail, ext); !taken[s] {
			return s
		}
	}
}

// longNameEntries are the pieces of a long name, last piece first as on disk.
func longNameEntries(name string, short [11]byte) []dirEntry {
	var sum byte
	for _, b := range short {
		sum = sum<<7 | sum>>1
		sum += b
	}
	units := utf16.Encode([]rune(name))
	n := (len(units) + longNameUnit - 1) / longNameUnit
	if len(units)%longNameUnit != 0 {
		units = append(units, 0)
	}
	for len(units) < n*longNameUnit {
		units = append(units, 0xffff)
	}
	out := make([]dirEntry, 0, n)
	for i := n - 1; i >= 0; i-- {
		var e dirEntry
		e.long[0] = byte(i + 1)
		if i == n-1 {
			e.long[0] |= 0x40
		}
		e.long[11], e.long[13] = attrLongName, sum
		for j, u := range units[i*longNameUnit : (i+1)*longNameUnit] {
			at := 1 + 2*j
			if j >= 5 {
				at += 3
			}
			if j >= 11 {
				at += 2
			}
			binary.LittleEndian.PutUint16(e.long[at:], u)
		}
		out = append(out, e)
	}
	return out
}

// volumeLabel checks and pads the label.
func volumeLabel(label string) (out [11]byte, err error) {
	if label == "" {
		label = DefaultLabel
	}
	for _, b := range []byte(label) {
		if !shortByte(b) && b != ' ' {
			return out, fault.New(fault.Input, "boot partition: the label %q may have upper-case letters, digits and blanks", label)
		}
	}
	if len(label) > len(out) {
		return out, fault.New(fault.Input, "boot partition: the label %q is longer than %d characters", label, len(out))
	}
	copy(out[:], "           ")
	copy(out[:], label)
	return out, nil
}

// dirBytes is the content of a directory; the rest of its clusters is zero.
func dirBytes(dir *node, label [11]byte, stamp dosStamp) []byte {
	var b []byte
	if dir.parent == nil {
		b = appendShort(b, label, attrVolume, 0, 0, stamp)
	} else {
		up := dir.parent.cluster
		if dir.parent.parent == nil {
			up = 0 // how ".." names the root
		}
		b = appendShort(b, pack83(".", ""), attrDir, dir.cluster, 0, stamp)
		b = appendShort(b, pack83("..", ""), attrDir, up, 0, stamp)
	}
	for _, e := range dir.entries {
		switch {
		case e.to == nil:
			b = append(b, e.long[:]...)
		case e.to.file == nil:
			b = appendShort(b, e.short, attrDir, e.to.cluster, 0, stamp)
		default:
			b = appendShort(b, e.short, attrArchive, e.to.cluster, uint32(e.to.file.Size), stamp)
		}
	}
	return b
}

func appendShort(b []byte, name [11]byte, attr byte, cluster, size uint32, stamp dosStamp) []byte {
	e := make([]byte, dirEntrySize)
	copy(e, name[:])
	e[11] = attr
	binary.LittleEndian.PutUint16(e[14:], stamp.time) // created
	binary.LittleEndian.PutUint16(e[16:], stamp.date)
	binary.LittleEndian.PutUint16(e[18:], stamp.date) // accessed
	binary.LittleEndian.PutUint16(e[20:], uint16(cluster>>16))
	binary.LittleEndian.PutUint16(e[22:], stamp.time) // modified
	binary.LittleEndian.PutUint16(e[24:], stamp.date)
	binary.LittleEndian.PutUint16(e[26:], uint16(cluster))
	binary.LittleEndian.PutUint32(e[28:], size)
	return append(b, e...)
}
