package vault

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/firstboot/pki"
	"github.com/slipwayhq/slipway/internal/atomicfile"
	"github.com/slipwayhq/slipway/internal/fault"
)

const (
	plainFile     = "store.json"
	encryptedFile = "store.json.age"
	authorityFile = "authority.pem"

	// maxStore is the largest file that is read. A node takes some six kilobytes.
	maxStore = 64 << 20
)

func noStore(dir string) error {
	return fault.New(fault.Input, "there is no store at %s", dir).
		WithMend("slipway seed makes it; if it is elsewhere, name it with --store DIR")
}

// damaged wraps what is wrong with the store's content.
func damaged(path string, err error) error {
	class := fault.Of(err)
	if class == fault.Internal {
		class = fault.Integrity
	}
	mend := fault.Mend(err)
	if mend == "" {
		mend = "bring back the file from a backup; without it the cluster gets no new seeds"
	}
	return fault.New(class, "the store %s cannot be used: %w", path, err).WithMend("%s", mend)
}

// checkDir tells whether the store's directory is there, and refuses one that
// others may look into.
func checkDir(dir string) (exists bool, err error) {
	st, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, fault.New(fault.Input, "the store: %w", err)
	case !st.IsDir():
		return false, fault.New(fault.Input, "the store %s is not a directory", dir).
			WithMend("name the directory with --store DIR")
	}
	return true, checkMode(dir, st, "700")
}

func checkMode(path string, st fs.FileInfo, want string) error {
	if st.Mode().Perm()&0o077 != 0 {
		return fault.New(fault.Input, "others than its owner may use %s (mode %04o), which holds the keys of the cluster", path, st.Mode().Perm()).
			WithMend("chmod %s %s, and think of who may have read it", want, path)
	}
	return nil
}

// lockDir makes the directory where there is none, and keeps other writers out
// of it until the file that it returns is closed.
func lockDir(dir string) (*os.File, error) {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fault.New(fault.Input, "the store: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, fault.New(fault.Input, "the store: %w", err)
	}
	if err := unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		d.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fault.New(fault.Failed, "another slipway is writing to the store %s", dir).
				WithMend("wait until it is done, then run the same command again")
		}
		return nil, fault.New(fault.Input, "the store %s cannot be locked: %w", dir, err)
	}
	// What a writer that lost its power left behind holds keys too.
	leftovers, _ := filepath.Glob(filepath.Join(dir, ".tmp-*"))
	for _, path := range leftovers {
		os.Remove(path)
	}
	return d, nil
}

// readStore returns the store's JSON, nil if there is none, and how it is kept.
func readStore(dir string, o Options) ([]byte, envelope, error) {
	// Where both are there, encrypting a plain store was interrupted after the
	// new file was whole.
	for _, name := range []string{encryptedFile, plainFile} {
		data, err := readFile(filepath.Join(dir, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, envelope{}, err
		}
		if name == plainFile {
			return data, envelope{}, nil
		}
		plain, e, err := decrypt(data, o)
		if err != nil {
			if fault.Of(err) == fault.Internal {
				err = damaged(filepath.Join(dir, name), err)
			}
			return nil, envelope{}, err
		}
		return plain, e, nil
	}
	// The certificate is written after the store: a store was here.
	if _, err := os.Lstat(filepath.Join(dir, authorityFile)); err == nil {
		return nil, envelope{}, fault.New(fault.Integrity, "%s has the certificate of a cluster's authority but no %s: the store is lost", dir, plainFile).
			WithMend("bring back the file from a backup, or remove the directory to begin a new cluster")
	}
	return nil, envelope{}, nil
}

// readFile is os.ReadFile with a limit, for a file that nobody else may read.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.New(fault.Input, "the store: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fault.New(fault.Input, "%s is not a file", path)
	}
	if err := checkMode(path, st, "600"); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxStore+1))
	if err == nil && len(data) > maxStore {
		err = fault.New(fault.Input, "%s is larger than the limit of %d MiB", path, maxStore>>20)
	}
	return data, err
}

// Save writes the store, if anything in it has changed. After it has returned,
// the change survives a power cut.
func (v *Vault) Save() error {
	data, err := v.state.encode(v.cluster)
	if err != nil {
		return err
	}
	certificate := []byte(pki.EncodeCertificate(v.cluster.Cert.Raw))
	shown, err := os.ReadFile(filepath.Join(v.dir, authorityFile))
	shownRight := err == nil && bytes.Equal(shown, certificate)
	changed := !bytes.Equal(data, v.read) || v.envelope.dirty
	_, err = os.Lstat(filepath.Join(v.dir, plainFile))
	leftover := v.envelope.encrypted && err == nil
	switch {
	case shownRight && !changed && !leftover:
		return nil
	case v.lock == nil:
		return fault.New(fault.Internal, "the store %s is open for reading alone", v.dir)
	}
	if changed {
		content, err := v.envelope.seal(data, v.state.Recipients)
		if err != nil {
			return err
		}
		if err := atomicfile.WriteBytes(v.path(), 0o600, content); err != nil {
			return saveError(v.dir, err)
		}
		v.read, v.envelope.dirty = data, false
	}
	if leftover {
		if err := os.Remove(filepath.Join(v.dir, plainFile)); err != nil {
			return saveError(v.dir, err)
		}
	}
	if shownRight {
		return nil
	}
	return saveError(v.dir, atomicfile.WriteBytes(filepath.Join(v.dir, authorityFile), 0o644, certificate))
}

func saveError(dir string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.New(fault.Space, "the store %s cannot be written: %w", dir, err).
			WithMend("make room; the store is as it was")
	}
	return fault.New(fault.Input, "the store %s cannot be written: %w", dir, err)
}

// Close lets other writers in. What was not saved is lost, and of a store that
// was never saved nothing stays.
func (v *Vault) Close() error {
	if v.lock == nil {
		return nil
	}
	if v.read == nil {
		os.Remove(v.dir) // fails, as it should, where anything is in it
	}
	err := v.lock.Close()
	v.lock = nil
	return err
}
