package node

import (
	"context"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

func TestDoorGivesQUICAndTCPToOnePeerTogether(t *testing.T) {
	m := newMesh(t)
	a, b := m.join(Config{}), m.join(Config{})
	serveEcho(b)
	for _, addr := range b.ListenAddrs() {
		c, err := a.door.dial(t.Context(), b.self, addr)
		if err != nil {
			t.Fatalf("dial %s: %v", addr, err)
		}
		if c.RemotePeer() != b.self || !c.RemoteMultiaddr().Equal(addr) {
			t.Errorf("dialled %s of %s, got a connection to %s of %s", addr, b.self, c.RemoteMultiaddr(), c.RemotePeer())
		}
	}
	conns := a.parts.swarm.ConnsToPeer(b.self)
	if len(conns) != 2 {
		t.Fatalf("%d connections, want QUIC and TCP", len(conns))
	}
	for _, c := range conns {
		s, err := openOn(t.Context(), c, echoProtocol)
		if err != nil {
			t.Fatal(err)
		}
		if err := echoOn(s); err != nil {
			t.Errorf("over %s: %v", c.RemoteMultiaddr(), err)
		}
		s.Reset()
	}
	eventually(t, "both ends identified", func() bool {
		known, _ := a.Host().Peerstore().SupportsProtocols(b.self, echoProtocol)
		return len(known) == 1
	})
}

func TestDoorGivesCircuitsOverTwoRelaysToOnePeer(t *testing.T) {
	m := newMesh(t)
	m.relay(Config{})
	m.relay(Config{})
	a, b := m.join(Config{}), m.join(Config{})
	serveEcho(b)
	eventually(t, "b reserves at both relays", reserved(b, 2))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// Both at once: the library's client would dial one after the other and refuse the second.
	conns := make(chan network.Conn, 2)
	for _, r := range m.listed() {
		go func() {
			if err := a.connectRelay(ctx, r); err != nil {
				t.Error(err)
			}
			c, err := a.door.dial(ctx, b.self, circuitVia(r.ID))
			if err != nil {
				t.Error(err)
			}
			conns <- c
		}()
	}
	via := make(map[peer.ID]bool)
	for range 2 {
		c := <-conns
		if c == nil {
			t.FailNow()
		}
		via[relayOf(c.RemoteMultiaddr())] = true
		s, err := openOn(ctx, c, echoProtocol)
		if err != nil {
			t.Fatal(err)
		}
		if err := echoOn(s); err != nil {
			t.Errorf("over %s: %v", c.RemoteMultiaddr(), err)
		}
		s.Reset()
	}
	if len(via) != 2 {
		t.Errorf("circuits over %v, want both relays", via)
	}
}

func TestDoorIsNeverAnnounced(t *testing.T) {
	m := newMesh(t)
	a := m.join(Config{})
	for _, addr := range append(a.Host().Addrs(), append(a.ListenAddrs(), a.ReachableAddrs()...)...) {
		if _, err := addr.ValueForProtocol(ma.P_MEMORY); err == nil {
			t.Errorf("%s is told to others", addr)
		}
	}
	if len(a.Host().Addrs()) == 0 {
		t.Error("nothing is announced")
	}
}
