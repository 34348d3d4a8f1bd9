// Package store is the isolated side of a mirror: a directory that takes volumes in, publishes
// what they bring, and proves at any time that it is whole.
//
//	STORE            format and the store's own random name
//	trust.asc        the site's public keys that volumes must be signed with
//	state.json       which bundle is published, or being published
//	catalogs/N-ID    catalogs of bundles that were published or begun
//	blobs/ab/…       whole files by SHA-256, checked and flushed to disk
//	parts/ab/…       parts of larger files, checked and flushed
//	incoming/        work under way; removed when a command begins
//	public/          what is published: hard links to blobs, by path
//
// What stands under its final name in blobs/ and parts/ was hashed and flushed before it was
// renamed, so a power cut leaves no half file that looks whole. Publishing follows the order that
// clients count on: packages, then indices by hash, then the signed indices. It is repeated by the next
// command if it was cut off. The clock has no part in what is accepted: the bundle's number decides.
package store

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/cache"
	"github.com/slipwayhq/slipway/builder/mirror/catalog"
	"github.com/slipwayhq/slipway/builder/mirror/receipt"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/builder/mirror/volume"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	storeName = "STORE"
	trustName = "trust.asc"
	stateName = "state.json"
	// PublicDir is the published tree, below the store.
	PublicDir = "public"
	maxMeta   = 1 << 20
)

// Store is an open store.
type Store struct {
	dir   string
	lock  *os.File
	id    string
	ring  sign.Ring
	state state
}

// state is what the store publishes.
type state struct {
	Format  int       `json:"format"`
	Site    string    `json:"site"`
	Edition int64     `json:"edition"`
	Bundle  string    `json:"bundle"`
	Date    time.Time `json:"date"`
	// Keys are the fingerprints that the published bundle brought, Retired those that bundles before it brought and it
	// does not: they stay out, whoever adds them.
	Keys    []string `json:"keys,omitempty"`
	Retired []string `json:"retired,omitempty"`
	// Publishing is set while a bundle is being published: its catalog's name.
	Publishing string `json:"publishing,omitempty"`
	Checksum   string `json:"checksum,omitempty"`
}

type identity struct {
	Format   int    `json:"format"`
	Store    string `json:"store"`
	Checksum string `json:"checksum,omitempty"`
}

// record is one of the store's own files. Its checksum is the SHA-256 of the file as it would be without one, so that a
// bit that flips on the disk shows; files that were written before there were checksums have none.
type record interface{ checksum() *string }

func (s *state) checksum() *string    { return &s.Checksum }
func (i *identity) checksum() *string { return &i.Checksum }

// Create makes a store in dir that trusts the keys. Root does not do so in another user's directory.
func Create(dir string, keys []byte) (*Store, error) {
	if os.Geteuid() == 0 {
		if err := owned(dir, dir); err != nil {
			return nil, err
		}
	}
	if _, err := sign.ParseRing(keys); err != nil {
		return nil, err
	}
	for _, sub := range []string{"catalogs", "blobs", "parts", "incoming", PublicDir} {
		if err := makeDir(filepath.Join(dir, sub)); err != nil {
			return nil, err
		}
	}
	if err := full(atomicfile.WriteBytes(filepath.Join(dir, trustName), 0o644, keys)); err != nil {
		return nil, err
	}
	var id [16]byte
	rand.Read(id[:])
	if err := write(filepath.Join(dir, storeName), &identity{Format: 1, Store: hex.EncodeToString(id[:])}); err != nil {
		return nil, err
	}
	return Open(dir)
}

// makeDir makes a directory that everybody may read: apt reads with a user of its own.
func makeDir(dir string) error { return full(volume.MakeDir(dir)) }

// Exists says whether there is a store in dir.
func Exists(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, storeName))
	return err == nil
}

