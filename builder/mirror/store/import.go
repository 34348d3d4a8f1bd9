package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/catalog"
	"github.com/slipwayhq/slipway/builder/mirror/volume"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
	"github.com/slipwayhq/slipway/internal/progress"
)

// batch is how many bytes are copied between two flushes: what a power cut costs at most.
const batch = 512 << 20

// ImportOptions are the settings of Import.
type ImportOptions struct {
	AllowOlder bool // take a bundle with a lower number than the published one
	Progress   progress.Reporter
	Notice     func(string) // is told of what does not stop the import: volumes that were passed over, damage that a good copy makes up for; nil: nobody
}

// Imported tells what Import did.
type Imported struct {
	Site      string   `json:"site"`
	Edition   int64    `json:"edition"`
	Bundle    string   `json:"bundle"`
	Volumes   []int    `json:"volumes"`   // that were read now
	Copied    int64    `json:"copied"`    // bytes that were not here yet
	Missing   []int    `json:"missing"`   // volumes that are still to come
	Damaged   []string `json:"damaged"`   // what could not be taken
	Published bool     `json:"published"` // all is there and clients see it
}

// Import takes volumes in, in any order, one at a time or together. Whatever of them is whole is kept, and when a
// bundle is complete it is published. Importing a volume again is harmless: it is how damage is mended. An error
// tells what is wrong; Imported is valid beside it if it is not nil. A volume that cannot be taken keeps none of the
// others out; what is wrong with the store itself ends the import.
func (s *Store) Import(ctx context.Context, dirs []string, opts ImportOptions) (_ []Imported, err error) {
	defer func() { err = full(err) }()
	if opts.Progress == nil {
		opts.Progress = progress.None
	}
	if opts.Notice == nil {
		opts.Notice = func(string) {}
	}
	if err := s.recover(ctx); fault.Of(err) == fault.Integrity {
		// What is damaged comes anew with a volume of that bundle, which this import may bring.
		opts.Notice(fmt.Sprintf("the publishing that was cut off cannot be ended yet: %v; %s", err, fault.Mend(err)))
	} else if err != nil {
		return nil, err
	}
	var volumes []*volume.Volume
	defer func() {
		for _, v := range volumes {
			v.Close()
		}
	}()
	var wrong []error
	for _, dir := range dirs {
		v, err := volume.Open(dir, s.ring, volumes...)
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		volumes = append(volumes, v)
	}
	slices.SortStableFunc(volumes, func(a, b *volume.Volume) int {
		return cmp.Or(cmp.Compare(a.Edition, b.Edition), cmp.Compare(a.Bundle, b.Bundle), cmp.Compare(a.Volume, b.Volume))
	})
	var all []Imported
	for rest := s.wanted(volumes, opts); len(rest) > 0; {
		n := 1
		for n < len(rest) && rest[n].Bundle == rest[0].Bundle {
			n++
		}
		err := s.admit(rest[0], opts)
		if err == nil {
			var one *Imported
			one, err = s.bundle(ctx, rest[:n], opts)
			if one != nil {
				all = append(all, *one)
			}
		}
		if class := fault.Of(err); err != nil && class != fault.Integrity && class != fault.Input {
			return all, errors.Join(append([]error{err}, wrong...)...)
		}
		if err != nil {
			wrong = append(wrong, err)
		}
		rest = rest[n:]
	}
	return all, errors.Join(wrong...)
}

// wanted are the volumes without those of superseded bundles, if there are others: an old disc that was left in a drive is
// nothing to stop at.
func (s *Store) wanted(volumes []*volume.Volume, opts ImportOptions) []*volume.Volume {
	old := func(v *volume.Volume) bool { return v.Site == s.state.Site && v.Edition < s.state.Edition }
	fresh := func(v *volume.Volume) bool { return v.Site == s.state.Site && v.Edition >= s.state.Edition }
	if opts.AllowOlder || !slices.ContainsFunc(volumes, fresh) {
		return volumes
	}
	return slices.DeleteFunc(slices.Clone(volumes), func(v *volume.Volume) bool {
		if old(v) {
			opts.Notice(fmt.Sprintf("%s holds %s, which is older than what is published; it is passed over", v.Dir, v.Name()))
		}
		return old(v)
	})
}

// admit refuses a volume that must not change what is published.
func (s *Store) admit(v *volume.Volume, opts ImportOptions) error {
	site := s.state.Site
	if site != "" && v.Site != site {
		return fault.New(fault.Input, "%s holds %s; this mirror is of the site %s", v.Dir, v.Name(), site).
			WithMend("import it into another mirror (--store)")
	}
	switch {
	case v.Edition == s.state.Edition && v.Bundle != s.state.Bundle:
		return fault.New(fault.Input, "%s holds another edition %d than the one that is published: two bundles were given one number", v.Dir, v.Edition).
			WithMend("on the side that makes bundles, go back to the one site directory and make a bundle anew")
	case v.Edition < s.state.Edition && !opts.AllowOlder:
		return fault.New(fault.Input, "%s holds edition %d, made %s; edition %d is published, made %s", v.Dir, v.Edition, v.Date.Format("2006-01-02"), s.state.Edition, s.state.Date.Format("2006-01-02")).
			WithMend("an older bundle would bring back packages with known holes; if that is what you want, add --allow-older")
	}
	return nil
}

