package relaynode

import (
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"
)

const (
	maxStreams        = 256 // at once, rendezvous and reflect together: 17 MiB of answers at the very most
	maxStreamsPerPeer = 8   // at once
	requestRate       = 64  // requests a second and peer; a record's signature takes 54 µs to check
	requestBurst      = 256 // a relay's own announcement has 9, a client back from sleep asks for some dozens of peers
)

// gate bounds what peers ask at once and how fast.
type gate struct {
	mu    sync.Mutex
	all   int
	peers map[peer.ID]*visitor
}

type visitor struct {
	streams int
	rate    *rate.Limiter
}

func newGate() *gate { return &gate{peers: make(map[peer.ID]*visitor)} }

// enter takes a place for a stream of p; ok is false if there is none.
func (g *gate) enter(p peer.ID) (leave func(), ok bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	v := g.peers[p]
	if g.all >= maxStreams || (v != nil && v.streams >= maxStreamsPerPeer) {
		return nil, false
	}
	if v == nil {
		v = &visitor{rate: rate.NewLimiter(requestRate, requestBurst)}
		g.peers[p] = v
	}
	g.all++
	v.streams++
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.all--
		v.streams--
	}, true
}

// allow takes one request of p, which has entered.
func (g *gate) allow(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.peers[p].rate.Allow()
}

// sweep forgets peers that have left and could ask at full rate again.
func (g *gate) sweep() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p, v := range g.peers {
		if v.streams == 0 && v.rate.Tokens() >= requestBurst {
			delete(g.peers, p)
		}
	}
}
