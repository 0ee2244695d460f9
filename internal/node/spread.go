package node

import (
	"context"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	ma "github.com/multiformats/go-multiaddr"
)

// Where nothing but UDP is direct, what moves much shares QUIC's control of congestion, which takes each lost packet for a
// full queue: at a loss of 0.1 % and 50 ms one connection carries 10 to 15 Mbit/s of 100. So each lane of bulk gets a QUIC
// connection for itself, to the address at which the path has one: the NATs are open there, no punch is needed. A shell's
// lane, left alone on the path, does not wait behind the bulk either. They are spare connections when the bulk is over, and
// are closed as such (tidy).

// maxSpread is how many QUIC connections to a peer are used at once: as many as a link has lanes.
const maxSpread = 4

// linkFor chooses what a stream is opened on, and counts it there until the caller has opened it; nil: there is nothing.
func (n *Node) linkFor(p peer.ID, proto protocol.ID, w Wish, avoid network.Conn) *link {
	n.sharing.Lock()
	defer n.sharing.Unlock()
	l := n.paths.bestFor(p, avoid, w.Kind, w.Bulk)
	if w.Bulk {
		if alike := n.paths.alike(p, avoid, w.Kind); len(alike) > 0 {
			free := false
			if l, free = leastLoaded(alike, proto, w.Now); !free && len(alike) < maxSpread {
				n.dialMore(p)
			}
		}
	}
	if l != nil {
		l.opening.Add(1)
	}
	return l
}

// leastLoaded is the link with the fewest streams of a protocol, the asker's own at now not counted, and says whether there
// are none. An asker stays unless another link is free: moving costs a resume.
func leastLoaded(links []*link, proto protocol.ID, now network.Conn) (least *link, free bool) {
	load := func(l *link) int {
		n := int(l.opening.Load())
		for _, s := range l.conn.GetStreams() {
			if s.Protocol() == proto {
				n++
			}
		}
		if l.conn == now {
			n = max(n-1, 0)
		}
		return n
	}
	fewest := 0
	for _, l := range links {
		n := load(l)
		if n == 0 && l.conn == now {
			return l, true
		}
		if least == nil || n < fewest {
			least, fewest = l, n
		}
	}
	if fewest > 0 {
		if i := slices.IndexFunc(links, func(l *link) bool { return l.conn == now }); i >= 0 {
			least = links[i]
		}
	}
	return least, fewest == 0
}

// alike are the QUIC connections that carry as well as p's path, itself first; none if bulk goes elsewhere.
func (ps *paths) alike(p peer.ID, avoid network.Conn, kind PathKind) []*link {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.alikeLocked(p, avoid, kind)
}

func (ps *paths) alikeLocked(p peer.ID, avoid network.Conn, kind PathKind) []*link {
	pp := ps.peers[p]
	best := ps.bestLocked(p, avoid, kind)
	if best == nil || !best.direct() || !best.quic || pp.bulk[kind] != nil {
		return nil
	}
	alike := []*link{best}
	for _, l := range pp.links {
		if l != best && l.quic && l.conn != avoid && !l.conn.IsClosed() && l.measured().asGood(best.measured()) {
			alike = append(alike, l)
		}
	}
	return alike
}

// spreadLocked is how many connections alike there are, if any was dialled to be one.
func (ps *paths) spreadLocked(p peer.ID, kind PathKind) int {
	alike := ps.alikeLocked(p, nil, kind)
	if !slices.ContainsFunc(alike, func(l *link) bool { return l.further }) {
		return 0
	}
	return len(alike)
}

// noTCP notes that a search for a TCP connection to p found none.
func (ps *paths) noTCP(p peer.ID) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if s := ps.beside[p]; s != nil {
		s.noTCP = true
	}
}

// moreAt says where one more QUIC connection to p is to be dialled; nil: it is not. One is dialled at a time, and none after
// a failure until TCP is looked for anew.
func (ps *paths) moreAt(p peer.ID) (at ma.Multiaddr, dialled *search) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	s := ps.beside[p]
	alike := ps.alikeLocked(p, nil, Direct)
	if s == nil || !s.noTCP || s.dialled || len(alike) == 0 || len(alike) >= maxSpread {
		return nil, nil
	}
	// A punched socket's way is open from that socket alone.
	i := slices.IndexFunc(alike, func(l *link) bool { return ps.node.addrs.ownPort(l.conn) })
	if i < 0 {
		return nil, nil
	}
	s.dialled = true
	return alike[i].conn.RemoteMultiaddr(), s
}

// dialMore dials one more QUIC connection to p where bulk would profit. It does not wait; watchers are told when the
// connection is there and measured (Path.Spread).
func (n *Node) dialMore(p peer.ID) {
	at, s := n.paths.moreAt(p)
	if at == nil {
		return
	}
	n.tasks.start(func() {
		ctx, cancel := context.WithTimeout(s.network, dialWithin)
		defer cancel()
		began := time.Now()
		c, err := n.door.dial(ctx, p, at)
		n.log.Debug("further QUIC connection for bulk", "peer", p, "at", at, "took", time.Since(began), "err", err)
		if err != nil {
			return
		}
		n.paths.mu.Lock()
		defer n.paths.mu.Unlock()
		s.dialled = false
		if l := n.paths.findLocked(p, c); l != nil {
			l.further = true
			n.paths.chooseLocked(p, nil)
		}
	})
}
