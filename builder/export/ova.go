package export

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"path"
	"regexp"
	"strconv"
	"time"

	"github.com/slipwayhq/slipway/builder/disk"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/internal/fault"
)

// OVAInput is what an OVA is made from.
type OVAInput struct {
	Name    string // of the machine and of the files inside: letters, digits, dot, dash, underscore
	Product string // "db-master appliance"
	Summary string // one or a few sentences, shown by the importer
	Version string
	Image   *disk.Image
	VM      manifest.VM
	Seed    [32]byte  // as in VMDKOptions
	Date    time.Time // of the files inside
	Workers int       // as in VMDKOptions
}

// An OVA is a tar of these sizes (POSIX.1-1988 ustar; DSP0243 allows no other).
const (
	tarBlock  = 512
	tarRecord = 20 * tarBlock // what tar pads archives to
	tarMax    = 1<<33 - 1     // eleven octal digits
)

var ovaName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$`)

// OVA writes the appliance as one file: descriptor, manifest of hashes, disk, in
// the order that DSP0243 1.1.0, section 5.3, demands. The disk is streamed once.
// What the descriptor and the manifest say of it, its size and hash, is known
// only then, so they have fixed lengths and are written last into the room left
// for them.
func OVA(ctx context.Context, w io.WriterAt, in OVAInput) error {
	if !ovaName.MatchString(in.Name) {
		return fault.New(fault.Input, "ova: %q cannot be the name of an appliance", in.Name).
			WithMend("Use up to 80 letters, digits, dots, dashes and underscores.")
	}
	runs, err := dataRuns(in.Image, vmdkGrain)
	if err != nil {
		return err
	}
	var populated int64
	for _, r := range runs {
		populated += r.count * vmdkGrain
	}
	ovfFile, mfFile, diskFile := in.Name+".ovf", in.Name+".mf", in.Name+"-disk1.vmdk"
	widest, err := marshalOVF(envelopeFor(in, diskFile, strconv.FormatInt(tarMax, 10), populated))
	if err != nil {
		return err
	}
	manifestFor := func(ovf, vmdk []byte) []byte {
		return fmt.Appendf(nil, "SHA256(%s)= %x\nSHA256(%s)= %x\n", ovfFile, ovf, diskFile, vmdk)
	}
	none := make([]byte, sha256.Size)
	mfAt := tarBlock + roundUp(int64(len(widest)), tarBlock)
	diskAt := mfAt + tarBlock + roundUp(int64(len(manifestFor(none, none))), tarBlock)

	size, sum, err := streamVMDK(ctx, io.NewOffsetWriter(w, diskAt+tarBlock), in, diskFile)
	if err != nil {
		return err
	}
	if size > tarMax {
		return fault.New(fault.Input, "ova: the disk has %d bytes, and a tar member can have %d", size, int64(tarMax)).
			WithMend("Export as vmdk or qcow2 instead.")
	}
	ovf, err := marshalOVF(envelopeFor(in, diskFile, strconv.FormatInt(size, 10), populated))
	if err != nil {
		return err
	}
	ovf = append(ovf, bytes.Repeat([]byte{'\n'}, len(widest)-len(ovf))...) // white space may follow the root element
	ovfSum := sha256.Sum256(ovf)
	end := diskAt + tarBlock + roundUp(size, tarBlock)
	for _, m := range []struct {
		name    string
		at      int64
		size    int64
		content []byte
	}{
		{ovfFile, 0, int64(len(ovf)), ovf},
		{mfFile, mfAt, int64(len(manifestFor(none, none))), manifestFor(ovfSum[:], sum)},
		{diskFile, diskAt, size, nil},
		{"", end, 0, make([]byte, roundUp(end+2*tarBlock, tarRecord)-end)},
	} {
		var b bytes.Buffer
		if m.name != "" {
			h := tar.Header{Name: m.name, Size: m.size, Mode: 0o644, ModTime: in.Date.UTC().Truncate(time.Second), Typeflag: tar.TypeReg, Format: tar.FormatUSTAR}
			if err := tar.NewWriter(&b).WriteHeader(&h); err != nil {
				return err
			}
		}
		b.Write(m.content)
		if rest := b.Len() % tarBlock; rest != 0 {
			b.Write(make([]byte, tarBlock-rest))
		}
		if _, err := w.WriteAt(b.Bytes(), m.at); err != nil {
			return err
		}
	}
	if rest := size % tarBlock; rest != 0 {
		_, err = w.WriteAt(make([]byte, tarBlock-rest), diskAt+tarBlock+size)
	}
	return err
}

func roundUp(n, to int64) int64 { return ceil(n, to) * to }

// streamVMDK writes the disk and returns its size and SHA-256.
func streamVMDK(ctx context.Context, w io.Writer, in OVAInput, name string) (int64, []byte, error) {
	h := newHasher(w)
	err := VMDK(ctx, h, in.Image, VMDKOptions{Name: name, Seed: in.Seed, Workers: in.Workers})
	size, sum := h.finish()
	return size, sum, err
}

// hasher hashes what it writes, both at the same time: hashing takes as long as
// all the rest of an export.
type hasher struct {
	w    io.Writer
	size int64
	sum  hash.Hash
	next chan []byte   // to be hashed
	done chan struct{} // it has been
}

func newHasher(w io.Writer) *hasher {
	h := &hasher{w: w, sum: sha256.New(), next: make(chan []byte), done: make(chan struct{})}
	go func() {
		for p := range h.next {
			h.sum.Write(p)
			h.done <- struct{}{}
		}
	}()
	return h
}

func (h *hasher) Write(p []byte) (int, error) {
	h.next <- p
	n, err := h.w.Write(p)
	<-h.done
	h.size += int64(n)
	return n, err
}

func (h *hasher) finish() (int64, []byte) {
	close(h.next)
	return h.size, h.sum.Sum(nil)
}

// Member is a file inside an OVA.
type Member struct {
	Name         string
	Offset, Size int64 // of the content in the OVA
}

const maxMembers = 1000

// Members lists the files of an OVA without reading their content.
func Members(r io.ReaderAt, size int64) ([]Member, error) {
	section := io.NewSectionReader(r, 0, size)
	t := tar.NewReader(section)
	var out []Member
	for {
		h, err := t.Next()
		if err == io.EOF {
			return out, nil
		}
		if err != nil {
			return nil, fault.New(fault.Integrity, "ova: %w", err)
		}
		at, err := section.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		if h.Typeflag != tar.TypeReg || h.Size > size-at || path.Base(h.Name) != h.Name || len(out) == maxMembers {
			return nil, fault.New(fault.Integrity, "ova: member %q is not a plain file inside the archive", h.Name)
		}
		out = append(out, Member{Name: h.Name, Offset: at, Size: h.Size})
	}
}
