package node

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// silent are addresses by QUIC and TCP where nobody answers.
func silent(t *testing.T) []ma.Multiaddr {
	t.Helper()
	u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	l, err := net.Listen("tcp4", "127.0.0.1:0") // the kernel accepts, and nobody speaks
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return []ma.Multiaddr{
		ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", u.LocalAddr().(*net.UDPAddr).Port)),
		ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", l.Addr().(*net.TCPAddr).Port)),
	}
}

// behindAWall is a relay that is reached by WebSocket alone, though its roster lists more.
func (m *mesh) behindAWall() *Node {
	relay, _ := m.relay(Config{Listen: append(loopback(), ma.StringCast("/ip4/127.0.0.1/tcp/0/tls/ws"))})
	web := slices.DeleteFunc(relay.ListenAddrs(), func(a ma.Multiaddr) bool { return !isWeb(a) })
	m.mu.Lock()
	defer m.mu.Unlock()
	m.relays = []peer.AddrInfo{{ID: relay.self, Addrs: slices.Concat(silent(m.t), silent(m.t), web)}}
	return relay
}

// What nobody answers is dialled for ten seconds; the web does not wait for that.
func TestWhereOnlyTheWebGetsOutTheRelayIsBackSoonAfterAChangeOfNetwork(t *testing.T) {
	for name, dead := range map[string]bool{"the old connection lives on": false, "it is dead": true} {
		t.Run(name, func(t *testing.T) {
			m := newMesh(t)
			relay := m.behindAWall()
			a := m.join(Config{})
			eventually(t, "reserved", reserved(a, 1))
			old := a.paths.links(relay.self)
			began := time.Now()
			a.NetworkChanged()
			if dead {
				relay.Host().Network().ClosePeer(a.self)
				eventually(t, "no longer called reserved, or reserved anew", func() bool {
					return !reserved(a, 1)() || slices.ContainsFunc(a.paths.links(relay.self), func(l *link) bool { return !contains(old, l) })
				})
			}
			eventually(t, "reserved by a new connection alone", func() bool {
				now := a.paths.links(relay.self)
				return reserved(a, 1)() && len(now) == 1 && !contains(old, now[0])
			})
			if took := time.Since(began); took > reserveWithin/2 {
				t.Errorf("it took %v", took)
			}
		})
	}
}
