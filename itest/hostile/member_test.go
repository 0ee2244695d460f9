//go:build linux

package hostile

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/forward/session"
	"fwd/identity"
)

func itoa(n int) string { return strconv.Itoa(n) }

// A member that asks for what is others', or for what admins may: refused each time, and a flood of what it may ask
// for is paced.
func TestMemberCannotTakeNamesNorRule(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := newAttacker(t, w, 110).join(w, w.invite(), "mallory")
	args := func(pairs ...any) map[string]any {
		o := map[string]any{}
		for i := 0; i < len(pairs); i += 2 {
			o[pairs[i].(string)] = pairs[i+1]
		}
		return o
	}
	anothers, err := identity.NewHandOver(newAttackerAt(t, 111).key, m.ID(), m.roster.Roster)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		command, code string
		at            peer.ID
		args          any
	}{
		{"claim", "name-taken", w.relayID(), args("service", "data")},
		{"claim", "name-taken", w.relayID(), args("service", "nas-box")}, // a machine's name: ssh nas-box.fwd
		{"claim", "failed", w.relayID(), args("service", "data", "release", true)},
		{"claim", "failed", w.relayID(), args("service", "../x")},
		{"announce", "refused", w.relayID(), args("addrs", []string{"/ip4/127.0.0.1/tcp/1"})},
		{"invite", "refused", w.relayID(), args("admin", true)},
		{"invites", "refused", w.relayID(), nil},
		{"cancel-invite", "refused", w.relayID(), args("id", "0011223344556677")},
		{"revoke", "refused", w.relayID(), args("peer", "nas-box")},
		{"rename", "refused", w.relayID(), args("peer", "nas-box", "name", "x")},
		{"succeed", "refused", w.relayID(), args("key", []byte("x"))},
		{"succeed", "refused", w.nasID(), args("key", []byte("x"))},
		{"hand-on", "refused", w.relayID(), args("word", anothers.Envelope)},
		{"hand-on", "failed", w.relayID(), args("word", []byte("x"))},
		{"hand-over", "refused", w.nasID(), args("peer", "mallory")},
		{"allow", "refused", w.nasID(), args("service", "data", "who", "mallory")},
		{"owner-export", "refused", w.relayID(), args("passphrase", "x")},
		{"owner-move", "refused", w.relayID(), args("peer", "mallory")},
		{"stop", "refused", w.nasID(), nil}, {"expose", "refused", w.nasID(), args("target", "22")},
		{"status", "refused", w.nasID(), nil}, {"invite", "refused", w.nasID(), nil},
	} {
		got, err := m.wish(c.at, c.command, c.args)
		if err != nil || got.Failure == nil || got.Failure.Code != c.code {
			t.Errorf("%s %v: got %+v, %v; want %s", c.command, c.args, got.Failure, err, c.code)
		}
	}
	before := w.relay.status().Network.Epoch
	began := time.Now()
	w.costs(func() {
		var all sync.WaitGroup
		for i := range 32 {
			all.Go(func() { m.wish(w.relayID(), "claim", args("service", fmt.Sprint("name", i))) })
		}
		all.Wait()
	})
	made := w.relay.status().Network.Epoch - before
	if most := uint64(25 + time.Since(began)/time.Second); made > most {
		t.Errorf("32 claims at once made %d epochs, want at most %d", made, most)
	}
	t.Logf("32 claims at once: %d epochs in %v", made, time.Since(began).Round(time.Second))
}

// A guest for one service: it sees that one, opens that one, gets no lane elsewhere, and no roster but its slice.
func TestGuestReachesOnlyWhatItsEntryNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	g := newAttacker(t, w, 120).join(w, w.invite("--only", "data"), "guest")
	if g.roster.For != g.ID() {
		t.Error("the guest was given more than its slice")
	}
	if _, ok := g.roster.ByName("laptop"); ok {
		t.Error("the guest sees machines that are none of its business")
	}
	got, err := g.exchange(w.nasID(), hello{Network: g.roster.Network, Term: 0, Epoch: 0}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := identity.Open(got.Roster, g.roster.Network); err != nil || s.For != g.ID() || len(got.Slices) > 0 {
		t.Errorf("the guest was handed %d bytes of roster and %d slices (%v)", len(got.Roster), len(got.Slices), err)
	}
	raw, err := g.ask(w.nasID(), "/fwd/services/1", nil)
	var services identity.ServicesMsg
	if err != nil || identity.ReadMsg(bytes.NewReader(raw), 1<<20, &services) != nil || len(services.Services) != 1 || services.Services[0].Name != "data" {
		t.Errorf("the guest is told of %v (%v)", services, err)
	}
	if got, err := g.wish(w.relayID(), "claim", map[string]string{"service": "mine"}); err != nil || got.Failure == nil {
		t.Errorf("the guest claimed a name: %+v, %v", got, err)
	}
	e := g.sessions(nil)
	if err := talk(e, w.nasID(), "data"); err != nil {
		t.Errorf("its own service: %v", err)
	}
	for _, service := range []string{"other", "nosuch"} {
		var refused *session.RefusedError
		if err := talk(e, w.nasID(), service); !errors.As(err, &refused) || refused.Code != session.Denied {
			t.Errorf("%s: %v, want denied", service, err)
		}
	}
	var refused *session.RefusedError
	if err := talk(e, w.relayID(), "data"); !errors.As(err, &refused) || refused.Code != session.Denied {
		t.Errorf("a lane at a machine of which it has nothing: %v, want denied", err)
	}
}

