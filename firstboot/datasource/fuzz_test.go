package datasource

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"strings"
	"testing"

	"github.com/slipwayhq/slipway/internal/fault"
)

// Whatever the bytes, a reader returns; and if it refuses them, it says so as
// an error of the input, with the file's name.
func refused(t *testing.T, err error) {
	t.Helper()
	if err != nil && (fault.Of(err) != fault.Input || !strings.Contains(err.Error(), "file")) {
		t.Errorf("class %v: %v", fault.Of(err), err)
	}
}

func FuzzMetaData(f *testing.F) {
	f.Add([]byte("instance-id: x\npublic-keys: {a: [b], c: {openssh-key: d}}\nslipway: {a: 1}\nnetwork: {version: 2}\nnetwork.encoding: gz+b64\n"))
	f.Add([]byte("a: &a [*a]\npublic-keys: *a\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		var md Metadata
		_, err := md.readMeta("file", data)
		refused(t, err)
	})
}

func FuzzOpenStackMeta(f *testing.F) {
	f.Add([]byte(`{"uuid": "u", "hostname": "h", "public_keys": {"a": "b"}, "keys": [{"type": "ssh", "data": "x"}], "meta": {"slipway": "a: 1"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var md Metadata
		_, wrong := md.readOpenStack("file", data)
		refused(t, wrong)
		_, err := vendorJSON("file", data)
		refused(t, err)
	})
}

func FuzzOVF(f *testing.F) {
	f.Add([]byte(`<Environment xmlns="http://schemas.dmtf.org/ovf/environment/1" xmlns:oe="http://schemas.dmtf.org/ovf/environment/1"><PropertySection><Property oe:key="user-data" oe:value="H4sI"/></PropertySection></Environment>`))
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := ovfSeed("file", "ovf-env.xml", data)
		refused(t, err)
	})
}

func FuzzNamed(f *testing.F) {
	f.Add(`quiet ds=nocloud;s=http://192.0.2.1/x/;h=a;i=b "ds=nocloud\;h=c"`)
	f.Fuzz(func(t *testing.T, text string) {
		n, ok, err := parseNamed(text)
		if err == nil && n.URL != "" && (!ok || !strings.HasPrefix(strings.ToLower(n.URL), "http") && !strings.HasPrefix(strings.ToLower(n.URL), "file:")) {
			t.Errorf("URL %q", n.URL)
		}
	})
}

func FuzzDecode(f *testing.F) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write(make([]byte, 1<<20))
	z.Close()
	f.Add("gzip+base64", base64.StdEncoding.EncodeToString(b.Bytes()))
	f.Add("base64", "eA==")
	f.Fuzz(func(t *testing.T, encoding, text string) {
		for _, fn := range []func() ([]byte, error){func() ([]byte, error) { return decode(encoding, text) }, func() ([]byte, error) { return decodeMaybe(text) }} {
			if data, err := fn(); err == nil && len(data) > MaxFile+len(text) {
				t.Errorf("%d bytes", len(data))
			}
		}
	})
}
