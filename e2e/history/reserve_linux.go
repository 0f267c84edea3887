package history

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// reserve makes a file longer. A full disk is an error here; without the room reserved it
// would be a SIGBUS, when the memory that the file is mapped to is written.
func reserve(f *os.File, from, n int64) error {
	err := unix.Fallocate(int(f.Fd()), 0, from, n)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return f.Truncate(from + n)
	}
	return err
}
