package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Path says how p is reached now; false: not at all.
func (n *Node) Path(p peer.ID) (Path, bool) {
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	pp := n.paths.peers[p]
	if pp == nil || pp.best == nil {
		return Path{}, false
	}
	return n.paths.describeLocked(p, pp), true
}

// PathBy says by which path of that kind Open would go now; false: it would have to make one.
func (n *Node) PathBy(p peer.ID, kind PathKind) (Path, bool) {
	if kind == Auto {
		return n.Path(p)
	}
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	l := n.paths.bestLocked(p, nil, kind)
	if l == nil {
		return Path{}, false
	}
	path := n.paths.describeLinkLocked(p, l, l.since)
	if l := n.paths.peers[p].bulk[kind]; l != nil {
		path.Bulk = l.conn.RemoteMultiaddr()
	}
	path.Spread = n.paths.spreadLocked(p, kind)
	return path, true
}

// ErrPathChanged says that a ping came back by what is not the best path any more.
var ErrPathChanged = errors.New("the path changed meanwhile")

// Ping measures the round trip on p's path now, and returns the path with it.
func (n *Node) Ping(ctx context.Context, p peer.ID) (Path, error) {
	c := n.paths.best(p, nil, Auto)
	if c == nil {
		return Path{}, fmt.Errorf("ping %s: %w", p, ErrUnreachable)
	}
	pinger := &pinger{conn: c}
	defer pinger.close()
	rtt, err := pinger.ping(ctx, firstPingTimeout)
	if err != nil {
		return Path{}, fmt.Errorf("ping %s at %s: %w", p, c.RemoteMultiaddr(), err)
	}
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	if pp := n.paths.peers[p]; pp != nil && pp.best != nil && pp.best.conn == c {
		path := n.paths.describeLocked(p, pp)
		path.RTT = rtt
		return path, nil
	}
	return Path{}, fmt.Errorf("ping %s: %w", p, ErrPathChanged)
}
