package cloudconfig

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"

	"gopkg.in/yaml.v3"
)

// MaxSize is the most user-data that is read, once unpacked. Platforms stop at
// far less.
const MaxSize = 16 << 20

// maxParts and maxNesting bound what a MIME message may hold.
const (
	maxParts   = 200
	maxNesting = 4
)

// Script is a program that came as user-data. It runs once for its content,
// or at every boot if it is a boothook.
type Script struct {
	Name      string // file name of its part, or a number
	Content   []byte
	EveryBoot bool
}

// UserData is what all parts of a node's user-data amount to.
type UserData struct {
	Config   Config
	Scripts  []Script
	Findings []Finding
}

// Parse reads user-data named name in messages. The documents are given in
// the order of rising weight: vendor data first, then the user's.
func Parse(documents ...Document) *UserData {
	u := &UserData{}
	for _, doc := range documents {
		u.part(doc.Name, "", "", doc.Content, 0)
	}
	if len(documents) > 0 {
		u.Findings = append(u.Findings, u.Config.check(documents[len(documents)-1].Name)...)
	}
	return u
}

// Document is one piece of user-data as the platform handed it over.
type Document struct {
	Name    string // user-data, vendor-data
	Content []byte
}

func (u *UserData) report(kind Kind, file, format string, args ...any) {
	if len(u.Findings) < 1000 {
		u.Findings = append(u.Findings, Finding{Kind: kind, File: file, Message: fmt.Sprintf(format, args...)})
	}
}

// part reads one part. Its first line decides what it is, as in cloud-init;
// the declared type only counts where there is no such line.
func (u *UserData) part(file, name, declared string, data []byte, depth int) {
	if depth > maxNesting {
		u.report(Invalid, file, "parts are nested more than %d deep", maxNesting)
		return
	}
	if bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		unpacked, err := gunzip(data)
		if err != nil {
			u.report(Invalid, file, "looks like gzip and cannot be unpacked: %v", err)
			return
		}
		data = unpacked
	}
	if len(data) > MaxSize {
		u.report(Invalid, file, "has %d bytes; at most %d are read", len(data), MaxSize)
		return
	}
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if len(bytes.TrimSpace(data)) == 0 {
		return
	}
	first, _, _ := bytes.Cut(data, []byte("\n"))
	head := strings.TrimRight(string(first), " \t\r")
	has := func(prefix string) bool { return strings.HasPrefix(head, prefix) }
	switch {
	case has("#cloud-config-archive"), declared == "text/cloud-config-archive":
		u.archive(file, data, depth)
	case has("#cloud-config"), declared == "text/cloud-config":
		u.Findings = append(u.Findings, decodeYAML(file, data, &u.Config)...)
	case has("#cloud-boothook"), declared == "text/cloud-boothook":
		u.script(file, name, bytes.TrimPrefix(data, append(first, '\n')), true)
	case has("#!"), declared == "text/x-shellscript":
		u.script(file, name, data, false)
	case has("## template:"):
		u.report(Unsupported, file, "a template (%q); a node expands none, so nothing in it takes effect", head)
	case has("#include"), has("#part-handler"), has("#upstart-job"), declared == "text/x-include-url", declared == "text/part-handler":
		u.report(Unsupported, file, "a part that begins with %q; a node runs no foreign handlers and fetches no parts from the network", cut(head))
	case isMIME(data):
		u.message(file, data, depth)
	default:
		u.report(Invalid, file, "the first line must be #cloud-config or #!, or the data a MIME message; nothing in it takes effect")
	}
}

func cut(s string) string { return s[:min(len(s), 40)] }

func (u *UserData) script(file, name string, content []byte, everyBoot bool) {
	if !bytes.HasPrefix(content, []byte("#!")) {
		if !everyBoot {
			u.report(Invalid, file, "a script must begin with #! and its interpreter")
			return
		}
		content = append([]byte("#!/bin/sh\n"), content...)
	}
	if name == "" {
		name = fmt.Sprintf("part-%03d", len(u.Scripts)+1)
	}
	u.Scripts = append(u.Scripts, Script{Name: name, Content: content, EveryBoot: everyBoot})
}

