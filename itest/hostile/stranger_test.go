//go:build linux

package hostile

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/identity"
)

func readFile(dir, name string) ([]byte, error) { return os.ReadFile(filepath.Join(dir, name)) }

var membersProtocols = []protocol.ID{
	"/fwd/services/1", "/fwd/punch/1", "/fwd/reflect/1", "/fwd/rendezvous/1", "/fwd/lane/1", "/fwd/kad/1.0.0",
	"/libp2p/circuit/relay/0.2.0/hop", "/libp2p/circuit/relay/0.2.0/stop", "/libp2p/autonat/1.0.0", "/libp2p/autonat/2/dial-request", "/libp2p/dcutr",
}

// A stranger that connects directly, to a relay and to a member, again and again: no protocol of the members' answers
// it, it gets no reservation and no circuit, to others or to itself, and it is put out.
func TestStrangerGetsNothingAtEveryProtocol(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var tries, answers atomic.Int64
	w.costs(func() {
		var all sync.WaitGroup
		for n := range 2 {
			for _, at := range []peer.ID{w.relayID(), w.nasID()} {
				a := newAttacker(t, w, 10+n)
				all.Go(func() {
					for _, proto := range membersProtocols {
						for range 6 {
							tries.Add(1)
							if got, err := a.ask(at, proto, []byte{0, 1, 2, 3, 4, 5, 6, 7}); err == nil && len(got) > 0 {
								answers.Add(1)
								t.Errorf("%s answered %q", proto, got)
							}
						}
					}
				})
			}
		}
		all.Wait()
		a := newAttacker(t, w, 20)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := a.dial(w.relayID()); err != nil {
			t.Error(err)
		}
		if _, err := client.Reserve(ctx, a, peer.AddrInfo{ID: w.relayID(), Addrs: a.addrs[w.relayID()]}); err == nil {
			t.Error("a stranger got a reservation")
		}
		for _, to := range []peer.ID{w.nasID(), a.ID()} {
			way := ma.StringCast("/p2p/" + w.relayID().String() + "/p2p-circuit")
			if err := a.Connect(ctx, peer.AddrInfo{ID: to, Addrs: []ma.Multiaddr{way}}); err == nil && to != w.nasID() {
				t.Errorf("a stranger got a circuit to %s", to)
			}
		}
		eventually(t, "the stranger is put out", func() bool { return a.Network().Connectedness(w.relayID()) != network.Connected })
	})
	t.Logf("%d tries, %d answers", tries.Load(), answers.Load())
}

// Floods of connections with a new key each, of streams on one, and of handshakes that stop half-way.
func TestStrangersFloodsAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.costs(func() {
		var all sync.WaitGroup
		var conns []net.Conn
		for i := range 600 { // slow loris before the handshake: half of them say one byte
			c, err := net.DialTimeout("tcp", a4(w.relayPort), patience)
			if err != nil {
				break
			}
			if i%2 == 0 {
				c.Write([]byte{19})
			}
			conns = append(conns, c)
		}
		var opened atomic.Int64
		for n := range 4 { // each 10 keys in turn
			all.Go(func() {
				for range 10 {
					a := newAttacker(t, w, 30+n)
					if a.dial(w.relayID()) == nil {
						opened.Add(1)
					}
					defer a.Close()
				}
			})
		}
		var streams atomic.Int64
		a := newAttacker(t, w, 50)
		if err := a.dial(w.relayID()); err != nil {
			t.Error(err)
		}
		for range 4 {
			all.Go(func() {
				for range 400 {
					ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
					s, err := a.Network().NewStream(ctx, w.relayID())
					cancel()
					if err != nil {
						return // put out
					}
					streams.Add(1)
					s.SetDeadline(time.Now().Add(5 * time.Second))
					s.Write([]byte("\x13/multistream/1.0.0\n")) // and no more
				}
			})
		}
		all.Wait()
		t.Logf("%d half handshakes, %d connections, %d streams opened before it was put out", len(conns), opened.Load(), streams.Load())
		for _, c := range conns {
			c.SetReadDeadline(time.Now().Add(patience))
			if _, err := io.Copy(io.Discard, c); err != nil && os.IsTimeout(err) {
				t.Error("a handshake that stopped half-way is kept")
				break
			}
			c.Close()
		}
	})
}

