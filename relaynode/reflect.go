package relaynode

import (
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// ProtocolReflect tells a peer the address its connection comes from.
const ProtocolReflect protocol.ID = "/fwd/reflect/1"

// reflect writes the remote address of the very connection that s is on.
func (r *Relay) reflect(s network.Stream) {
	answer, ok := reflection(s.Conn().RemoteMultiaddr())
	if !ok || !r.admit(s.Conn().RemotePeer()) {
		s.Reset()
		return
	}
	s.SetDeadline(time.Now().Add(messageTimeout))
	if _, err := s.Write(answer); err != nil {
		s.Reset()
		return
	}
	s.Close()
}

// reflection prints the answer; a relayed connection has none.
func reflection(a ma.Multiaddr) ([]byte, bool) {
	for _, c := range a {
		if c.Protocol().Code == ma.P_CIRCUIT {
			return nil, false
		}
	}
	if len(a) == 0 || len(a.Bytes()) > maxAddr {
		return nil, false
	}
	return appendBytes(nil, a.Bytes()), true
}
