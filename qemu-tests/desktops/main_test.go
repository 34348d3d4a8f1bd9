//go:build long

package desktopstest

import (
	"testing"

	"github.com/slipwayhq/slipway/firstboot/nodetest"
)

// packages are what the images of the roles have, in one tree.
var packages = []string{
	"fonts-dejavu-core", "gunicorn", "haproxy", "nginx", "novnc", "openbox", "openssl", "postgresql-17",
	"python3-cryptography", "python3-django", "python3-psycopg", "tigervnc-standalone-server", "websockify", "x11-xserver-utils", "xterm",
}

func TestMain(m *testing.M) { nodetest.Main(m, packages...) }
