// Package fatname turns names into what stands in FAT directories, and back:
// short 8.3 names, aliases for long ones, and the pieces that long names are cut
// into (Microsoft's "FAT32 File System Specification" 1.03, "Long Directory Entries"
// and "The Numeric-Tail Generation Algorithm").
package fatname

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf16"
)

const (
	// Slot is the size of one entry of a directory.
	Slot = 32
	// AttrLong marks a slot as a piece of a long name.
	AttrLong = 0x0f

	unitsPerSlot = 13 // UTF-16 units in one piece
	maxLong      = 255
)

// Check tells why a name cannot stand on FAT.
func Check(name string) error {
	if len(utf16.Encode([]rune(name))) > maxLong {
		return fmt.Errorf("the name is longer than %d characters", maxLong)
	}
	if i := strings.IndexFunc(name, func(r rune) bool { return r < 0x20 || strings.ContainsRune(`"*/:<>?\|`, r) || r == '\ufffd' }); i >= 0 {
		return fmt.Errorf("the name has a character that FAT does not allow, at byte %d", i+1)
	}
	if name == "" || strings.HasSuffix(name, ".") || strings.HasSuffix(name, " ") {
		return fmt.Errorf("a name on FAT cannot be empty or end in a dot or a blank")
	}
	return nil
}

// ShortByte tells whether b may stand in a short name as it is.
func ShortByte(b byte) bool {
	return b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || strings.IndexByte("$%'-_@~`!(){}^#&", b) >= 0
}

// Short packs name as 8.3. It is exact if name needs no other spelling.
func Short(name string) (s [11]byte, exact bool) {
	base, ext, _ := strings.Cut(name, ".")
	if len(base) == 0 || len(base) > 8 || len(ext) > 3 || strings.HasSuffix(name, ".") {
		return s, false
	}
	for _, b := range []byte(base + ext) {
		if !ShortByte(b) {
			return s, false
		}
	}
	return Pack(base, ext), true
}

// Pack makes the eleven bytes of a base name and its extension.
func Pack(base, ext string) (s [11]byte) {
	copy(s[:], "           ")
	copy(s[:8], base)
	copy(s[8:], ext)
	return s
}

// Alias makes a short name for a long one (fatgen103, "The Basis-Name Generation
// Algorithm" and "The Numeric-Tail Generation Algorithm").
func Alias(name string, taken map[[11]byte]bool) [11]byte {
	lossy := false
	fold := func(s string, limit int) string {
		var out []byte
		for _, r := range strings.ToUpper(s) {
			switch {
			case r == ' ' || r == '.':
				lossy = true
			case r < 0x80 && ShortByte(byte(r)):
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
	if s := Pack(base, ext); !lossy && base != "" && !taken[s] {
		return s
	}
	for i := 1; ; i++ {
		tail := fmt.Sprintf("~%d", i)
		if s := Pack(base[:min(len(base), 8-len(tail))]+tail, ext); !taken[s] {
			return s
		}
	}
}

// Pieces are the pieces of a long name, last piece first as on disk.
func Pieces(name string, short [11]byte) [][Slot]byte {
	sum := Sum(short)
	units := utf16.Encode([]rune(name))
	n := (len(units) + unitsPerSlot - 1) / unitsPerSlot
	if len(units)%unitsPerSlot != 0 {
		units = append(units, 0)
	}
	for len(units) < n*unitsPerSlot {
		units = append(units, 0xffff)
	}
	out := make([][Slot]byte, 0, n)
	for i := n - 1; i >= 0; i-- {
		var e [Slot]byte
		e[0] = byte(i + 1)
		if i == n-1 {
			e[0] |= 0x40
		}
		e[11], e[13] = AttrLong, sum
		for j, u := range units[i*unitsPerSlot : (i+1)*unitsPerSlot] {
			at := 1 + 2*j
			if j >= 5 {
				at += 3
			}
			if j >= 11 {
				at += 2
			}
			binary.LittleEndian.PutUint16(e[at:], u)
		}
		out = append(out, e)
	}
	return out
}

// Sum ties the pieces of a long name to their short name.
func Sum(short [11]byte) (sum byte) {
	for _, b := range short {
		sum = sum<<7 | sum>>1
		sum += b
	}
	return sum
}

// Piece returns the up to 13 characters of one piece of a long name.
func Piece(rec []byte) []uint16 {
	var u []uint16
	for _, span := range [][2]int{{1, 11}, {14, 26}, {28, 32}} {
		for i := span[0]; i < span[1]; i += 2 {
			c := binary.LittleEndian.Uint16(rec[i:])
			if c == 0 || c == 0xffff {
				return u
			}
			u = append(u, c)
		}
	}
	return u
}

// Display is a short entry's name as people read it.
func Display(rec []byte) string {
	base, ext := strings.TrimRight(string(rec[:8]), " "), strings.TrimRight(string(rec[8:11]), " ")
	// Windows keeps lower-case short names by these two bits.
	if rec[12]&0x08 != 0 {
		base = strings.ToLower(base)
	}
	if rec[12]&0x10 != 0 {
		ext = strings.ToLower(ext)
	}
	if ext != "" {
		return base + "." + ext
	}
	return base
}
