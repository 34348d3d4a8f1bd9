package lock

import (
	"errors"
	"slices"
	"strings"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Image is an OCI image by its digest. In a Want, the digest is empty.
type Image struct {
	Name   string   // what the node knows it by
	Digest string   // of its manifest, SHA-256 in hexadecimal
	Source string   // where it comes from: registry:REFERENCE, layout:PATH or tarball:PATH
	Sets   []string // roles that have it, sorted
	File   string   // in a Want: the profile that asks, for messages
}

// Image returns the image of that name.
func (l *Lock) Image(name string) (Image, bool) {
	i := slices.IndexFunc(l.Images, func(im Image) bool { return im.Name == name })
	if i < 0 {
		return Image{}, false
	}
	return l.Images[i], true
}

// PinImages gives the lock the wanted images. A digest that previous has stays if
// the image comes from the same place, unless resolve is told to look again; resolve
// finds out the others'.
func (l *Lock) PinImages(want []Image, previous *Lock, again func(Image) bool, resolve func(Image) (digest string, err error)) error {
	var images []Image
	for _, w := range want {
		pinned := Image{Name: w.Name, Source: w.Source, Sets: sortedSet(w.Sets)}
		var was Image
		if previous != nil {
			was, _ = previous.Image(w.Name)
		}
		if was.Source == w.Source && !again(w) {
			pinned.Digest = was.Digest
		} else {
			digest, err := resolve(w)
			if err != nil {
				return err
			}
			pinned.Digest = digest
		}
		images = append(images, pinned)
	}
	l.Images, l.checksum = images, ""
	l.normalize()
	return nil
}

// checkImages says whether the lock has the wanted images.
func (l *Lock) checkImages(want []Image, mend string) error {
	for _, w := range want {
		have, ok := l.Image(w.Name)
		switch {
		case !ok:
			return fault.New(fault.Input, "%s is stale: %s asks for the image %s, which the lock does not have", FileName, w.File, w.Name).WithMend("%s", mend)
		case have.Source != w.Source:
			return fault.New(fault.Input, "%s is stale: %s has the image %s come from %s, in the lock it is from %s", FileName, w.File, w.Name, w.Source, have.Source).WithMend("%s", mend)
		case !slices.Equal(have.Sets, sortedSet(w.Sets)):
			return fault.New(fault.Input, "%s is stale: the image %s is for %s, in the lock for %s", FileName, w.Name, strings.Join(sortedSet(w.Sets), ", "), strings.Join(have.Sets, ", ")).WithMend("%s", mend)
		}
	}
	for _, have := range l.Images {
		if !slices.ContainsFunc(want, func(w Image) bool { return w.Name == have.Name }) {
			return fault.New(fault.Input, "%s is stale: it has the image %s, which no profile asks for any more", FileName, have.Name).WithMend("%s", mend)
		}
	}
	return nil
}

// imageFact reads "image NAME DIGEST source=SOURCE sets=SET,…".
func (l *Lock) imageFact(w []string) error {
	im := Image{Name: w[0], Digest: strings.TrimPrefix(w[1], "sha256:")}
	source, ok := strings.CutPrefix(w[2], "source=")
	sets, ok2 := strings.CutPrefix(w[3], "sets=")
	if !ok || !ok2 || !strings.HasPrefix(w[1], "sha256:") || !hashPattern.MatchString(im.Digest) {
		return errors.New("image: want NAME sha256:DIGEST source=SOURCE sets=SET,…")
	}
	im.Source, im.Sets = unescape(source), strings.Split(sets, ",")
	l.Images = append(l.Images, im)
	return nil
}
