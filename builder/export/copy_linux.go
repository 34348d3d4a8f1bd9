package export

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// copyFileRange copies up to n bytes of from at off to to's current position and
// moves that position. It stops early, without an error, where the kernel
// cannot do it between these two files; the caller copies the rest.
func copyFileRange(ctx context.Context, to, from *os.File, off, n int64) (int64, error) {
	const step = 64 << 20 // so that a cancelled build stops soon
	start := off
	for n > 0 {
		if err := ctx.Err(); err != nil {
			return off - start, err
		}
		k, err := unix.CopyFileRange(int(from.Fd()), &off, int(to.Fd()), nil, int(min(n, step)), 0)
		switch {
		case err == nil && k == 0:
			return off - start, nil // the end of the file, which ReadAt reports better
		case err == nil:
			n -= int64(k)
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EIO), errors.Is(err, unix.EFBIG):
			return off - start, &os.PathError{Op: "copy_file_range", Path: to.Name(), Err: err}
		default: // EXDEV, EINVAL, ENOSYS, EOPNOTSUPP, EBADF (append mode): not between these files
			return off - start, nil
		}
	}
	return off - start, nil
}
