// Package deb reads binary packages of Debian's format and unpacks them into
// a directory.
//
// The format is deb(5): an ar archive of debian-binary, control.tar and
// data.tar, the latter two compressed with xz, zstd or gzip, or not at all. In
// goes the path of a .deb; out come its control files, and a stream of its data
// archive that Root.Unpack lays down.
//
// A package is input from outside: every size is limited before memory is
// taken, no path leaves the root (the kernel resolves them, openat2(2) with
// RESOLVE_IN_ROOT), and a damaged package is an error that names it.
package deb

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/xi2/xz"
)

// Limits on what a package may ask for. Debian's largest are far below.
const (
	maxControl     = 64 << 20  // bytes of control.tar, unpacked
	maxControlFile = 32 << 20  // bytes of one control file
	maxControlPart = 32 << 20  // bytes of control.tar as stored
	maxFile        = 8 << 30   // bytes of one file
	maxData        = 64 << 30  // bytes of data.tar, unpacked
	maxEntries     = 2_000_000 // entries of data.tar
	maxWindow      = 128 << 20 // bytes of history that a decoder may keep
)

// File is an open package.
type File struct {
	// Control holds the control files by name: control, md5sums, conffiles,
	// preinst, postinst, triggers …
	Control map[string][]byte
	// Fields is the package's own stanza: the file "control".
	Fields Stanza

	f          *os.File
	name       string
	codec      string // of data.tar: xz, zst, gz or ""
	dataOffset int64
	dataSize   int64
}

// Open reads the package at path: its structure and its control files.
func Open(path string) (*File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	d := &File{f: f, name: path}
	if err := d.parse(f, info.Size()); err != nil {
		f.Close()
		return nil, fault.New(fault.Integrity, "%s is not a sound Debian package: %w", path, err).
			WithMend("remove it from the cache and fetch it again")
	}
	return d, nil
}

// Close closes the package's file.
func (d *File) Close() error { return d.f.Close() }

// Raw is the package's own open file, for a program that reads it as a whole.
// Its offset is the start.
func (d *File) Raw() (*os.File, error) { return os.Open(d.name) }

// Size is the number of bytes of data.tar as it stands in the package.
func (d *File) Size() int64 { return d.dataSize }

// Data yields data.tar, decompressed in this process.
func (d *File) Data() (io.ReadCloser, error) {
	r, err := decompress(d.codec, io.NewSectionReader(d.f, d.dataOffset, d.dataSize))
	if err != nil {
		return nil, fault.New(fault.Integrity, "%s: data archive: %w", d.name, err)
	}
	return r, nil
}

// parse walks the ar archive.
func (d *File) parse(r io.ReaderAt, size int64) error {
	magic := make([]byte, 8)
	if _, err := r.ReadAt(magic, 0); err != nil || string(magic) != "!<arch>\n" {
		return errors.New("it does not begin as an ar archive")
	}
	for offset, index := int64(8), 0; ; index++ {
		m, err := readMember(r, offset, size)
		if err != nil {
			return err
		}
		body := io.NewSectionReader(r, m.offset, m.size)
		switch {
		case index == 0:
			if err := checkVersion(m, body); err != nil {
				return err
			}
		case strings.HasPrefix(m.name, "_"): // deb(5): to be ignored by readers
		case d.Control == nil:
			codec, ok := archiveCodec(m.name, "control.tar")
			if !ok {
				return fmt.Errorf("member %q stands where control.tar must", m.name)
			}
			if m.size > maxControlPart {
				return fmt.Errorf("control.tar is %d bytes, more than %d", m.size, maxControlPart)
			}
			if d.Control, err = readControl(codec, body); err != nil {
				return err
			}
			if d.Fields, err = ParseStanza(d.Control["control"]); err != nil {
				return fmt.Errorf("control file: %w", err)
			}
		default:
			codec, ok := archiveCodec(m.name, "data.tar")
			if !ok {
				return fmt.Errorf("member %q stands where data.tar must", m.name)
			}
			d.codec, d.dataOffset, d.dataSize = codec, m.offset, m.size
			return nil
		}
		offset = m.offset + m.size + m.size%2
	}
}