// Requests that stop in the middle, at each message a stranger may send, and lengths beyond all measure.
func TestSlowAndAbsurdMessagesOfStrangersAreCut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	net := w.relay.status().Network.ID
	half := func(v string) []byte { // a message that announces more than comes
		return append(binary.BigEndian.AppendUint32(nil, uint32(len(v)+100)), v...)
	}
	w.costs(func() {
		var all sync.WaitGroup
		for i, c := range []struct {
			proto protocol.ID
			raw   []byte
		}{
			{"/fwd/join/1", []byte{1}}, {"/fwd/join/1", nil}, {"/fwd/join/1", make([]byte, 4096)},
			{"/fwd/roster/1", []byte{0, 0}}, {"/fwd/roster/1", half(`{"network":"` + net + `"`)},
			{"/fwd/roster/1", append(binary.BigEndian.AppendUint32(nil, 100<<20), make([]byte, 64<<10)...)},
			{"/ipfs/id/push/1.0.0", append(binary.AppendUvarint(nil, 1<<40), 1, 2, 3)},
			{"/ipfs/ping/1.0.0", make([]byte, 7)},
		} {
			all.Go(func() {
				a := newAttacker(t, w, 60+i)
				s, err := a.open(w.relayID(), c.proto)
				if err != nil {
					t.Errorf("%s: %v", c.proto, err)
					return
				}
				defer s.Reset()
				s.Write(c.raw)
				began := time.Now()
				got, err := io.ReadAll(s)
				if err == nil && len(got) > 0 || os.IsTimeout(err) {
					t.Errorf("%s after %d bytes: got %d bytes, %v", c.proto, len(c.raw), len(got), err)
				}
				if took := time.Since(began); took > 20*time.Second {
					t.Errorf("%s: cut after %v", c.proto, took)
				}
			})
		}
		all.Wait()
	})
}

// Floods of join requests: with invented invites, and with a real one's ID but not its secret. Nothing is said, and
// who holds the code gets in.
func TestGuessedInvitesGetNoWord(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	real := w.invite()
	target := w.invite("--uses", "5")
	invite, err := identity.ParseInvite(target)
	if err != nil {
		t.Fatal(err)
	}
	epoch := w.relay.status().Network.Epoch
	var sent, said atomic.Int64
	w.costs(func() {
		var all sync.WaitGroup
		for n := range 8 {
			all.Go(func() {
				a := newAttacker(t, w, 80+n)
				for range 30 {
					guess, _, err := invite.Request(a.key, "x")
					if err != nil {
						t.Error(err)
						return
					}
					rand.Read(guess[33:]) // the ID stays, what the secret has sealed does not
					if n%2 == 0 {
						rand.Read(guess[1:])
					}
					sent.Add(1)
					if got, err := a.ask(w.relayID(), "/fwd/join/1", guess); err == nil && len(got) > 0 {
						said.Add(1)
					}
				}
			})
		}
		all.Wait()
	})
	t.Logf("%d requests, %d answers", sent.Load(), said.Load())
	if said.Load() > 0 {
		t.Error("a guess was answered")
	}
	if now := w.relay.status().Network.Epoch; now != epoch {
		t.Errorf("the roster changed: epoch %d, was %d", now, epoch)
	}
	late := newMachine(t)
	late.must("join", real, "--as", "late")
	if _, code, stderr := newMachine(t).run("join", real); code != 4 || !strings.Contains(stderr, "used") {
		t.Errorf("a used invite: exit %d\n%s", code, stderr)
	}
}

