package daemon

import (
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

type visitor struct {
	network.Conn
	peer peer.ID
	from ma.Multiaddr
}

func (v visitor) RemotePeer() peer.ID           { return v.peer }
func (v visitor) RemoteMultiaddr() ma.Multiaddr { return v.from }

func TestStrangersAreCountedByWhereTheyComeFrom(t *testing.T) {
	l := newLobby()
	tries := func(n int, from func(i int) string, member bool) (let int) {
		for i := range n {
			p := peer.ID(fmt.Sprint("peer ", i)) // a new key each time
			if member {
				p = "relay"
			}
			if leave, ok := l.enter(visitor{peer: p, from: ma.StringCast(from(i))}, member); ok {
				let++
				leave()
			}
		}
		return let
	}
	one := func(int) string { return "/ip4/7.0.0.1/tcp/1" }
	if n := tries(1000, one, false); n < strangersBurst || n > strangersBurst+5 {
		t.Errorf("1000 tries from one address got in %d times, want %d", n, strangersBurst)
	}
	if n := tries(1000, func(i int) string { return fmt.Sprintf("/ip6/2a00::1:%x/tcp/1", i) }, false); n > strangersBurst+5 {
		t.Errorf("1000 tries from one IPv6 network got in %d times", n)
	}
	if n := tries(1, func(int) string { return "/ip4/7.0.0.2/tcp/1" }, false); n != 1 {
		t.Error("another address pays for the first")
	}
	if n := tries(100, one, true); n != 100 {
		t.Errorf("a relay behind that address got in %d times of 100", n)
	}
	tries(3*maxSources, func(i int) string { return fmt.Sprintf("/ip4/7.%d.%d.%d/tcp/1", 1+i>>16, i>>8&255, i&255) }, false)
	if n := len(l.sources); n > maxSources {
		t.Errorf("%d sources are remembered, want at most %d", n, maxSources)
	}
	inside := 0
	for i := range 2 * strangersAtOnce {
		if _, ok := l.enter(visitor{peer: "p", from: ma.StringCast(fmt.Sprintf("/ip4/9.0.0.%d/tcp/1", i))}, false); ok {
			inside++
		}
	}
	if inside != strangersAtOnce {
		t.Errorf("%d are inside, want %d", inside, strangersAtOnce)
	}
}
