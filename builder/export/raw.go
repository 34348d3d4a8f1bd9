package export

import (
	"context"
	"io"
	"os"

	"github.com/slipwayhq/slipway/builder/disk"
)

// Raw writes the disk as it is. What no extent covers stays a hole of the file,
// so that 30 GiB take no more room than what is in them.
func Raw(ctx context.Context, f *os.File, im *disk.Image) error {
	if err := f.Truncate(0); err != nil { // old content must not show through the holes
		return err
	}
	s := newSink(ctx, f)
	for _, e := range im.Extents() {
		if _, err := f.Seek(e.Offset, io.SeekStart); err != nil {
			return err
		}
		if err := s.write(im, e.Offset, e.Length); err != nil {
			return err
		}
	}
	return f.Truncate(im.Size())
}
