// Package site is what the connected side of an air gap keeps from one bundle to the
// next: the keys that sign, and the number of the last bundle.
//
// It is one file, site.json, in a directory that only its owner may read, and it is
// replaced as a whole. docs/formats.md ("Mirror: site") has its fields. Nothing in it
// grows with the content of bundles: what the other side has is in its receipts.
package site

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/builder/mirror/sign"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	fileName = "site.json"
	format   = 1
	maxFile  = 1 << 20
	// Life is how long a new key is valid unless the administrator says otherwise.
	Life = 3 * 365 * 24 * time.Hour
	// Overlap is how long an old key signs beside a new one.
	Overlap = 180 * 24 * time.Hour
)

// Site is an open site. Only one process has it open at a time.
type Site struct {
	dir   string
	lock  *os.File
	state state
	keys  []*sign.Key // as state.Keys
}

type state struct {
	Format  int              `json:"format"`
	Name    string           `json:"name"`
	Edition int64            `json:"edition"`
	Date    time.Time        `json:"date"`  // of that edition
	Given   map[int64]string `json:"given"` // to which create each number was given
	Keys    []keyRow         `json:"keys"`
}

type keyRow struct {
	Fingerprint string     `json:"fingerprint"`
	Secret      string     `json:"secret"`
	Retire      *time.Time `json:"retire,omitempty"` // it signs until then
}

// KeyInfo describes a key without its secret.
type KeyInfo struct {
	Fingerprint string     `json:"fingerprint"`
	Created     time.Time  `json:"created"`
	Expires     *time.Time `json:"expires,omitempty"`
	Retire      *time.Time `json:"retire,omitempty"`
	Signs       bool       `json:"signs"`
}

