package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/punch"
)

// What moves much goes by TCP, where that is as good a way: it carries two to four times what QUIC does at a third of the
// CPU time, and with a connection of its own no keystroke queues behind it. The rest stays on the path. In order:
//
//  1. a stream for bulk is opened (OpenFor): by the path, for nothing waits
//  2. if no TCP connection is as good (measured.carries), one is sought beside the path: confirmed addresses are
//     dialled, or both sides open their NATs, as punching does, but with TCP alone
//  3. when it is there and measured, watchers are told (Path.Bulk), and what moves much is opened anew
//  4. it stays there until that connection dies or falls silent: then the path serves again
//
// Where the path is a circuit whose way to the relay is QUIC, step 2 is a circuit by TCP through the same relay (hops.go).
// Where no TCP is found, and QUIC is the path, it is spread over several connections (spread.go).

// besideProtocol is punching's, spoken on a direct connection, for a TCP connection beside it.
const besideProtocol protocol.ID = "/fwd/beside/1"

// besideAgain are the waits after a search that found nothing: at first the relays may not have told yet how they see us;
// at last once more, for a machine that was busy.
var besideAgain = [...]time.Duration{2 * time.Second, 10 * time.Second, 30 * time.Second, 75 * time.Second}

// besideRest is the least time between two searches in one network.
const besideRest = 30 * time.Second

// A TCP connection that seems slower than the path at first is measured anew so often.
const (
	measureTimes = 10
	measureEvery = time.Second
)

// ErrStay says that there is no better connection than the one in use.
var ErrStay = errors.New("no better connection")

// Wish is what a stream is for.
type Wish struct {
	Kind   PathKind
	Now    network.Conn // what it goes by now; nil: nothing
	Silent bool         // Now has gone silent: another one is wanted, and Now is asked for a sign of life
	Bulk   bool         // it moves much
}

// search is a search for a connection beside the path.
type search struct {
	at      time.Time
	busy    bool            // it goes on
	network context.Context // in which it was made
	relay   peer.ID         // for a circuit through it; none: for a direct connection
	noTCP   bool            // nothing was found so far
	dialled bool            // a further QUIC connection was, for want of TCP, and it is not there
}

// chooseBulkLocked settles what carries bulk. A connection that does keeps it while it is alive: under load its round
// trips say little.
func (ps *paths) chooseBulkLocked(p peer.ID, pp *peerPaths) (changed bool) {
	for kind := range pp.bulk {
		best := ps.bestLocked(p, nil, PathKind(kind))
		var bulk *link
		for _, l := range pp.links {
			if best == nil || l == best || l.conn.IsClosed() || l.silent || !l.is(PathKind(kind)) || l.class > best.class {
				continue
			}
			if l == pp.bulk[kind] {
				bulk = l
				break
			}
			if best.quic && l.measured().carries(best.measured()) && (bulk == nil || l.rtt < bulk.rtt) {
				bulk = l
			}
		}
		changed = changed || pp.bulk[kind] != bulk
		pp.bulk[kind] = bulk
	}
	return changed
}

// kinds is how many kinds of path there are.
const kinds = int(Relay) + 1

// is says whether l is of that kind.
func (l *link) is(kind PathKind) bool { return kind == Auto || (kind == Direct) == l.direct() }

// bestFor is best, for a stream that may move much.
func (ps *paths) bestFor(p peer.ID, avoid network.Conn, kind PathKind, bulk bool) *link {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if pp := ps.peers[p]; bulk && pp != nil {
		if l := pp.bulk[kind]; l != nil && l.conn != avoid && !l.silent && !l.conn.IsClosed() {
			return l
		}
	}
	return ps.bestLocked(p, avoid, kind)
}

// seekBeside looks for a connection for bulk, unless there is one or there was none a while ago. It does not wait.
func (n *Node) seekBeside(p peer.ID, kind PathKind) {
	ps := n.paths
	ps.mu.Lock()
	defer ps.mu.Unlock()
	pp := ps.peers[p]
	best := ps.bestLocked(p, nil, kind)
	if best == nil || !best.quic || pp.bulk[kind] != nil {
		return
	}
	in, last := n.network.ctx(), ps.beside[p]
	if last != nil && (last.network != in || last.relay != best.relay) {
		last = nil
	}
	if last != nil && (last.busy || time.Since(last.at) < besideRest) {
		return
	}
	s := &search{at: time.Now(), busy: true, network: in, relay: best.relay, noTCP: last != nil && last.noTCP}
	ps.beside[p] = s
	n.tasks.start(func() {
		if best.direct() {
			n.seekTCP(in, p)
		} else {
			n.seekCircuit(in, p, best.relay)
		}
		ps.mu.Lock()
		defer ps.mu.Unlock()
		s.busy = false
	})
}

