package boot

import (
	"io"
	"strings"

	"github.com/xi2/xz"
)

// PlainModule says, for a kernel module that its package holds compressed, under
// which name and through which reader it is laid down uncompressed. The layer is
// compressed as a whole, better; and at boot neither init nor udev spends time on
// xz. A module's signature is inside the compressed file and stays valid. For any
// other path the name is empty.
func PlainModule(path string) (name string, plain func(io.Reader) (io.Reader, error)) {
	name, ok := strings.CutSuffix(path, ".ko.xz")
	if !ok || !strings.Contains(path, "lib/modules/") {
		return "", nil
	}
	return name + ".ko", func(r io.Reader) (io.Reader, error) { return xz.NewReader(r, 0) }
}
