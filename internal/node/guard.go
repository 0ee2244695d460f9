package node

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

const (
	// strangerLife is how long a peer outside the roster may stay: long enough to show a newer roster
	// that names it, or an invite.
	strangerLife = 5 * time.Second
	// negotiateWithin is how long a stream may take to say what it is for; the library's own figure.
	negotiateWithin = 10 * time.Second
	// sweepEvery is how often connections are looked over for members whose time ran out.
	sweepEvery = 5 * time.Second
)

// guard stands before every stream: it has the host's mux negotiate the protocol, asks whether the
// peer may speak it, and serves it or not. It is set before the first listen, so that libp2p's own
// protocols are behind it too.
//
// Strangers may identify, ping, speak the protocols of open, and dial back where AutoNAT asked them
// to (the handler knows its nonces). Services do not exist for them.
type guard struct {
	member func(peer.ID) bool
	open   map[protocol.ID]bool

	mu        sync.Mutex
	closed    bool
	strangers map[network.Conn]*time.Timer // connections of peers that were never members
	welcome   map[peer.ID]time.Time        // strangers that may stay until then
}

func newGuard(member func(peer.ID) bool, open map[protocol.ID]bool) *guard {
	return &guard{
		member:    member,
		open:      open,
		strangers: make(map[network.Conn]*time.Timer),
		welcome:   make(map[peer.ID]time.Time),
	}
}

func (g *guard) mayServe(p peer.ID, proto protocol.ID) bool {
	switch proto {
	case identify.ID, identify.IDPush, ping.ID, autonatv2.DialBackProtocol:
		return true
	}
	return g.open[proto] || g.member(p)
}

// serve is the swarm's stream handler.
func (g *guard) serve(mux protocol.Switch) network.StreamHandler {
	return func(s network.Stream) {
		s.SetDeadline(time.Now().Add(negotiateWithin))
		proto, handle, err := mux.Negotiate(s)
		if err != nil {
			s.ResetWithError(network.StreamProtocolNegotiationFailed)
			return
		}
		if !g.mayServe(s.Conn().RemotePeer(), proto) {
			s.ResetWithError(network.StreamGated)
			return
		}
		s.SetDeadline(time.Time{})
		if err := s.SetProtocol(proto); err != nil {
			s.ResetWithError(network.StreamResourceLimitExceeded)
			return
		}
		handle(proto, s)
	}
}

// connected starts the clock of a stranger's connection.
func (g *guard) connected(c network.Conn) {
	p := c.RemotePeer()
	if g.member(p) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || c.IsClosed() {
		return
	}
	g.strangers[c] = time.AfterFunc(strangerLife, func() { g.expire(c) })
}

func (g *guard) disconnected(c network.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if t := g.strangers[c]; t != nil {
		t.Stop()
		delete(g.strangers, c)
	}
}

// expire closes a stranger's connection unless it has become a member or may stay longer.
func (g *guard) expire(c network.Conn) {
	p := c.RemotePeer()
	member := g.member(p)
	g.mu.Lock()
	t := g.strangers[c]
	if g.closed || t == nil {
		g.mu.Unlock()
		return
	}
	if left := time.Until(g.welcome[p]); left > 0 && !member {
		t.Reset(left)
		g.mu.Unlock()
		return
	}
	delete(g.strangers, c)
	g.mu.Unlock()
	if !member {
		c.CloseWithError(network.ConnGated)
	}
}

// allow lets a stranger stay for d from now on, instead of strangerLife. The returned function ends
// that; a last answer still gets through.
func (g *guard) allow(p peer.ID, d time.Duration) (release func()) {
	until := time.Now().Add(d)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.welcome[p].Before(until) {
		g.welcome[p] = until
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if !g.welcome[p].Equal(until) {
			return // someone else allowed it longer
		}
		delete(g.welcome, p)
		for c, t := range g.strangers {
			if c.RemotePeer() == p {
				t.Reset(strangerLife)
			}
		}
	}
}

// sweep closes the connections of peers that were members and are no more.
func (g *guard) sweep(conns []network.Conn) {
	now := time.Now()
	for _, c := range conns {
		p := c.RemotePeer()
		if g.member(p) {
			continue
		}
		g.mu.Lock()
		waits := g.strangers[c] != nil || now.Before(g.welcome[p])
		g.mu.Unlock()
		if !waits {
			c.CloseWithError(network.ConnGated)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for p, until := range g.welcome {
		if now.After(until) {
			delete(g.welcome, p)
		}
	}
}

func (g *guard) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for _, t := range g.strangers {
		t.Stop()
	}
}
