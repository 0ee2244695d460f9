//go:build linux

package hostile

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/forward/session"
	"fwd/identity"
)

// attacker is a libp2p host with a key, and perhaps a place on the roster that it got by an invite.
type attacker struct {
	host.Host
	t      *testing.T
	key    crypto.PrivKey
	roster *identity.Sealed
	addrs  map[peer.ID][]ma.Multiaddr
}

// newAttacker listens at 127.0.0.N, so that its connections come from there and not from where members come from.
func newAttacker(t *testing.T, w *world, n int) *attacker {
	t.Helper()
	a := newAttackerAt(t, n)
	a.addrs[w.relayID()] = []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", w.relayPort))}
	a.addrs[w.nasID()] = w.nasAddrs()
	return a
}

func newAttackerAt(t *testing.T, n int) *attacker {
	t.Helper()
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	h, err := libp2p.New(libp2p.Identity(key), libp2p.EnableRelay(), libp2p.DisableMetrics(), libp2p.ResourceManager(&network.NullResourceManager{}),
		libp2p.ListenAddrStrings(fmt.Sprintf("/ip4/127.0.0.%d/tcp/0", n)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.Close() })
	return &attacker{Host: h, t: t, key: key, addrs: map[peer.ID][]ma.Multiaddr{}}
}

func (w *world) relayID() peer.ID { return decode(w.t, w.relay.status().Peer) }
func (w *world) nasID() peer.ID   { return decode(w.t, w.nas.status().Peer) }

// nasAddrs is where the NAS listens: its port is in its home.
func (w *world) nasAddrs() []ma.Multiaddr {
	var state struct{ Port int }
	data, err := readFile(w.nas.home, "daemon")
	if err == nil {
		err = json.Unmarshal(data, &state)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return []ma.Multiaddr{ma.StringCast(fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", state.Port))}
}

func decode(t *testing.T, s string) peer.ID {
	t.Helper()
	p, err := peer.Decode(s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// dial connects to p directly.
func (a *attacker) dial(p peer.ID) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return a.Connect(ctx, peer.AddrInfo{ID: p, Addrs: a.addrs[p]})
}

// open opens a stream to p and has the protocol agreed upon.
func (a *attacker) open(p peer.ID, proto protocol.ID) (network.Stream, error) {
	if err := a.dial(p); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(network.WithAllowLimitedConn(context.Background(), "attack"), patience)
	defer cancel()
	s, err := a.NewStream(ctx, p, proto)
	if err == nil {
		s.SetDeadline(time.Now().Add(patience))
	}
	return s, err
}

// ask sends raw bytes and reads the answer to its end.
func (a *attacker) ask(p peer.ID, proto protocol.ID, raw []byte) ([]byte, error) {
	s, err := a.open(p, proto)
	if err != nil {
		return nil, err
	}
	defer s.Reset()
	if _, err := s.Write(raw); err != nil {
		return nil, err
	}
	s.CloseWrite()
	return io.ReadAll(io.LimitReader(s, 8<<20))
}

// join puts the attacker on the roster by an invite.
func (a *attacker) join(w *world, code, name string) *attacker {
	a.t.Helper()
	invite, err := identity.ParseInvite(code)
	if err != nil {
		a.t.Fatal(err)
	}
	request, finish, err := invite.Request(a.key, name)
	if err != nil {
		a.t.Fatal(err)
	}
	reply, err := a.ask(w.relayID(), "/fwd/join/1", request)
	if err != nil {
		a.t.Fatalf("join: %v", err)
	}
	if a.roster, _, err = finish(reply); err != nil {
		a.t.Fatal(err)
	}
	// The NAS hears of it.
	eventually(a.t, "the NAS knows the attacker", func() bool {
		var list []struct{ Peer string }
		return json.Unmarshal([]byte(w.nas.must("peers", "--json")), &list) == nil && containsPeer(list, a.ID())
	})
	return a
}

func containsPeer(list []struct{ Peer string }, p peer.ID) bool {
	for _, e := range list {
		if e.Peer == p.String() {
			return true
		}
	}
	return false
}

// hello and answer are the roster exchange, written down once more.
type hello struct {
	Network identity.NetworkID `json:"network"`
	Term    uint64             `json:"term"`
	Epoch   uint64             `json:"epoch"`
	Version string             `json:"version,omitempty"`
	Request *request           `json:"request,omitempty"`
}

type request struct {
	API     int    `json:"api"`
	Command string `json:"command"`
	Args    any    `json:"args,omitempty"`
}

type answer struct {
	identity.RosterMsg
	Want    bool `json:"want"`
	Gone    bool `json:"gone"`
	Events  []any
	Failure *struct {
		Code  string `json:"code"`
		Error string `json:"error"`
	} `json:"failure"`
}

// exchange says h to p, and hands over give if it is wanted.
func (a *attacker) exchange(p peer.ID, h hello, give *identity.RosterMsg) (got answer, err error) {
	s, err := a.open(p, "/fwd/roster/1")
	if err != nil {
		return got, err
	}
	defer s.Reset()
	if err := identity.WriteMsg(s, h); err != nil {
		return got, err
	}
	if err := identity.ReadMsg(s, identity.MaxRosterMsg, &got); err != nil {
		return got, err
	}
	if give != nil && got.Want {
		if err := identity.WriteMsg(s, *give); err != nil {
			return got, err
		}
		_, err = io.ReadAll(s)
	}
	return got, err
}

func (a *attacker) hello() hello {
	return hello{Network: a.roster.Network, Term: a.roster.Term, Epoch: a.roster.Epoch}
}

// wish is a request to p, as admins make them.
func (a *attacker) wish(p peer.ID, command string, args any) (answer, error) {
	h := a.hello()
	h.Request = &request{API: 1, Command: command, Args: args}
	return a.exchange(p, h, nil)
}

// sessions is an endpoint of our own; each lane's stream goes through wrap.
func (a *attacker) sessions(wrap func(session.Stream) session.Stream) *session.Endpoint {
	e := session.New(session.Config{Self: a.ID(), Authorize: func(peer.ID) error { return nil },
		Open: func(ctx context.Context, p peer.ID, _ session.Want) (session.Stream, error) {
			s, err := a.open(p, "/fwd/lane/1")
			if err != nil {
				return nil, err
			}
			s.SetDeadline(time.Time{})
			if wrap != nil {
				return wrap(s), nil
			}
			return s, nil
		}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); e.Serve(ctx) }()
	a.t.Cleanup(func() { cancel(); <-done })
	return e
}
