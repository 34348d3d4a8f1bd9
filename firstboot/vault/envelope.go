package vault

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"filippo.io/age"

	"github.com/slipwayhq/slipway/internal/fault"
)

// envelope is how the store's file is kept: plain, or encrypted for the holders
// of age keys or of a passphrase.
type envelope struct {
	encrypted  bool
	passphrase string // "" where age keys are used
	dirty      bool   // the file is not yet kept this way
}

func (e envelope) fileName() string {
	if e.encrypted {
		return encryptedFile
	}
	return plainFile
}

// scryptHeader is how a file begins that a passphrase opens (age-encryption.org/v1,
// "scrypt recipient type").
const scryptHeader = "age-encryption.org/v1\n-> scrypt "

// decrypt opens an encrypted store. Its errors have a class where the key is at
// fault, and none where the file is.
func decrypt(data []byte, o Options) ([]byte, envelope, error) {
	e := envelope{encrypted: true}
	var identities []age.Identity
	if bytes.HasPrefix(data, []byte(scryptHeader)) {
		var err error
		if e.passphrase, err = ask(o, false); err != nil {
			return nil, e, err
		}
		identity, err := age.NewScryptIdentity(e.passphrase)
		if err != nil {
			return nil, e, fault.New(fault.Input, "the passphrase: %w", err)
		}
		identities = append(identities, identity)
	} else {
		var err error
		if identities, err = readIdentities(o.IdentityFile); err != nil {
			return nil, e, err
		}
	}
	r, err := age.Decrypt(bytes.NewReader(data), identities...)
	var none *age.NoIdentityMatchError
	switch {
	case errors.As(err, &none) && e.passphrase != "":
		return nil, e, fault.New(fault.Input, "the passphrase does not open the store")
	case errors.As(err, &none):
		return nil, e, fault.New(fault.Input, "the identity in %s does not open the store", o.IdentityFile).
			WithMend("give the identity that belongs to one of the keys that the store was encrypted for")
	case err != nil:
		return nil, e, fmt.Errorf("it cannot be decrypted: %w", err)
	}
	plain, err := io.ReadAll(io.LimitReader(r, maxStore+1))
	if err != nil {
		return nil, e, fmt.Errorf("it cannot be decrypted: %w", err)
	}
	if len(plain) > maxStore {
		return nil, e, fault.New(fault.Input, "it is larger than the limit of %d MiB", maxStore>>20)
	}
	return plain, e, nil
}

func ask(o Options, anew bool) (string, error) {
	if o.Passphrase == nil {
		return "", fault.New(fault.Input, "the store is encrypted with a passphrase, and nobody can be asked for it").
			WithMend("give it with --age-passphrase-file FILE, or run the command on a terminal")
	}
	p, err := o.Passphrase(anew)
	if err == nil && p == "" {
		err = fault.New(fault.Input, "the passphrase is empty")
	}
	return p, err
}

func readIdentities(path string) ([]age.Identity, error) {
	if path == "" {
		return nil, fault.New(fault.Input, "the store is encrypted, and no age identity is given").
			WithMend("give the file with --age-identity FILE, or in SLIPWAY_AGE_IDENTITY")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fault.New(fault.Input, "the age identity: %w", err)
	}
	defer f.Close()
	identities, err := age.ParseIdentities(io.LimitReader(f, 1<<20))
	if err != nil {
		// age's error names the line; it may also quote what stands there.
		return nil, fault.New(fault.Input, "%s holds no age identity", path).
			WithMend("give the file that age-keygen wrote, with a line AGE-SECRET-KEY-1…")
	}
	return identities, nil
}

// change makes the envelope what the options ask for.
func (e *envelope) change(o Options, recipients *[]string) error {
	switch {
	case o.Encrypt && len(o.Recipients) > 0:
		return fault.New(fault.Usage, "a store is encrypted either for keys or with a passphrase, not both")
	case o.Encrypt && e.passphrase == "":
		p, err := ask(o, true)
		if err != nil {
			return err
		}
		*e, *recipients = envelope{encrypted: true, passphrase: p, dirty: true}, nil
	case len(o.Recipients) > 0:
		if _, err := parseRecipients(o.Recipients); err != nil {
			return err
		}
		if !e.encrypted || e.passphrase != "" || !slices.Equal(*recipients, o.Recipients) {
			*e, *recipients = envelope{encrypted: true, dirty: true}, slices.Clone(o.Recipients)
		}
	case e.encrypted && e.passphrase == "" && len(*recipients) == 0:
		return fault.New(fault.Input, "the store does not say which keys it is encrypted for").
			WithMend("name them with --age-recipient KEY")
	}
	return nil
}

func parseRecipients(keys []string) ([]age.Recipient, error) {
	var out []age.Recipient
	for _, key := range keys {
		if strings.HasPrefix(strings.ToUpper(key), "AGE-SECRET-KEY-") {
			return nil, fault.New(fault.Usage, "what is given as an age recipient is a secret key").
				WithMend("give its public key, age1…, which age-keygen -y FILE tells")
		}
		r, err := age.ParseRecipients(strings.NewReader(key))
		if err != nil {
			return nil, fault.New(fault.Usage, "%q is not a public key of age", key).
				WithMend("give a key that begins with age1, as age-keygen prints it")
		}
		out = append(out, r...)
	}
	return out, nil
}

// seal turns the store's text into the file's content.
func (e envelope) seal(plain []byte, recipients []string) ([]byte, error) {
	if !e.encrypted {
		return plain, nil
	}
	var to []age.Recipient
	if e.passphrase != "" {
		r, err := age.NewScryptRecipient(e.passphrase)
		if err != nil {
			return nil, err
		}
		to = append(to, r)
	} else {
		var err error
		if to, err = parseRecipients(recipients); err != nil {
			return nil, err
		}
	}
	var b bytes.Buffer
	w, err := age.Encrypt(&b, to...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