// owned refuses a user other than the one whose path is: what root wrote, the owner could not go on with.
func owned(dir, path string) error {
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return full(err)
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	if !ok || int(sys.Uid) == os.Geteuid() {
		return nil
	}
	name := fmt.Sprintf("'#%d'", sys.Uid)
	if u, err := user.LookupId(strconv.Itoa(int(sys.Uid))); err == nil {
		name = u.Username
	}
	return fault.New(fault.Usage, "the mirror in %s belongs to the user %s, and what another one writes there the service could not read or replace", dir, name).
		WithMend("run it as %s: sudo -u %s slipway …", name, name)
}

// Open opens a store for commands that change it, and keeps others from it until Close. Only the store's owner
// may change it.
func Open(dir string) (*Store, error) {
	s, err := Read(dir)
	if err != nil {
		return nil, err
	}
	if err := owned(dir, filepath.Join(dir, storeName)); err != nil {
		return nil, err
	}
	if s.lock, err = os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, full(err)
	}
	if err := unix.Flock(int(s.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		s.lock.Close()
		return nil, fault.New(fault.Failed, "another slipway works on the mirror in %s", dir).WithMend("wait until it is done")
	}
	if err := s.load(); err != nil { // it may have changed before the lock was held
		s.Close()
		return nil, err
	}
	return s, nil
}

// Read opens a store to look at.
func Read(dir string) (*Store, error) {
	if _, err := os.Lstat(filepath.Join(dir, storeName)); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Usage, "there is no mirror in %s", dir).
			WithMend("make one by importing a first volume: `slipway mirror import --key SITE.asc --store DIR VOLUME…`")
	} else if err != nil {
		return nil, full(err)
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	s := &Store{dir: abs}
	return s, s.load()
}

func (s *Store) load() error {
	bad := func(name string, err error) error {
		if errors.Is(err, fs.ErrPermission) {
			return full(err)
		}
		return fault.New(fault.Integrity, "%s: %w", filepath.Join(s.dir, name), err).
			WithMend("the mirror's own records are damaged: make a new one in an empty directory and import the last full bundle and those after it")
	}
	var id identity
	if err := read(filepath.Join(s.dir, storeName), &id); err != nil {
		return bad(storeName, err)
	}
	if id.Format != 1 || !idPattern.MatchString(id.Store) {
		return bad(storeName, fmt.Errorf("format %d with name %q, this slipway knows only 1", id.Format, id.Store))
	}
	s.id = id.Store
	keys, err := os.ReadFile(filepath.Join(s.dir, trustName))
	if err != nil {
		return full(err)
	}
	ring, err := sign.ParseRing(keys)
	if err != nil {
		return bad(trustName, err)
	}
	s.state = state{Format: 1}
	err = read(filepath.Join(s.dir, stateName), &s.state)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return full(err)
	case err != nil:
		return fault.New(fault.Integrity, "%s: %w", filepath.Join(s.dir, stateName), err).
			WithMend("remove that file and import any volume of the last bundle again: what is on this disk counts; only which keys were retired is forgotten")
	case s.state.Format != 1 || s.state.Edition < 0:
		return bad(stateName, fmt.Errorf("format %d, of which this slipway knows only 1", s.state.Format))
	}
	s.ring = ring.Without(s.state.Retired)
	return nil
}

var idPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

// read reads a record, and refuses one that is not, byte for byte, as write made it.
func read(path string, r record) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(data) > maxMeta {
		return fmt.Errorf("more than %d bytes", maxMeta)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(r); err != nil || *r.checksum() == "" {
		return err
	}
	if made, err := encode(r); err != nil || !bytes.Equal(made, data) {
		return errors.Join(errors.New("the checksum is not right: the file was changed"), err)
	}
	return nil
}

func write(path string, r record) error {
	data, err := encode(r)
	if err != nil {
		return err
	}
	return full(atomicfile.WriteBytes(path, 0o644, data))
}

// encode is a record's file; it sets the checksum.
func encode(r record) ([]byte, error) {
	*r.checksum() = ""
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(append(data, '\n'))
	*r.checksum() = hex.EncodeToString(sum[:])
	data, err = json.MarshalIndent(r, "", "  ")
	return append(data, '\n'), err
}

