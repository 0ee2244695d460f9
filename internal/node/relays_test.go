package node

import (
	"context"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

func TestReservationIsMadeAtOnceAndAnnounced(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{})
	changed := make(chan struct{}, 16)
	asked := make(chan peer.ID, 16)
	start := time.Now()
	a := m.join(Config{
		Changed:       func() { changed <- struct{}{} },
		BeforeReserve: func(_ context.Context, p peer.ID) error { asked <- p; return nil },
	})
	eventually(t, "reserved", reserved(a, 1))
	t.Logf("reserved after %v", time.Since(start))
	if got := <-asked; got != relay.self {
		t.Errorf("rosters exchanged with %s before reserving, want %s", got, relay.self)
	}
	<-changed
	announced := func() bool {
		for _, addr := range a.AnnounceAddrs() {
			if relayOf(addr) == relay.self {
				return true
			}
		}
		return false
	}
	eventually(t, "the circuit address is announced", announced)
	eventually(t, "QUIC and TCP connections to the relay", func() bool {
		transports := make(map[string]bool)
		for _, l := range a.paths.links(relay.self) {
			transports[l.sort()] = true
		}
		return transports["quic-v1"] && transports["tcp"]
	})
	eventually(t, "both mappings are known", func() bool { return len(a.NAT().Observed) == 2 })
	if nat := a.NAT(); nat.UDP != "none" || nat.TCP != "none" {
		t.Errorf("mapping %s and %s on loopback, want none", nat.UDP, nat.TCP)
	}
}

func TestReservationComesBackWithTheRelay(t *testing.T) {
	m := newMesh(t)
	key := newKey(t)
	relay, stop := m.relay(Config{Key: key})
	a, b := m.join(Config{}), m.join(Config{})
	serveEcho(b)
	eventually(t, "reserved", func() bool { return reserved(a, 1)() && reserved(b, 1)() })
	listen := relay.ListenAddrs()
	stop()
	eventually(t, "the loss is noticed", func() bool { return !reserved(b, 1)() })
	m.relay(Config{Key: key, Listen: listen})
	start := time.Now()
	eventually(t, "reserved again", reserved(b, 1))
	t.Logf("reserved %v after the restart", time.Since(start))
	if _, err := echo(t, a, b.self, Auto); err != nil {
		t.Error(err)
	}
}

// It lets everybody in and cuts the connection a moment later, as a relay does that is being misused, or a firewall.
func TestARelayThatCutsEachConnectionIsDialledAtAPace(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{})
	a := m.join(Config{})
	var conns atomic.Int64
	relay.Host().Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if c.RemotePeer() == a.self {
			conns.Add(1)
		}
	}})
	const times = 6
	began := time.Now()
	for range times {
		eventually(t, "reserved", reserved(a, 1))
		eventually(t, "lost", func() bool {
			for _, c := range relay.Host().Network().ConnsToPeer(a.self) {
				c.Close()
			}
			return !reserved(a, 1)()
		})
	}
	// Pauses of 0.2, 0.4, 0.8, 1.6 and 2 s, each a fifth shorter at the most.
	if took := time.Since(began); took < 4*time.Second {
		t.Errorf("%d reservations within %v", times, took)
	}
	if n := conns.Load(); n > 3*times { // QUIC, TCP, and one that was being made
		t.Errorf("%d connections for %d reservations", n, times)
	}
}

func TestThirdRelayTakesADeadOnesPlace(t *testing.T) {
	m := newMesh(t)
	stops := make(map[peer.ID]func())
	for range 3 {
		r, stop := m.relay(Config{})
		stops[r.self] = stop
	}
	a := m.join(Config{})
	eventually(t, "two of three", reserved(a, 2))
	var dead peer.ID
	for _, s := range a.RelayStates() {
		if s.Reserved {
			dead = s.Peer
		}
	}
	stops[dead]()
	eventually(t, "the third stands in", func() bool {
		count := 0
		for _, s := range a.RelayStates() {
			if s.Reserved && s.Peer != dead {
				count++
			}
		}
		return count == 2
	})
}

func TestRelaysAreReadAnewOnRefresh(t *testing.T) {
	m := newMesh(t)
	a := m.join(Config{})
	m.relay(Config{})
	a.Refresh()
	eventually(t, "reserved at the new relay", reserved(a, 1))
	m.mu.Lock()
	m.relays = nil
	m.mu.Unlock()
	a.Refresh()
	eventually(t, "no longer announced", func() bool {
		for _, addr := range a.AnnounceAddrs() {
			if relayOf(addr) != "" {
				return false
			}
		}
		return true
	})
}

