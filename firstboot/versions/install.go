package versions

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/builder/boot/grubenv"
	"github.com/slipwayhq/slipway/builder/manifest"
	"github.com/slipwayhq/slipway/firstboot/bootpart"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	// piece is how much of a blob reaches the disk at once. What arrived of an
	// unfinished piece is lost with the power.
	piece = 8 << 20
	// slack is what directories and the ends of files may take beside the content.
	slack = 4 << 20
)

// errBusy says that somebody else changes the node's versions.
var errBusy = fault.New(fault.Failed, "the node's versions are being changed already").WithMend("wait until that has ended")

// Install puts a version beside the others, as far as its parts are there, and says
// what is missing. Done again with nothing missing, it is installed.
func (s *Store) Install(ctx context.Context, im Image, say func(string)) (*Offer, error) {
	if !s.mu.TryLock() {
		return nil, errBusy
	}
	defer s.mu.Unlock()
	if err := im.Check(); err != nil {
		return nil, err
	}
	if own := s.node.Role.Name; im.Role != own {
		return nil, fault.New(fault.Input, "the image is for the role %s, and this node is a %s", im.Role, own).WithMend("name an image of the role %s", own)
	}
	env, err := ReadEnv(s.node)
	if err != nil {
		return nil, err
	}
	out := &Offer{}
	err = s.with(func(v *bootpart.Volume, p Partition) error {
		if installed, err := s.installed(v, im); err != nil || installed {
			out.Installed = installed
			return err
		}
		if im.Version == s.node.Boot.Version {
			return fault.New(fault.Integrity, "version %s runs, and is not what the image holds under that name", im.Version)
		}
		if out.Removed, err = s.clean(v, env, &im); err != nil {
			return err
		}
		if err := reuse(ctx, v, im); err != nil {
			return err
		}
		var need int64
		for _, b := range im.blobs() {
			if m, missing := lacks(v, im, b); missing {
				out.Missing = append(out.Missing, m)
				need += m.Size - m.Have
			}
		}
		if out.Free = v.Free(); need > 0 && need+slack > out.Free {
			return fault.New(fault.Space, "the version needs %d MiB on the boot partition, which has %d MiB left", (need+slack)>>20, out.Free>>20).
				WithMend("a version that was rolled back, or failed, goes once another one is good; a larger boot partition comes with a new node: slipway replace")
		}
		if len(out.Missing) > 0 {
			return nil
		}
		p.Forget()
		if err := s.complete(ctx, v, im, say); err != nil {
			return err
		}
		out.Installed, out.Free = true, v.Free()
		return nil
	})
	if err != nil {
		return nil, err
	}
	if s.offer = nil; !out.Installed {
		s.offer = &im
	}
	return out, nil
}

// installed says whether the version is there already. Another one under its name is an error.
func (s *Store) installed(v *bootpart.Volume, im Image) (bool, error) {
	if _, there := v.Stat(path.Join(dirOf(im.Version), bootConfig)); !there {
		return false, nil
	}
	_, sum, err := readManifest(v, im.Version)
	if err != nil {
		return false, err
	}
	if sum != im.Files[manifestAt].SHA256 {
		return false, fault.New(fault.Integrity, "the node has another version %s (manifest %.8s, the image's is %.8s)", im.Version, sum, im.Files[manifestAt].SHA256).
			WithMend("build the image anew: a version's name comes from its content, and this one's was changed")
	}
	return true, nil
}

// lacks says whether a blob is missing, and how much of it is there.
func lacks(v *bootpart.Volume, im Image, b Blob) (Missing, bool) {
	if slices.Contains(im.Layers, b) {
		if e, there := v.Stat(layerFile(b.SHA256)); there && e.Size == b.Size {
			return Missing{}, false
		}
	}
	for part, own := range im.Files {
		if e, there := v.Stat(path.Join(dirOf(im.Version), part)); own == b && there && e.Size == b.Size {
			return Missing{}, false
		}
	}
	e, _ := v.Stat(staged(b.SHA256))
	return Missing{b, e.Size}, e.Size != b.Size
}

// reuse copies what another version has under the same name and with the same content: the kernel
// and the initrd mostly stay the same.
func reuse(ctx context.Context, v *bootpart.Volume, im Image) error {
	for _, part := range Parts {
		b := im.Files[part]
		if m, missing := lacks(v, im, b); !missing || m.Have > 0 {
			continue
		}
		for _, dir := range v.List("images") {
			have := path.Join(dir.Path, part)
			if e, there := v.Stat(have); !there || e.Size != b.Size || dir.Path == dirOf(im.Version) {
				continue
			}
			if sum, err := hashOf(ctx, v, have); err != nil || sum != b.SHA256 {
				continue
			}
			r, err := v.Reader(have)
			if err == nil {
				_, err = pour(ctx, v, staged(b.SHA256), r)
			}
			if err != nil {
				return err
			}
			break
		}
	}
	return nil
}

