package node

import (
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/quic-go/quic-go"
)

// Datagrams is the QUIC connection below s, to exchange QUIC datagrams on; nil where there is none, as over a relay or TCP, or where the
// other end takes none. libp2p enables them on each connection and uses none itself.
func Datagrams(s network.Stream) *quic.Conn {
	var c *quic.Conn
	if !s.Conn().As(&c) {
		return nil
	}
	if d := c.ConnectionState().SupportsDatagrams; !d.Local || !d.Remote {
		return nil
	}
	return c
}
