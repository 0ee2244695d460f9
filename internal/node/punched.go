package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	libp2pquic "github.com/libp2p/go-libp2p/p2p/transport/quic"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/punch"
)

// take makes a socket at which p was heard a connection to p: a QUIC transport of its own is built
// around the socket, dials or listens there once, and the result goes through the door. The transport
// lives as long as its only connection.
func (n *Node) take(ctx context.Context, p peer.ID, socket punch.Socket, to netip.AddrPort, role punch.Role) error {
	s := socket.(*freshSocket)
	given := false
	quic, err := newQUIC(n.parts.key, n.parts.limits, func(string, *net.UDPAddr) (net.PacketConn, error) {
		if given {
			return nil, errors.New("a punched socket serves one connection")
		}
		given = true
		return s.UDPConn, nil
	})
	if err != nil {
		return errors.Join(err, s.Close())
	}
	end := func() { quic.Close(); s.Close() }
	t, err := libp2pquic.NewTransport(n.parts.key, quic, nil, nil, n.parts.limits)
	if err != nil {
		end()
		return err
	}
	var c transport.CapableConn
	if role == punch.Client {
		c, err = t.Dial(ctx, ma.StringCast(fmt.Sprintf("/ip4/%s/udp/%d/quic-v1", to.Addr(), to.Port())), p)
	} else {
		c, err = acceptOne(ctx, t, s.LocalAddr().(*net.UDPAddr).Port, p)
	}
	if err != nil {
		end()
		return fmt.Errorf("QUIC at a punched socket, peer at %s: %w", to, err)
	}
	_, err = n.door.admit(ctx, &lastConn{CapableConn: c, end: sync.OnceFunc(end)})
	return err
}

// acceptOne waits for p's connection at a transport's only port. The listener goes with the transport.
func acceptOne(ctx context.Context, t transport.Transport, port int, p peer.ID) (transport.CapableConn, error) {
	l, err := t.Listen(ma.StringCast(fmt.Sprintf("/ip4/0.0.0.0/udp/%d/quic-v1", port)))
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { l.Close() })
	for {
		c, err := l.Accept()
		if err != nil {
			stop()
			return nil, errors.Join(err, l.Close(), ctx.Err())
		}
		if c.RemotePeer() != p {
			c.Close()
			continue
		}
		if !stop() {
			c.Close()
			return nil, ctx.Err()
		}
		return &listened{c, l}, nil
	}
}

// listened is an accepted connection whose listener ends with it.
type listened struct {
	transport.CapableConn
	listener transport.Listener
}

func (c *listened) Close() error { return errors.Join(c.CapableConn.Close(), c.listener.Close()) }

func (c *listened) CloseWithError(code network.ConnErrorCode) error {
	return errors.Join(c.CapableConn.CloseWithError(code), c.listener.Close())
}

// lastConn ends the transport beneath with the connection.
type lastConn struct {
	transport.CapableConn
	end func()
}

func (c *lastConn) Close() error {
	defer c.end()
	return c.CapableConn.Close()
}

func (c *lastConn) CloseWithError(code network.ConnErrorCode) error {
	defer c.end()
	return c.CapableConn.CloseWithError(code)
}
