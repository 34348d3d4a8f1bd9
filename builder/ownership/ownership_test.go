package ownership_test

import (
	"testing"

	"github.com/slipwayhq/slipway/builder/ownership"
)

func TestWhatIsWrittenReadsBack(t *testing.T) {
	if u, g, err := ownership.ParseOwner(ownership.FormatOwner(33, 4294967294)); err != nil || u != 33 || g != 4294967294 {
		t.Errorf("owner: %d:%d, %v", u, g, err)
	}
	if m, err := ownership.ParseMode(ownership.FormatMode(0o4711)); err != nil || m != 0o4711 {
		t.Errorf("mode: %o, %v", m, err)
	}
	if b, ma, mi, err := ownership.ParseNode(ownership.FormatNode(true, 8, 1)); err != nil || !b || ma != 8 || mi != 1 {
		t.Errorf("node: %v %d:%d, %v", b, ma, mi, err)
	}
}

func TestForeignBytesAreRefused(t *testing.T) {
	for _, s := range []string{"", "1", "1:", ":1", "1:2:3", "-1:0", "4294967296:0", "a:b", "1: 2"} {
		if _, _, err := ownership.ParseOwner([]byte(s)); err == nil {
			t.Errorf("owner %q was taken", s)
		}
	}
	for _, s := range []string{"", "8", "10000", "-1", "0x1"} {
		if _, err := ownership.ParseMode([]byte(s)); err == nil {
			t.Errorf("mode %q was taken", s)
		}
	}
	for _, s := range []string{"", "c", "c:1", "d:1:2", "c:1:2:3", "c:x:1"} {
		if _, _, _, err := ownership.ParseNode([]byte(s)); err == nil {
			t.Errorf("node %q was taken", s)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("33:44"))
	f.Add([]byte("4755"))
	f.Add([]byte("b:8:1"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if u, g, err := ownership.ParseOwner(b); err == nil {
			if u2, g2, err := ownership.ParseOwner(ownership.FormatOwner(u, g)); err != nil || u2 != u || g2 != g {
				t.Errorf("owner %q does not read back", b)
			}
		}
		if m, err := ownership.ParseMode(b); err == nil && m > 0o7777 {
			t.Errorf("mode %q is %o", b, m)
		}
		ownership.ParseNode(b)
	})
}
