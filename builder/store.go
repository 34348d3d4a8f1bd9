package builder

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"

	"github.com/slipwayhq/slipway/internal/fault"
)

// putBytes stores a small file in the cache.
func (b *build) putBytes(content []byte) (digest string, err error) {
	w, err := b.Cache.NewBlob()
	if err != nil {
		return "", err
	}
	defer w.Abort()
	if _, err := w.Write(content); err != nil {
		return "", err
	}
	digest, _, err = w.Commit()
	return digest, err
}

// readBlob reads a small file of the cache.
func (b *build) readBlob(digest string) ([]byte, error) {
	path, ok := b.Cache.Blob(digest)
	if !ok {
		return nil, gone(digest)
	}
	return os.ReadFile(path)
}

func (b *build) putRecord(kind, key string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return b.Cache.PutRecord(kind, key, data)
}

// gone is the error for what another process removed from the cache, or a
// damaged file that the cache threw away, between its making and its use.
func gone(what string) error {
	return fault.New(fault.Integrity, "%s left the cache while it was needed", what).WithMend("run the build again")
}

// hashKey is a cache key over the given parts, which must be plain data.
func hashKey(parts ...any) string {
	text, err := json.Marshal(parts)
	if err != nil {
		panic(err) // plain data always marshals
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}