// seekTCP tries some times, until there is a TCP connection or the network is another one.
func (n *Node) seekTCP(ctx context.Context, p peer.ID) {
	for i := 0; ; i++ {
		o, err := n.beside.Punch(ctx, p)
		n.log.Debug("TCP beside the path", "peer", p, "found", o.Direct, "step", o.Step, "took", o.Took, "err", err)
		if n.paths.hasTCP(p) {
			n.measureTCP(ctx, p, Direct)
			return
		}
		n.paths.noTCP(p)
		n.dialMore(p)
		if i == len(besideAgain) || !sleep(ctx, besideAgain[i]) || !n.paths.has(p, Direct) {
			return
		}
	}
}

// measureTCP measures a new TCP connection until it is taken for bulk, or has had its chances: the first round trips were
// measured while much went the same way.
func (n *Node) measureTCP(ctx context.Context, p peer.ID, kind PathKind) {
	for range measureTimes {
		if !sleep(ctx, measureEvery) || n.paths.bestFor(p, nil, kind, true) != n.paths.bestFor(p, nil, kind, false) {
			return
		}
		for _, l := range n.paths.links(p) {
			if l.is(kind) && !l.quic {
				n.paths.check(l)
			}
		}
	}
}

// newBeside punches with TCP alone, by way of the direct connection.
func (n *Node) newBeside() *punch.Puncher {
	return punch.New(punch.Config{
		Self: n.self,
		Report: func(ctx context.Context) punch.Report {
			r := n.nat.report(ctx)
			r.UDP = punch.Transport{}
			tcp := func(list []ma.Multiaddr) []ma.Multiaddr {
				return slices.DeleteFunc(slices.Clone(list), func(a ma.Multiaddr) bool { return transportOf(a) != "tcp" })
			}
			r.LAN, r.Confirmed = tcp(r.LAN), tcp(r.Confirmed)
			return r
		},
		Open: func(ctx context.Context, p peer.ID) (punch.Stream, error) {
			c := n.paths.best(p, nil, Direct)
			if c == nil {
				return nil, errors.New("no direct connection")
			}
			return openOn(ctx, c, besideProtocol)
		},
		Dial: func(ctx context.Context, p peer.ID, a ma.Multiaddr, role punch.Role) error {
			if role != punch.Plain {
				ctx = network.WithSimultaneousConnect(ctx, role == punch.Client, "beside")
			}
			_, err := n.door.dial(ctx, p, a)
			return err
		},
		Direct: func(p peer.ID) (<-chan struct{}, func()) {
			return n.paths.when(p, func() bool { return n.paths.hasTCP(p) })
		},
		Log: n.log,
	})
}

// handleBeside serves what the peer seeks.
func (n *Node) handleBeside(s network.Stream) {
	if relayOf(s.Conn().RemoteMultiaddr()) != "" { // beside what?
		s.Reset()
		return
	}
	if !n.tasks.start(func() {
		_, err := n.beside.Handle(n.ctx, s.Conn().RemotePeer(), s)
		n.log.Debug("TCP beside the path, sought by the peer", "peer", s.Conn().RemotePeer(), "err", err)
	}) {
		s.Reset()
	}
}

// when's channel is closed as soon as cond holds; it is asked at each change of p's connections.
func (ps *paths) when(p peer.ID, cond func() bool) (<-chan struct{}, func()) {
	holds := make(chan struct{})
	ctx, cancel := context.WithCancel(ps.node.ctx)
	news, stop := ps.listen(p)
	if !ps.node.tasks.start(func() {
		defer stop()
		for !cond() {
			select {
			case <-news:
			case <-ctx.Done():
				return
			}
		}
		close(holds)
	}) {
		stop()
	}
	return holds, cancel
}

// hasTCP says whether there is a direct TCP connection to p.
func (ps *paths) hasTCP(p peer.ID) bool {
	return slices.ContainsFunc(ps.links(p), func(l *link) bool { return l.direct() && !l.quic && !l.conn.IsClosed() })
}
