package receipt_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/slipwayhq/slipway/builder/mirror/receipt"
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