// talk sends a word through a new session and has it back.
func talk(e *session.Endpoint, p peer.ID, service string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := e.Dial(ctx, p, service)
	if err != nil {
		return err
	}
	defer c.Close()
	return echo(c)
}

func echo(c net.Conn) error {
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Write([]byte("word")); err != nil {
		return err
	}
	_, err := io.ReadFull(c, make([]byte, 4))
	return err
}

// recorder keeps the first bytes that are written: the attach.
type recorder struct {
	session.Stream
	mu    *sync.Mutex
	first *[]byte
}

func (r recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	if *r.first == nil {
		*r.first = append([]byte(nil), b...)
	}
	r.mu.Unlock()
	return r.Stream.Write(b)
}

// The very attach of a member, its link ID right to the last bit, with a later epoch, from another member and from a
// stranger: the link is unknown, and its owner's session goes on.
func TestStolenLinkIDsAreWorthNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	victim := newAttacker(t, w, 130).join(w, w.invite(), "victim")
	thief := newAttacker(t, w, 131).join(w, w.invite(), "thief")
	stranger := newAttacker(t, w, 132)
	var mu sync.Mutex
	var attach []byte
	e := victim.sessions(func(s session.Stream) session.Stream { return recorder{s, &mu, &attach} })
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := e.Dial(ctx, w.nasID(), "data")
	if err != nil {
		t.Fatal(err)
	}
	if err := echo(c); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	stolen := append([]byte(nil), attach[:68]...)
	mu.Unlock()
	const flags, epoch, offset = 4, 8, 44
	binary.BigEndian.PutUint32(stolen[epoch:], binary.BigEndian.Uint32(stolen[epoch:])+100)
	for _, f := range []byte{0, 1, 2, 3} {
		for _, off := range []uint64{0, 4, 1 << 40} {
			stolen[flags] = f
			binary.BigEndian.PutUint64(stolen[offset:], off)
			if got, err := thief.attach(w.nasID(), stolen); err == nil && got == 0 && (f&1 == 0) {
				t.Errorf("flags %d, offset %d: a stolen link was attached", f, off)
			}
			if got, err := stranger.attach(w.nasID(), stolen); err == nil {
				t.Errorf("a stranger was answered %d", got)
			}
		}
		if err := echo(c); err != nil {
			t.Fatalf("flags %d: the session's owner: %v", f, err)
		}
	}
}

// attach sends an attach and returns the status.
func (a *attacker) attach(p peer.ID, raw []byte) (status byte, err error) {
	s, err := a.open(p, "/fwd/lane/1")
	if err != nil {
		return 0, err
	}
	defer s.Reset()
	if _, err := s.Write(raw); err != nil {
		return 0, err
	}
	var reply [36]byte
	_, err = io.ReadFull(s, reply[:])
	return reply[0], err
}

func newAttach(serial uint64, lane byte, epoch uint32) []byte {
	b := append([]byte("FWL1"), 1, lane, 0, 0)
	b = binary.BigEndian.AppendUint32(b, epoch)
	b = binary.BigEndian.AppendUint64(b, serial)
	b = append(b, "12345678"...)            // the link's random half
	b = append(b, "boot of attacker"...)    // 16
	b = binary.BigEndian.AppendUint64(b, 0) // offset
	b = append(b, make([]byte, 4+4+8)...)
	return b
}

