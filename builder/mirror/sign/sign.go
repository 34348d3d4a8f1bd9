// Package sign is the OpenPGP side of a mirror: keys that sign, and signatures
// that every verifier which reads a Debian archive accepts.
//
// In: a text and keys. Out: a clear-signed message (InRelease, the manifest of a
// volume) or a detached signature (Release.gpg). Equal text, keys and time give
// equal bytes. RFC 9580, "Cleartext Signature Framework" (7), "Forming ASCII
// Armor" (6.2) and "EdDSALegacy" (5.2.3.3) are followed.
//
// What verifiers demand decides the form. Keys are version 4 with Ed25519 as
// algorithm 22, since gpgv of Debian 12 does not know algorithm 27. Armour ends in
// a checksum, which newer writers leave out and gpgv wants. Signatures carry no
// salt, so that they are reproducible.
package sign

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/slipwayhq/slipway/builder/apt"
	"github.com/slipwayhq/slipway/internal/fault"
)

// maxKey bounds what is read as a key or a keyring.
const maxKey = 1 << 20

// Key is a key that can sign.
type Key struct{ entity *openpgp.Entity }

// Ring is a set of public keys.
type Ring openpgp.EntityList

// Generate makes a key. Its only user id is name; it expires life after now, or never
// if life is 0. Times count in seconds.
func Generate(name string, now time.Time, life time.Duration) (*Key, error) {
	if life < 0 || life/time.Second > math.MaxUint32 {
		return nil, fault.New(fault.Input, "a key cannot live for %s", life).WithMend("OpenPGP counts a key's life in 32 bits of seconds: at most 136 years")
	}
	config := configAt(now)
	config.KeyLifetimeSecs = uint32(life / time.Second)
	e, err := openpgp.NewEntity(name, "", "", config)
	if err != nil {
		return nil, fault.New(fault.Input, "making a key: %w", err).WithMend("the name may not hold any of ()<>")
	}
	e.Subkeys = nil // nothing is ever encrypted to it
	return &Key{e}, nil
}

func configAt(when time.Time) *packet.Config {
	salted := false
	return &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, DefaultHash: crypto.SHA512, Time: func() time.Time { return when },
		NonDeterministicSignaturesViaNotation: &salted,
	}
}

// ParseSecret reads a secret key as gpg --export-secret-keys writes it, armoured or
// not. The passphrase opens a protected one. Errors are of class Input.
func ParseSecret(data, passphrase []byte) (*Key, error) {
	ring, err := parse(data)
	if err != nil {
		return nil, err
	}
	bad := func(format string, args ...any) (*Key, error) {
		return nil, fault.New(fault.Input, format, args...)
	}
	if len(ring) != 1 {
		return bad("the file holds %d keys, want one", len(ring))
	}
	e := ring[0]
	if e.PrivateKey == nil || e.PrivateKey.Dummy() {
		return bad("the file holds no secret key")
	}
	if e.PrivateKey.Encrypted {
		if len(passphrase) == 0 {
			return bad("the key is protected by a passphrase, and none was given")
		}
		if err := e.PrivateKey.Decrypt(passphrase); err != nil {
			return bad("the passphrase does not open the key: %w", err)
		}
	}
	if e.PrimaryKey.Version != 4 {
		return bad("an OpenPGP key of version %d; verifiers of Debian 12 know only 4", e.PrimaryKey.Version)
	}
	switch e.PrimaryKey.PubKeyAlgo {
	case packet.PubKeyAlgoEdDSA:
	case packet.PubKeyAlgoRSA, packet.PubKeyAlgoRSASignOnly:
		if bits, err := e.PrimaryKey.BitLength(); err != nil || bits < 3072 {
			return bad("an RSA key of %d bits; verifiers want at least 3072", bits)
		}
	default:
		return bad("keys of OpenPGP algorithm %d give other bytes each time, or verifiers of Debian 12 do not know them; want Ed25519 (22) or RSA", e.PrimaryKey.PubKeyAlgo)
	}
	e.Subkeys = nil
	return &Key{e}, nil
}

// ParseRing reads public keys, armoured or not; several armoured blocks may follow
// each other. Errors are of class Input.
func ParseRing(data []byte) (Ring, error) {
	var ring Ring
	const end = "-----END PGP PUBLIC KEY BLOCK-----"
	for len(bytes.TrimSpace(data)) > 0 {
		block := data
		if i := bytes.Index(data, []byte(end)); i >= 0 {
			block, data = data[:i+len(end)], data[i+len(end):]
		} else {
			data = nil
		}
		keys, err := parse(block)
		if err != nil {
			return nil, err
		}
		ring = append(ring, keys...)
	}
	if len(ring) == 0 {
		return nil, fault.New(fault.Input, "there is no key in it")
	}
	return ring, nil
}