// Close lets other commands have the store.
func (s *Store) Close() {
	if s.lock != nil {
		s.lock.Close()
	}
}

// Public is the directory of the published tree.
func (s *Store) Public() string { return filepath.Join(s.dir, PublicDir) }

// Status tells what a store publishes.
type Status struct {
	Store    string    `json:"store"`
	Site     string    `json:"site"`
	Edition  int64     `json:"edition"`
	Bundle   string    `json:"bundle"`
	Date     time.Time `json:"date"` // when the bundle was made
	Keys     []string  `json:"keys"`
	Warnings []string  `json:"warnings"`
}

// Status tells what the store publishes; now is for keys that end.
func (s *Store) Status(now time.Time) Status {
	st := Status{Store: s.id, Site: s.state.Site, Edition: s.state.Edition, Bundle: s.state.Bundle, Date: s.state.Date,
		Keys: s.ring.Fingerprints(), Warnings: s.ring.Warnings(now)}
	if s.state.Publishing != "" {
		st.Warnings = append(st.Warnings, "a bundle is being published, or its publishing was cut off: the next import goes on with it")
	}
	if d := s.state.Date.Sub(now); s.state.Edition > 0 && d > 24*time.Hour {
		st.Warnings = append(st.Warnings, fmt.Sprintf("the bundle was made %d days after what this machine's clock says: set the clock, or apt refuses indices from the future", int(d.Hours()/24)))
	}
	if st.Warnings == nil {
		st.Warnings = []string{}
	}
	return st
}

// Trust adds keys to those that volumes may be signed with. They must have come by a way that
// the administrator trusts. The next bundle that is published brings the site's own list, which then counts alone.
//
// Keys that a published bundle has retired are left out, and their fingerprints returned: a file of keys
// outlives a rotation, and who stole the old key must not be let in by it. With again they are trusted anew.
func (s *Store) Trust(keys []byte, again bool) (retired []string, err error) {
	defer func() { err = full(err) }()
	ring, err := sign.ParseRing(keys)
	if err != nil {
		return nil, err
	}
	known, fresh := s.ring.Fingerprints(), false
	for _, f := range ring.Fingerprints() {
		switch {
		case slices.Contains(known, f):
		case slices.Contains(s.state.Retired, f) && !again:
			retired = append(retired, f)
		default:
			fresh = true
		}
	}
	if !fresh {
		return retired, nil
	}
	if again {
		s.state.Retired = slices.DeleteFunc(s.state.Retired, func(f string) bool { return slices.Contains(ring.Fingerprints(), f) })
		if err := write(filepath.Join(s.dir, stateName), &s.state); err != nil {
			return nil, err
		}
	}
	old, err := os.ReadFile(filepath.Join(s.dir, trustName))
	if err != nil {
		return nil, err
	}
	if err := full(atomicfile.WriteBytes(filepath.Join(s.dir, trustName), 0o644, append(append(old, '\n'), keys...))); err != nil {
		return nil, err
	}
	return retired, s.load()
}

// Ring is the keys that the store trusts.
func (s *Store) Ring() sign.Ring { return s.ring }

// catalogs reads the catalogs that the store keeps, the newest first.
func (s *Store) catalogs() ([]*catalog.Catalog, error) {
	entries, err := os.ReadDir(filepath.Join(s.dir, "catalogs"))
	if err != nil {
		return nil, err
	}
	var all []*catalog.Catalog
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".tmp-") {
			continue
		}
		c, err := s.catalog(e.Name())
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b *catalog.Catalog) int { return int(b.Edition - a.Edition) })
	return all, nil
}

func catalogName(c *catalog.Catalog) string { return fmt.Sprintf("%d-%s", c.Edition, c.ID()) }

