package node

import (
	"context"
	"syscall"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	manet "github.com/multiformats/go-multiaddr/net"
)

// tuned is an upgrader that sets socket options before the handshake: it alone sees the sockets that are dialled and those
// that are accepted. A dialer of our own would lose the port that is listened on, and with it TCP punching.
type tuned struct{ transport.Upgrader }

func (u tuned) Upgrade(ctx context.Context, t transport.Transport, c manet.Conn, dir network.Direction, p peer.ID, scope network.ConnManagementScope) (transport.CapableConn, error) {
	tune(c)
	return u.Upgrader.Upgrade(ctx, t, newCoalescing(c), dir, p, scope)
}

func (u tuned) GateMaListener(l manet.Listener) transport.GatedMaListener {
	return u.Upgrader.GateMaListener(tunedListener{l})
}

type tunedListener struct{ manet.Listener }

func (l tunedListener) Accept() (manet.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	tune(c)
	return newCoalescing(c), nil
}

// tune sets what the system offers; what it refuses stays as it is, and doctor says so.
func tune(c manet.Conn) {
	s, ok := c.(syscall.Conn)
	if !ok {
		return
	}
	if raw, err := s.SyscallConn(); err == nil {
		_ = raw.Control(tuneSocket)
	}
}
