//go:build long

package mirror_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/builder/mirror/sign"
)

// usable does what apt does with a mirror: InRelease, the indices that it names, by hash, and the packages that these
// name. It returns the first thing that is not there as it was promised.
func usable(public string, ring sign.Ring) error {
	file := func(path string, want apt.FileSum) ([]byte, error) {
		data, err := os.ReadFile(filepath.Join(public, "debian", path))
		if sum := sha256.Sum256(data); err == nil && (hex.EncodeToString(sum[:]) != want.SHA256 || int64(len(data)) != want.Size) {
			err = fmt.Errorf("%s has %d bytes, SHA-256 %x, want %+v", path, len(data), sum, want)
		}
		return data, err
	}
	signed, err := os.ReadFile(filepath.Join(public, "debian/dists/test/InRelease"))
	if err != nil {
		return err
	}
	checked, err := sign.Verify(signed, ring)
	if err != nil {
		return err
	}
	release, err := apt.ParseRelease(checked.Text)
	if err != nil {
		return err
	}
	for path, sum := range release.Files {
		data, err := file("dists/test/"+filepath.Dir(path)+"/by-hash/SHA256/"+sum.SHA256, sum)
		if err != nil {
			return err
		}
		if filepath.Base(path) != "Packages" {
			continue
		}
		packages, err := apt.ReadPackages(bytes.NewReader(data), "main", "test", "amd64")
		if err != nil {
			return err
		}
		for _, p := range packages {
			if _, err := file(p.Path, apt.FileSum{Size: p.Size, SHA256: p.SHA256}); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestNoClientSeesAnIndexWhoseFilesAreNotThere looks at a mirror while an update is published, and where its
// publishing was cut off.
func TestNoClientSeesAnIndexWhoseFilesAreNotThere(t *testing.T) {
	s, a := newSide(t, 1<<20)
	whole, _ := s.mustCreate(t, nil)
	far := s.far(t)
	mustTake(t, far, whole)
	s.Now = s.Now.Add(24 * time.Hour)
	a.Date = a.Date.Add(24 * time.Hour)
	a.Publish(packages(2)...)
	s.relock(t)
	diff, _ := s.mustCreate(t, receiptOf(t, far))
	ring, err := sign.ParseRing(s.public(t))
	must(t, err)
	text := func(store string) string {
		data, err := json.Marshal(order{Store: store, Volumes: []string{diff}})
		must(t, err)
		return string(data)
	}
	rng := chance(t)
	looks, halves := 0, 0
	usual := 2 * time.Second
	for range rounds {
		store := copyTree(t, far)
		public := filepath.Join(store, "public")
		before := digest(t, public)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "MIRRORTEST_ORDER="+text(store))
		began := time.Now()
		must(t, cmd.Start())
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		kill := time.After(time.Duration(rng.Int64N(int64(usual))))
		for running := true; running; looks++ {
			select {
			case err := <-ended:
				if running = false; err == nil {
					usual = (usual + time.Since(began)) / 2
				}
			case <-kill:
				cmd.Process.Kill()
			default:
			}
			must(t, usable(public, ring))
		}
		must(t, usable(public, ring))
		if after := digest(t, public); after != before {
			halves++
		}
		must(t, os.RemoveAll(store))
	}
	if t.Logf("%d looks; %d of %d publishings were begun", looks, halves, rounds); halves == 0 {
		t.Error("no publishing was seen")
	}
}
