package node

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	ma "github.com/multiformats/go-multiaddr"
)

// Everyone here says that it dials back. The relay comes onto the roster long after it was identified.
func TestOnlyTheRostersRelaysAreAskedWhetherWeCanBeDialled(t *testing.T) {
	m := newMesh(t)
	a := m.join(Config{})
	// A second client on the same host: the host's own has nothing to ask about on loopback.
	nat, dialer, err := newAutoNAT(nil, false)
	if err != nil {
		t.Fatal(err)
	}
	defer dialer.Peerstore().Close()
	if err := nat.Start(a.Host()); err != nil {
		t.Fatal(err)
	}
	defer nat.Close()
	server := func(n *Node) *atomic.Int32 { // how often it was asked
		var asked atomic.Int32
		n.Host().SetStreamHandler(autonatv2.DialProtocol, func(s network.Stream) { asked.Add(1); s.Reset() })
		if err := a.ConnectStranger(t.Context(), peer.AddrInfo{ID: n.self, Addrs: n.ListenAddrs()}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "identified", func() bool {
			protos, _ := a.Host().Peerstore().GetProtocols(n.self)
			return slices.Contains(protos, autonatv2.DialProtocol)
		})
		return &asked
	}
	stranger, _ := m.start(Config{})
	defer a.AllowStranger(stranger.self, time.Minute)()
	relay := m.join(Config{})
	byStranger, byMember, byRelay := server(stranger), server(m.join(Config{})), server(relay)
	ask := func() error { // each server is asked once in two minutes
		_, err := nat.GetReachability(t.Context(), []autonatv2.Request{{Addr: ma.StringCast("/ip4/8.8.8.8/udp/1/quic-v1")}})
		return err
	}

	m.mu.Lock()
	m.relays = []peer.AddrInfo{{ID: relay.self}} // nowhere to dial it anew
	m.mu.Unlock()
	a.Refresh()
	eventually(t, "the relay is asked", func() bool { ask(); return byRelay.Load() > 0 })
	for !errors.Is(ask(), autonatv2.ErrNoPeers) {
	}
	if byStranger.Load()+byMember.Load() > 0 {
		t.Errorf("asked: a stranger %d times, a member that is no relay %d times", byStranger.Load(), byMember.Load())
	}
}
