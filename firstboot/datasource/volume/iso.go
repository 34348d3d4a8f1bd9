package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
)

const (
	isoBlock       = 2048
	isoDescriptors = 16 // the volume descriptors begin at this block
	maxDescriptors = 64
)

type iso struct {
	r      io.ReaderAt
	top    entry
	joliet bool
}

func openISO(r io.ReaderAt) (*Volume, error) {
	var primary, joliet []byte
	for i := range int64(maxDescriptors) {
		d := make([]byte, isoBlock)
		if err := readFull(r, d, (isoDescriptors+i)*isoBlock); err != nil {
			if i == 0 && errors.Is(err, io.ErrUnexpectedEOF) {
				return nil, ErrUnknown
			}
			return nil, err
		}
		if string(d[1:6]) != "CD001" {
			if i == 0 {
				return nil, ErrUnknown
			}
			return nil, errors.New("ISO 9660: the list of volume descriptors has no end")
		}
		switch d[0] {
		case 1:
			if primary == nil {
				primary = d
			}
		case 2:
			// Joliet is a supplementary descriptor with one of three escape sequences.
			if s := string(d[88:91]); s == "%/@" || s == "%/C" || s == "%/E" {
				joliet = d
			}
		}
		if d[0] == 255 {
			break
		}
	}
	if primary == nil {
		return nil, errors.New("ISO 9660: no primary volume descriptor")
	}
	for _, d := range [][]byte{primary, joliet} {
		if d != nil && binary.LittleEndian.Uint16(d[128:]) != isoBlock {
			return nil, fmt.Errorf("ISO 9660: logical blocks of %d bytes; only %d occur on CDs", binary.LittleEndian.Uint16(d[128:]), isoBlock)
		}
	}
	fsys := &iso{r: r, top: isoRoot(primary)}
	v := &Volume{Type: "iso9660", Label: strings.TrimRight(string(primary[40:72]), " \x00"), fsys: fsys}
	if joliet == nil {
		return v, nil
	}
	// Rock Ridge keeps names as they were written, so it wins. Whether it is
	// there shows in the root's own record.
	if rr, err := fsys.rockRidge(); err == nil && rr {
		return v, nil
	}
	fsys.top, fsys.joliet = isoRoot(joliet), true
	return v, nil
}

func isoRoot(descriptor []byte) entry {
	rec := descriptor[156:190]
	return entry{dir: true, start: binary.LittleEndian.Uint32(rec[2:]), size: int64(binary.LittleEndian.Uint32(rec[10:]))}
}

func (f *iso) root() entry { return f.top }

// rockRidge says whether the root's first record has a system use area that
// begins with the indicator of SUSP.
func (f *iso) rockRidge() (bool, error) {
	b := make([]byte, isoBlock)
	if err := readFull(f.r, b, int64(f.top.start)*isoBlock); err != nil {
		return false, err
	}
	n := int(b[0])
	return n >= 34+7 && string(b[34:36]) == "SP", nil
}

