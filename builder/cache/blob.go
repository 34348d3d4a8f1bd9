package cache

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/internal/fault"
)

func (c *Cache) blobPath(digest string) string {
	return filepath.Join(c.dir, "blobs", digest[:2], digest)
}

// Blob returns the path of the blob with this SHA-256, if the cache has it
// unharmed. See CheckedBlob for what unharmed means.
func (c *Cache) Blob(digest string) (path string, ok bool) {
	return c.CheckedBlob(digest, -1)
}

// CheckedBlob is Blob for a caller who knows the size (a negative size means
// not known). A blob is hashed when the cache has not verified it since its
// file last changed, going by modification and change time, size and inode.
// A blob whose bytes are not what its name says is removed, so that the caller
// gets it anew.
func (c *Cache) CheckedBlob(digest string, size int64) (path string, ok bool) {
	if checkDigest(digest) != nil {
		return "", false
	}
	path = c.blobPath(digest)
	stamp, have, err := stampOf(path)
	if err != nil {
		return "", false
	}
	if size >= 0 && have != size {
		c.dropBlob(digest)
		return "", false
	}
	if c.stamped(digest, stamp) {
		return path, true
	}
	return path, c.Verify(digest) == nil
}

// Verify hashes the blob's bytes, whatever its stamp says. A blob that fails is
// removed and gives an error of class fault.Integrity.
func (c *Cache) Verify(digest string) error {
	if err := checkDigest(digest); err != nil {
		return err
	}
	f, err := os.Open(c.blobPath(digest))
	if err != nil {
		return err
	}
	defer f.Close()
	before, _, err := stampOf(f.Name())
	if err != nil {
		return err
	}
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return fmt.Errorf("hashing %s: %w", f.Name(), err)
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != digest {
		c.dropBlob(digest)
		return fault.New(fault.Integrity, "cached blob %s holds bytes with SHA-256 %s; it was removed", digest, got).
			WithMend("run the command again: it will be made or downloaded anew; if it happens again, check the disk")
	}
	c.stamp(digest, before)
	return nil
}

// PutBlob stores what r yields, if its SHA-256 and size are as told; otherwise
// it stores nothing and returns an error of class fault.Integrity. A negative
// size means not known.
func (c *Cache) PutBlob(digest string, size int64, r io.Reader) error {
	if err := checkDigest(digest); err != nil {
		return err
	}
	w, err := c.NewBlob()
	if err != nil {
		return err
	}
	defer w.Abort()
	n, err := io.Copy(w, r)
	if err != nil {
		return Classify(err)
	}
	if got := w.sum(); got != digest || size >= 0 && n != size {
		return wrongBytes(digest, size, got, n)
	}
	_, err = w.commitAs(digest)
	return err
}

func wrongBytes(digest string, size int64, gotDigest string, gotSize int64) error {
	if size >= 0 && size != gotSize {
		return fault.New(fault.Integrity, "want %d bytes with SHA-256 %s, got %d bytes with %s", size, digest, gotSize, gotDigest)
	}
	return fault.New(fault.Integrity, "want SHA-256 %s, got %s", digest, gotDigest)
}

// dropBlob removes a blob and its stamp; that it was not there is fine.
func (c *Cache) dropBlob(digest string) {
	os.Remove(c.blobPath(digest))
	os.Remove(filepath.Join(c.dir, "stamps", digest))
}

// BlobWriter is a blob in the making. It starts empty and can be written in any
// order. Exactly one of Commit, CommitAs and Abort ends it; an Abort after that
// does nothing, so it can be deferred.
type BlobWriter struct {
	c        *Cache
	f        *os.File
	hash     hash.Hash // of all bytes so far, nil once they were not written in order
	finished bool
}

// NewBlob starts a blob.
func (c *Cache) NewBlob() (*BlobWriter, error) {
	f, err := os.CreateTemp(c.session, "blob-")
	if err != nil {
		return nil, Classify(err)
	}
	return &BlobWriter{c: c, f: f, hash: sha256.New()}, nil
}

// Write appends at the file's offset.
func (w *BlobWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	if w.hash != nil {
		w.hash.Write(p[:n])
	}
	return n, Classify(err)
}

// WriteAt writes at an offset; the blob is then hashed at Commit.
func (w *BlobWriter) WriteAt(p []byte, off int64) (int, error) {
	w.hash = nil
	n, err := w.f.WriteAt(p, off)
	return n, Classify(err)
}

// ReadAt reads back what was written.
func (w *BlobWriter) ReadAt(p []byte, off int64) (int, error) { return w.f.ReadAt(p, off) }

// Seek moves the offset; the blob is then hashed at Commit.
func (w *BlobWriter) Seek(off int64, whence int) (int64, error) {
	w.hash = nil
	return w.f.Seek(off, whence)
}

// File is the blob's file, for callers who need one; the blob is then hashed at Commit.
func (w *BlobWriter) File() *os.File {
	w.hash = nil
	return w.f
}

// sum is the SHA-256 of a blob that was written in order.
func (w *BlobWriter) sum() string { return hex.EncodeToString(w.hash.Sum(nil)) }

// Commit puts the blob into the cache under the SHA-256 of its bytes.
func (w *BlobWriter) Commit() (digest string, size int64, err error) {
	if w.hash == nil {
		w.hash = sha256.New()
		if _, err := io.Copy(w.hash, io.NewSectionReader(w.f, 0, 1<<62)); err != nil {
			return "", 0, fmt.Errorf("hashing a new blob: %w", err)
		}
	}
	digest = w.sum()
	size, err = w.commitAs(digest)
	return digest, size, err
}

