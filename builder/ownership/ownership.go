// Package ownership models what a build directory cannot say about its files
// by itself: true owners, capabilities and device numbers.
//
// Build directories are written in one way by root and by ordinary users: all
// files belong to the caller, and what differs from a plain file of root's is
// kept in extended attributes of the user namespace (xattr(7), "User extended
// attributes"). They stand on regular files and directories only, the kinds
// that the kernel allows them on; symbolic links are always root's.
//
// In: an attribute's bytes. Out: its value, or an error for bytes that this
// package would not have written.
package ownership

import (
	"fmt"
	"strconv"
	"strings"
)

// The attributes.
const (
	// Owner is "UID:GID" in decimal; absent means 0:0.
	Owner = "user.slipway.owner"
	// Caps is what security.capability would hold: struct vfs_cap_data,
	// revision 2 (linux/capability.h).
	Caps = "user.slipway.caps"
	// Mode is the true mode (octal, 0o7777) of a file whose mode on disk had to
	// be widened so that an ordinary user can read it back.
	Mode = "user.slipway.mode"
	// Node is "c:MAJOR:MINOR" or "b:MAJOR:MINOR" on an empty regular file that
	// stands for a device, which an ordinary user cannot make.
	Node = "user.slipway.node"
)

// FormatOwner is the value of the Owner attribute.
func FormatOwner(uid, gid uint32) []byte {
	return []byte(strconv.FormatUint(uint64(uid), 10) + ":" + strconv.FormatUint(uint64(gid), 10))
}

// ParseOwner reads the value of the Owner attribute.
func ParseOwner(b []byte) (uid, gid uint32, err error) {
	u, g, ok := strings.Cut(string(b), ":")
	un, uerr := strconv.ParseUint(u, 10, 32)
	gn, gerr := strconv.ParseUint(g, 10, 32)
	if !ok || uerr != nil || gerr != nil {
		return 0, 0, fmt.Errorf("attribute %s holds %q, not UID:GID", Owner, b)
	}
	return uint32(un), uint32(gn), nil
}

// FormatMode is the value of the Mode attribute.
func FormatMode(perm uint32) []byte { return []byte(strconv.FormatUint(uint64(perm&0o7777), 8)) }

// ParseMode reads the value of the Mode attribute.
func ParseMode(b []byte) (uint32, error) {
	n, err := strconv.ParseUint(string(b), 8, 32)
	if err != nil || n > 0o7777 {
		return 0, fmt.Errorf("attribute %s holds %q, not an octal mode", Mode, b)
	}
	return uint32(n), nil
}

// FormatNode is the value of the Node attribute.
func FormatNode(block bool, major, minor uint32) []byte {
	kind := "c"
	if block {
		kind = "b"
	}
	return fmt.Appendf(nil, "%s:%d:%d", kind, major, minor)
}

// ParseNode reads the value of the Node attribute.
func ParseNode(b []byte) (block bool, major, minor uint32, err error) {
	parts := strings.Split(string(b), ":")
	if len(parts) == 3 && (parts[0] == "c" || parts[0] == "b") {
		ma, merr := strconv.ParseUint(parts[1], 10, 32)
		mi, nerr := strconv.ParseUint(parts[2], 10, 32)
		if merr == nil && nerr == nil {
			return parts[0] == "b", uint32(ma), uint32(mi), nil
		}
	}
	return false, 0, 0, fmt.Errorf("attribute %s holds %q, not c:MAJOR:MINOR or b:MAJOR:MINOR", Node, b)
}

// Readable returns the permission bits that a file has on disk when its true
// ones are perm: the owner may always read it, and use a directory.
func Readable(perm uint32, dir bool) uint32 {
	if dir {
		return perm | 0o700
	}
	return perm | 0o400
}
