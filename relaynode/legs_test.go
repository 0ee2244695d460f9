package relaynode

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"
	"github.com/multiformats/go-multistream"
)

// connections are those that a network has to some peer.
type connections struct {
	network.Network
	all []network.Conn
}

func (c connections) ConnsToPeer(peer.ID) []network.Conn { return c.all }

// leg is a connection to a peer that answers, or does not.
type leg struct {
	network.Conn
	at     string
	opened time.Time
	dead   bool
}

func (l *leg) RemoteMultiaddr() ma.Multiaddr { return ma.StringCast(l.at) }
func (l *leg) IsClosed() bool                { return false }
func (l *leg) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Opened: l.opened}}
}
func (l *leg) NewStream(context.Context) (network.Stream, error) {
	here, there := net.Pipe()
	go func() { // ends with the pipe
		if l.dead {
			for b := make([]byte, 1<<10); ; {
				if _, err := there.Read(b); err != nil {
					return
				}
			}
		}
		mux := multistream.NewMultistreamMuxer[protocol.ID]()
		mux.AddHandler(proto.ProtoIDv2Stop, nil)
		mux.Negotiate(there)
	}()
	return &legStream{pipe: here, conn: l}, nil
}

type legStream struct {
	network.Stream
	pipe net.Conn
	conn network.Conn
}

func (s *legStream) Read(b []byte) (int, error)    { return s.pipe.Read(b) }
func (s *legStream) Write(b []byte) (int, error)   { return s.pipe.Write(b) }
func (s *legStream) Reset() error                  { return s.pipe.Close() }
func (s *legStream) SetProtocol(protocol.ID) error { return nil }
func (s *legStream) Conn() network.Conn            { return s.conn }

func TestCircuitLeavesAsItCame(t *testing.T) {
	const tcpAt, quicAt = "/ip4/7.0.0.1/tcp/4001", "/ip4/7.0.0.1/udp/4001/quic-v1"
	now := time.Now()
	tcp, quic := &leg{at: tcpAt, opened: now}, &leg{at: quicAt, opened: now}
	dead := &leg{at: tcpAt, dead: true}
	web := &leg{at: "/ip4/7.0.0.1/tcp/443/tls/ws", opened: now.Add(1)}
	further := &leg{at: tcpAt + "/p2p/" + testPeer + "/p2p-circuit", opened: now.Add(1)}
	for _, c := range []struct {
		name  string
		came  string
		conns []network.Conn
		want  *leg
	}{
		{"by TCP", tcpAt, []network.Conn{quic, tcp, web, further}, tcp},
		{"by QUIC", quicAt, []network.Conn{quic, tcp, web, further}, quic},
		{"by TCP, an older one is dead", tcpAt, []network.Conn{dead, tcp}, tcp},
		{"by TCP, which is dead", tcpAt, []network.Conn{dead, web, quic}, quic},
		{"by TCP, which is dead, and there is no QUIC", tcpAt, []network.Conn{dead, web}, nil},
		{"by TCP, where there is none", tcpAt, []network.Conn{quic, web, further}, quic},
		{"by QUIC, where there is none", quicAt, []network.Conn{tcp, web}, nil},
		{"by WebSocket", web.at, []network.Conn{quic, tcp, web}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var l legs
				l.came(ma.StringCast(c.came), testPeer)
				s := l.open(t.Context(), connections{all: c.conns}, testPeer, proto.ProtoIDv2Stop)
				switch {
				case s == nil && c.want != nil:
					t.Error("left to the library")
				case s != nil && (c.want == nil || s.Conn() != network.Conn(c.want)):
					t.Errorf("taken: %s", s.Conn().RemoteMultiaddr())
				}
				if s != nil {
					s.Reset()
				}
			})
		})
	}
}

const testPeer = "12D3KooWHmqUUVR1zVcahZHmD77NhJGXhdj9evHERy3fFDVeaJJj"