type member struct {
	name         string
	offset, size int64
}

// readMember reads the 60 byte header of an ar member (deb(5), "FORMAT").
func readMember(r io.ReaderAt, offset, end int64) (member, error) {
	h := make([]byte, 60)
	if _, err := r.ReadAt(h, offset); err != nil {
		return member{}, fmt.Errorf("it ends at byte %d, before its data.tar", offset)
	}
	if h[58] != '`' || h[59] != '\n' {
		return member{}, fmt.Errorf("no member header at byte %d", offset)
	}
	size, err := strconv.ParseInt(strings.TrimRight(string(h[48:58]), " "), 10, 64)
	if err != nil || size < 0 {
		return member{}, fmt.Errorf("member at byte %d has no readable size", offset)
	}
	m := member{name: strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/"), offset: offset + 60, size: size}
	if m.size > end-m.offset {
		return member{}, fmt.Errorf("member %q is cut short: %d bytes announced, %d there", m.name, m.size, end-m.offset)
	}
	return m, nil
}

func checkVersion(m member, body io.Reader) error {
	if m.name != "debian-binary" || m.size > 64 {
		return fmt.Errorf("first member is %q, not debian-binary", m.name)
	}
	text, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(text, []byte("2.")) {
		return fmt.Errorf("format version is %q, not 2.x", bytes.TrimSpace(text))
	}
	return nil
}

// archiveCodec tells how the member called name is compressed, if it is base.
func archiveCodec(name, base string) (codec string, ok bool) {
	switch rest, found := strings.CutPrefix(name, base); {
	case !found:
		return "", false
	case rest == "":
		return "", true
	default:
		codec = strings.TrimPrefix(rest, ".")
		return codec, rest[0] == '.' && (codec == "xz" || codec == "zst" || codec == "gz")
	}
}

// decompress undoes a codec in pure Go.
//
// Measured on two cores with Debian 13's packages (320 MB unpacked): xi2/xz
// 32 MB/s, therootcompany/xz 36, mikelolasagasti/xz 32, ulikunitz/xz 30; on the
// kernel package, which is mostly incompressible, 16, 14, 16 and 15. liblzma 5.8,
// as dpkg-deb of the locked packages uses it, does 80 and 50, and threads over
// blocks. So this is for control files and for the few packages that dpkg-deb
// itself needs; the rest goes through dpkg-deb in the sandbox (package layer).
func decompress(codec string, r io.Reader) (io.ReadCloser, error) {
	buffered := bufio.NewReaderSize(r, 256<<10)
	switch codec {
	case "xz":
		x, err := xz.NewReader(buffered, maxWindow)
		if err != nil {
			return nil, err
		}
		return io.NopCloser(x), nil
	case "zst":
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case "gz":
		return gzip.NewReader(buffered)
	default:
		return io.NopCloser(buffered), nil
	}
}

// readControl reads control.tar: plain files at its top, nothing else.
func readControl(codec string, r io.Reader) (map[string][]byte, error) {
	plain, err := decompress(codec, r)
	if err != nil {
		return nil, fmt.Errorf("control.tar: %w", err)
	}
	defer plain.Close()
	files := map[string][]byte{}
	archive := tar.NewReader(io.LimitReader(plain, maxControl))
	for {
		h, err := archive.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("control.tar: %w", err)
		}
		name := path.Clean(h.Name)
		if h.Typeflag == tar.TypeDir && name == "." {
			continue
		}
		if h.Typeflag != tar.TypeReg || strings.Contains(name, "/") || name == ".." || name == "." {
			return nil, fmt.Errorf("control.tar: %q is not a plain file at the top", h.Name)
		}
		if h.Size > maxControlFile {
			return nil, fmt.Errorf("control.tar: %s is %d bytes, more than %d", name, h.Size, maxControlFile)
		}
		if files[name], err = io.ReadAll(archive); err != nil {
			return nil, fmt.Errorf("control.tar: %s: %w", name, err)
		}
	}
	if _, ok := files["control"]; !ok {
		return nil, errors.New("control.tar holds no control file")
	}
	return files, nil
}