// Receive appends to a blob that an offer lacks. offset is where the content begins, which
// must be where the blob ends so far; that is what have is afterwards, with or without an error.
func (s *Store) Receive(ctx context.Context, sha256 string, offset int64, r io.Reader) (have int64, err error) {
	if !s.mu.TryLock() {
		return 0, errBusy
	}
	defer s.mu.Unlock()
	var b *Blob
	if s.offer != nil {
		for _, want := range s.offer.blobs() {
			if want.SHA256 == sha256 {
				b = &want
			}
		}
	}
	if b == nil {
		return 0, fault.New(fault.Input, "nobody has offered an image with the blob %.8s", sha256).WithMend("run the upgrade again: it goes on from where it was")
	}
	err = s.with(func(v *bootpart.Volume, p Partition) error {
		name := staged(b.SHA256)
		e, _ := v.Stat(name)
		if have = e.Size; have != offset {
			return fault.New(fault.Input, "the blob %s goes on at byte %d, not at %d", b.Name(), have, offset)
		}
		n, err := pour(ctx, v, name, io.LimitReader(r, b.Size-have+1))
		have += n
		switch {
		case have > b.Size:
			err = fault.New(fault.Integrity, "more than the %d bytes of blob %s were sent", b.Size, b.Name())
		case err != nil || have < b.Size:
			return err
		default:
			p.Forget()
			err = matches(ctx, v, name, b.SHA256)
		}
		if err != nil {
			have = 0
			return errors.Join(err, v.Remove(name))
		}
		return nil
	})
	return have, err
}

// pour appends what a reader gives; what came before an error counts.
func pour(ctx context.Context, v *bootpart.Volume, name string, r io.Reader) (total int64, err error) {
	buf := make([]byte, piece)
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if appendErr := v.Append(name, buf[:n]); appendErr != nil {
				return total, appendErr
			}
			total += int64(n)
		}
		switch {
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return total, nil
		case err != nil:
			return total, err
		case ctx.Err() != nil:
			return total, ctx.Err()
		}
	}
}

func hashOf(ctx context.Context, v *bootpart.Volume, name string) (string, error) {
	r, err := v.Reader(name)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for buf := make([]byte, 1<<20); ; {
		n, err := r.Read(buf)
		h.Write(buf[:n])
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(h.Sum(nil)), nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return "", err
		}
	}
}

// matches reads a file back and compares.
func matches(ctx context.Context, v *bootpart.Volume, name, want string) error {
	got, err := hashOf(ctx, v, name)
	if err == nil && got != want {
		err = fault.New(fault.Integrity, "what arrived of blob %.8s is damaged: its SHA-256 is %s", want, got).WithMend("run the upgrade again")
	}
	return err
}

// complete makes a version of parts that are all there. Each part is hashed again where it
// stands; one that is damaged goes, so that it is sent anew.
func (s *Store) complete(ctx context.Context, v *bootpart.Volume, im Image, say func(string)) error {
	say("reading all parts of version " + im.Version + " back from the disk")
	for _, b := range im.Layers {
		file := layerFile(b.SHA256)
		if _, there := v.Stat(file); there {
			got, err := hashOf(ctx, v, file)
			if err != nil {
				return err
			}
			if got == b.SHA256 {
				continue
			}
			return s.damagedLayer(v, b)
		}
		if err := takeUp(ctx, v, b, file); err != nil {
			return err
		}
	}
	m, err := s.checkManifest(v, im)
	if err != nil {
		return err
	}
	if err := checkConfig(v, im); err != nil {
		return err
	}
	for _, part := range Parts {
		to := path.Join(dirOf(im.Version), part)
		if _, there := v.Stat(to); there {
			if err := matches(ctx, v, to, im.Files[part].SHA256); err != nil {
				return errors.Join(err, v.Remove(to))
			}
			continue
		}
		if err := takeUp(ctx, v, im.Files[part], to); err != nil {
			return err
		}
	}
	say(fmt.Sprintf("version %s is there (kernel %s, %d packages)", im.Version, m.Kernel, len(m.Packages)))
	return nil
}

// takeUp moves a blob from where it arrived to where it belongs.
func takeUp(ctx context.Context, v *bootpart.Volume, b Blob, to string) error {
	from := staged(b.SHA256)
	if err := matches(ctx, v, from, b.SHA256); err != nil {
		return errors.Join(err, v.Remove(from))
	}
	return v.Rename(from, to)
}

