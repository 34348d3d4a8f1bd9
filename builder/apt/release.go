package apt

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/slipwayhq/slipway/internal/fault"
)

// clockSlack is how far in the future a Release may be dated, as clocks differ.
const clockSlack = 2 * time.Hour

// maxInRelease is more than ten times what Debian's largest suite has.
const maxInRelease = 16 << 20

// Release is what a suite's signed Release file says.
type Release struct {
	Suite, Codename string
	Origin, Label   string
	Version         string
	Date            time.Time
	ValidUntil      time.Time // zero: for ever
	ByHash          bool      // indices are also served under their hash
	Architectures   []string
	Components      []string
	Files           map[string]FileSum // by path below the suite's directory
	// NotAutomatic has apt install from the suite only what is asked for from it; with ButAutomaticUpgrades it upgrades
	// what came from there. Backports are such suites.
	NotAutomatic, ButAutomaticUpgrades bool
}

// FileSum is a file's size and hash as the Release file gives them.
type FileSum struct {
	Size   int64
	SHA256 string
}

// VerifyInRelease checks a clear-signed Release file and returns the text that
// is signed, and nothing else of the file, with the fingerprints of the primary
// keys that signed it. At least one signature must be by an allowed key of the
// keyring; a wrong signature by such a key is an error even beside a right one.
// Text before or after the signed message is an error, since it would be taken
// for signed by who reads the file.
func VerifyInRelease(data []byte, keyring openpgp.EntityList, allowed []string, now time.Time) (plaintext []byte, signers []string, err error) {
	bad := func(format string, args ...any) ([]byte, []string, error) {
		return nil, nil, fault.New(fault.Integrity, format, args...)
	}
	if !bytes.HasPrefix(data, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) {
		return bad("not a clear-signed message from its first byte on")
	}
	block, rest := clearsign.Decode(data)
	if block == nil {
		return bad("the clear-signed message is malformed")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return bad("text after the signature, which is not signed")
	}
	signatures, err := readSignatures(block.ArmoredSignature.Body)
	if err != nil {
		return bad("the signature is malformed: %w", err)
	}
	config := &packet.Config{Time: func() time.Time { return now }}
	var strangers []string
	for _, sig := range signatures {
		signer, err := verifyOne(block.Bytes, sig, keyring, allowed, config)
		switch {
		case errors.Is(err, errStranger):
			strangers = append(strangers, sig.issuer)
		case err != nil:
			return bad("the signature by key %s is not right: %w", sig.issuer, err)
		default:
			signers = append(signers, signer)
		}
	}
	if len(signers) == 0 {
		return bad("not signed by any of the allowed keys %s (signed by %s)", strings.Join(allowed, ", "), strings.Join(strangers, ", "))
	}
	slices.Sort(signers)
	return block.Plaintext, slices.Compact(signers), nil
}

var errStranger = errors.New("key not among the allowed ones")

type signature struct {
	bytes  []byte // the packet
	issuer string
	hash   crypto.Hash
}

// readSignatures splits a signature block into its packets, of which Debian has
// one per key.
func readSignatures(r io.Reader) ([]signature, error) {
	const most = 16
	var all []signature
	packets := packet.NewReader(r)
	for {
		p, err := packets.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		sig, ok := p.(*packet.Signature)
		if !ok || sig.IssuerKeyId == nil || len(all) == most {
			return nil, errors.New("want up to 16 signatures that name their key, and nothing else")
		}
		var buf bytes.Buffer
		if err := sig.Serialize(&buf); err != nil {
			return nil, err
		}
		all = append(all, signature{buf.Bytes(), fmt.Sprintf("%016X", *sig.IssuerKeyId), sig.Hash})
	}
	if len(all) == 0 {
		return nil, errors.New("it is empty")
	}
	return all, nil
}

func verifyOne(signed []byte, sig signature, keyring openpgp.EntityList, allowed []string, config *packet.Config) (string, error) {
	var trusted openpgp.EntityList
	for _, e := range keyring {
		if slices.Contains(allowed, fingerprint(e)) {
			trusted = append(trusted, e)
		}
	}
	id, err := strconv.ParseUint(sig.issuer, 16, 64)
	if err != nil || len(trusted.KeysByIdUsage(id, packet.KeyFlagSign)) == 0 {
		return "", errStranger
	}
	switch sig.hash {
	case crypto.SHA256, crypto.SHA384, crypto.SHA512:
	default:
		return "", fmt.Errorf("hash %v is too weak", sig.hash)
	}
	_, signer, err := openpgp.VerifyDetachedSignature(trusted, bytes.NewReader(signed), bytes.NewReader(sig.bytes), config)
	if err != nil {
		return "", err
	}
	return fingerprint(signer), nil
}

