// Package cloudconfig reads the user-data that a platform hands to a node: a
// cloud-config document, a script, or a MIME message or archive of several of
// those.
//
// In: bytes that a stranger may have written. Out: UserData, which holds the
// merged Config, the scripts, and Findings: everything in the document that
// slipway does not do as written, each with file, line, key and a way to mend
// it. A finding never stops the rest of the document from being read, and no
// key is dropped without one.
//
// The format is cloud-init's, as its reference says under "User data formats"
// and "Module reference"; the part that slipway acts on is listed in
// docs/metadata.md. Where slipway differs from cloud-init it is because a
// node converges at every boot and is never identified by its instance-id.
package cloudconfig