// damagedLayer is for a layer in the pool that is not what its name says. If no version
// stands on it, it goes.
func (s *Store) damagedLayer(v *bootpart.Volume, b Blob) error {
	for _, dir := range v.List("images") {
		m, _, err := readManifest(v, path.Base(dir.Path))
		if err == nil && slices.ContainsFunc(m.Layers, func(l manifest.Layer) bool { return l.Digest == b.SHA256 }) {
			return fault.New(fault.Integrity, "the layer %s, which version %s stands on too, is damaged on this node's disk", b.Name(), m.Version).
				WithMend("the disk cannot be trusted: slipway replace puts a fresh machine in this one's place")
		}
	}
	return errors.Join(fault.New(fault.Integrity, "the layer %s was damaged on this node's disk", b.Name()).WithMend("run the upgrade again: it is sent anew"),
		v.Remove(layerFile(b.SHA256)))
}

// at is where a part of a version stands: in its place, or where it arrived.
func at(v *bootpart.Volume, im Image, part string) string {
	to := path.Join(dirOf(im.Version), part)
	if _, there := v.Stat(to); there {
		return to
	}
	return staged(im.Files[part].SHA256)
}

// checkManifest compares the manifest with the offer.
func (s *Store) checkManifest(v *bootpart.Volume, im Image) (*manifest.Manifest, error) {
	text, err := v.ReadFile(at(v, im, manifestAt), maxManifest)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(text); hex.EncodeToString(sum[:]) != im.Files[manifestAt].SHA256 {
		return nil, fault.New(fault.Integrity, "the manifest is damaged")
	}
	m, err := manifest.Parse(text)
	if err != nil {
		return nil, fault.New(fault.Integrity, "%w", err)
	}
	same := slices.EqualFunc(m.Layers, im.Layers, func(l manifest.Layer, b Blob) bool { return l.Digest == b.SHA256 && l.Size == b.Size })
	if m.Version != im.Version || m.Role.Name != s.node.Role.Name || !same {
		return nil, fault.New(fault.Integrity, "the manifest describes version %s of %s with %d layers, which is not what was offered", m.Version, m.Role.Name, len(m.Layers))
	}
	return m, nil
}

// checkConfig looks at what GRUB is going to run.
func checkConfig(v *bootpart.Volume, im Image) error {
	text, err := v.ReadFile(at(v, im, bootConfig), largest[bootConfig])
	if err == nil && !configForm.Match(text) {
		err = fault.New(fault.Integrity, "its boot.cfg does more than name the version and the kernel's arguments")
	}
	return err
}

// clean takes away what is not kept: versions other than the one that runs, the good
// one, the one before and the one that is tried; then layers that no version names, and blobs that
// the offer does not.
func (s *Store) clean(v *bootpart.Volume, env grubenv.Env, im *Image) (removed []string, err error) {
	keep := map[string]bool{s.node.Boot.Version: true, env.Good: true, env.Previous: true, im.Version: true}
	if env.Try != "" && !env.Failed() {
		keep[env.Try] = true
	}
	layers, blobs := map[string]bool{}, map[string]bool{}
	for _, b := range im.blobs() {
		blobs[staged(b.SHA256)], layers[layerFile(b.SHA256)] = true, true
	}
	for _, dir := range v.List("images") {
		name := path.Base(dir.Path)
		if keep[name] {
			m, _, err := readManifest(v, name)
			if err != nil && name != im.Version {
				return removed, err // nothing is taken away while it is not known what is needed
			}
			for i := 0; m != nil && i < len(m.Layers); i++ {
				layers[m.Layers[i].File()] = true
			}
			continue
		}
		if err := s.remove(v, name); err != nil {
			return removed, err
		}
		removed = append(removed, name)
	}
	for _, e := range append(v.List("layers"), v.List(bootpart.Staging)...) {
		if e.Dir || layers[e.Path] || blobs[e.Path] || strings.HasPrefix(e.Path, "layers/") && !strings.HasSuffix(e.Path, ".sqfs") {
			continue
		}
		if err := v.Remove(e.Path); err != nil {
			return removed, err
		}
	}
	return removed, nil
}

// remove takes a version away: first what GRUB sees it by.
func (s *Store) remove(v *bootpart.Volume, version string) error {
	if err := v.Remove(path.Join(dirOf(version), bootConfig)); err != nil {
		return err
	}
	for _, e := range v.List(dirOf(version)) {
		if err := v.Remove(e.Path); err != nil {
			return err
		}
	}
	return errors.Join(v.Remove(dirOf(version)), s.dropUpper(version))
}