// bundle takes volumes of one bundle in.
func (s *Store) bundle(ctx context.Context, volumes []*volume.Volume, opts ImportOptions) (*Imported, error) {
	c := volumes[0].Content
	r := &Imported{Site: c.Site, Edition: c.Edition, Bundle: volumes[0].Bundle, Volumes: []int{}, Missing: []int{}, Damaged: []string{}}
	path := filepath.Join(s.dir, "catalogs", catalogName(c))
	if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, volumes[0].CatalogData) {
		if err := full(atomicfile.WriteBytes(path, 0o644, volumes[0].CatalogData)); err != nil {
			return nil, err
		}
	}
	damage := make([][]error, len(volumes))
	for i, v := range volumes {
		wrong, err := s.take(ctx, v, r, opts.Progress)
		if err != nil {
			return nil, err
		}
		for _, w := range wrong {
			r.Damaged = append(r.Damaged, w.Error())
		}
		damage[i] = wrong
		r.Volumes = append(r.Volumes, v.Volume)
	}
	if err := s.assemble(ctx, c); err != nil {
		return nil, err
	}
	lacking, err := s.lacking(c)
	if err != nil {
		return r, err
	}
	r.Missing = lacking
	var again []int // volumes of which no good copy came
	var wrong []error
	for i, v := range volumes {
		switch {
		case len(damage[i]) == 0:
		case slices.Contains(lacking, v.Volume):
			again, wrong = append(again, v.Volume), append(wrong, damage[i]...)
		default:
			opts.Notice(fmt.Sprintf("%s holds %s, of which %d files are damaged; the mirror has all that is on it from elsewhere, so it need not be brought again", v.Dir, v.Name(), len(damage[i])))
		}
	}
	switch {
	case len(again) > 0:
		again = slices.Compact(again) // two copies of one volume stand one after the other
		return r, fault.New(fault.Integrity, "%d files of volume %s of edition %d are damaged; whatever is whole was taken:\n  %w", len(wrong), Numbers(again), c.Edition, wrong[0]).
			WithMend("bring volume %s again: copy it anew from the side that made it, onto another medium", Numbers(again))
	case len(lacking) > 0:
		return r, nil
	}
	if err := s.publish(ctx, c); err != nil {
		return r, err
	}
	r.Published = true
	return r, nil
}

// Numbers words a list of volumes: 1, 2 and 4.
func Numbers(volumes []int) string {
	text := strings.ReplaceAll(strings.Trim(fmt.Sprint(volumes), "[]"), " ", ", ")
	if at := strings.LastIndex(text, ", "); at >= 0 {
		text = text[:at] + " and" + text[at+1:]
	}
	return text
}

// take copies what the store lacks of a volume. Damaged parts are returned and left out.
func (s *Store) take(ctx context.Context, v *volume.Volume, r *Imported, reporter progress.Reporter) (wrong []error, err error) {
	var wanted []catalog.Part
	var total int64
	seen := map[string]bool{}
	sizes := v.Content.Blobs()
	for _, p := range v.Content.Parts {
		if p.Volume != v.Volume || seen[p.SHA256] || has(s.blob(p.File), sizes[p.File]) || p.SHA256 != p.File && has(s.part(p.SHA256), p.Size) {
			continue
		}
		seen[p.SHA256] = true
		wanted = append(wanted, p)
		total += p.Size
	}
	task := reporter.Start(fmt.Sprintf("volume %d of %d", v.Volume, v.Volumes), total, progress.Bytes)
	defer func() { task.Done(err) }()
	var done []catalog.Part
	var bytes int64
	for _, p := range wanted {
		switch err := s.copyIn(ctx, v, p, task); {
		case err == nil:
			done = append(done, p)
			bytes += p.Size
		case fault.Of(err) == fault.Integrity:
			wrong = append(wrong, err)
		default:
			return nil, err
		}
		if bytes >= batch {
			if err := s.settle(done); err != nil {
				return nil, err
			}
			r.Copied += bytes
			done, bytes = nil, 0
		}
	}
	r.Copied += bytes
	return wrong, s.settle(done)
}

func (s *Store) incoming(sum string) string { return filepath.Join(s.dir, "incoming", sum) }

// copyIn copies one part into incoming/, checked.
func (s *Store) copyIn(ctx context.Context, v *volume.Volume, p catalog.Part, task progress.Task) (err error) {
	path := s.incoming(p.SHA256)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return full(err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(path)
		}
	}()
	if err := v.Copy(ctx, &counted{w: f, task: task}, volume.Sum{SHA256: p.SHA256, Size: p.Size}); err != nil {
		return full(err)
	}
	if err := seal(f, v.Date); err != nil {
		return err
	}
	return full(f.Close())
}

// seal ends the writing of a file. It bears the date of its bundle, since a client asks for what is newer than its
// copy, and by the clock of this machine a later bundle may seem older.
func seal(f *os.File, date time.Time) error {
	if err := f.Chmod(0o444); err != nil {
		return err
	}
	return os.Chtimes(f.Name(), date, date)
}

