//go:build !windows

package daemon

import (
	"os/exec"
	"syscall"
)

// detach lets the daemon outlive the terminal: in a session of its own it gets
// neither the terminal's SIGHUP nor its Ctrl-C.
func detach(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} }
