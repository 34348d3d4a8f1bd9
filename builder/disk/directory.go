package disk

import (
	"encoding/binary"
	"strings"

	"github.com/slipwayhq/slipway/builder/disk/fatname"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	dirEntrySize = fatname.Slot
	attrVolume   = 0x08
	attrDir      = 0x10
	attrArchive  = 0x20
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
		if s, exact := fatname.Short(c.name); exact {
			taken[s] = true
		}
	}
	for _, c := range children {
		if err := fatname.Check(c.name); err != nil {
			return nil, fault.New(fault.Input, "boot partition: /%s/%s: %w", dir, c.name, err)
		}
		key := strings.ToUpper(c.name)
		if other, ok := folded[key]; ok {
			return nil, fault.New(fault.Input, "boot partition: /%s holds %q and %q, which are one name on FAT", dir, other, c.name)
		}
		folded[key] = c.name
		short, exact := fatname.Short(c.name)
		if exact {
			out = append(out, dirEntry{to: c, short: short})
			continue
		}
		short = fatname.Alias(c.name, taken)
		taken[short] = true
		for _, piece := range fatname.Pieces(c.name, short) {
			out = append(out, dirEntry{long: piece})
		}
		out = append(out, dirEntry{to: c, short: short})
	}
	return out, nil
}

// volumeLabel checks and pads the label.
func volumeLabel(label string) (out [11]byte, err error) {
	if label == "" {
		label = DefaultLabel
	}
	for _, b := range []byte(label) {
		if !fatname.ShortByte(b) && b != ' ' {
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
		b = appendShort(b, fatname.Pack(".", ""), attrDir, dir.cluster, 0, stamp)
		b = appendShort(b, fatname.Pack("..", ""), attrDir, up, 0, stamp)
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
