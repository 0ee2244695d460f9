package node

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify/pb"
	ma "github.com/multiformats/go-multiaddr"
	"google.golang.org/protobuf/proto"
)

// caller is a connection of which the guard sees who, whence, and that it was closed.
type caller struct {
	network.Conn
	peer peer.ID
	from ma.Multiaddr

	mu     sync.Mutex
	closed bool
}

func (c *caller) RemotePeer() peer.ID           { return c.peer }
func (c *caller) RemoteMultiaddr() ma.Multiaddr { return c.from }
func (c *caller) Stat() network.ConnStats {
	return network.ConnStats{Stats: network.Stats{Direction: network.DirInbound}}
}
func (c *caller) IsClosed() bool { c.mu.Lock(); defer c.mu.Unlock(); return c.closed }
func (c *caller) CloseWithError(network.ConnErrorCode) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

func arrive(g *guard, n int, from string) *caller {
	c := &caller{peer: peer.ID(fmt.Sprint("peer ", n)), from: ma.StringCast(from)}
	g.connected(c)
	return c
}

func stillOpen(callers []*caller) (n int) {
	for _, c := range callers {
		if !c.IsClosed() {
			n++
		}
	}
	return n
}

func TestACrowdOfStrangersPushesOutItselfAndNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(func(p peer.ID) bool { return p == "peer -1" }, nil)
		defer g.close()
		member := arrive(g, -1, "/ip4/7.0.0.1/tcp/1")
		early := arrive(g, -2, "/ip4/7.9.9.9/tcp/1")
		release := g.allow(early.peer, 30*time.Second) // joining
		defer release()
		var flood []*caller
		for i := range 4 * maxStrangersHost {
			flood = append(flood, arrive(g, i, "/ip4/7.0.0.1/udp/1/quic-v1"))
			time.Sleep(time.Microsecond)
		}
		synctest.Wait()
		if n := stillOpen(flood); n != maxStrangersHost {
			t.Errorf("%d connections of one address are open, want %d", n, maxStrangersHost)
		}
		if flood[len(flood)-1].IsClosed() {
			t.Error("the newest made room for an older one")
		}
		for i := range 2 * maxStrangers { // each from an address of its own
			flood = append(flood, arrive(g, 10000+i, fmt.Sprintf("/ip4/7.1.%d.%d/tcp/1", i/256, i%256)))
			time.Sleep(time.Microsecond)
		}
		synctest.Wait()
		if n := stillOpen(flood); n > maxStrangers {
			t.Errorf("%d strangers are connected, want at most %d", n, maxStrangers)
		}
		if member.IsClosed() || early.IsClosed() {
			t.Error("a member, or one who is joining, was pushed out")
		}
	})
}

func TestAStrangerCannotStayByAskingAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(func(peer.ID) bool { return false }, nil)
		defer g.close()
		c := arrive(g, 1, "/ip4/7.0.0.1/tcp/1")
		began := time.Now()
		for !c.IsClosed() {
			release := g.allow(c.peer, 30*time.Second) // as every join request does
			time.Sleep(time.Second)
			release()
			if time.Since(began) > 2*strangerMost {
				t.Fatal("it stays for ever")
			}
		}
		if stayed := time.Since(began); stayed < strangerMost-time.Second {
			t.Errorf("closed after %v, though it was allowed to stay", stayed)
		}
	})
}

func TestStreamsAreCountedForEachStrangerAndAllOfThem(t *testing.T) {
	g := newGuard(func(p peer.ID) bool { return p == "member" }, nil)
	places := func(p peer.ID, tries int) (n int, leave func()) {
		var all []func()
		for range tries {
			if l, ok := g.enter(p); ok {
				all = append(all, l)
			}
		}
		return len(all), func() {
			for _, l := range all {
				l()
			}
		}
	}
	n, leave := places("stranger", 100)
	if n != maxStrangerStreams {
		t.Errorf("a stranger has %d streams, want %d", n, maxStrangerStreams)
	}
	sum, leaves := n, []func(){leave}
	for i := range maxStrangersStreams {
		n, leave := places(peer.ID(fmt.Sprint(i)), maxStrangerStreams)
		sum, leaves = sum+n, append(leaves, leave)
	}
	if sum != maxStrangersStreams {
		t.Errorf("all strangers have %d streams, want %d", sum, maxStrangersStreams)
	}
	n, leave = places("member", 2*maxMemberStreams)
	if n != maxMemberStreams {
		t.Errorf("a member has %d streams beside the strangers', want %d", n, maxMemberStreams)
	}
	for _, l := range append(leaves, leave) {
		l()
	}
	if len(g.streams) != 0 || g.theirs != 0 {
		t.Errorf("left behind: %v, %d", g.streams, g.theirs)
	}
}

