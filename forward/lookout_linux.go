package forward

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// failed says whether a socket has an error. It leaves the error there: who takes it away makes a failure an end for
// whoever reads next.
func failed(socket syscall.RawConn) bool {
	var p [1]unix.PollFd // an error is always told
	socket.Control(func(fd uintptr) {
		p[0].Fd = int32(fd)
		unix.Poll(p[:], 0)
	})
	return p[0].Revents&unix.POLLERR != 0
}
