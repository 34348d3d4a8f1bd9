package datasource

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
)

// decode undoes an encoding as VMware names them: base64 (b64), gzip+base64
// (gz+b64), or none.
func decode(encoding, text string) ([]byte, error) {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "":
		return []byte(text), nil
	case "base64", "b64":
		return decodeBase64(text)
	case "gzip+base64", "gz+b64", "gz+base64":
		data, err := decodeBase64(text)
		if err != nil {
			return nil, err
		}
		return gunzip(data)
	}
	return nil, fmt.Errorf("encoding %q is not known (base64 and gzip+base64 are)", encoding)
}

func decodeBase64(text string) ([]byte, error) {
	clean := strings.Map(func(r rune) rune {
		if r == ' ' || r == '\t' || r == '\r' || r == '\n' {
			return -1
		}
		return r
	}, text)
	clean = strings.TrimRight(clean, "=")
	data, err := base64.RawStdEncoding.DecodeString(clean)
	if err != nil {
		return nil, fmt.Errorf("not valid base64: %w", err)
	}
	return data, nil
}

func gunzip(data []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("not valid gzip: %w", err)
	}
	out, err := io.ReadAll(io.LimitReader(z, MaxFile+1))
	if err != nil {
		return nil, fmt.Errorf("not valid gzip: %w", err)
	}
	if len(out) > MaxFile {
		return nil, tooLarge("the unpacked content")
	}
	return out, nil
}

func isGzip(data []byte) bool { return bytes.HasPrefix(data, []byte{0x1f, 0x8b}) }

// decodeMaybe undoes base64, and gzip below it, if text has them; else text is
// plain. Properties of an OVF environment may come either way.
func decodeMaybe(text string) ([]byte, error) {
	data, err := decodeBase64(text)
	if err != nil || len(data) == 0 {
		return []byte(text), nil
	}
	if isGzip(data) {
		return gunzip(data)
	}
	return data, nil
}