func TestStrangersAreServedFewStreamsOverTheWire(t *testing.T) {
	m := newMesh(t)
	b, _ := m.start(Config{Open: map[protocol.ID]bool{openProtocol: true}})
	hold := make(chan struct{})
	defer close(hold)
	served := make(chan struct{}, 1000)
	b.Host().SetStreamHandler(openProtocol, func(s network.Stream) { served <- struct{}{}; <-hold; s.Reset() })
	stranger, _ := m.start(Config{})
	if err := stranger.ConnectStranger(t.Context(), peer.AddrInfo{ID: b.self, Addrs: b.ListenAddrs()}); err != nil {
		t.Fatal(err)
	}
	refused := 0
	for range 20 * maxStrangerStreams {
		s, err := openOn(t.Context(), stranger.parts.swarm.ConnsToPeer(b.self)[0], openProtocol)
		if err != nil {
			refused++
			continue
		}
		s.SetDeadline(time.Now().Add(200 * time.Millisecond))
		s.Write([]byte("x"))
		defer s.Reset()
	}
	eventually(t, "what is served is served", func() bool { return len(served) > 0 })
	if n := len(served); n > maxStrangerStreams {
		t.Errorf("%d streams are served at once, want at most %d", n, maxStrangerStreams)
	}
}

func TestStrangersAreNotToldPrivateAddresses(t *testing.T) {
	addrs := []string{
		"/ip4/203.0.113.7/tcp/4001", "/ip4/8.8.8.8/udp/4001/quic-v1", "/dns/vps.example/tcp/4001", "/ip4/192.168.1.5/tcp/4001",
		"/ip4/10.8.0.2/tcp/4001", "/ip4/127.0.0.1/tcp/4001", "/ip6/fd00::5/tcp/4001", "/ip6/2a00::5/udp/1/quic-v1",
		"/p2p/12D3KooWPPmbPEjhA4q1TmgWZjPjNJY6i32tdsSvdpS29ZWQRjDP/p2p-circuit",
	}
	msg := pb.Identify{SignedPeerRecord: []byte("all of them"), Protocols: []string{"/fwd/join/1"}, PublicKey: []byte("key")}
	for _, a := range addrs {
		msg.ListenAddrs = append(msg.ListenAddrs, ma.StringCast(a).Bytes())
	}
	body, err := proto.Marshal(&msg)
	if err != nil {
		t.Fatal(err)
	}
	said := append(binary.AppendUvarint(nil, uint64(len(body))), body...)
	said = append(said, said...) // as if in two messages
	for from, private := range map[string][]string{
		"/ip4/198.51.100.1/tcp/9":      nil,
		"/ip4/192.168.1.77/tcp/9":      {"/ip4/192.168.1.5/tcp/4001"},
		"/ip4/127.0.0.1/udp/9/quic-v1": {"/ip4/127.0.0.1/tcp/4001"},
		"/ip4/192.168.1.77/tcp/4001/p2p/12D3KooWPPmbPEjhA4q1TmgWZjPjNJY6i32tdsSvdpS29ZWQRjDP/p2p-circuit": nil,
	} {
		out, err := withoutPrivate(said, ma.StringCast(from))
		if err != nil {
			t.Fatal(err)
		}
		messages := 0
		for len(out) > 0 {
			size, n := binary.Uvarint(out)
			var got pb.Identify
			if err := proto.Unmarshal(out[n:n+int(size)], &got); err != nil {
				t.Fatal(err)
			}
			out = out[n+int(size):]
			messages++
			if got.SignedPeerRecord != nil || len(got.Protocols) != 1 || string(got.PublicKey) != "key" {
				t.Errorf("to %s: %v", from, &got)
			}
			for _, b := range got.ListenAddrs {
				a := ma.Cast(b).String()
				public := slices.Contains([]string{addrs[0], addrs[1], addrs[2], addrs[7]}, a)
				if !public && !slices.Contains(private, a) {
					t.Errorf("%s is told %s", from, a)
				}
			}
			if want := len(private); len(got.ListenAddrs) < want+3 {
				t.Errorf("%s is told only %d addresses", from, len(got.ListenAddrs))
			}
		}
		if messages != 2 {
			t.Errorf("%d messages came of 2", messages)
		}
	}
	if _, err := withoutPrivate([]byte{200, 1, 2}, ma.StringCast("/ip4/1.1.1.1/tcp/1")); err == nil {
		t.Error("half a message was passed on")
	}
}

