package topology

import (
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// label is one part of a host name (RFC 1123, 2.1), in lower case: the same name
// stands in file names and in etcd, which tell cases apart.
var label = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// hostLabel says what is wrong with the name of a cluster, site, network, node or
// virtual address, and how to mend it; "" if nothing is.
func hostLabel(name string) (wrong, mend string) {
	lower := strings.ToLower(name)
	switch {
	case name == "localhost":
		return "\"localhost\" is every machine's own name", "choose another"
	case strings.Trim(name, "0123456789") == "" && name != "":
		return "a name of digits alone reads as an address", "put a letter in front"
	case label.MatchString(name):
		return "", ""
	case label.MatchString(lower):
		return "capital letters are not used in names here", "write " + lower
	case strings.Contains(name, "."):
		return "\"" + short(name) + "\" has a dot", "write the first part alone; the domain stands under \"domain\""
	}
	return "\"" + short(name) + "\" is no host name (RFC 1123)", "use letters a to z, digits, and hyphens in between, 63 at most"
}

// domainName reports whether a text is a DNS name of one label or several, without
// a dot at its end.
func domainName(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	for _, part := range strings.Split(name, ".") {
		if !label.MatchString(part) {
			return false
		}
	}
	return true
}

// unixName is what useradd takes everywhere (NAME_REGEX of Debian's adduser, which
// is narrower than POSIX).
var unixName = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,31}$`)

// systemUsers exist on a node already, with another purpose.
var systemUsers = strings.Fields("root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc nobody " +
	"messagebus sshd _apt systemd-network systemd-resolve systemd-timesync postgres etcd haproxy docker keepalived_script keepalived")

// identifier is what PostgreSQL takes without quotes ("Lexical Structure", 4.1.1),
// at most 63 bytes.
var identifier = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,62}$`)

// reservedDatabases exist already, or mean something else in pg_hba.conf.
var reservedDatabases = strings.Fields("postgres template0 template1 all replication sameuser samerole samegroup")

// reservedRoles are the cluster's own, or mean something else in SQL.
var reservedRoles = strings.Fields("postgres replicator replication rewind rewind_user standby patroni slipway all public none " +
	"current_role current_user session_user user")

// sqlName says what is wrong with the name of a database or of its owner.
func sqlName(name string, reserved []string) (wrong, mend string) {
	switch {
	case strings.HasPrefix(name, "pg_"):
		return "names with pg_ in front are PostgreSQL's own", "choose another"
	case slices.Contains(reserved, name):
		return "\"" + name + "\" is taken by PostgreSQL or by the cluster", "choose another"
	case identifier.MatchString(name):
		return "", ""
	}
	return "\"" + short(name) + "\" is no plain SQL name", "use letters a to z, digits and underscores, 63 at most, and no digit in front"
}

// authorizedKey says what is wrong with a line of authorized_keys.
func authorizedKey(line string) (wrong, mend string) {
	const give = "give the line of the .pub file, such as \"ssh-ed25519 AAAA… name\""
	switch {
	case strings.Contains(line, "PRIVATE KEY"):
		return "this is a private key", "take it out of this file, and " + give
	case strings.ContainsAny(strings.TrimSpace(line), "\r\n"):
		return "there is more than one line", "make each key an item of its own"
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		return "this is no public SSH key", give
	}
	if _, ok := key.(*ssh.Certificate); ok {
		return "this is a certificate, not a key", give
	}
	switch key.Type() {
	case ssh.InsecureKeyAlgoDSA:
		return "DSA keys are refused by OpenSSH since 9.8", "make a new one with ssh-keygen -t ed25519"
	case ssh.KeyAlgoRSA:
		if bits := rsaBits(key); bits < 2048 {
			return "an RSA key of this size is too weak", "make a new one with ssh-keygen -t ed25519"
		}
	}
	return "", ""
}

// hostOrAddress reports whether a text is an address or a DNS name.
func hostOrAddress(text string) bool {
	if a, err := netip.ParseAddr(text); err == nil {
		return usable(a)
	}
	// A name whose last part is a number is a mistyped address (RFC 1123, 2.1).
	last := text[strings.LastIndex(text, ".")+1:]
	return domainName(text) && strings.Trim(last, "0123456789") != ""
}

// usable reports whether an address can be a machine's.
func usable(a netip.Addr) bool {
	return a.IsValid() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLoopback() && a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
