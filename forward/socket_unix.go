//go:build unix

package forward

import (
	"net"
	"sync"
	"syscall"
)

var masking sync.Mutex

// listenClosed makes a unix socket that no other user can connect to from its first moment: a mode set afterwards comes
// after whoever waits for that. The mask is the process's, so what another goroutine makes in these microseconds is closed
// to others, too; and it takes nothing from us, or a folder made now would be shut to ourselves.
func listenClosed(path string) (net.Listener, error) {
	masking.Lock()
	defer masking.Unlock()
	defer syscall.Umask(syscall.Umask(0o077))
	return net.Listen("unix", path)
}