type counted struct {
	w    io.Writer
	task progress.Task
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.task.Add(int64(n))
	return n, err
}

// settle flushes what was copied and gives it its final names: files in blobs/, parts in parts/.
func (s *Store) settle(done []catalog.Part) error {
	if len(done) == 0 {
		return nil
	}
	if err := s.sync(); err != nil {
		return err
	}
	for _, p := range done {
		to := s.blob(p.SHA256)
		if p.SHA256 != p.File {
			to = s.part(p.SHA256)
		}
		if err := s.moveIn(p.SHA256, to); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) moveIn(sum, to string) error {
	if err := makeDir(filepath.Dir(to)); err != nil {
		return err
	}
	return full(os.Rename(s.incoming(sum), to))
}

// assemble makes files of which all parts are there, and removes parts that no other file needs.
func (s *Store) assemble(ctx context.Context, c *catalog.Catalog) error {
	sizes := c.Blobs()
	var done []catalog.Part
	needed := map[string]bool{} // two files may have a part in common
	for file, parts := range c.PartsOf() {
		if len(parts) == 1 {
			continue
		}
		if !has(s.blob(file), sizes[file]) {
			if slices.ContainsFunc(parts, func(p catalog.Part) bool { return !has(s.part(p.SHA256), p.Size) }) {
				for _, p := range parts {
					needed[p.SHA256] = true
				}
				continue
			}
			if err := s.join(ctx, c, file, parts); err != nil {
				return err
			}
		}
		done = append(done, parts...)
	}
	for _, p := range done {
		if needed[p.SHA256] {
			continue
		}
		if err := os.Remove(s.part(p.SHA256)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// join makes one file of its parts. They are removed only if they do not make it.
func (s *Store) join(ctx context.Context, c *catalog.Catalog, file string, parts []catalog.Part) (err error) {
	path := s.incoming(file)
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return full(err)
	}
	defer func() {
		if err != nil {
			out.Close()
			os.Remove(path)
		}
	}()
	h := sha256.New()
	for _, p := range parts {
		in, err := os.Open(s.part(p.SHA256))
		if err != nil {
			return err
		}
		_, err = io.Copy(io.MultiWriter(out, h), contextReader{ctx, in})
		in.Close()
		if err != nil {
			return full(err)
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != file {
		for _, p := range parts { // one of them was damaged on this disk since it was taken
			os.Remove(s.part(p.SHA256))
		}
		return fault.New(fault.Integrity, "the parts of %s make a file with SHA-256 %s; they were removed", file, got).
			WithMend("import the volumes of this bundle again; if it happens again, check the disk")
	}
	if err := seal(out, c.Date); err != nil {
		return err
	}
	if err := out.Sync(); err != nil {
		return full(err)
	}
	if err := out.Close(); err != nil {
		return full(err)
	}
	return s.moveIn(file, s.blob(file))
}

// lacking says which volumes of a bundle are still to come. A file that is on none of them should
// have been here: then the bundle does not fit this mirror.
func (s *Store) lacking(c *catalog.Catalog) ([]int, error) {
	parts := c.PartsOf()
	missing := []int{}
	var alien int
	for sum, size := range c.Blobs() {
		if has(s.blob(sum), size) {
			continue
		}
		if len(parts[sum]) == 0 {
			alien++
		}
		for _, p := range parts[sum] {
			if p.SHA256 != p.File && has(s.part(p.SHA256), p.Size) {
				continue
			}
			if !slices.Contains(missing, p.Volume) {
				missing = append(missing, p.Volume)
			}
		}
	}
	slices.Sort(missing)
	if alien == 0 {
		return missing, nil
	}
	return missing, fault.New(fault.Input, "edition %d counts on %d files that were here when edition %d was acknowledged, and are not", c.Edition, alien, c.Base.Edition).
		WithMend("write a receipt with `slipway mirror receipt` and have a new bundle made against it, or a full one; if volumes of edition %d are at hand, importing them again with --allow-older helps too", c.Base.Edition)
}

// recover cleans up after a command that was cut off, and ends a publishing that was. An error of class Integrity is of the
// bundle that was being published, and no other reason to stop.
func (s *Store) recover(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(s.dir, "incoming"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(s.dir, "incoming", e.Name())); err != nil {
			return err
		}
	}
	var left []string
	for _, pattern := range []string{".tmp-*", "catalogs/.tmp-*"} {
		found, err := filepath.Glob(filepath.Join(s.dir, pattern))
		if err != nil {
			return err
		}
		left = append(left, found...)
	}
	for _, p := range left {
		if err := os.Remove(p); err != nil {
			return err
		}
	}
	if s.state.Publishing == "" {
		return nil
	}
	c, err := s.catalog(s.state.Publishing)
	if err != nil {
		return err
	}
	if lacking, err := s.lacking(c); err != nil || len(lacking) > 0 {
		return nil // a repair took something away since; the import that brings it again publishes
	}
	return s.publish(ctx, c)
}