// A member that attaches thousands of times, opens sessions by the thousand and says nothing on them, and sends frames
// out of all range: it hurts itself.
func TestMemberFloodsOfAttachesSessionsAndFramesHurtItselfAlone(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := newAttacker(t, w, 140).join(w, w.invite(), "flooder")
	nas := w.nasID()
	var attached atomic.Int64
	w.costs(func() {
		var all sync.WaitGroup
		for range 4 { // resume flood
			all.Go(func() {
				for range 120 {
					if st, err := m.attach(nas, newAttach(uint64(attached.Add(1)), 0, 1)); err == nil && st > 7 {
						t.Errorf("status %d", st)
					}
				}
			})
		}
		all.Wait()
		for i, frames := range [][]byte{ // after a good attach
			append([]byte{0}, binary.AppendUvarint(nil, 1<<40)...), // DATA of a terabyte
			append([]byte{0}, bytes.Repeat([]byte{0xff}, 12)...),   // a length without end
			append([]byte{1}, binary.AppendUvarint(nil, 1<<62)...), // ACK of what was never sent
			{99}, bytes.Repeat([]byte{2, 0, 0, 0, 0, 0, 0, 0, 1}, 100000), // no such frame; PING, PING, PING
			bytes.Repeat(data(yamux(1, 1, 0xffffffff, 3)), 2000), // window updates that overflow
			bytes.Repeat(data(yamux(0, 1, 0xffffffff, 5)), 10),   // data beyond the window
			bytes.Repeat(data(yamux(7, 0, 0, 0)), 10),            // no such type
			opens(20000), // more sessions than are taken, none of which says what it wants
		} {
			s, err := m.open(nas, "/fwd/lane/1")
			if err != nil {
				t.Errorf("frames %d: %v", i, err)
				continue
			}
			s.Write(newAttach(uint64(attached.Add(1)), 0, 1))
			var reply [36]byte
			if _, err := io.ReadFull(s, reply[:]); err != nil || reply[0] != 0 {
				t.Errorf("frames %d: attach answered %d, %v", i, reply[0], err)
			}
			s.SetDeadline(time.Now().Add(3 * time.Second))
			go io.Copy(io.Discard, s)
			s.Write(frames)
			s.Reset()
		}
		// Sessions by the hundred, idle, each with a socket at the target.
		e := m.sessions(nil)
		var open []net.Conn
		for range 300 {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			if c, err := e.Dial(ctx, nas, "data"); err == nil {
				open = append(open, c)
			}
			cancel()
		}
		for _, c := range open {
			c.Close()
		}
	})
}

func yamux(kind, flags byte, length, stream uint32) []byte {
	b := []byte{0, kind, 0, flags}
	b = binary.BigEndian.AppendUint32(b, stream)
	return binary.BigEndian.AppendUint32(b, length)
}

func data(b []byte) []byte {
	return append(append([]byte{0}, binary.AppendUvarint(nil, uint64(len(b)))...), b...)
}

func opens(n int) (b []byte) {
	for i := range n {
		b = append(b, data(yamux(1, 1, 0, uint32(2*i+1)))...)
	}
	return b
}

// A relay carries from member to member and nobody else: not to a stranger, not from one, not back to oneself.
func TestRelayIsNoOpenProxy(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	other := newWorld(t) // another network: its members are strangers here
	m := newAttacker(t, w, 150).join(w, w.invite(), "member")
	foreign := newAttacker(t, other, 151).join(other, other.invite(), "foreign")
	foreign.addrs[w.relayID()] = m.addrs[w.relayID()]
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	relay := peer.AddrInfo{ID: w.relayID(), Addrs: m.addrs[w.relayID()]}
	if err := foreign.dial(relay.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Reserve(ctx, foreign, relay); err == nil {
		t.Error("a member of another network got a reservation")
	}
	if err := m.dial(relay.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Reserve(ctx, m, relay); err != nil {
		t.Fatalf("a member's reservation: %v", err)
	}
	way := []ma.Multiaddr{ma.StringCast("/p2p/" + relay.ID.String() + "/p2p-circuit")}
	for name, c := range map[string]struct {
		from *attacker
		to   peer.ID
	}{"from another network": {foreign, w.nasID()}, "to another network": {m, foreign.ID()}, "to another network's NAS": {m, other.nasID()}} {
		c.from.Network().ClosePeer(c.to)
		c.from.Peerstore().ClearAddrs(c.to)
		if err := c.from.Connect(network.WithAllowLimitedConn(ctx, "x"), peer.AddrInfo{ID: c.to, Addrs: way}); err == nil {
			t.Errorf("%s: a circuit", name)
		}
	}
	// To oneself, past our own library, which would not ask for it: CONNECT with our own ID.
	self := m.ID()
	msg := append([]byte{0x08, 1, 0x12, byte(2 + len(self)), 0x0a, byte(len(self))}, self...)
	got, err := m.ask(relay.ID, "/libp2p/circuit/relay/0.2.0/hop", append(binary.AppendUvarint(nil, uint64(len(msg))), msg...))
	if err == nil && bytes.Contains(got, []byte{0x28, 100}) { // status OK
		t.Errorf("a circuit to oneself: % x", got)
	}
}

// Rendezvous stuffed and the DHT poisoned by a member: quotas hold, records in others' places are refused, and the
// laptop finds the NAS.
func TestStuffedRendezvousAndPoisonedDHTHideNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := newAttacker(t, w, 160).join(w, w.invite(), "poisoner")
	ns := "someones-namespace-of-fifty-two-characters-or-so-long"
	w.costs(func() {
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for i := range 30 {
					junk := append([]byte{1}, bytes.Repeat([]byte{byte(i)}, 2000)...)
					ask := append([]byte{2}, append(binary.AppendUvarint(nil, uint64(len(ns))), ns...)...)
					ask = append(ask, 0, 0, 0)
					var raw []byte
					for _, msg := range [][]byte{junk, ask, junk, ask} {
						raw = append(append(raw, binary.AppendUvarint(nil, uint64(len(msg)))...), msg...)
					}
					m.ask(w.relayID(), "/fwd/rendezvous/1", raw)
					m.ask(w.relayID(), "/fwd/rendezvous/1", binary.AppendUvarint(nil, 1<<50))
				}
			})
			all.Go(func() {
				for i := range 20 { // PUT_VALUE of junk under a record key
					key, value := "/fwd/"+ns+fmt.Sprint(i), bytes.Repeat([]byte{7}, 1500)
					rec := append(append([]byte{0x0a, byte(len(key))}, key...), append([]byte{0x12, 0xdc, 0x0b}, value...)...)
					msg := append([]byte{0x08, 0, 0x12, byte(len(key))}, key...)
					msg = append(append(msg, 0x1a), append(binary.AppendUvarint(nil, uint64(len(rec))), rec...)...)
					got, err := m.ask(w.relayID(), "/fwd/kad/1.0.0", append(binary.AppendUvarint(nil, uint64(len(msg))), msg...))
					if err == nil && bytes.Contains(got, value) {
						t.Error("the DHT stored junk")
					}
				}
			})
		}
		all.Wait()
	})
	// A machine that has never met the NAS finds it.
	late := newMachine(t)
	late.must("join", w.invite(), "--as", "late")
	local := late.start("listening", "connect", "data", "127.0.0.1:0", "--timeout", "30s").Local
	c, err := net.Dial("tcp", local)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := echo(c); err != nil {
		t.Errorf("through the poison: %v", err)
	}
}