func (f *iso) list(dir entry) ([]entry, error) {
	if dir.size > maxDir {
		return nil, fmt.Errorf("ISO 9660: a directory of %d bytes", dir.size)
	}
	b := make([]byte, dir.size)
	if err := readFull(f.r, b, int64(dir.start)*isoBlock); err != nil {
		return nil, err
	}
	var out []entry
	for i := 0; i < len(b); {
		n := int(b[i])
		if n == 0 { // the rest of this block is empty; records do not cross blocks
			i = (i/isoBlock + 1) * isoBlock
			continue
		}
		if n < 34 || i+n > len(b) {
			return nil, fmt.Errorf("ISO 9660: a directory record of %d bytes does not fit where it stands", n)
		}
		rec := b[i : i+n]
		i += n
		nameLen := int(rec[32])
		if 33+nameLen > n {
			return nil, fmt.Errorf("ISO 9660: a name of %d bytes in a directory record of %d", nameLen, n)
		}
		name := rec[33 : 33+nameLen]
		if nameLen == 1 && name[0] <= 1 { // the directory itself and its parent
			continue
		}
		e := entry{
			dir:   rec[25]&2 != 0,
			start: binary.LittleEndian.Uint32(rec[2:]) + uint32(rec[1]), // after an extended attribute record
			size:  int64(binary.LittleEndian.Uint32(rec[10:])),
		}
		// Several extents (for files over 4 GiB) and interleaving do not occur in
		// seeds, but on CDs that stand beside one.
		e.scattered = rec[25]&0x80 != 0 || rec[26] != 0 || rec[27] != 0
		if f.joliet {
			e.names = []string{isoPlain(ucs2(name))}
		} else {
			e.names = []string{isoPlain(string(name))}
			// The system use area begins at an even offset.
			if rr, err := f.rockRidgeName(rec[33+nameLen+(nameLen+1)%2:]); err != nil {
				return nil, err
			} else if rr != "" {
				e.names = []string{rr}
			} else if short := isoShort[e.names[0]]; short != "" {
				e.names = append(e.names, short)
			}
		}
		out = append(out, e)
	}
	return out, nil
}

// isoShort gives back their meaning to names as mkisofs cuts them at level 1
// when neither Rock Ridge nor Joliet is asked for: genisoimage -V cidata
// makes META_DAT of meta-data.
var isoShort = map[string]string{
	"META_DAT": "meta-data", "USER_DAT": "user-data", "NETWORK_": "network-config", "VENDOR_D": "vendor-data",
	"META_DATA": "meta-data", "USER_DATA": "user-data", "NETWORK_CONFIG": "network-config", "VENDOR_DATA": "vendor-data",
	"META_DAT.JSO": "meta_data.json", "META_DATA.JSON": "meta_data.json", "OPENSTAC": "openstack",
	"NETWORK_.JSO": "network_data.json", "VENDOR_D.JSO": "vendor_data.json", "OVF_ENV.XML": "ovf-env.xml",
}

// isoPlain takes the version (;1) and the dot of an empty extension off.
func isoPlain(name string) string {
	name, _, _ = strings.Cut(name, ";")
	return strings.TrimSuffix(name, ".")
}

func ucs2(b []byte) string {
	var u []uint16
	for i := 0; i+1 < len(b); i += 2 {
		u = append(u, binary.BigEndian.Uint16(b[i:]))
	}
	return string(utf16.Decode(u))
}

// rockRidgeName joins the NM fields of a system use area, following at most a
// few continuation areas.
func (f *iso) rockRidgeName(area []byte) (string, error) {
	var name strings.Builder
	for hops := 0; ; hops++ {
		var next []byte
		for len(area) >= 4 {
			n := int(area[2])
			if n < 4 || n > len(area) {
				break // what follows is padding
			}
			field := area[:n]
			switch sig := string(field[:2]); {
			case sig == "NM" && n >= 5:
				name.Write(field[5:])
			case sig == "CE" && n >= 28:
				block, off, size := binary.LittleEndian.Uint32(field[4:]), binary.LittleEndian.Uint32(field[12:]), binary.LittleEndian.Uint32(field[20:])
				if size > isoBlock || off > isoBlock {
					return "", errors.New("ISO 9660: a Rock Ridge continuation beyond its block")
				}
				next = make([]byte, size)
				if err := readFull(f.r, next, int64(block)*isoBlock+int64(off)); err != nil {
					return "", err
				}
			case sig == "ST":
				area = nil
			}
			if area != nil {
				area = area[n:]
			}
		}
		if next == nil {
			return name.String(), nil
		}
		if hops == 8 {
			return "", errors.New("ISO 9660: Rock Ridge continuations without end")
		}
		area = next
	}
}

func (f *iso) read(file entry) ([]byte, error) {
	if file.scattered {
		return nil, errors.New("ISO 9660: the file is in several extents")
	}
	b := make([]byte, file.size)
	return b, readFull(f.r, b, int64(file.start)*isoBlock)
}
