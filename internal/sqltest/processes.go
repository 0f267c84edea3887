package sqltest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// process is a line of the system's list.
type process struct {
	pid, parent int
	state       string
}

// processes lists all of the system, from /proc where there is one.
func processes() (all []process) {
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// 7 (a name (with anything)) S 1 ...
		var p process
		end := bytes.LastIndexByte(text, ')')
		_, err1 := fmt.Sscan(string(text), &p.pid)
		_, err2 := fmt.Sscan(string(text[end+1:]), &p.state, &p.parent)
		if err1 == nil && err2 == nil {
			all = append(all, p)
		}
	}
	if len(all) > 0 {
		return all
	}
	text, _ := exec.Command("ps", "-A", "-o", "pid=", "-o", "ppid=", "-o", "stat=").Output()
	for line := range strings.Lines(string(text)) {
		var p process
		if _, err := fmt.Sscan(line, &p.pid, &p.parent, &p.state); err == nil {
			all = append(all, p)
		}
	}
	return all
}

// children lists the children of a process.
func children(parent int) (pids []int) {
	for _, p := range processes() {
		if p.parent == parent {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// anyAlive tells whether one of the processes still runs.
func anyAlive(pids []int) bool {
	for _, p := range processes() {
		for _, pid := range pids {
			if p.pid == pid && !strings.HasPrefix(p.state, "Z") {
				return true
			}
		}
	}
	return false
}

// watch has processes killed when the test process dies: being stopped, they do not see
// that their parent has died.
func (s *Server) watch(pids []int) error {
	s.unwatch()
	if len(pids) == 0 {
		return nil
	}
	args := []string{"-c", `read never; kill -KILL "$@"`, "sh"}
	for _, pid := range pids {
		args = append(args, strconv.Itoa(pid))
	}
	guard := exec.Command("sh", args...)
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // an interrupt is not for it
	if _, err := guard.StdinPipe(); err != nil {
		return err
	}
	if err := guard.Start(); err != nil {
		return err
	}
	s.guard = guard
	return nil
}

func (s *Server) unwatch() {
	if s.guard != nil {
		_ = s.guard.Process.Kill()
		_ = s.guard.Wait()
		s.guard = nil
	}
}