// A member that reports addresses of a third machine as its own gets it a bounded number of packets, and none at all
// at addresses that no relay could have seen.
func TestPunchPlansCannotBeAimedAtOthers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	m := newAttacker(t, w, 170).join(w, w.invite(), "aimer")
	var packets, bytesIn, conns atomic.Int64
	udp, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	go func() { // ends with the socket
		b := make([]byte, 2048)
		for {
			n, _, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			packets.Add(1)
			bytesIn.Add(int64(n))
		}
	}()
	tcp, err := net.Listen("tcp4", udp.LocalAddr().String())
	if err != nil {
		t.Skip(err)
	}
	defer tcp.Close()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			conns.Add(1)
			c.Close()
		}
	}()
	port := udp.LocalAddr().(*net.UDPAddr).Port
	quic, tcpAddr := fmt.Sprintf("/ip4/127.0.0.1/udp/%d/quic-v1", port), fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)
	report, _ := json.Marshal(map[string]any{"v": 1, "udp": map[string]any{"mapping": "endpoint-independent", "observed": []string{quic}},
		"tcp": map[string]any{"mapping": "endpoint-independent", "observed": []string{tcpAddr}}, "lan": []string{quic, tcpAddr},
		"confirmed": []string{quic, tcpAddr}, "fresh": port, "steps": []string{"direct", "open", "fresh", "predict", "birthday"}})
	w.costs(func() {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		if err := m.dial(w.relayID()); err != nil {
			t.Fatal(err)
		}
		way := ma.StringCast("/p2p/" + w.relayID().String() + "/p2p-circuit")
		if err := m.Connect(network.WithAllowLimitedConn(ctx, "x"), peer.AddrInfo{ID: w.nasID(), Addrs: []ma.Multiaddr{way}}); err != nil {
			t.Fatalf("a circuit to the NAS: %v", err)
		}
		for range 10 {
			s, err := m.NewStream(network.WithAllowLimitedConn(ctx, "x"), w.nasID(), "/fwd/punch/1")
			if err != nil {
				t.Logf("punch: %v", err)
				continue
			}
			s.SetDeadline(time.Now().Add(2 * time.Second))
			msg := append([]byte{'r'}, report...)
			s.Write(append(binary.AppendUvarint(nil, uint64(len(msg))), msg...))
			io.ReadFull(s, make([]byte, 8))
			s.Write([]byte{1, 'g'})
			time.Sleep(300 * time.Millisecond)
			s.Reset()
		}
		time.Sleep(5 * time.Second)
	})
	t.Logf("10 plans: the third machine got %d packets (%d bytes) and %d connections", packets.Load(), bytesIn.Load(), conns.Load())
	// What a slow machine needs more time for may be more plans, but not more than ten: of each, four dials of TCP; and 200
	// times again, however many plans.
	if packets.Load() > 1000 || conns.Load() > 240 {
		t.Error("a member has others shot at")
	}
}
