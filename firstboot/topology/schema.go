package topology

import (
	"bytes"
	_ "embed"
)

//go:embed schema.json
var schema []byte

// Schema is the format as JSON Schema, draft 2020-12. Parse sees more, since a
// schema knows nothing of the field beside; and takes a field that is left empty
// for one that is left out.
func Schema() []byte { return bytes.Clone(schema) }
