package node

import (
	"io"
	"math"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/host/resource-manager"
	"github.com/libp2p/go-libp2p/p2p/muxer/yamux"
	"github.com/libp2p/go-libp2p/p2p/net/connmgr"
	"github.com/libp2p/go-libp2p/x/rate"
)

const (
	// maxConns is how many connections, strangers' included, are open at once; beyond it new ones are
	// refused before their handshake. A relay for some thousand peers, each with QUIC and TCP, fits.
	maxConns = 16384
	// maxConnsAddr is how many may come from one IPv4 address or IPv6 network of 56 bits: a large site
	// behind one address, or all that one relay carries.
	maxConnsAddr = 4096
	// maxHandshakes is how many of them may still be proving who they are: what a stranger can fill. More
	// than one address may have, so that slow handshakes from one keep nobody else out.
	maxHandshakes = maxConnsAddr + maxConnsAddr/2
	// spareDescriptors is the part of the process's descriptors, one in so many, that connections never
	// take: sessions' sockets, files and the control socket need theirs.
	spareDescriptors = 4

	// Above highPeers or highPeersRelay connections the connection manager closes unprotected ones
	// until three quarters are left. Peers in use and relays are protected.
	highPeers      = 512
	highPeersRelay = 12288

	// muxWindow is what one yamux stream may have in flight, from its beginning: the library's way to let windows grow
	// loses half a window of credit each time (go-yamux v5.1.0, Stream.sendWindowUpdate: of two deltas the peer is told
	// the second), so that in the end the sender stands still for a round trip after each half. Credit comes by halves,
	// and 32 MiB carry 1 Gbit/s over 250 ms. Lanes are read at once, whatever their sessions do.
	muxWindow = 64 << 20
	// muxWindowRelay is the same at a relay, where it waits in memory if the far end of a circuit reads slowly: 4 MiB
	// carry 600 Mbit/s over 50 ms.
	muxWindowRelay = 8 << 20
	// muxWriteTimeout is how long a TCP write may block before the connection counts as dead. The
	// library's 10 s end connections on merely slow wires; our own pings notice death sooner.
	muxWriteTimeout = 60 * time.Second
	// muxKeepAlive is how often an idle TCP connection is touched; NATs keep those for minutes.
	muxKeepAlive = 30 * time.Second
)

// newLimits builds the resource manager. Only what a stranger can use up before being known is
// limited: members are authenticated, and the library's defaults (64 to 75 streams a peer, 8
// connections an address with 0.2 new ones a second, a relay's address counting for all that it
// relays) end a port forwarder. Memory is never refused: yamux answers a refusal by ending the whole
// connection, not the one stream.
func newLimits() (network.ResourceManager, error) {
	var limits rcmgr.PartialLimitConfig
	limits.System = rcmgr.ResourceLimits{Conns: maxConns, ConnsInbound: maxConns, ConnsOutbound: maxConns}
	limits.Transient = rcmgr.ResourceLimits{Conns: maxHandshakes, ConnsInbound: maxHandshakes, ConnsOutbound: maxHandshakes}
	if n := Descriptors(); n > 0 {
		limits.System.FD = rcmgr.LimitVal(max(1, n-n/spareDescriptors))
	}
	perIP4 := []rcmgr.ConnLimitPerSubnet{{PrefixLength: 32, ConnCount: maxConnsAddr}}
	perIP6 := []rcmgr.ConnLimitPerSubnet{{PrefixLength: 56, ConnCount: maxConnsAddr}}
	return rcmgr.NewResourceManager(
		rcmgr.NewFixedLimiter(limits.Build(rcmgr.InfiniteLimits)),
		// Infinite limits alone do not lift these two (go-libp2p #3431).
		rcmgr.WithLimitPerSubnet(perIP4, perIP6),
		rcmgr.WithConnRateLimiters(&rate.Limiter{}),
		rcmgr.WithMetricsDisabled(),
	)
}

func newConnManager(relay bool) (*connmgr.BasicConnMgr, error) {
	high := highPeers
	if relay {
		high = highPeersRelay
	}
	return connmgr.NewConnManager(high*3/4, high, connmgr.WithGracePeriod(time.Minute))
}

// newMuxer is yamux with our own settings; a copy, for the library's are shared by the process.
func newMuxer(relay bool) *yamux.Transport {
	mux := *yamux.DefaultTransport
	window := uint32(muxWindow)
	if relay {
		window = muxWindowRelay
	}
	mux.InitialStreamWindowSize, mux.MaxStreamWindowSize = window, window
	mux.ConnectionWriteTimeout = muxWriteTimeout
	mux.KeepAliveInterval = muxKeepAlive
	mux.EnableKeepAlive = true
	mux.MaxIncomingStreams = math.MaxUint32
	mux.LogOutput = io.Discard
	return &mux
}
