package node

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/singleflight"
)

const (
	// relayDialWithin is how long one dial of a relay may take. Short, for a dial that began while the
	// relay was away resends ever more seldom, and the swarm lets no second one begin beside it; each
	// relayDialPatient-th has longer, for the slowest of networks.
	relayDialWithin, relayDialLonger = 2 * time.Second, 6 * time.Second
	relayDialPatient                 = 3
	// doubtEvery bounds how often a lost path makes us ask the relays anew how they see us.
	doubtEvery = 5 * time.Second
)

// relayDials are the dials of relays under way: one a relay, whoever waits for it.
type relayDials struct {
	running singleflight.Group

	mu     sync.Mutex
	failed map[peer.ID]int // in a row
	doubt  time.Time       // when the relays were last asked anew

	waiting bool // somebody is about to
}

// connectRelay makes sure that there is a connection to relay.
func (n *Node) connectRelay(ctx context.Context, relay peer.AddrInfo) error {
	if n.paths.has(relay.ID, Direct) {
		return nil
	}
	done := n.dials.running.DoChan(string(relay.ID), func() (any, error) { return nil, n.dialRelay(relay) })
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Node) dialRelay(relay peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(n.network.ctx(), n.dials.patience(relay.ID))
	defer cancel()
	n.parts.host.Peerstore().AddAddrs(relay.ID, relay.Addrs, knownFor)
	// After an outage the swarm would refuse to dial for up to 5 min.
	n.parts.swarm.Backoff().Clear(relay.ID)
	_, err := n.parts.swarm.DialPeer(network.WithForceDirectDial(ctx, "relay"), relay.ID)
	n.dials.mu.Lock()
	defer n.dials.mu.Unlock()
	if n.dials.failed[relay.ID]++; err == nil {
		delete(n.dials.failed, relay.ID)
	}
	return err
}

func (d *relayDials) patience(relay peer.ID) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if (d.failed[relay]+1)%relayDialPatient == 0 {
		return relayDialLonger
	}
	return relayDialWithin
}

// doubtAddress says that a direct path was lost: our router may have another address, which nothing here
// shows. The relays go on seeing an old connection where it began, so they are dialled anew.
func (n *Node) doubtAddress() {
	wait, first := n.dials.doubtIn()
	if !first {
		return // somebody waits to do it already
	}
	n.tasks.start(func() {
		if !sleep(n.ctx, wait) {
			return
		}
		n.dials.asked()
		n.nat.forget()
		if m := n.addrs.currentMapper(); m != nil {
			m.look()
		}
		n.wake.send(networkChanged)
	})
}

// doubtIn says when the relays may be asked anew, and whether the caller is the one to do it.
func (d *relayDials) doubtIn() (wait time.Duration, first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	first, d.waiting = !d.waiting, true
	return doubtEvery - time.Since(d.doubt), first
}

// asked notes that the relays are being asked anew.
func (d *relayDials) asked() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doubt, d.waiting = time.Now(), false
}
