package node

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
	msmux "github.com/multiformats/go-multistream"
)

// openOn opens a stream on this very connection (the host would choose one itself). It costs no round
// trip: the protocol's name travels with the first bytes, and a peer that does not speak it is found
// out at the first read.
func openOn(ctx context.Context, c network.Conn, proto protocol.ID) (network.Stream, error) {
	s, err := c.NewStream(network.WithAllowLimitedConn(ctx, "fwd"))
	if err != nil {
		return nil, fmt.Errorf("open a stream to %s at %s: %w", c.RemotePeer(), c.RemoteMultiaddr(), err)
	}
	if err := s.SetProtocol(proto); err != nil {
		s.Reset()
		return nil, fmt.Errorf("open a stream to %s at %s: %w", c.RemotePeer(), c.RemoteMultiaddr(), err)
	}
	return &lazyStream{Stream: s, lazy: msmux.NewMSSelect(s, proto)}, nil
}

// lazyStream negotiates its protocol with the first write and read.
type lazyStream struct {
	network.Stream
	lazy msmux.LazyConn
}

func (s *lazyStream) Read(b []byte) (int, error)  { return s.lazy.Read(b) }
func (s *lazyStream) Write(b []byte) (int, error) { return s.lazy.Write(b) }

// Close does not wait for the peer's half of the negotiation longer than for a negotiation.
func (s *lazyStream) Close() error {
	s.Stream.SetReadDeadline(time.Now().Add(negotiateWithin))
	return s.lazy.Close()
}

func (s *lazyStream) CloseWrite() error {
	s.lazy.Flush() // an error shows at the next read
	return s.Stream.CloseWrite()
}

var _ io.ReadWriteCloser = (*lazyStream)(nil)
