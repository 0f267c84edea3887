//go:build !linux

package child

import "os/exec"

// DiesWithParent says that children outlive this process when it is killed.
const DiesWithParent = false

// dieWithParent does nothing: a server outlives a killed test here.
func dieWithParent(*exec.Cmd) {}