// isMIME tells a MIME message by its header: one of these fields comes before
// the first empty line.
func isMIME(data []byte) bool {
	header, _, _ := bytes.Cut(bytes.ReplaceAll(data[:min(len(data), 8192)], []byte("\r\n"), []byte("\n")), []byte("\n\n"))
	lower := strings.ToLower("\n" + string(header))
	return strings.Contains(lower, "\ncontent-type:") || strings.Contains(lower, "\nmime-version:")
}

func (u *UserData) message(file string, data []byte, depth int) {
	// mbox's separator line may stand before the header.
	if bytes.HasPrefix(data, []byte("From ")) {
		_, data, _ = bytes.Cut(data, []byte("\n"))
	}
	m, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		u.report(Invalid, file, "not a MIME message: %v", err)
		return
	}
	u.entity(file, m.Header.Get("Content-Type"), m.Header.Get("Content-Transfer-Encoding"), m.Header.Get("Content-Disposition"), m.Body, depth)
}

func (u *UserData) entity(file, contentType, encoding, disposition string, body io.Reader, depth int) {
	if depth > maxNesting {
		u.report(Invalid, file, "parts are nested more than %d deep", maxNesting)
		return
	}
	kind, params, err := mime.ParseMediaType(contentType)
	if err != nil && contentType != "" {
		u.report(Invalid, file, "Content-Type cannot be read: %v", err)
		return
	}
	if !strings.HasPrefix(kind, "multipart/") {
		data, err := decodeTransfer(encoding, body)
		if err != nil {
			u.report(Invalid, file, "%v", err)
			return
		}
		_, dispositionParams, _ := mime.ParseMediaType(disposition)
		u.part(file, dispositionParams["filename"], kind, data, depth+1)
		return
	}
	r := multipart.NewReader(body, params["boundary"])
	for number := 1; ; number++ {
		p, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			u.report(Invalid, file, "part %d: %v", number, err)
			return
		}
		if number > maxParts {
			u.report(Invalid, file, "more than %d parts; the rest does not take effect", maxParts)
			return
		}
		name := fmt.Sprintf("%s, part %d", file, number)
		if p.FileName() != "" {
			name = fmt.Sprintf("%s, part %d (%s)", file, number, p.FileName())
		}
		u.entity(name, p.Header.Get("Content-Type"), p.Header.Get("Content-Transfer-Encoding"), p.Header.Get("Content-Disposition"), p, depth+1)
	}
}

func decodeTransfer(encoding string, body io.Reader) ([]byte, error) {
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "", "7bit", "8bit", "binary":
	default:
		return nil, fmt.Errorf("Content-Transfer-Encoding %q is not known", cut(encoding))
	}
	return readAll(body)
}

func gunzip(data []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return readAll(z)
}

func readAll(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	if err == nil && len(data) > MaxSize {
		err = fmt.Errorf("more than %d bytes", MaxSize)
	}
	return data, err
}

// archive reads #cloud-config-archive: a YAML list of parts.
func (u *UserData) archive(file string, data []byte, depth int) {
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		u.Findings = append(u.Findings, syntaxError(file, err))
		return
	}
	if len(document.Content) == 0 || document.Content[0].Kind != yaml.SequenceNode {
		u.report(Invalid, file, "an archive must be a list of parts")
		return
	}
	for i, item := range document.Content[0].Content {
		if i >= maxParts {
			u.report(Invalid, file, "more than %d parts; the rest does not take effect", maxParts)
			return
		}
		name := fmt.Sprintf("%s, part %d", file, i+1)
		var part struct{ Type, Content, Filename string }
		if item.Kind == yaml.ScalarNode {
			part.Content = item.Value
		} else if err := item.Decode(&part); err != nil {
			u.report(Invalid, name, "a part must be text, or have type and content")
			continue
		}
		u.part(name, part.Filename, part.Type, []byte(part.Content), depth+1)
	}
}
