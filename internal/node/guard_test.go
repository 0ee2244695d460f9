package node

import (
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"

	"fwd/internal/punch"
)

const openProtocol protocol.ID = "/test/open/1"

// answers says whether b serves proto to a, over a connection that is there.
func answers(t *testing.T, a, b *Node, proto protocol.ID) bool {
	t.Helper()
	conns := a.parts.swarm.ConnsToPeer(b.self)
	if len(conns) == 0 {
		t.Fatal("not connected")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	s, err := openOn(ctx, conns[0], proto)
	if err != nil {
		return false
	}
	defer s.Reset()
	if proto == ping.ID {
		_, err := pingOnce(s)
		return err == nil
	}
	return echoOn(s) == nil
}

func TestGuardGivesStrangersNothingButWhatIsOpen(t *testing.T) {
	m := newMesh(t)
	b, _ := m.relay(Config{Open: map[protocol.ID]bool{openProtocol: true}})
	serveEcho(b)
	b.Host().SetStreamHandler(openProtocol, echoHandler)
	stranger, _ := m.start(Config{})
	if err := stranger.ConnectStranger(t.Context(), peer.AddrInfo{ID: b.self, Addrs: b.ListenAddrs()}); err != nil {
		t.Fatal(err)
	}
	release := b.AllowStranger(stranger.self, time.Minute)
	defer release()
	for _, proto := range []protocol.ID{openProtocol, ping.ID} {
		if !answers(t, stranger, b, proto) {
			t.Errorf("%s is not served to a stranger", proto)
		}
	}
	for _, proto := range []protocol.ID{
		echoProtocol, proto.ProtoIDv2Hop, proto.ProtoIDv2Stop, punch.Protocol,
		"/fwd/rendezvous/1", "/fwd/reflect/1", "/libp2p/autonat/2/dial-request",
	} {
		if answers(t, stranger, b, proto) {
			t.Errorf("%s is served to a stranger", proto)
		}
	}
	m.set(stranger.self, true)
	if !answers(t, stranger, b, echoProtocol) {
		t.Error("a member is not served")
	}
}

func TestStrangersConnectionEndsUnlessAllowed(t *testing.T) {
	m := newMesh(t)
	b := m.join(Config{})
	passing, _ := m.start(Config{})
	welcome, _ := m.start(Config{})
	late, _ := m.start(Config{})
	release := b.AllowStranger(welcome.self, time.Hour)
	start := time.Now()
	for _, n := range []*Node{passing, welcome, late} {
		if err := n.ConnectStranger(t.Context(), peer.AddrInfo{ID: b.self, Addrs: b.ListenAddrs()}); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range []*Node{passing, welcome, late} { // by QUIC who dials knows it first
		eventually(t, "connected on the other side", func() bool { return len(b.parts.swarm.ConnsToPeer(n.self)) > 0 })
	}
	m.set(late.self, true) // joins in time
	eventually(t, "the stranger's connection is closed", func() bool { return len(b.parts.swarm.ConnsToPeer(passing.self)) == 0 })
	if took := time.Since(start); took < strangerLife/2 {
		t.Errorf("closed after %v, before it could show a roster", took)
	}
	if len(b.parts.swarm.ConnsToPeer(welcome.self)) == 0 {
		t.Error("the allowed stranger's connection was closed")
	}
	if len(b.parts.swarm.ConnsToPeer(late.self)) == 0 {
		t.Error("the connection of a stranger who became a member was closed")
	}
	release()
	eventually(t, "it ends with the permission", func() bool { return len(b.parts.swarm.ConnsToPeer(welcome.self)) == 0 })
}

func TestRefreshClosesWhoLeftTheRoster(t *testing.T) {
	m := newMesh(t)
	b, c := m.join(Config{}), m.join(Config{})
	leaving := []*Node{m.join(Config{}), m.join(Config{}), m.join(Config{}), m.join(Config{})}
	for _, n := range append(leaving, c) {
		if err := n.dialDirect(t.Context(), b.self, b.ListenAddrs()[0]); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are connected", func() bool { return len(b.Connected()) == len(leaving)+1 })
	// If it were sweeps that cut, the first one's end would be at one, and each other's a whole interval later.
	fastest := time.Hour
	for i, n := range leaving {
		m.set(n.self, false)
		start := time.Now()
		b.Refresh()
		eventually(t, "the revoked peer is cut", func() bool { return len(b.parts.swarm.ConnsToPeer(n.self)) == 0 })
		if i > 0 {
			fastest = min(fastest, time.Since(start))
		}
	}
	if t.Logf("cut after %v", fastest); fastest > time.Second {
		t.Errorf("cut after %v, want 1 s", fastest)
	}
	if len(b.parts.swarm.ConnsToPeer(c.self)) == 0 {
		t.Error("a member was cut")
	}
}

// A search for TCP beside the path dials what the other side names, as a punch does, and is paced like one.
func TestSearchesBesideThePathArePaced(t *testing.T) {
	m := newMesh(t)
	a, b := m.join(Config{}), m.join(Config{})
	b.Host().SetStreamHandler(besideProtocol, echoHandler)
	if err := a.ConnectAt(t.Context(), peer.AddrInfo{ID: b.self, Addrs: b.ListenAddrs()}); err != nil {
		t.Fatal(err)
	}
	served := 0
	for range 2 * punchBurst {
		if answers(t, a, b, besideProtocol) {
			served++
		}
	}
	if served < 1 || served > punchBurst+1 {
		t.Errorf("%d of %d searches at once were served, want %d", served, 2*punchBurst, punchBurst)
	}
}
