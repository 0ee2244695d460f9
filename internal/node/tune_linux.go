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
	// unsent is how many bytes the kernel takes that it cannot send yet. It would take 4 MiB and more, and pings and
	// keystrokes of the same connection wait behind them: long enough for the path to look worse than a relay.
	unsent = 256 << 10
)

// tuneSocket is called once connected: the kernel has measured the handshake.
func tuneSocket(fd uintptr) {
	_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, unsent)
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err == nil && time.Duration(info.Rtt)*time.Microsecond >= controlFrom {
		_ = unix.SetsockoptString(int(fd), unix.IPPROTO_TCP, unix.TCP_CONGESTION, control)
	}
}