// What identify really says over the wire, to a stranger and to a member.
func TestIdentifyTellsMembersMoreThanStrangers(t *testing.T) {
	m := newMesh(t)
	private := ma.StringCast("/ip4/10.99.0.7/tcp/4001")
	b := m.join(Config{Announce: []ma.Multiaddr{private}})
	stranger, member := func() *Node { n, _ := m.start(Config{}); return n }(), m.join(Config{})
	for _, n := range []*Node{stranger, member} {
		identified, err := n.Host().EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
		if err != nil {
			t.Fatal(err)
		}
		defer identified.Close()
		if err := n.ConnectStranger(t.Context(), peer.AddrInfo{ID: b.self, Addrs: b.ListenAddrs()}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "identified", func() bool { // its event comes after the addresses; the protocols come before them
			select {
			case e := <-identified.Out():
				return e.(event.EvtPeerIdentificationCompleted).Peer == b.self
			default:
				return false
			}
		})
	}
	if ma.Contains(stranger.Host().Peerstore().Addrs(b.self), private) {
		t.Error("a stranger was told a private address")
	}
	if !ma.Contains(member.Host().Peerstore().Addrs(b.self), private) {
		t.Error("a member was not told a private address")
	}
}

// Each change of address has identify push all of them to whoever is connected.
func TestStrangersAreNotPushedOurAddresses(t *testing.T) {
	m := newMesh(t)
	b, member := m.join(Config{}), m.join(Config{})
	stranger, _ := m.start(Config{})
	defer b.AllowStranger(stranger.self, time.Minute)()
	told := func(n *Node) func() []string { // what n is pushed
		var mu sync.Mutex
		var got []string
		n.Host().SetStreamHandler(identify.IDPush, func(s network.Stream) {
			defer s.Close()
			said, err := io.ReadAll(s)
			if err != nil {
				said = []byte(err.Error())
			}
			mu.Lock()
			defer mu.Unlock()
			got = append(got, string(said))
		})
		if err := n.ConnectStranger(t.Context(), peer.AddrInfo{ID: b.self, Addrs: b.ListenAddrs()}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "both identified", func() bool {
			theirs, _ := n.Host().Peerstore().GetProtocols(b.self)
			ours, _ := b.Host().Peerstore().GetProtocols(n.self)
			return len(theirs) > 0 && slices.Contains(ours, identify.IDPush)
		})
		return func() []string { mu.Lock(); defer mu.Unlock(); return slices.Clone(got) }
	}
	toMember, toStranger := told(member), told(stranger)
	for range 2 { // one round of pushes has ended when the next begins
		relay, _ := m.relay(Config{})
		b.Refresh()
		circuit := string(circuitVia(relay.self).Bytes())
		eventually(t, "the member is pushed the circuit", func() bool {
			return slices.ContainsFunc(toMember(), func(said string) bool { return strings.Contains(said, circuit) })
		})
	}
	if got := toStranger(); len(got) > 0 {
		t.Errorf("a stranger was pushed our addresses %d times", len(got))
	}
	if len(b.parts.swarm.ConnsToPeer(stranger.self)) == 0 {
		t.Error("the stranger is gone")
	}
}

func TestPunchesOfOnePeerArePaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGuard(func(peer.ID) bool { return true }, nil)
		tries := func(p peer.ID, n int) (let int) {
			for range n {
				if g.mayPunch(p) {
					let++
				}
			}
			return let
		}
		if n := tries("a", 1000); n != punchBurst {
			t.Errorf("%d of 1000 punches at once, want %d", n, punchBurst)
		}
		if n := tries("b", 1); n != 1 {
			t.Error("another peer pays for the first")
		}
		time.Sleep(3 * punchEvery)
		if n := tries("a", 1000); n != 3 {
			t.Errorf("%d punches in %v, want 3", n, 3*punchEvery)
		}
		time.Sleep(time.Hour)
		g.sweep(nil)
		if len(g.punches) != 0 {
			t.Error("peers are remembered for ever")
		}
	})
}

func FuzzWithoutPrivate(f *testing.F) {
	f.Add([]byte{2, 0x12, 0}, []byte(ma.StringCast("/ip4/10.0.0.1/tcp/1").Bytes()))
	f.Fuzz(func(t *testing.T, said, from []byte) {
		a, err := ma.NewMultiaddrBytes(from)
		if err != nil {
			return
		}
		out, err := withoutPrivate(said, a)
		if err == nil && len(said) > 0 && len(out) == 0 {
			t.Fatal("a message vanished")
		}
	})
}
