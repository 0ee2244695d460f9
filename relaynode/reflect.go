package relaynode

import (
	"encoding/binary"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// ProtocolReflect tells a peer the address its connection comes from, with two things it can use: a
// proof of that address for other peers, and the permission to ask by plain UDP and TCP (reflector.go).
const ProtocolReflect protocol.ID = "/fwd/reflect/1"

// proofDomain begins what a proof signs, so that it can be taken for nothing else.
const proofDomain = "fwd reflect 1\n"

// reflect writes the remote address of the very connection that s is on, then the proof, then the
// permission and two more ports; all but the address are empty where the relay cannot give them.
func (r *Relay) reflect(s network.Stream) {
	from, at := s.Conn().RemotePeer(), s.Conn().RemoteMultiaddr()
	answer, ok := reflection(at)
	if !ok || !r.admit(from) {
		s.Reset()
		return
	}
	answer = appendBytes(answer, r.proof(from, at))
	answer = appendBytes(answer, r.permission(at))
	if ip, err := manet.ToIP(at); err == nil {
		answer = appendBytes(answer, r.reflector.second(ip))
		answer = appendBytes(answer, r.reflector.stream(ip))
	}
	s.SetDeadline(time.Now().Add(messageTimeout))
	if _, err := s.Write(answer); err != nil {
		s.Reset()
		return
	}
	s.Close()
}

// reflection prints the address; a relayed connection has none.
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

// proof says that p was seen at a at this time: 8 bytes of seconds since 1970 and our signature. Others
// need it before they send p many packets at an address that they have from p alone.
func (r *Relay) proof(p peer.ID, a ma.Multiaddr) []byte {
	key := r.host.Peerstore().PrivKey(r.host.ID())
	if key == nil {
		return nil
	}
	at := binary.BigEndian.AppendUint64(nil, uint64(r.cfg.Now().Unix()))
	text := appendBytes(appendBytes([]byte(proofDomain), []byte(p)), a.Bytes())
	sig, err := key.Sign(append(text, at...))
	if err != nil {
		return nil
	}
	return append(at, sig...)
}

// permission is the UDP port that answers and the token that it wants from that address.
func (r *Relay) permission(a ma.Multiaddr) []byte {
	ip, err := manet.ToIP(a)
	if err != nil {
		return nil
	}
	return r.reflector.permission(ip)
}