// CommitAs is Commit for a caller who hashed every byte that was written.
func (w *BlobWriter) CommitAs(digest string) (size int64, err error) {
	if err := checkDigest(digest); err != nil {
		return 0, err
	}
	return w.commitAs(digest)
}

func (w *BlobWriter) commitAs(digest string) (size int64, err error) {
	if w.finished {
		return 0, errors.New("blob was committed or aborted before")
	}
	w.finished = true
	return w.c.adopt(w.f, digest)
}

// adopt closes f and moves it to the place of the blob that it is.
func (c *Cache) adopt(f *os.File, digest string) (size int64, err error) {
	defer os.Remove(f.Name())
	if err := f.Chmod(0o444); err != nil {
		f.Close()
		return 0, err
	}
	if err := f.Close(); err != nil { // NFS and quotas report a full disk only here
		return 0, Classify(err)
	}
	path := c.blobPath(digest)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return 0, Classify(err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return 0, Classify(err)
	}
	stamp, size, err := stampOf(path)
	if err != nil {
		return 0, err
	}
	c.stamp(digest, stamp)
	return size, nil
}

// Abort throws the blob away, unless it was committed.
func (w *BlobWriter) Abort() {
	if !w.finished {
		w.finished = true
		w.f.Close()
		os.Remove(w.f.Name())
	}
}

// Partial is a download that survives its process: bytes from the front of a
// blob whose SHA-256 is known beforehand.
type Partial struct {
	c        *Cache
	f        *os.File
	digest   string
	size     int64
	have     int64
	hash     hash.Hash
	finished bool
}

// Partial opens the download of a blob and waits while another process works
// on the same one. Its caller looks again for the blob first: the other may
// have finished it.
func (c *Cache) Partial(ctx context.Context, digest string, size int64) (*Partial, error) {
	if err := checkDigest(digest); err != nil {
		return nil, err
	}
	f, err := openLocked(ctx, filepath.Join(c.dir, "partial", digest), unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	p := &Partial{c: c, f: f, digest: digest, size: size, hash: sha256.New()}
	if p.have, err = io.Copy(p.hash, f); err != nil || p.have > size {
		if err := p.Restart(); err != nil {
			f.Close()
			return nil, err
		}
	}
	return p, nil
}

// Have is how many bytes are there already.
func (p *Partial) Have() int64 { return p.have }

// Write appends. More bytes than the blob has are an error.
func (p *Partial) Write(b []byte) (int, error) {
	if p.have+int64(len(b)) > p.size {
		return 0, fault.New(fault.Integrity, "more than the %d bytes that were announced", p.size)
	}
	n, err := p.f.Write(b)
	p.hash.Write(b[:n])
	p.have += int64(n)
	return n, Classify(err)
}

// Restart throws away all bytes.
func (p *Partial) Restart() error {
	if err := p.f.Truncate(0); err != nil {
		return err
	}
	_, err := p.f.Seek(0, io.SeekStart)
	p.have, p.hash = 0, sha256.New()
	return err
}

// Commit makes the finished download a blob. Wrong bytes are thrown away and
// give an error of class fault.Integrity.
func (p *Partial) Commit() error {
	got := hex.EncodeToString(p.hash.Sum(nil))
	if p.have != p.size || got != p.digest {
		err := wrongBytes(p.digest, p.size, got, p.have)
		return errors.Join(err, p.Restart())
	}
	p.finished = true
	_, err := p.c.adopt(p.f, p.digest)
	return err
}

// Close keeps the bytes for a later process to go on with, unless the download
// was committed or is empty.
func (p *Partial) Close() {
	if p.finished {
		return
	}
	p.finished = true
	if p.have == 0 {
		os.Remove(p.f.Name())
	}
	p.f.Close()
}

// stampOf describes the state of a file such that any write to it shows.
func stampOf(path string) (stamp string, size int64, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return "", 0, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", 0, fmt.Errorf("%s: not a regular file", path)
	}
	return fmt.Sprintf("%d %d %d.%09d %d.%09d\n", st.Size, st.Ino,
		st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec), st.Size, nil
}

// usedGrain is how exact "last used" is; it saves a write per use.
const usedGrain = 10 * time.Minute

// stamped says whether the blob was verified in the state that stamp describes,
// and if so notes that it was used.
func (c *Cache) stamped(digest, stamp string) bool {
	path := filepath.Join(c.dir, "stamps", digest)
	b, err := os.ReadFile(path)
	if err != nil || string(b) != stamp {
		return false
	}
	touch(path)
	return true
}

// stamp notes that the blob was verified. Failing to is harmless: it will be
// verified again.
func (c *Cache) stamp(digest, stamp string) {
	tmp, err := os.CreateTemp(c.session, "stamp-")
	if err != nil {
		return
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.WriteString(stamp)
	if errors.Join(err, tmp.Close()) == nil {
		os.Rename(tmp.Name(), filepath.Join(c.dir, "stamps", digest))
	}
}

// touch notes a use now in the file's modification time.
func touch(path string) {
	now := time.Now()
	if st, err := os.Stat(path); err == nil && now.Sub(st.ModTime()).Abs() > usedGrain {
		os.Chtimes(path, now, now)
	}
}
