package discovery

import (
	"bufio"
	"context"
	"fmt"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"
)

// ProtocolReflect is the protocol by which a relay tells us our own address.
const ProtocolReflect protocol.ID = "/fwd/reflect/1"

// reflectTimeout bounds a question: two round trips on the worst path we would
// still punch over, and a busy relay.
const reflectTimeout = 5 * time.Second

// Reflect asks the relay at the other end of c which address it sees there:
// our own, as the last NAT on the way wrote it. The answer is for that very
// connection and so for its local port.
func Reflect(ctx context.Context, c network.Conn) (ma.Multiaddr, error) {
	a, err := reflect(ctx, c)
	if err != nil {
		return nil, fmt.Errorf("ask %s at %s for our address: %w", c.RemotePeer(), c.RemoteMultiaddr(), err)
	}
	return a, nil
}

func reflect(ctx context.Context, c network.Conn) (ma.Multiaddr, error) {
	ctx, cancel := context.WithTimeout(ctx, reflectTimeout)
	defer cancel()
	s, err := c.NewStream(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	defer context.AfterFunc(ctx, func() { s.Reset() })()

	if err := s.SetProtocol(ProtocolReflect); err != nil {
		return nil, err
	}
	if err := multistream.SelectProtoOrFail(ProtocolReflect, s); err != nil {
		return nil, err
	}
	if err := s.CloseWrite(); err != nil {
		return nil, err
	}
	b, err := readMsg(bufio.NewReaderSize(s, 2*maxAddr), maxAddr)
	if err != nil {
		return nil, err
	}
	return parseReflection(b)
}

// parseReflection parses the answer: an IP address with a TCP or UDP port in
// front, whatever the transport adds behind, no circuit.
func parseReflection(b []byte) (ma.Multiaddr, error) {
	a, ok := parseAddr(b)
	if !ok || len(a) < 2 {
		return nil, errMalformed
	}
	ip, port := a[0].Protocol().Code, a[1].Protocol().Code
	if (ip != ma.P_IP4 && ip != ma.P_IP6) || (port != ma.P_TCP && port != ma.P_UDP) {
		return nil, errMalformed
	}
	for _, c := range a {
		if c.Protocol().Code == ma.P_CIRCUIT {
			return nil, errMalformed
		}
	}
	return a, nil
}
