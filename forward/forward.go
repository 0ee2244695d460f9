// Package forward carries connections: an [Entry] from a local listener to a
// peer's service, an [Exit] from a service to its target.
//
//	local, err := forward.ParseLocal("2222")
//	listener, err := local.Listen()
//	entry := &forward.Entry{Listener: listener, Dial: dialNAS}
//	err = entry.Serve(ctx) // until ctx ends, sessions included
//
// What happens to one connection:
//
//  1. Entry accepts it and calls Dial, which returns the near end of a session
//     with the peer. As long as there is no path yet the local program waits,
//     up to [DialWait]; it is not refused for being early.
//  2. The peer's Exit receives the session as an offer with a peer and a service
//     name, asks Lookup whether that peer may use that service and where it
//     points, and dials the target. A refusal is answered with a reason.
//  3. On both machines [Copy] carries the bytes, each direction by itself, until
//     both have ended.
//
// An end is told as what it was. End of file on one side becomes end of file on
// the other, with the opposite direction still open. Anything else, a refusal
// included, becomes a reset, so that no program takes a broken transfer for a
// finished one.
//
// The package also holds the text form of both ends, [Target] and [Local], as it
// stands on the command line, in the configuration and in status.
//
// What it does not do: find peers, decide who may connect, survive a broken path
// (that is the session's work, below Dial), or look into the bytes.
package forward

import (
	"net"
	"time"
)

// Conn is a connection whose two directions end separately, as TCP connections,
// unix sockets and sessions are. A Conn may also have Reset() error, which ends it
// in failure; without it [Reset] does what the kernel offers.
type Conn interface {
	net.Conn
	CloseWrite() error
}

const (
	// DialWait is how long a local program's connection waits for a path to the
	// peer, 30 s: longer than a relay's restart or a laptop's change of network
	// takes, and shorter than the patience of most clients (ssh waits without
	// end, browsers for minutes).
	DialWait = 30 * time.Second

	// TargetTimeout bounds the dialling of a target, 10 s: it is near, so that
	// three lost SYNs (1, 2 and 4 s apart) are as many as are worth waiting for.
	TargetTimeout = 10 * time.Second
)

// keepAlive makes the kernel notice a local program or target that vanished
// without a word: 15 s of silence, then three probes 5 s apart, so half a minute.
// There is no idle timeout: silence alone ends nothing.
var keepAlive = net.KeepAliveConfig{
	Enable:   true,
	Idle:     15 * time.Second,
	Interval: 5 * time.Second,
	Count:    3,
}

// Reset ends c so that the far program sees a failure: by c's own Reset where it
// has one, else by a TCP RST. A unix socket knows no such thing and is closed:
// its program reads an end (docs/session.md, "Ends").
func Reset(c net.Conn) error {
	switch c := c.(type) {
	case interface{ Reset() error }:
		return c.Reset()
	case interface{ SetLinger(sec int) error }:
		c.SetLinger(0) // Close then drops what is unsent and sends RST instead of FIN
	}
	return c.Close()
}