// fingerprint is that of an entity's primary key, as gpg prints it without spaces.
func fingerprint(e *openpgp.Entity) string {
	return strings.ToUpper(hex.EncodeToString(e.PrimaryKey.Fingerprint))
}

// ParseRelease parses the text of a Release file, of which only the SHA256 list
// is taken.
func ParseRelease(text []byte) (*Release, error) {
	var rel *Release
	err := EachParagraph(bytes.NewReader(text), func(p *Paragraph) (err error) {
		if rel != nil {
			return fmt.Errorf("line %d: a second paragraph", p.Line)
		}
		rel, err = releaseOf(p)
		return err
	})
	if err == nil && rel == nil {
		err = errors.New("empty")
	}
	if err != nil {
		return nil, fault.New(fault.Integrity, "Release file: %w", err)
	}
	return rel, nil
}

func releaseOf(p *Paragraph) (*Release, error) {
	rel := &Release{
		Suite: p.Get("Suite"), Codename: p.Get("Codename"),
		Origin: p.Get("Origin"), Label: p.Get("Label"), Version: p.Get("Version"),
		ByHash:        p.Get("Acquire-By-Hash") == "yes",
		Architectures: strings.Fields(p.Get("Architectures")),
		Components:    strings.Fields(p.Get("Components")),
		Files:         map[string]FileSum{},
		NotAutomatic:  p.Get("NotAutomatic") == "yes", ButAutomaticUpgrades: p.Get("ButAutomaticUpgrades") == "yes",
	}
	var err error
	if rel.Date, err = parseDate(p.Get("Date")); err != nil {
		return nil, fmt.Errorf("field Date: %w", err)
	}
	if until := p.Get("Valid-Until"); until != "" {
		if rel.ValidUntil, err = parseDate(until); err != nil {
			return nil, fmt.Errorf("field Valid-Until: %w", err)
		}
	}
	for _, line := range p.Lines("SHA256") {
		words := strings.Fields(line)
		if len(words) != 3 || !sha256Pattern.MatchString(words[0]) {
			return nil, fmt.Errorf("field SHA256: %q: want hash, size and path", clip([]byte(line)))
		}
		size, err := strconv.ParseInt(words[1], 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("field SHA256: %q: bad size", clip([]byte(line)))
		}
		if err := checkPath(words[2]); err != nil {
			return nil, fmt.Errorf("field SHA256: %w", err)
		}
		sum := FileSum{Size: size, SHA256: words[0]}
		if old, twice := rel.Files[words[2]]; twice && old != sum {
			return nil, fmt.Errorf("field SHA256: %s stands twice with different sums", words[2])
		}
		rel.Files[words[2]] = sum
	}
	return rel, nil
}

// parseDate reads the dates of Release files: RFC 5322's in UTC, whose zone is
// written UTC, GMT or +0000.
func parseDate(s string) (time.Time, error) {
	for _, layout := range []string{"Mon, _2 Jan 2006 15:04:05 MST", "Mon, _2 Jan 2006 15:04:05 -0700"} {
		t, err := time.Parse(layout, strings.TrimSpace(s))
		if err != nil {
			continue
		}
		if name, offset := t.Zone(); offset != 0 || name != "UTC" && name != "GMT" && name != "" && name != "+0000" {
			return time.Time{}, fmt.Errorf("%q: want a date in UTC", clip([]byte(s)))
		}
		return t.UTC(), nil
	}
	return time.Time{}, fmt.Errorf("%q: want a date such as Sat, 12 Sep 2026 07:55:41 UTC", clip([]byte(s)))
}

// ErrExpired marks a Release that is past its Valid-Until.
var ErrExpired = errors.New("expired")

// Check says whether the Release is the one of the wanted suite, and is current.
func (r *Release) Check(suite string, now time.Time) error {
	if suite != r.Suite && suite != r.Codename {
		return fault.New(fault.Integrity, "asked for suite %s, the signed Release is of suite %q, codename %q", suite, r.Suite, r.Codename).
			WithMend("the mirror serves another suite in this one's place: use another mirror")
	}
	if ahead := r.Date.Sub(now); ahead > clockSlack {
		return fault.New(fault.Integrity, "the Release of %s is dated %s, which is %s in the future", suite, r.Date.Format(time.RFC3339), ahead.Round(time.Minute)).
			WithMend("set this machine's clock")
	}
	if !r.ValidUntil.IsZero() && now.After(r.ValidUntil) {
		return fault.New(fault.Integrity, "the Release of %s was valid until %s: %w", suite, r.ValidUntil.Format(time.RFC3339), ErrExpired).
			WithMend("the mirror is out of date: use another one, or accept it with --allow-expired")
	}
	return nil
}

// hashOf is a text's SHA-256 in hexadecimal.
func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