func parse(data []byte) (openpgp.EntityList, error) {
	if len(data) > maxKey {
		return nil, fault.New(fault.Input, "more than %d bytes, which no key has", maxKey)
	}
	var ring openpgp.EntityList
	var err error
	if bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN")) {
		ring, err = openpgp.ReadArmoredKeyRing(bytes.NewReader(data))
	} else {
		ring, err = openpgp.ReadKeyRing(bytes.NewReader(data))
	}
	if err != nil {
		return nil, fault.New(fault.Input, "not an OpenPGP key: %w", err)
	}
	return ring, nil
}

// Fingerprint is the key's, in capitals without spaces.
func (k *Key) Fingerprint() string { return fingerprint(k.entity) }

func fingerprint(e *openpgp.Entity) string {
	return strings.ToUpper(hex.EncodeToString(e.PrimaryKey.Fingerprint))
}

// Expires is when the key ends; zero is never.
func (k *Key) Expires() time.Time { return expires(k.entity) }

func expires(e *openpgp.Entity) time.Time {
	id := e.PrimaryIdentity()
	if id == nil || id.SelfSignature == nil || id.SelfSignature.KeyLifetimeSecs == nil || *id.SelfSignature.KeyLifetimeSecs == 0 {
		return time.Time{}
	}
	return e.PrimaryKey.CreationTime.Add(time.Duration(*id.SelfSignature.KeyLifetimeSecs) * time.Second).UTC()
}

// Created is when the key was made.
func (k *Key) Created() time.Time { return k.entity.PrimaryKey.CreationTime.UTC() }

// Try makes a signature at that time and verifies it. A key that was read may still be one that cannot sign: it
// has ended, was revoked, or only certifies other keys. Errors are of class Input.
func (k *Key) Try(when time.Time) error {
	signed, err := ClearSign([]byte("trial\n"), []*Key{k}, when)
	if err != nil {
		return err
	}
	if _, err := Verify(signed, Ring{k.entity}); err != nil {
		return fault.New(fault.Input, "what the key %s signs does not verify: %w", k.Fingerprint(), err)
	}
	return nil
}

// Public is the public key, armoured.
func (k *Key) Public() []byte {
	var body bytes.Buffer
	if err := k.entity.Serialize(&body); err != nil {
		panic("sign: a key in memory does not serialize: " + err.Error())
	}
	return armoured(openpgp.PublicKeyType, body.Bytes())
}

// Secret is the secret key, armoured and not protected.
func (k *Key) Secret() ([]byte, error) {
	var body bytes.Buffer
	if err := k.entity.SerializePrivateWithoutSigning(&body, nil); err != nil {
		return nil, err
	}
	return armoured(openpgp.PrivateKeyType, body.Bytes()), nil
}

// Public joins the public keys of a ring, armoured each, in the order given.
func Public(keys []*Key) []byte {
	var out []byte
	for _, k := range keys {
		out = append(out, k.Public()...)
	}
	return out
}

// armoured is RFC 9580's ASCII armour with a checksum and a line end.
func armoured(kind string, body []byte) []byte {
	var out bytes.Buffer
	w, err := armor.EncodeWithChecksumOption(&out, kind, nil, true)
	if err == nil {
		_, err = w.Write(body)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic("sign: armour in memory: " + err.Error()) // a bytes.Buffer does not fail
	}
	out.WriteByte('\n')
	return out.Bytes()
}

// ClearSign signs a text with every key. The text ends in a line end, and no line of
// it in a blank: those are not covered by such a signature.
func ClearSign(text []byte, keys []*Key, when time.Time) ([]byte, error) {
	if !bytes.HasSuffix(text, []byte("\n")) {
		return nil, errors.New("sign: the text does not end in a line end")
	}
	body := text[:len(text)-1]
	for line := range bytes.SplitSeq(body, []byte("\n")) {
		if n := len(line); n > 0 && (line[n-1] == ' ' || line[n-1] == '\t' || line[n-1] == '\r') {
			return nil, fmt.Errorf("sign: the line %q ends in a blank", line)
		}
	}
	sigs, err := signatures(keys, when, func(w io.Writer, e *openpgp.Entity, c *packet.Config) error {
		return openpgp.DetachSignText(w, e, bytes.NewReader(body), c)
	})
	if err != nil {
		return nil, err
	}
	return assemble(body, sigs), nil
}

// Detach signs bytes with every key and returns the armoured signatures.
func Detach(data []byte, keys []*Key, when time.Time) ([]byte, error) {
	sigs, err := signatures(keys, when, func(w io.Writer, e *openpgp.Entity, c *packet.Config) error {
		return openpgp.DetachSign(w, e, bytes.NewReader(data), c)
	})
	if err != nil {
		return nil, err
	}
	return armoured(openpgp.SignatureType, sigs), nil
}