var namePattern = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,62}$`)

// Create makes the site's directory with a key: the given one, or a new one that
// lives that long.
func Create(dir, name string, key *sign.Key, now time.Time, life time.Duration) (*Site, error) {
	if !namePattern.MatchString(name) {
		return nil, fault.New(fault.Usage, "%q cannot name a site", name).WithMend("use lower-case letters, digits, dots and hyphens")
	}
	if _, err := os.Stat(filepath.Join(dir, fileName)); err == nil {
		return nil, fault.New(fault.Usage, "there is a site in %s already", dir).WithMend("rotate its key with `slipway mirror key rotate`, or name another directory with --site")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	// A project is a repository as a rule, and what is committed once stays in its history.
	if err := atomicfile.WriteBytes(filepath.Join(dir, ".gitignore"), 0o600, []byte("*\n")); err != nil {
		return nil, err
	}
	s := &Site{dir: dir, state: state{Format: format, Name: name}}
	var err error
	if key == nil {
		if key, err = sign.Generate("slipway mirror "+name, now.Truncate(time.Second), life); err != nil {
			return nil, err
		}
	}
	if err := s.hold(); err != nil {
		return nil, err
	}
	if err := s.add(key); err != nil {
		s.Close()
		return nil, err
	}
	if err := s.save(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Open reads a site and keeps other processes from it until Close.
func Open(dir string) (*Site, error) {
	path := filepath.Join(dir, fileName)
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Usage, "there is no site in %s", dir).
			WithMend("make one with `slipway mirror key generate --name NAME`, or name its directory with --site")
	}
	if err != nil {
		return nil, err
	}
	if st.Mode().Perm()&0o077 != 0 {
		return nil, fault.New(fault.Input, "%s holds a secret key and others may read it (mode %04o)", path, st.Mode().Perm()).WithMend("run chmod 600 %s", path)
	}
	s := &Site{dir: dir}
	if err := s.hold(); err != nil {
		return nil, err
	}
	if err := s.read(path); err != nil {
		s.Close()
		return nil, fault.New(fault.Input, "%s: %w", path, err).WithMend("restore the file from its backup")
	}
	return s, nil
}

func (s *Site) hold() error {
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return fault.New(fault.Failed, "another slipway uses the site in %s", s.dir).WithMend("wait until it is done")
	}
	s.lock = f
	return nil
}

func (s *Site) read(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return s.parse(data)
}

func (s *Site) parse(data []byte) error {
	if len(data) > maxFile {
		return fmt.Errorf("more than %d bytes", maxFile)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&s.state); err != nil {
		return err
	}
	switch {
	case s.state.Format != format:
		return fmt.Errorf("format %d, of which this slipway knows only %d", s.state.Format, format)
	case !namePattern.MatchString(s.state.Name):
		return fmt.Errorf("name: %q", s.state.Name)
	case s.state.Edition < 0:
		return fmt.Errorf("edition: %d", s.state.Edition)
	case len(s.state.Keys) == 0:
		return errors.New("keys: there is none")
	}
	for _, row := range s.state.Keys {
		k, err := sign.ParseSecret([]byte(row.Secret), nil)
		if err != nil {
			return fmt.Errorf("keys: %s: %w", row.Fingerprint, err)
		}
		if k.Fingerprint() != row.Fingerprint {
			return fmt.Errorf("keys: the key of %s has fingerprint %s", row.Fingerprint, k.Fingerprint())
		}
		s.keys = append(s.keys, k)
	}
	return nil
}

func (s *Site) add(k *sign.Key) error {
	secret, err := k.Secret()
	if err != nil {
		return err
	}
	s.state.Keys = append(s.state.Keys, keyRow{Fingerprint: k.Fingerprint(), Secret: string(secret)})
	s.keys = append(s.keys, k)
	return nil
}

func (s *Site) save() error {
	data, err := json.MarshalIndent(s.state, "", "  ")
	if err != nil {
		return err
	}
	return atomicfile.WriteBytes(filepath.Join(s.dir, fileName), 0o600, append(data, '\n'))
}

// Close lets other processes have the site.
func (s *Site) Close() {
	if s.lock != nil {
		s.lock.Close()
	}
}

// Name is the site's name; it stands in everything that is signed.
func (s *Site) Name() string { return s.state.Name }

// Edition is the number of the last bundle.
func (s *Site) Edition() int64 { return s.state.Edition }

// maxAhead is how far a number that is known to have been used may be above the site's own: far more than bundles are
// made between two backups of its directory. Numbers never go down again, so a wrong one would stay for good.
const maxAhead = 1000

// Next is the number for the next bundle, and its date: now, or just after the last bundle if
// the clock was set back since, as clients take no older indices. after is a number that is said to
// have been used, by a receipt, which nobody signs.
func (s *Site) Next(now time.Time, after int64) (int64, time.Time, error) {
	if after > s.state.Edition+maxAhead {
		return 0, time.Time{}, fault.New(fault.Input, "the receipt tells of edition %d, and the last one of the site %s is %d", after, s.Name(), s.state.Edition).
			WithMend("have the receipt written anew; if its number is right, restore the site's directory from a newer backup")
	}
	date := now.UTC().Truncate(time.Second)
	if !date.After(s.state.Date) && s.state.Edition > 0 {
		date = s.state.Date.Add(time.Second)
	}
	return max(s.state.Edition, after) + 1, date, nil
}

// Reserve notes that a bundle of this number is made, before any volume is written, so that
// no two bundles have one number. token tells the makings of bundles apart: the one that was cut off may
// reserve its number again.
func (s *Site) Reserve(edition int64, date time.Time, token string) error {
	if given, ok := s.state.Given[edition]; ok && given == token {
		return nil
	}
	if edition <= s.state.Edition {
		return fault.New(fault.Input, "edition %d was given to another bundle; the last one is %d", edition, s.state.Edition).
			WithMend("begin anew in an empty directory")
	}
	if edition > s.state.Edition+maxAhead+1 {
		return fault.New(fault.Input, "edition %d is too far above the last one, %d", edition, s.state.Edition).WithMend("begin anew in an empty directory")
	}
	if s.state.Given == nil {
		s.state.Given = map[int64]string{}
	}
	s.state.Given[edition] = token
	s.state.Edition, s.state.Date = edition, date
	return s.save()
}

// signs says whether the key of a row signs at a time.
func (r keyRow) signs(k *sign.Key, when time.Time) bool {
	return (r.Retire == nil || when.Before(*r.Retire)) && (k.Expires().IsZero() || when.Before(k.Expires()))
}

// Signers are the keys that sign at a time, the oldest first.
func (s *Site) Signers(when time.Time) ([]*sign.Key, error) {
	var keys []*sign.Key
	for i, k := range s.keys {
		if s.state.Keys[i].signs(k, when) {
			keys = append(keys, k)
		}
	}
	if len(keys) == 0 {
		return nil, fault.New(fault.Input, "every key of the site %s has ended by %s", s.Name(), when.UTC().Format(time.RFC3339)).
			WithMend("make a new one with `slipway mirror key rotate`, and give its public key to the other side by a way that you trust: it imports the next bundle with --key")
	}
	return keys, nil
}

// Rotate adds a key, the given one or a new one. The old ones sign beside it until now plus overlap,
// so that whoever trusts an old one accepts the bundle that brings the new one. If they have all ended, nothing signed
// can bring it: the other side must be given the new one by hand.
func (s *Site) Rotate(key *sign.Key, now time.Time, life, overlap time.Duration) (*sign.Key, error) {
	if overlap < 0 {
		return nil, fault.New(fault.Usage, "old keys cannot sign until a time that is past (%s)", overlap)
	}
	now = now.UTC().Truncate(time.Second)
	if key == nil {
		var err error
		if key, err = sign.Generate("slipway mirror "+s.Name(), now, life); err != nil {
			return nil, err
		}
	}
	for _, k := range s.keys {
		if k.Fingerprint() == key.Fingerprint() {
			return nil, fault.New(fault.Usage, "the site has the key %s already", key.Fingerprint())
		}
	}
	retire := now.Add(overlap)
	for i := range s.state.Keys {
		if r := &s.state.Keys[i]; r.Retire == nil || r.Retire.After(retire) {
			r.Retire = &retire
		}
	}
	// What signs no more is of no use here.
	rows, keys := s.state.Keys, s.keys
	s.state.Keys, s.keys = nil, nil
	for i, k := range keys {
		if rows[i].signs(k, now) {
			s.state.Keys, s.keys = append(s.state.Keys, rows[i]), append(s.keys, k)
		}
	}
	if err := s.add(key); err != nil {
		return nil, err
	}
	return key, s.save()
}

// Keys describes the site's keys.
func (s *Site) Keys(now time.Time) []KeyInfo {
	var all []KeyInfo
	for i, k := range s.keys {
		info := KeyInfo{Fingerprint: k.Fingerprint(), Created: k.Created(), Retire: s.state.Keys[i].Retire, Signs: s.state.Keys[i].signs(k, now)}
		if end := k.Expires(); !end.IsZero() {
			info.Expires = &end
		}
		all = append(all, info)
	}
	return all
}

// Public are the public keys of what signs at a time, armoured.
func (s *Site) Public(when time.Time) ([]byte, error) {
	keys, err := s.Signers(when)
	if err != nil {
		return nil, err
	}
	return sign.Public(keys), nil
}

// Warnings says which keys end soon and have no successor.
func (s *Site) Warnings(now time.Time) []string {
	last := s.keys[len(s.keys)-1] // the newest: older ones are to end
	ring, err := sign.ParseRing(last.Public())
	if err != nil {
		return []string{err.Error()}
	}
	return slices.Clip(ring.Warnings(now))
}
