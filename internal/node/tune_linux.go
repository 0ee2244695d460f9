package node

import (
	"time"

	"golang.org/x/sys/unix"
)

const (
	// control is BBR: where packets are lost, it carries ten times what cubic does and more (docs/bench.md).
	control = "bbr"
	// controlFrom is the round trip from which it is wanted: below that nothing is lost that matters, and pacing
	// costs CPU time.
	controlFrom = time.Millisecond
)

// tuneSocket is called once connected: the kernel has measured the handshake.
func tuneSocket(fd uintptr) {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err == nil && time.Duration(info.Rtt)*time.Microsecond >= controlFrom {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, control)
	}
}
