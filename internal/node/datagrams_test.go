package node

import (
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	ma "github.com/multiformats/go-multiaddr"
)

func quicOf(n *Node) (list []ma.Multiaddr) {
	for _, a := range n.ListenAddrs() {
		if transportOf(a) == "quic-v1" {
			list = append(list, a)
		}
	}
	return list
}

func TestDatagramsAreThereOnDirectQUICAndNowhereElse(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{})
	a, b := m.join(Config{}), m.join(Config{})
	serveEcho(b)
	eventually(t, "reservations", func() bool { return reserved(a, 1)() && reserved(b, 1)() })
	a.parts.host.Peerstore().AddAddrs(b.self, quicOf(b), time.Hour)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()

	for kind, want := range map[PathKind]bool{Direct: true, Relay: false} {
		var s network.Stream
		eventually(t, kind.String(), func() (ok bool) {
			var err error
			s, err = a.Open(ctx, b.self, echoProtocol, nil, kind)
			return err == nil
		})
		if got := Datagrams(s) != nil; got != want {
			t.Errorf("by %v (%v) there are datagrams: %v", kind, s.Conn().RemoteMultiaddr(), got)
		}
		s.Reset()
	}
	// To the relay itself there are; what goes through it must not use them.
	s, err := a.Open(ctx, relay.self, echoProtocol, nil, Direct)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	here := Datagrams(s)
	if transportOf(s.Conn().RemoteMultiaddr()) == "quic-v1" && here == nil {
		t.Error("none to the relay")
	}
}

func TestDatagramsGoThere(t *testing.T) {
	m := newMesh(t)
	a, b := m.join(Config{}), m.join(Config{})
	a.parts.host.Peerstore().AddAddrs(b.self, quicOf(b), time.Hour)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	s, err := a.Open(ctx, b.self, echoProtocol, nil, Direct)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Reset()
	here := Datagrams(s)
	if here == nil {
		t.Fatal("no datagrams")
	}
	eventually(t, "the connection at the other end", func() bool { return len(b.parts.swarm.ConnsToPeer(a.self)) > 0 })
	back, err := b.parts.swarm.ConnsToPeer(a.self)[0].NewStream(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Reset()
	there := Datagrams(back)
	if err := here.SendDatagram([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if got, err := there.ReceiveDatagram(ctx); err != nil || string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := here.SendDatagram(make([]byte, 1500)); err == nil {
		t.Error("1 500 bytes fit")
	}
}