// Rosters of another key, with a flipped bit, of an older epoch, by strangers, members and the revoked: none is taken.
func TestForgedAndReplayedRostersAreNotTaken(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	insider := newAttacker(t, w, 90).join(w, w.invite(), "insider")
	old := insider.roster
	w.relay.must("rename", "laptop", "laptop-2")
	w.relay.must("revoke", "insider") // its roster lists it still
	outsider := newAttacker(t, w, 91)
	before := w.relay.status().Network
	forge := func(change func(*identity.Roster)) []byte {
		r := *old.Roster
		r.Epoch += 1000
		r.Term += 1000
		change(&r)
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		id, _ := peer.IDFromPrivateKey(key)
		r.Network = identity.NetworkID(id.String())
		s, err := identity.Seal(&r, key)
		if err != nil {
			t.Fatal(err)
		}
		return s.Envelope
	}
	flipped := append([]byte(nil), old.Envelope...)
	flipped[len(flipped)/2] ^= 1
	claim := hello{Network: old.Network, Term: 1 << 60, Epoch: 1 << 60}
	w.costs(func() {
		for name, envelope := range map[string][]byte{
			"older":         old.Envelope,
			"bit flipped":   flipped,
			"another key's": forge(func(*identity.Roster) {}),
			"with us as the owner": forge(func(r *identity.Roster) {
				r.Owner = outsider.ID()
				r.Entries = append(r.Entries, identity.Entry{Peer: outsider.ID(), Name: "evil", Caps: identity.Member | identity.Admin})
			}),
			"garbage": make([]byte, 1<<20),
		} {
			for _, at := range []peer.ID{w.relayID(), w.nasID()} {
				for _, a := range []*attacker{insider, outsider} {
					got, err := a.exchange(at, claim, &identity.RosterMsg{Term: 1 << 60, Epoch: 1 << 60, Roster: envelope, Slices: [][]byte{envelope, envelope}})
					if len(got.Roster) > 0 || got.Epoch != 0 || len(got.Heartbeat) > 0 {
						t.Errorf("%s: a stranger was told of epoch %d", name, got.Epoch)
					}
					_ = err // cut or not: nothing may come of it
				}
			}
		}
		// A hundred megabytes are announced, and as many sent as are taken.
		s, err := outsider.open(w.relayID(), "/fwd/roster/1")
		if err != nil {
			t.Fatal(err)
		}
		defer s.Reset()
		identity.WriteMsg(s, claim)
		var got answer
		identity.ReadMsg(s, 1<<20, &got)
		s.Write(binary.BigEndian.AppendUint32(nil, 100<<20))
		n := 0
		for chunk := make([]byte, 1<<20); n < 100; n++ {
			if _, err := s.Write(chunk); err != nil {
				break
			}
		}
		if n == 100 {
			t.Error("a roster of 100 MB was taken to its end")
		}
	})
	for _, m := range []*machine{w.relay, w.nas, w.laptop} {
		if n := m.status().Network; n.Epoch < before.Epoch || n.ID != before.ID {
			t.Errorf("roster %+v, was %+v", n, before)
		}
		if peers := m.must("peers", "--json"); strings.Contains(peers, "evil") || strings.Contains(peers, insider.ID().String()) {
			t.Errorf("listed: %s", peers)
		}
	}
}

// What identify tells a stranger has no private address of ours in it, but for those of its own network.
func TestStrangersAreNotToldPrivateAddresses(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := newAttacker(t, w, 95)
	identified, err := a.EventBus().Subscribe(new(event.EvtPeerIdentificationCompleted))
	if err != nil {
		t.Fatal(err)
	}
	defer identified.Close()
	if err := a.dial(w.nasID()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "identified", func() bool { // its event comes after the addresses; the protocols come before them
		select {
		case e := <-identified.Out():
			return e.(event.EvtPeerIdentificationCompleted).Peer == w.nasID()
		default:
			return false
		}
	})
	for _, addr := range a.Peerstore().Addrs(w.nasID()) {
		if !strings.HasPrefix(addr.String(), "/ip4/127.") && !strings.HasPrefix(addr.String(), "/ip6/::1/") {
			t.Errorf("a stranger on loopback was told %s", addr)
		}
	}
}

func a4(port int) string { return net.JoinHostPort("127.0.0.1", itoa(port)) }
