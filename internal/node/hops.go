package node

import (
	"context"
	"errors"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// A circuit is a stream to the relay (the hop) and one from there to the peer (the stop). The library opens the hop on
// whichever connection to the relay has the most streams. Here it goes by the path to the relay, QUIC where there is
// any, and where much moves by TCP. The relay opens the stop by the same (relaynode/legs.go), so that both ends know by
// what all of it goes.

// byTCP in a context asks for a hop by TCP.
type byTCP struct{}

// errNoTCP ends the dial of a circuit by TCP to a relay that we have no such connection to.
var errNoTCP = errors.New("no TCP connection to the relay")

// hops is the host as the door's circuit clients see it.
type hops struct {
	host.Host
	paths *paths
}

func (h hops) NewStream(ctx context.Context, relay peer.ID, ids ...protocol.ID) (network.Stream, error) {
	l := h.paths.bestFor(relay, nil, Direct, false)
	if ctx.Value(byTCP{}) != nil {
		if l = h.paths.tcp(relay); l == nil {
			return nil, errNoTCP
		}
	}
	if l == nil {
		return h.Host.NewStream(ctx, relay, ids...)
	}
	return openOn(ctx, l.conn, ids[0])
}

// tcp is a direct TCP connection to p that has answered and is not silent, the quickest; nil: there is none.
func (ps *paths) tcp(p peer.ID) (best *link) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	pp := ps.peers[p]
	if pp == nil {
		return nil
	}
	for _, l := range pp.links {
		if l.direct() && transportOf(l.conn.RemoteMultiaddr()) == "tcp" && l.rtt != 0 && !l.silent && !l.conn.IsClosed() &&
			(best == nil || l.measured().beats(best.measured())) {
			best = l
		}
	}
	return best
}

// seekCircuit tries some times to have a circuit by TCP beside the one by QUIC, until the network is another one: just
// after the start there may be no TCP connection to the relay yet.
func (n *Node) seekCircuit(ctx context.Context, p, relay peer.ID) {
	for i := 0; ; i++ {
		began := time.Now()
		dialling, cancel := context.WithTimeout(context.WithValue(ctx, byTCP{}, true), dialWithin)
		_, err := n.door.dial(dialling, p, circuitVia(relay))
		cancel()
		n.log.Debug("circuit by TCP beside the path", "peer", p, "relay", relay, "took", time.Since(began), "err", err)
		if err == nil {
			n.measureTCP(ctx, p, Relay)
			return
		}
		if i == len(besideAgain) || !sleep(ctx, besideAgain[i]) || !n.paths.has(p, Relay) {
			return
		}
	}
}
