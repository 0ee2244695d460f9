package relaynode

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"
)

// A circuit leaves as it came, by QUIC or by TCP, where its peer has such a connection. Who asks for it thereby chooses
// for both legs: QUIC survives changes of address, TCP carries three times as much (docs/bench.md), and one leg of each
// has neither. What comes otherwise (WebSocket), or finds neither, leaves as the library has it, by the connection with the
// most streams.

// tcpWithin is how long a TCP connection may take to agree to a circuit; else the circuit leaves by QUIC. It may be
// dead, for an address that changes ends it and not QUIC. Round trips to a relay are shorter, and a resend fits.
const tcpWithin = 500 * time.Millisecond

// legs remembers how circuits come.
type legs struct {
	mu   sync.Mutex
	over map[peer.ID]int // to whom a circuit is asked for, and by what: a code of multiaddr
}

// came notes over what a circuit to p is asked for. The circuit service asks the access list first, which hears of
// that, and then opens the stream to p. Two at once for one p may get each other's: both are circuits all the same.
func (l *legs) came(from ma.Multiaddr, p peer.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over == nil {
		l.over = make(map[peer.ID]int)
	}
	l.over[p] = transportOf(from)
}

func (l *legs) take(p peer.ID) (transport int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer delete(l.over, p)
	return l.over[p]
}

// open opens a stream to p by the transport by which its circuit came, or by QUIC where it came by TCP and none answers;
// nil: there is no such connection. The library must not choose then: it takes the connection with the most streams, which
// a dead one may well be.
func (l *legs) open(ctx context.Context, n network.Network, p peer.ID, id protocol.ID) network.Stream {
	over := l.take(p)
	if over == ma.P_TCP {
		if c := newest(n, p, ma.P_TCP); c != nil {
			if s := agreed(ctx, c, id); s != nil {
				return s
			}
		}
		over = ma.P_QUIC_V1
	}
	c := newest(n, p, over)
	if c == nil {
		return nil
	}
	s, err := c.NewStream(ctx)
	if err != nil {
		return nil
	}
	if s.SetProtocol(id) != nil {
		s.Reset()
		return nil
	}
	return &lazy{Stream: s, rw: multistream.NewMSSelect(s, id)}
}

// newest is the last connection to p by that transport; nil: none.
func newest(n network.Network, p peer.ID, over int) (last network.Conn) {
	for _, c := range n.ConnsToPeer(p) {
		if over != 0 && transportOf(c.RemoteMultiaddr()) == over && !c.IsClosed() &&
			(last == nil || c.Stat().Opened.After(last.Stat().Opened)) {
			last = c
		}
	}
	return last
}

// agreed is a stream on c whose far side has agreed to id, and so is there; nil: not in time. Opening takes time too where
// a dead connection is full of what another circuit sent.
func agreed(ctx context.Context, c network.Conn, id protocol.ID) network.Stream {
	ctx, cancel := context.WithTimeout(ctx, tcpWithin)
	defer cancel()
	s, err := c.NewStream(ctx)
	if err != nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	if s.SetProtocol(id) != nil || multistream.SelectProtoOrFail(id, s) != nil || !stop() {
		s.Reset()
		return nil
	}
	return s
}

// lazy is a stream whose protocol is agreed upon with its first words.
type lazy struct {
	network.Stream
	rw multistream.LazyConn
}

func (s *lazy) Read(b []byte) (int, error)  { return s.rw.Read(b) }
func (s *lazy) Write(b []byte) (int, error) { return s.rw.Write(b) }

// transportOf is the code of plain TCP or of QUIC by which a peer at that address is connected; 0: otherwise, or through
// another relay.
func transportOf(a ma.Multiaddr) (code int) {
	ma.ForEach(a, func(c ma.Component) bool {
		switch c.Protocol().Code {
		case ma.P_TCP, ma.P_QUIC_V1:
			code = c.Protocol().Code
		case ma.P_WS, ma.P_WSS, ma.P_CIRCUIT:
			code = 0
		}
		return true
	})
	return code
}
