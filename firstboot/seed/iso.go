package seed

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/diskfs/go-diskfs/filesystem/iso9660"
)

const isoBlock = 2048

// writeISO writes the files as ISO 9660 with Rock Ridge names, and with Joliet
// names if there are no directories: go-diskfs lets a Joliet directory point
// into the other tree. Linux takes Rock Ridge wherever it is.
func writeISO(w io.Writer, label string, files []file) error {
	// go-diskfs builds an ISO out of a directory.
	dir, err := os.MkdirTemp("", "slipway-seed-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, f := range files {
		path := filepath.Join(dir, f.path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, f.content, 0o600); err != nil {
			return err
		}
	}
	flat := true
	for _, f := range files {
		flat = flat && !strings.Contains(f.path, "/")
	}
	disk := &memory{}
	fsys, err := iso9660.Create(disk, 0, 0, isoBlock, dir)
	if err != nil {
		return fmt.Errorf("making the seed: %w", err)
	}
	if err := fsys.Finalize(iso9660.FinalizeOptions{RockRidge: true, Joliet: flat, VolumeIdentifier: label}); err != nil {
		return fmt.Errorf("making the seed: %w", err)
	}
	if err := normalise(disk.data); err != nil {
		return fmt.Errorf("making the seed: %w", err)
	}
	// The size that the descriptor claims must be there in full, even if the
	// last file is empty.
	if want := int(binary.LittleEndian.Uint32(disk.data[16*isoBlock+80:])) * isoBlock; len(disk.data) < want {
		disk.data = append(disk.data, make([]byte, want-len(disk.data))...)
	}
	_, err = w.Write(disk.data)
	return err
}

// recordDate is epoch as a directory record has it (ECMA-119, 9.1.5).
var recordDate = [7]byte{80, 1, 1, 0, 0, 0, 0}

// descriptorDate is epoch as a volume descriptor has it (ECMA-119, 8.4.26.1).
const descriptorDate = "1980010100000000\x00"

// normalise takes out of an ISO what it has of this machine and this moment:
// dates, owners, modes and link counts.
func normalise(iso []byte) error {
	for at := 16 * isoBlock; ; at += isoBlock {
		if at+isoBlock > len(iso) {
			return errors.New("the ISO's volume descriptors have no end")
		}
		d := iso[at : at+isoBlock]
		if d[0] == 255 {
			return nil
		}
		// Creation and modification are epoch; expiration and effective date are
		// "not specified", which is sixteen zeros in figures.
		copy(d[813:], descriptorDate)
		copy(d[830:], descriptorDate)
		copy(d[847:], "0000000000000000\x00")
		copy(d[864:], "0000000000000000\x00")
		root := d[156:190]
		copy(root[18:25], recordDate[:])
		if err := normaliseDir(iso, binary.LittleEndian.Uint32(root[2:]), binary.LittleEndian.Uint32(root[10:]), 0); err != nil {
			return err
		}
	}
}

func normaliseDir(iso []byte, block, size uint32, depth int) error {
	start, end := int(block)*isoBlock, int(block)*isoBlock+int(size)
	if depth > 8 || end > len(iso) {
		return errors.New("the ISO's directories do not hold together")
	}
	for at := start; at < end; {
		n := int(iso[at])
		if n == 0 {
			at = (at/isoBlock + 1) * isoBlock
			continue
		}
		rec := iso[at : at+n]
		at += n
		copy(rec[18:25], recordDate[:])
		nameLen := int(rec[32])
		isDir := rec[25]&2 != 0
		normaliseRockRidge(rec[33+nameLen+(nameLen+1)%2:], isDir)
		if isDir && (nameLen != 1 || rec[33] > 1) {
			if err := normaliseDir(iso, binary.LittleEndian.Uint32(rec[2:]), binary.LittleEndian.Uint32(rec[10:]), depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// normaliseRockRidge sets mode, links and owner (PX) and the dates (TF) of one
// record's system use area.
func normaliseRockRidge(area []byte, isDir bool) {
	both := func(b []byte, v uint32) {
		binary.LittleEndian.PutUint32(b, v)
		binary.BigEndian.PutUint32(b[4:], v)
	}
	for len(area) >= 4 && int(area[2]) >= 4 && int(area[2]) <= len(area) {
		field := area[:area[2]]
		area = area[area[2]:]
		switch {
		case bytes.HasPrefix(field, []byte("PX")) && len(field) >= 36:
			mode, links := uint32(0o100444), uint32(1)
			if isDir {
				mode, links = 0o040555, 2
			}
			both(field[4:], mode)
			both(field[12:], links)
			both(field[20:], 0)
			both(field[28:], 0)
		case bytes.HasPrefix(field, []byte("TF")):
			for at := 5; at+7 <= len(field); at += 7 {
				copy(field[at:], recordDate[:])
			}
		}
	}
}
