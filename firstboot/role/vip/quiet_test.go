package vip

import (
	"io"
	"log"
)

// quiet drops what http.Server says of handshakes that a check breaks off, which
// is what these tests are about.
var quiet = log.New(io.Discard, "", 0)