func signatures(keys []*Key, when time.Time, one func(io.Writer, *openpgp.Entity, *packet.Config) error) ([]byte, error) {
	if len(keys) == 0 {
		return nil, fault.New(fault.Input, "there is no key to sign with")
	}
	var all bytes.Buffer
	for _, k := range keys {
		switch {
		case when.Before(k.Created()):
			return nil, fault.New(fault.Input, "cannot sign as of %s: the key %s was made at %s", when.UTC().Format(time.RFC3339), k.Fingerprint(), k.Created().Format(time.RFC3339)).
				WithMend("set this machine's clock, or the date that was given")
		case !k.Expires().IsZero() && !when.Before(k.Expires()):
			return nil, fault.New(fault.Input, "the key %s expired at %s", k.Fingerprint(), k.Expires().Format(time.RFC3339)).
				WithMend("make a new one with `slipway mirror key rotate`, or set this machine's clock")
		}
		if _, ok := k.entity.SigningKeyById(when, 0); !ok {
			return nil, fault.New(fault.Input, "the key %s may not sign: it was revoked, or only certifies other keys (signing subkeys are not used)", k.Fingerprint()).
				WithMend("take a key whose primary key signs: gpg --list-secret-keys shows an S in its first line")
		}
		if err := one(&all, k.entity, configAt(when)); err != nil {
			return nil, fmt.Errorf("signing with the key %s: %w", k.Fingerprint(), err)
		}
	}
	return all.Bytes(), nil
}

// Verified is what Verify found.
type Verified struct {
	Text    []byte    // what is signed, and nothing else
	Signers []string  // fingerprints of the ring's keys that signed it
	When    time.Time // when the newest of the signatures was made, as it says
}

// Verify checks a clear-signed message against a ring. The clock of this machine has
// no part in it: keys must have been valid when the signature says it was made.
// Errors are of class Integrity.
func Verify(data []byte, ring Ring) (*Verified, error) {
	block, _ := clearsign.Decode(data)
	if block == nil {
		return nil, fault.New(fault.Integrity, "not a clear-signed message")
	}
	when, err := made(block.ArmoredSignature.Body)
	if err != nil {
		return nil, fault.New(fault.Integrity, "the signature is malformed: %w", err)
	}
	text, signers, err := apt.VerifyInRelease(data, openpgp.EntityList(ring), ring.Fingerprints(), when)
	if err != nil {
		return nil, err
	}
	return &Verified{Text: text, Signers: signers, When: when}, nil
}

// Canonical says whether a clear-signed message is, byte for byte, as ClearSign writes it. OpenPGP
// leaves room for changes that no signature covers; in a file of ours they are damage.
func Canonical(data []byte) bool {
	block, _ := clearsign.Decode(data)
	if block == nil {
		return false
	}
	sigs, err := io.ReadAll(io.LimitReader(block.ArmoredSignature.Body, maxKey))
	if err != nil {
		return false
	}
	text := bytes.TrimSuffix(block.Plaintext, []byte("\n"))
	return bytes.Equal(data, assemble(text, sigs))
}

// assemble is a clear-signed message of a text without its last line end.
func assemble(body, sigs []byte) []byte {
	var out bytes.Buffer
	out.WriteString("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\n")
	for line := range bytes.SplitSeq(body, []byte("\n")) {
		if len(line) > 0 && line[0] == '-' {
			out.WriteString("- ")
		}
		out.Write(line)
		out.WriteByte('\n')
	}
	out.Write(armoured(openpgp.SignatureType, sigs))
	return out.Bytes()
}

// made is the newest creation time among signatures.
func made(r io.Reader) (newest time.Time, err error) {
	packets := packet.NewReader(io.LimitReader(r, maxKey))
	for {
		p, err := packets.Next()
		if err == io.EOF {
			return newest, nil
		}
		if err != nil {
			return newest, err
		}
		if s, ok := p.(*packet.Signature); ok && s.CreationTime.After(newest) {
			newest = s.CreationTime
		}
	}
}

// Fingerprints are those of the ring's keys.
func (r Ring) Fingerprints() []string {
	var all []string
	for _, e := range r {
		all = append(all, fingerprint(e))
	}
	return all
}

// Without is the ring without the keys of these fingerprints.
func (r Ring) Without(fingerprints []string) Ring {
	return slices.DeleteFunc(slices.Clone(r), func(e *openpgp.Entity) bool { return slices.Contains(fingerprints, fingerprint(e)) })
}

// Soon is how long before its end a key is warned of.
const Soon = 90 * 24 * time.Hour

// Warnings says which keys of the ring have ended by now, or will soon.
func (r Ring) Warnings(now time.Time) []string {
	var all []string
	for _, e := range r {
		end := expires(e)
		switch {
		case end.IsZero() || now.Add(Soon).Before(end):
		case now.Before(end):
			all = append(all, fmt.Sprintf("the signing key %s ends at %s, in %d days: rotate it and carry the next bundle before that", fingerprint(e), end.Format(time.RFC3339), int(end.Sub(now).Hours()/24)))
		default:
			all = append(all, fmt.Sprintf("the signing key %s ended at %s: apt no longer accepts what it signed", fingerprint(e), end.Format(time.RFC3339)))
		}
	}
	return all
}

// Expiries is when each key of the ring ends, by fingerprint; zero is never.
func (r Ring) Expiries() map[string]time.Time {
	all := map[string]time.Time{}
	for _, e := range r {
		all[fingerprint(e)] = expires(e)
	}
	return all
}
