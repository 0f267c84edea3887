package sqltest

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// account is the user that runs the servers of a test that runs as root: PostgreSQL
// refuses to. Nil: whoever runs the test.
type account struct {
	name     string
	uid, gid int
}

// unprivileged returns the first of the named users that there is.
func unprivileged(names []string) (*account, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range names {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.Atoi(u.Uid)
		gid, err2 := strconv.Atoi(u.Gid)
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return &account{name: name, uid: uid, gid: gid}, nil
	}
	return nil, fmt.Errorf("the server refuses root, and there is none of the users %s: run the tests as another user", strings.Join(names, ", "))
}

// runs has the account run cmd.
func (a *account) runs(cmd *exec.Cmd) {
	if a == nil {
		return
	}
	cred := &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
}

// owns gives the account a file or a folder.
func (a *account) owns(path string) error {
	if a == nil {
		return nil
	}
	return os.Chown(path, a.uid, a.gid)
}

// ownsAll gives the account a folder and what is in it.
func (a *account) ownsAll(dir string) error {
	if a == nil {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return a.owns(path)
	})
}

// enters tells whether everybody may enter a folder, and opens the way where it leads
// through the temporary folder of this user's own.
func (a *account) enters(dir string) error {
	if a == nil {
		return nil
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	for ; dir != filepath.Dir(dir); dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if info.Mode()&1 != 0 {
			continue
		}
		if !strings.HasPrefix(dir, filepath.Clean(os.TempDir())+string(filepath.Separator)) {
			return fmt.Errorf("the user %s, who runs the server, may not enter %s: chmod o+x, or run the tests as another user than root", a.name, dir)
		}
		if err := os.Chmod(dir, info.Mode().Perm()|0o011); err != nil {
			return err
		}
	}
	return nil
}