// Both ends and the relay have QUIC and TCP. The path is the circuit that was there first; what moves much gets one by
// TCP on both of its legs.
func TestBulkByRelayGoesByTCPWhereBothHaveIt(t *testing.T) {
	const proto protocol.ID = "/test/lane/1"
	m := newMesh(t)
	relay, _ := m.relay(Config{})
	a, b := m.join(Config{}), m.join(Config{})
	came := make(chan network.Conn, 16)
	b.Host().SetStreamHandler(proto, func(s network.Stream) {
		io.ReadFull(s, make([]byte, 1))
		came <- s.Conn()
	})
	for _, n := range []*Node{a, b} {
		eventually(t, "QUIC and TCP connections to the relay", func() bool {
			return reserved(n, 1)() && n.connectedBy(relay.self, "quic-v1", true) && n.paths.tcp(relay.self) != nil
		})
	}
	changes, stop := a.Watch()
	defer stop()
	byTCP := func(c network.Conn) bool {
		return transportOf(c.RemoteMultiaddr()) == "tcp" && relayOf(c.RemoteMultiaddr()) == relay.self
	}
	open := func(w Wish) bool {
		w.Kind = Relay
		s, err := a.OpenFor(t.Context(), b.self, proto, w)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Reset()
		if _, err := s.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		there := <-came
		return byTCP(s.Conn()) && byTCP(there)
	}
	if open(Wish{}) {
		t.Error("the path is by TCP where there is QUIC")
	}
	for !open(Wish{Bulk: true}) {
		select {
		case <-changes: // as the daemon does
		case <-time.After(patience):
			t.Fatal("bulk stays where it was")
		}
	}
	if open(Wish{}) {
		t.Error("what is not bulk goes by TCP too")
	}
}

// Who is told is not there yet: a router that maps ports at once answers before New has returned.
func TestNobodyIsToldOfAddressesBeforeServe(t *testing.T) {
	m := newMesh(t)
	told := make(chan struct{}, 1)
	n, err := New(Config{
		Key: newKey(t), Listen: loopback(), Member: m.isMember, Relays: m.listed,
		Changed: func() { told <- struct{}{} },
	})
	if err != nil {
		t.Fatal(err)
	}
	n.portsMapped()
	if err := n.Close(); err != nil { // waits for what was begun
		t.Fatal(err)
	}
	if len(told) > 0 {
		t.Error("told before Serve")
	}
}

// A change of network leaves most machines their address, and a TCP connection to a relay alive that holds the listen
// port's place: one beside it would come from another port, of which no punch can be made.
func TestTCPToARelayComesFromTheListenPortAfterAChangeOfNetwork(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{})
	a := m.join(Config{})
	by := func(transport string) []*link {
		return slices.DeleteFunc(a.paths.links(relay.self), func(l *link) bool { return transportOf(l.conn.RemoteMultiaddr()) != transport })
	}
	tcpIsRight := func() bool { tcp := by("tcp"); return len(tcp) == 1 && a.addrs.ownPort(tcp[0].conn) }
	eventually(t, "QUIC, and TCP from the listen port", func() bool { return len(by("quic-v1")) == 1 && tcpIsRight() })
	for range 3 {
		old := by("quic-v1")[0]
		a.NetworkChanged()
		eventually(t, "another by QUIC", func() bool { now := by("quic-v1"); return len(now) == 1 && now[0] != old })
		eventually(t, "one by TCP, from the listen port", tcpIsRight)
	}
}

// A machine whose clock is fast takes a QUIC connection for made that the relay is about to refuse, for it looks at the
// certificate a round trip later.
func TestARelayThatEndsQUICIsUsedByTCPAndSeldomDialled(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{})
	var ended atomic.Int64 // when the last one was, in Unix ns
	relay.Host().Network().Notify(&network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		if transportOf(c.LocalMultiaddr()) == "quic-v1" {
			ended.Store(time.Now().UnixNano())
			c.Close()
		}
	}})
	var asked atomic.Int64 // for a reservation
	a := m.join(Config{BeforeReserve: func(context.Context, peer.ID) error { asked.Add(1); return nil }})
	eventually(t, "reserved", reserved(a, 1))
	for range 3 {
		var tcp *link
		eventually(t, "connected by TCP", func() bool { tcp = a.paths.tcp(relay.self); return tcp != nil })
		before := asked.Load()
		tcp.conn.Close() // the relay forgets the reservation with it
		eventually(t, "reserved anew", func() bool { return asked.Load() > before && reserved(a, 1)() })
	}
	eventually(t, "not dialled by QUIC for two seconds", func() bool {
		return time.Since(time.Unix(0, ended.Load())) > 2*time.Second
	})
}

// One relay cannot tell a NAT that lets anybody in; the second one does, however late it is seen.
func TestASecondRelayShowsAFilterThatLetsAnybodyIn(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.2:0")
	if err != nil {
		t.Skip("127.0.0.2 is no address of this machine:", err)
	}
	ln.Close()
	m := newMesh(t)
	m.relay(Config{})
	a := m.join(Config{})
	eventually(t, "one relay was asked", func() bool { return a.NAT().Filtering == "address-dependent" })
	m.relay(Config{Listen: []ma.Multiaddr{ma.StringCast("/ip4/127.0.0.2/udp/0/quic-v1")}})
	a.Refresh()
	eventually(t, "the other one, too", func() bool { return a.NAT().Filtering == "endpoint-independent" })
}

func TestAReservationIsRenewedInTimeByAClockThatIsBehind(t *testing.T) {
	for behind, want := range map[time.Duration]time.Duration{
		0: 40 * time.Minute, time.Hour: 40 * time.Minute, 24 * 365 * time.Hour: 40 * time.Minute, -50 * time.Minute: 400 * time.Second, -2 * time.Hour: time.Minute,
	} {
		if got := renewAfter(time.Hour + behind); got != want {
			t.Errorf("%v behind: renewed after %v, want %v", behind, got, want)
		}
	}
}
