//go:build linux

package itest

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/itest/fwdtest"
	"fwd/itest/lab"
)

// strangerOf is the variable that makes a copy of this test binary play the stranger: addresses of the relay with
// its peer ID, and the peer ID of a member, by spaces.
const strangerOf = "FWD_ITEST_STRANGER"

// findings is what a stranger with the relay's address, a libp2p of its own and no invite has got.
type findings struct {
	Connected    bool              // the handshake itself is open to all
	Protocols    []string          // that the relay has told it of
	Reservation  string            // "" for a reservation got, else the error
	Circuit      string            // "" for a circuit to the member got, else the error
	Answers      map[string]string // by protocol: what came back, "" for an answer
	Disconnected bool              // the relay has closed the connection
	Stayed       time.Duration
}

func TestStrangerGetsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.PortRestricted, lab.PortRestricted)
	_, local := w.connect()
	spec := []string{}
	relayID := w.relay.Status().Peer
	for _, a := range w.relaying.Wait("relay").Addrs {
		if !strings.Contains(a, "/p2p/") {
			a += "/p2p/" + relayID
		}
		spec = append(spec, a)
	}
	spec = append(spec, w.nas.Status().Peer)

	far := w.lab.Public("stranger", "7.0.0.66")
	ctx, cancel := context.WithTimeout(t.Context(), fwdtest.Limit)
	defer cancel()
	cmd := far.Command(ctx, "/proc/self/exe")
	cmd.Env = append(os.Environ(), strangerOf+"="+strings.Join(spec, " "))
	out, err := cmd.Output()
	var f findings
	if err != nil || json.Unmarshal(out, &f) != nil {
		t.Fatalf("the stranger: %v\n%s", err, out)
	}
	t.Logf("found: %s", out)
	if !f.Connected {
		t.Error("the stranger did not even connect, so this shows nothing")
	}
	if f.Reservation == "" {
		t.Error("got a reservation")
	}
	if f.Circuit == "" {
		t.Error("got a circuit to a member")
	}
	for proto, failure := range f.Answers {
		if failure == "" {
			t.Errorf("%s answered", proto)
		}
	}
	if !f.Disconnected || f.Stayed > 10*time.Second {
		t.Errorf("disconnected: %v, after %v; strangers have 5 s", f.Disconnected, f.Stayed)
	}
	w.transfer(local, fwdtest.Load{Up: mib, Down: mib}) // and the members did not notice
}

// A guessed, mangled or foreign code lets nobody in, and says so in one way each.
func TestBadInvitesAreRefusedWithTheirReason(t *testing.T) {
	t.Parallel()
	l := lab.New(t)
	relay := fwdtest.New(t, l.Public("relay", "7.0.0.10"))
	up := relay.Start("relay", "--as", "relay")
	code := up.Wait("invite").Invite
	home := l.Home("a", lab.PortRestricted, slow())
	mangled := code[:len(code)-3] + strings.Map(func(r rune) rune {
		if r == 'a' {
			return 'b'
		}
		return 'a'
	}, code[len(code)-3:])
	for name, tc := range map[string]struct{ code string }{
		"no invite": {"hello"},
		"mangled":   {mangled},
	} {
		p := fwdtest.New(t, home.Host(strings.ReplaceAll(name, " ", "-")))
		if r := p.RunWith(tc.code, "join"); r.Code != 2 && r.Code != 4 || !strings.Contains(r.Stderr, "fwd: error:") {
			t.Errorf("%s: exit %d\n%s", name, r.Code, r.Stderr)
		}
	}
	good := fwdtest.New(t, home.Host("good"))
	good.Join(code, "good")
	late := fwdtest.New(t, home.Host("late"))
	if r := late.RunWith(code, "join"); r.Code != 4 || !strings.Contains(r.Stderr, "used") {
		t.Errorf("a used invite: exit %d, want 4 and the word used\n%s", r.Code, r.Stderr)
	}
}

// playStranger is the other program: it tries everything and prints what it got.
func playStranger(spec string) int {
	f, err := tryEverything(strings.Fields(spec))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = json.NewEncoder(os.Stdout).Encode(f)
	return 0
}

func tryEverything(words []string) (findings, error) {
	f := findings{Answers: map[string]string{}}
	ctx, cancel := context.WithTimeout(context.Background(), 40*time.Second)
	defer cancel()
	relay, err := peer.AddrInfosFromP2pAddrs(addresses(words[:len(words)-1])...)
	if err != nil || len(relay) != 1 {
		return f, fmt.Errorf("the relay's addresses: %v, %w", relay, err)
	}
	member, err := peer.Decode(words[len(words)-1])
	if err != nil {
		return f, err
	}
	newHost := func() (host.Host, error) { return libp2p.New(libp2p.NoListenAddrs, libp2p.EnableRelay()) }

	// One try, one host, one connection: the relay may close it at any time.
	try := func(what func(host.Host) error) string {
		h, err := newHost()
		if err != nil {
			return err.Error()
		}
		defer h.Close()
		if err := h.Connect(ctx, relay[0]); err != nil {
			return "connect: " + err.Error()
		}
		f.Connected = true
		if err := what(h); err != nil {
			return err.Error()
		}
		return ""
	}
	f.Reservation = try(func(h host.Host) error {
		protos, _ := h.Peerstore().GetProtocols(relay[0].ID)
		for _, p := range protos {
			f.Protocols = append(f.Protocols, string(p))
		}
		_, err := client.Reserve(ctx, h, relay[0])
		return err
	})
	f.Circuit = try(func(h host.Host) error {
		way, err := ma.NewMultiaddr("/p2p/" + relay[0].ID.String() + "/p2p-circuit")
		if err != nil {
			return err
		}
		return h.Connect(ctx, peer.AddrInfo{ID: member, Addrs: []ma.Multiaddr{way}})
	})
	for _, proto := range []protocol.ID{
		"/fwd/services/1", "/fwd/punch/1", "/fwd/reflect/1", "/fwd/rendezvous/1", "/fwd/lane/1",
		"/fwd/kad/1.0.0", "/libp2p/circuit/relay/0.2.0/hop", "/libp2p/autonat/1.0.0", "/libp2p/autonat/2/dial-request",
	} {
		f.Answers[string(proto)] = try(func(h host.Host) error {
			s, err := h.NewStream(ctx, relay[0].ID, proto)
			if err != nil {
				return err
			}
			defer s.Reset()
			// Protocols that the relay claims are only agreed upon with the first byte.
			_ = s.SetDeadline(time.Now().Add(3 * time.Second))
			if _, err := s.Write([]byte{0}); err != nil {
				return err
			}
			_, err = s.Read(make([]byte, 1))
			return err
		})
	}
	// And one that only stays.
	h, err := newHost()
	if err != nil {
		return f, err
	}
	defer h.Close()
	gone := make(chan struct{})
	began := time.Now()
	h.Network().Notify(&network.NotifyBundle{DisconnectedF: func(n network.Network, _ network.Conn) {
		if n.Connectedness(relay[0].ID) != network.Connected {
			select {
			case <-gone:
			default:
				close(gone)
			}
		}
	}})
	if err := h.Connect(ctx, relay[0]); err != nil {
		return f, fmt.Errorf("connect: %w", err)
	}
	select {
	case <-gone:
		f.Disconnected = true
	case <-time.After(20 * time.Second):
	}
	f.Stayed = time.Since(began)
	return f, nil
}

func addresses(words []string) (addrs []ma.Multiaddr) {
	for _, w := range words {
		if a, err := ma.NewMultiaddr(w); err == nil {
			addrs = append(addrs, a)
		}
	}
	return addrs
}
