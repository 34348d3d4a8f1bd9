// Package grubenv reads and writes GRUB's environment block: the one place
// that GRUB can write while booting, a file of exactly 1024 bytes that it
// overwrites in place (GRUB manual, "Environment block"; the format is that of
// grub-editenv).
//
// Slipway keeps its boot counting there. "good" names the version known to
// work. "try" names one on trial and "tries" how often GRUB will still start
// it. GRUB counts down before each trial; the agent clears "try" once the node
// is ready on it; when no tries are left, GRUB boots the good version again. "previous"
// names the version that was good before that; GRUB does not look at it.
package grubenv

import (
	"bytes"
	"fmt"
	"sort"
	"strconv"
	"strings"
)

const (
	// Size of the block in bytes.
	Size = 1024
	// Tries is how often a version on trial is started at most.
	Tries = 3

	header = "# GRUB Environment Block\n"
)

// Env is the content of an environment block.
type Env struct {
	Good  string // version known to work
	Try   string // version on trial, or ""
	Tries int    // starts that the trial has left
	// Previous is the version that was good before Good; GRUB does not look at it.
	Previous string
	Other    map[string]string
}

// Parse reads a block.
func Parse(block []byte) (Env, error) {
	e := Env{Other: map[string]string{}}
	if len(block) != Size {
		return e, fmt.Errorf("GRUB environment block has %d bytes, want %d", len(block), Size)
	}
	body, ok := bytes.CutPrefix(block, []byte(header))
	if !ok {
		return e, fmt.Errorf("GRUB environment block does not begin with %q", header)
	}
	for _, line := range splitLines(body) {
		key, value, ok := strings.Cut(line, "=")
		if !ok || key == "" {
			return e, fmt.Errorf("GRUB environment block: %q is not NAME=VALUE", line)
		}
		switch key {
		case "good":
			e.Good = value
		case "try":
			e.Try = value
		case "tries":
			n, err := strconv.Atoi(value)
			if err != nil && value != "" || n < 0 || n > Tries {
				return e, fmt.Errorf("GRUB environment block: tries is %q, want 0 to %d", value, Tries)
			}
			e.Tries = n
		case "previous":
			e.Previous = value
		default:
			e.Other[key] = value
		}
	}
	return e, nil
}

// splitLines undoes the escapes: a backslash takes the next byte as it is.
// Comments and the fill at the end begin with "#".
func splitLines(body []byte) []string {
	var lines []string
	var line []byte
	for i := 0; i < len(body); i++ {
		switch c := body[i]; {
		case c == '#' && len(line) == 0:
			next := bytes.IndexByte(body[i:], '\n')
			if next < 0 {
				return lines
			}
			i += next
		case c == '\\' && i+1 < len(body):
			i++
			line = append(line, body[i])
		case c == '\n':
			if len(line) > 0 {
				lines = append(lines, string(line))
			}
			line = line[:0]
		default:
			line = append(line, c)
		}
	}
	if len(line) > 0 {
		lines = append(lines, string(line))
	}
	return lines
}

// Bytes is the block to write over the old one, Size bytes long.
func (e Env) Bytes() ([]byte, error) {
	vars := map[string]string{}
	for k, v := range e.Other {
		vars[k] = v
	}
	vars["good"] = e.Good
	if e.Previous != "" {
		vars["previous"] = e.Previous
	}
	if e.Try != "" {
		vars["try"] = e.Try
		vars["tries"] = strconv.Itoa(e.Tries)
	}
	keys := make([]string, 0, len(vars))
	for k := range vars {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	var b bytes.Buffer
	b.WriteString(header)
	for _, k := range keys {
		if k == "" || strings.ContainsAny(k, "=\\\n#") {
			return nil, fmt.Errorf("GRUB environment block: %q cannot be a name", k)
		}
		b.WriteString(k + "=")
		for i := range len(vars[k]) {
			if c := vars[k][i]; c == '\\' || c == '\n' {
				b.WriteByte('\\')
			}
			b.WriteByte(vars[k][i])
		}
		b.WriteByte('\n')
	}
	if b.Len() > Size {
		return nil, fmt.Errorf("GRUB environment block: the variables take %d bytes of %d", b.Len(), Size)
	}
	b.Write(bytes.Repeat([]byte("#"), Size-b.Len()))
	return b.Bytes(), nil
}

// OnTrial says whether the version that runs is there to be proven.
func (e Env) OnTrial(running string) bool { return e.Try != "" && e.Try == running }

// Start returns the block that puts a version on trial.
func (e Env) Start(version string) Env {
	e.Try, e.Tries = version, Tries
	return e
}

// Failed says whether the version on trial has used up its starts.
func (e Env) Failed() bool { return e.Try != "" && e.Tries == 0 }

// End returns the block that ends any trial, without a verdict.
func (e Env) End() Env {
	e.Try, e.Tries = "", 0
	return e
}

// Confirm returns the block that takes the running version for good and ends
// any trial. The version that was good so far is the one to go back to.
func (e Env) Confirm(running string) Env {
	if e.Good != running {
		e.Previous = e.Good
	}
	e.Good, e.Try, e.Tries = running, "", 0
	return e
}
