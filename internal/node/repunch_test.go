package node

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/punch"
)

// punchInVain gives n a puncher whose every dial is swallowed; began gets a token for each attempt of n's, its own or
// the peer's.
func punchInVain(n *Node, host string) (began <-chan struct{}) {
	c := make(chan struct{}, 64)
	n.punch = punch.New(punch.Config{
		Self: n.self,
		Report: func(context.Context) punch.Report {
			c <- struct{}{}
			at := ma.StringCast("/ip4/" + host + "/udp/4001/quic-v1")
			return punch.Report{UDP: punch.Transport{Mapping: punch.Independent, Kept: true, Filtering: punch.SamePort, Observed: []ma.Multiaddr{at}}}
		},
		Open: func(ctx context.Context, p peer.ID) (punch.Stream, error) {
			c := n.paths.best(p, nil, Relay)
			if c == nil {
				return nil, errors.New("no relayed connection")
			}
			return openOn(ctx, c, punch.Protocol)
		},
		Dial: func(ctx context.Context, _ peer.ID, _ ma.Multiaddr, _ punch.Role) error {
			<-ctx.Done()
			return ctx.Err()
		},
		Direct: n.paths.whenDirect,
		Log:    n.log,
	})
	return c
}

// What was begun in another network does not stand in the way: neither here, nor at the peer, which learns of the change
// by nothing but the next attempt.
func TestAPunchOfTheOldNetworkDoesNotDelayTheNewOne(t *testing.T) {
	_, _, a, b := pair(t)
	here, there := punchInVain(a, "7.0.0.1"), punchInVain(b, "7.0.0.2")
	both := func(what string) {
		t.Helper()
		for _, c := range []<-chan struct{}{here, there} {
			select {
			case <-c:
			case <-time.After(patience):
				t.Fatal(what, "does not begin")
			}
		}
	}
	defer a.Hold(b.self, Auto)()
	both("the first attempt")
	changed := time.Now()
	a.NetworkChanged()
	both("another one")
	// The first one alone would have gone on for 3 s, and 5 s are waited after one in vain.
	if took := time.Since(changed); took > 4*time.Second {
		t.Errorf("the next attempt began %v after the change", took)
	}
}
