//go:build !linux

package redistest

import "os/exec"

const diesWithParent = false

// dieWithParent does nothing: a server outlives a killed test here.
func dieWithParent(*exec.Cmd) {}
