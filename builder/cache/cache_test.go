package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/slipwayhq/slipway/internal/fault"
)

func open(t *testing.T, dir string) *Cache {
	t.Helper()
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func digestOf(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func put(t *testing.T, c *Cache, content string) string {
	t.Helper()
	if err := c.PutBlob(digestOf(content), int64(len(content)), strings.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	return digestOf(content)
}

// damage changes a blob's bytes as a failing disk or a curious user would.
func damage(t *testing.T, c *Cache, digest string, content string) {
	t.Helper()
	path := c.blobPath(digest)
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func sessions(t *testing.T, dir string) []string {
	t.Helper()
	return names(filepath.Join(dir, "sessions"))
}

func TestABlobIsFoundByAnotherProcess(t *testing.T) {
	dir := t.TempDir()
	digest := put(t, open(t, dir), "hello")
	path, ok := open(t, dir).CheckedBlob(digest, 5)
	if !ok {
		t.Fatal("not found")
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "hello" {
		t.Fatalf("got %q, %v", b, err)
	}
}

func TestWrongBytesAreNotStored(t *testing.T) {
	c := open(t, t.TempDir())
	for name, err := range map[string]error{
		"hash": c.PutBlob(digestOf("other"), 5, strings.NewReader("hello")),
		"size": c.PutBlob(digestOf("hello"), 6, strings.NewReader("hello")),
	} {
		if fault.Of(err) != fault.Integrity {
			t.Errorf("%s: got %v, want an integrity error", name, err)
		}
	}
	if items, err := c.List(); err != nil || len(items) != 0 {
		t.Errorf("cache holds %v (%v)", items, err)
	}
}

func TestADamagedBlobIsNoticedAtUseAndRemoved(t *testing.T) {
	for name, content := range map[string]string{"same size": "jello", "shorter": "hell", "empty": ""} {
		t.Run(name, func(t *testing.T) {
			c := open(t, t.TempDir())
			digest := put(t, c, "hello")
			damage(t, c, digest, content)
			if path, ok := c.Blob(digest); ok {
				t.Errorf("handed out %s", path)
			}
			if exists(c.blobPath(digest)) {
				t.Error("the blob is still there")
			}
			put(t, c, "hello")
			if _, ok := c.CheckedBlob(digest, 5); !ok {
				t.Error("the new blob is not found")
			}
		})
	}
}

func TestABlobWithoutStampIsHashedAgain(t *testing.T) {
	c := open(t, t.TempDir())
	digest := put(t, c, "hello")
	if err := os.Remove(filepath.Join(c.dir, "stamps", digest)); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Blob(digest); !ok {
		t.Error("a right blob was not found")
	}
	if !exists(filepath.Join(c.dir, "stamps", digest)) {
		t.Error("the result was not noted")
	}
}

func TestABlobWrittenInAnyOrderGetsTheHashOfItsBytes(t *testing.T) {
	c := open(t, t.TempDir())
	w, err := c.NewBlob()
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []struct {
		text string
		at   int64
	}{{"world", 6}, {"hello ", 0}} {
		if _, err := w.WriteAt([]byte(piece.text), piece.at); err != nil {
			t.Fatal(err)
		}
	}
	digest, size, err := w.Commit()
	if err != nil || digest != digestOf("hello world") || size != 11 {
		t.Fatalf("got %s, %d, %v", digest, size, err)
	}
	w.Abort() // does nothing
	if _, ok := c.CheckedBlob(digest, 11); !ok {
		t.Error("not found")
	}
}

func TestAnAbortedBlobLeavesNothing(t *testing.T) {
	c := open(t, t.TempDir())
	w, err := c.NewBlob()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	w.Abort()
	if _, _, err := w.Commit(); err == nil {
		t.Error("committed after abort")
	}
	if left := names(c.session); len(left) != 1 { // the lock file
		t.Errorf("session still holds %v", left)
	}
}

func TestAPartialIsResumedByTheNextProcess(t *testing.T) {
	dir := t.TempDir()
	digest := digestOf("hello world")
	c := open(t, dir)
	p, err := c.Partial(t.Context(), digest, 11)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Write([]byte("hello ")); err != nil {
		t.Fatal(err)
	}
	p.Close()
	c.Close()

	c = open(t, dir)
	p, err = c.Partial(t.Context(), digest, 11)
	if err != nil || p.Have() != 6 {
		t.Fatalf("have %d bytes, %v", p.Have(), err)
	}
	if _, err := p.Write([]byte("world")); err != nil {
		t.Fatal(err)
	}
	if err := p.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.CheckedBlob(digest, 11); !ok {
		t.Error("not found")
	}
}

func TestAPartialRefusesMoreThanItsSize(t *testing.T) {
	c := open(t, t.TempDir())
	p, err := c.Partial(t.Context(), digestOf("x"), 1)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.Write([]byte("xx")); fault.Of(err) != fault.Integrity {
		t.Errorf("got %v", err)
	}
}

func TestATreeAppearsWholeOrNotAtAll(t *testing.T) {
	c := open(t, t.TempDir())
	w, err := c.NewTree("key")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.Dir(), "file"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if dir, ok := c.Tree("key"); ok {
		t.Fatalf("%s before its commit", dir)
	}
	dir, err := w.Commit()
	if err != nil || !exists(filepath.Join(dir, "file")) {
		t.Fatalf("%s, %v", dir, err)
	}
	if got, ok := c.Tree("key"); !ok || got != dir {
		t.Errorf("got %s, %v", got, ok)
	}
}

func TestATreeOfAnEarlierBootIsMadeAnew(t *testing.T) {
	c := open(t, t.TempDir())
	for range 2 {
		w, err := c.NewTree("key")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Commit(); err != nil {
			t.Fatal(err)
		}
		if _, ok := c.Tree("key"); !ok {
			t.Fatal("not found")
		}
		c.bootID += " and another"
		if _, ok := c.Tree("key"); ok {
			t.Fatal("found after a reboot")
		}
	}
}

func TestTreesWithClosedDirectoriesCanBeRemoved(t *testing.T) {
	c := open(t, t.TempDir())
	w, err := c.NewTree("key")
	if err != nil {
		t.Fatal(err)
	}
	closed := filepath.Join(w.Dir(), "work/work")
	if err := os.MkdirAll(filepath.Join(closed, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(closed, 0); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(closed), 0o555); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := c.DropTree("key"); err != nil || exists(c.treePath("key")) {
		t.Errorf("still there: %v", err)
	}
}

func TestRecordsAreKeptAndReplaced(t *testing.T) {
	c := open(t, t.TempDir())
	for _, want := range []string{"one", "two"} {
		if err := c.PutRecord("layer", "key", []byte(want)); err != nil {
			t.Fatal(err)
		}
		if got, ok := c.Record("layer", "key"); !ok || string(got) != want {
			t.Errorf("got %q, %v", got, ok)
		}
	}
}

func TestNamesThatLeaveTheirDirectoryAreRefused(t *testing.T) {
	c := open(t, t.TempDir())
	for _, key := range []string{"", "..", "a/b", ".hidden", "a\nb", strings.Repeat("x", 201)} {
		if err := c.PutRecord("kind", key, nil); err == nil {
			t.Errorf("record %q was taken", key)
		}
		if _, err := c.NewTree(key); err == nil {
			t.Errorf("tree %q was taken", key)
		}
		if _, err := c.Lock(t.Context(), key); err == nil {
			t.Errorf("lock %q was taken", key)
		}
	}
	if _, ok := c.Blob("../../etc/passwd"); ok {
		t.Error("a path was taken for a digest")
	}
}

func TestALockExcludesAndCanBeGivenUp(t *testing.T) {
	dir := t.TempDir()
	unlock, err := open(t, dir).Lock(t.Context(), "name")
	if err != nil {
		t.Fatal(err)
	}
	other := open(t, dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := other.Lock(ctx, "name"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v while another holds the lock", err)
	}
	unlock()
	again, err := other.Lock(t.Context(), "name")
	if err != nil {
		t.Fatal(err)
	}
	again()
}

// TestHelperProcess is not a test: it is the process that the next one kills.
func TestHelperProcess(t *testing.T) {
	dir := os.Getenv("SLIPWAY_TEST_CACHE")
	if dir == "" {
		return
	}
	c, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.NewTree("unfinished")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(w.Dir(), "work"), 0); err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("ready\n")
	select {}
}

func TestWhatAKilledProcessLeftIsSweptByTheNext(t *testing.T) {
	dir := t.TempDir()
	mine := open(t, dir) // a living session, which must stay
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperProcess$")
	cmd.Env = append(os.Environ(), "SLIPWAY_TEST_CACHE="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line := make([]byte, 6); !func() bool { _, err := out.Read(line); return err == nil && bytes.Equal(line, []byte("ready\n")) }() {
		t.Fatalf("helper said %q", line)
	}
	if got := len(sessions(t, dir)); got != 2 {
		t.Fatalf("%d sessions while two run", got)
	}
	cmd.Process.Kill()
	cmd.Wait()
	open(t, dir).Close()
	if got := sessions(t, dir); len(got) != 1 || filepath.Join(dir, "sessions", got[0]) != mine.session {
		t.Errorf("sessions left: %v", got)
	}
}

func TestAFullDiskIsSaidToBeOne(t *testing.T) {
	err := Classify(&os.PathError{Op: "write", Path: "x", Err: unix.ENOSPC})
	if fault.Of(err) != fault.Space || fault.Mend(err) == "" {
		t.Errorf("got class %v, mend %q", fault.Of(err), fault.Mend(err))
	}
	if Classify(os.ErrNotExist) != os.ErrNotExist {
		t.Error("another error was changed")
	}
}

func TestAFullDiskWhileWritingABlob(t *testing.T) {
	if _, err := os.Stat("/dev/full"); err != nil {
		t.Fatal("this test needs /dev/full (Linux)")
	}
	c := open(t, t.TempDir())
	w, err := c.NewBlob()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.f.Close()
	os.Remove(w.f.Name())
	w.f = full
	if _, err := w.Write([]byte("x")); fault.Of(err) != fault.Space {
		t.Errorf("got %v", err)
	}
	w.finished = true // so that Abort does not remove /dev/full
	full.Close()
}

func TestGarbageCollectionKeepsWhatThePolicySays(t *testing.T) {
	c := open(t, t.TempDir())
	old, young, kept := put(t, c, "old"), put(t, c, "young"), put(t, c, "kept")
	long := time.Now().Add(-30 * 24 * time.Hour)
	for _, digest := range []string{old, kept} {
		if err := os.Chtimes(filepath.Join(c.dir, "stamps", digest), long, long); err != nil {
			t.Fatal(err)
		}
	}
	policy := Policy{MaxAge: 24 * time.Hour, Keep: func(i Item) bool { return i.Key == kept }}
	for _, dry := range []bool{true, false} {
		removed, err := c.GC(policy, dry)
		if err != nil || len(removed) != 1 || removed[0].Key != old {
			t.Fatalf("dry run %v: removed %v, %v", dry, removed, err)
		}
		if exists(c.blobPath(old)) != dry {
			t.Errorf("dry run %v, and the old blob is there: %v", dry, !dry)
		}
	}
	for _, digest := range []string{young, kept} {
		if _, ok := c.Blob(digest); !ok {
			t.Errorf("%s was removed", digest)
		}
	}
}

func TestGarbageCollectionLeavesARunningBuildAlone(t *testing.T) {
	dir := t.TempDir()
	c, other := open(t, dir), open(t, dir)
	put(t, c, "x")
	if _, err := c.GC(Policy{}, false); err == nil {
		t.Error("collected under another's feet")
	}
	other.Close()
	if removed, err := c.GC(Policy{}, false); err != nil || len(removed) != 1 {
		t.Errorf("removed %v, %v", removed, err)
	}
}

func TestEverythingIsListed(t *testing.T) {
	c := open(t, t.TempDir())
	put(t, c, "x")
	if err := c.PutRecord("layer", "k", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	w, err := c.NewTree("t")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Commit(); err != nil {
		t.Fatal(err)
	}
	items, err := c.List()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range items {
		got = append(got, string(i.Kind)+" "+i.Key)
		if i.Used.IsZero() {
			t.Errorf("%s: no time of use", i.Key)
		}
	}
	want := "blob " + digestOf("x") + ", record layer/k, tree t"
	if strings.Join(got, ", ") != want {
		t.Errorf("got %v, want %s", got, want)
	}
}