// catalog reads one of the store's catalogs; its name holds its hash.
func (s *Store) catalog(name string) (*catalog.Catalog, error) {
	data, err := os.ReadFile(filepath.Join(s.dir, "catalogs", name))
	if errors.Is(err, fs.ErrNotExist) {
		edition, _, _ := strings.Cut(name, "-")
		return nil, fault.New(fault.Integrity, "the catalog of edition %s is missing: %s", edition, filepath.Join(s.dir, "catalogs", name)).
			WithMend("import any volume of edition %s again: each has it", edition)
	}
	if err != nil {
		return nil, err
	}
	c, err := catalog.Parse(data)
	if err == nil && name != fmt.Sprintf("%d-%s", c.Edition, catalog.ID(data)) {
		err = errors.New("its bytes are not those that its name tells")
	}
	if err != nil {
		edition, _, _ := strings.Cut(name, "-")
		bad := fault.New(fault.Integrity, "%s: %w", filepath.Join(s.dir, "catalogs", name), err)
		if n, err := strconv.ParseInt(edition, 10, 64); err != nil || n < s.state.Edition {
			return nil, bad.WithMend("remove the file; only going back to edition %s needs it, and any volume of it brings it again", edition)
		}
		return nil, bad.WithMend("import any volume of edition %s again: each has it", edition)
	}
	return c, nil
}

// current is the catalog of what is published; nil if nothing is.
func (s *Store) current() (*catalog.Catalog, error) {
	if s.state.Edition == 0 {
		return nil, nil
	}
	return s.catalog(fmt.Sprintf("%d-%s", s.state.Edition, s.state.Bundle))
}

func (s *Store) blob(sum string) string { return filepath.Join(s.dir, "blobs", sum[:2], sum) }
func (s *Store) part(sum string) string { return filepath.Join(s.dir, "parts", sum[:2], sum) }

// has says whether a blob stands there with the right size.
func has(path string, size int64) bool {
	st, err := os.Lstat(path)
	return err == nil && st.Mode().IsRegular() && st.Size() == size
}

// Receipt is what the other side is told: all files that are here, whole.
func (s *Store) Receipt(now time.Time) (_ *receipt.Receipt, err error) {
	defer func() { err = full(err) }()
	all, err := s.catalogs()
	if err != nil {
		return nil, err
	}
	r := &receipt.Receipt{Site: s.state.Site, Store: s.id, Edition: s.state.Edition, Bundle: s.state.Bundle, Date: now.UTC().Truncate(time.Second), Have: map[string]int64{}}
	for _, c := range all {
		if r.Site == "" {
			r.Site = c.Site // nothing is published yet
		}
		for sum, size := range c.Blobs() {
			if has(s.blob(sum), size) {
				r.Have[sum] = size
			}
		}
	}
	if r.Site == "" {
		return nil, fault.New(fault.Failed, "no volume was ever imported into %s", s.dir).WithMend("import one; the first bundle needs no receipt")
	}
	return r, nil
}

// sync flushes all of the store's file system.
func (s *Store) sync() error {
	if err := atomicfile.SyncFS(s.dir); err != nil {
		return full(fmt.Errorf("flushing %s: %w", s.dir, err))
	}
	return nil
}

// full gives an error of the store's file system its class and advice: a full disk, one that may not be written.
// An error that has a class keeps it.
func full(err error) error {
	switch {
	case err == nil || fault.Of(err) != fault.Internal && fault.Of(err) != fault.Space:
	case fault.Of(cache.Classify(err)) == fault.Space:
		return fault.New(fault.Space, "%w", err).WithMend("free some room (`slipway mirror gc`), then run the same command again: it goes on where it stopped")
	case errors.Is(err, unix.EROFS):
		return fault.New(fault.Missing, "the mirror's file system is read-only: %w", err).WithMend("if that came by itself, check the disk (journalctl -k); then mount it so that it can be written")
	case errors.Is(err, fs.ErrPermission):
		return fault.New(fault.Usage, "%w", err).WithMend("run it as the user to whom the mirror's directory belongs, and see that all in it is that user's")
	}
	return err
}

// contextReader ends a copy with its context.
type contextReader struct {
	ctx context.Context
	f   *os.File
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.f.Read(p)
}
