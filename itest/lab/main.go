//go:build linux

package lab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// inUserNS marks the copy of the test binary that Main started inside a user namespace.
const inUserNS = "FWD_LAB_IN_USERNS"

// required is the variable that turns "no namespaces here, skipped" into a failure; for machines that are
// known to have them.
const required = "FWD_LAB_REQUIRED"

// Main is a TestMain for packages that use the lab:
//
//	func TestMain(m *testing.M) { lab.Main(m) }
//
// Where this process may make network namespaces it simply runs the tests. Where it may not, it runs the same
// binary again as root of a user namespace of its own, which needs no privilege on most systems. Where that is
// impossible too the tests run as they are, and New skips with the reason.
func Main(m *testing.M) { os.Exit(Run(m.Run)) }

// Run is Main for a TestMain that has more to do around its tests.
func Run(tests func() int) int {
	if os.Getenv(inUserNS) != "" {
		if err := loopbackUp(); err != nil {
			fmt.Fprintln(os.Stderr, "lab: loopback in the user namespace:", err)
		}
		return tests()
	}
	if mayUnshare() == nil {
		return tests()
	}
	code, err := rerunInUserNS()
	if err != nil {
		fmt.Fprintln(os.Stderr, "lab: no user namespace either:", err)
		return tests()
	}
	return code
}

// mayUnshare tries what the lab needs first: a network namespace of its own.
func mayUnshare() error {
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		failed <- unix.Unshare(unix.CLONE_NEWNET)
	}()
	return <-failed
}

// rerunInUserNS runs this binary, same arguments, as root of new user and network namespaces. The network
// namespace is needed too: only one that belongs to the user namespace can be returned to after a visit to a host.
func rerunInUserNS() (code int, err error) {
	runtime.LockOSThread() // Pdeathsig means the death of this thread
	defer runtime.UnlockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), inUserNS+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	_ = cmd.Wait() // its failure is its exit code
	if code = cmd.ProcessState.ExitCode(); code < 0 {
		code = 1 // ended by a signal
	}
	return code, nil
}
