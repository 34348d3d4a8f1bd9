package receipt_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/receipt"
	"github.com/slipwayhq/slipway/internal/fault"
)

func sample() *receipt.Receipt {
	return &receipt.Receipt{Site: "plant-7", Store: strings.Repeat("0f", 16), Edition: 3, Bundle: fmt.Sprintf("%064x", 7),
		Date: time.Date(2026, 11, 20, 10, 0, 0, 0, time.UTC), Have: map[string]int64{fmt.Sprintf("%064x", 1): 10, fmt.Sprintf("%064x", 2): 0}}
}

func TestAReceiptReadsBackEvenWithForeignLineEnds(t *testing.T) {
	for _, text := range []string{string(sample().Bytes()), strings.ReplaceAll(string(sample().Bytes()), "\n", "\r\n")} {
		got, err := receipt.Parse([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, sample()) {
			t.Errorf("got %+v", got)
		}
	}
}

func TestEveryChangedByteOfAReceiptIsFound(t *testing.T) {
	data := sample().Bytes()
	for i := range data {
		for bit := range 8 {
			changed := append([]byte(nil), data...)
			changed[i] ^= 1 << bit
			if _, err := receipt.Parse(changed); err == nil {
				t.Fatalf("bit %d of byte %d (%q) was changed and not found", bit, i, data[i])
			}
		}
	}
	for n := range data {
		if _, err := receipt.Parse(data[:n]); err == nil {
			t.Fatalf("%d of %d bytes are taken", n, len(data))
		}
	}
}

func TestAReceiptIsReadFromARegularFileOfAReceiptsSize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "receipt")
	for name, c := range map[string]struct {
		put  func() error
		want string
	}{
		"a pipe":            {func() error { return syscall.Mkfifo(path, 0o644) }, "not a regular file"},
		"a directory":       {func() error { return os.Mkdir(path, 0o755) }, "not a regular file"},
		"a device":          {func() error { return os.Symlink("/dev/zero", path) }, "not a regular file"},
		"nothing":           {func() error { return nil }, "no such file"},
		"a huge file":       {func() error { return errors.Join(os.WriteFile(path, nil, 0o644), os.Truncate(path, 1<<42)) }, "more than 67108864 bytes"},
		"a receipt cut off": {func() error { return os.WriteFile(path, sample().Bytes()[:100], 0o644) }, path + ": receipt:"},
	} {
		if err := c.put(); err != nil {
			t.Fatal(err)
		}
		if _, err := receipt.ReadFile(path); fault.Of(err) != fault.Input || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
		os.Remove(path)
	}
	if err := os.WriteFile(path, sample().Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := receipt.ReadFile(path); err != nil || !reflect.DeepEqual(got, sample()) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample().Bytes())
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := receipt.Parse(data)
		if err != nil {
			return
		}
		if again, err := receipt.Parse(r.Bytes()); err != nil || !reflect.DeepEqual(r, again) {
			t.Fatalf("it reads back differently: %v", err)
		}
	})
}
