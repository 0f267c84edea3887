package sqltest

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/idemq/idemq/internal/testenv"
)

// fill makes the data folder of a new server: by running a program that gets it behind the
// option data, or by copying what the same program made before, for the same server. On a
// busy machine the copy takes seconds less. A .cache that cannot be read or written costs
// nothing but that.
func (s *Server) fill(server, name, data string, args ...string) error {
	version, err := exec.Command(server, "--version").Output()
	if err != nil {
		return fmt.Errorf("%s --version: %w", server, err)
	}
	made := sha256.Sum256([]byte(strings.Join(append([]string{server, string(version), name, data}, args...), "\x00")))
	template := filepath.Join(testenv.Root(s.tb), ".cache", "sqltest", fmt.Sprintf("%s-%x", s.engine.name(), made[:8]))
	if _, err := os.Stat(template); err == nil {
		err := os.CopyFS(s.data, os.DirFS(template))
		if err == nil {
			err = s.as.ownsAll(s.data)
		}
		if err == nil {
			return nil
		}
		if err := s.empty(); err != nil {
			return err
		}
	}
	if err := s.do(name, append(args, data+s.data)...); err != nil {
		return err
	}
	_ = keep(s.data, template)
	return nil
}

// keep copies a data folder into the cache: whole or not at all.
func keep(data, template string) error {
	cache := filepath.Dir(template)
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(cache, "new")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(filepath.Join(work, "data"), os.DirFS(data)); err != nil {
		return err
	}
	// Where another run was faster, its folder stays.
	return os.Rename(filepath.Join(work, "data"), template)
}
