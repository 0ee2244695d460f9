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
	return u.Upgrader.Upgrade(ctx, t, coalesce(c), dir, p, scope)
}

// UpgradeGatedMaListener comes after the transport has set its own options, which needs the socket itself.
func (u tuned) UpgradeGatedMaListener(t transport.Transport, l transport.GatedMaListener) transport.Listener {
	return u.Upgrader.UpgradeGatedMaListener(t, tunedListener{l})
}

type tunedListener struct{ transport.GatedMaListener }

func (l tunedListener) Accept() (manet.Conn, network.ConnManagementScope, error) {
	c, scope, err := l.GatedMaListener.Accept()
	if err != nil {
		return nil, nil, err
	}
	tune(c)
	return coalesce(c), scope, nil
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
