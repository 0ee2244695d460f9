package datagram

import (
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Traffic is what all flows of one service with one peer have carried since the endpoint began.
type Traffic struct {
	Peer     peer.ID
	Service  string
	Role     string // "entry" or "exit"
	Opened   int64  // flows
	Sent     int64  // bytes
	Received int64
	Dropped  int64 // datagrams that waited too long or found no room
}

type trafficKey struct {
	peer    peer.ID
	service string
	role    string
}

// carried are the counts behind a Traffic; flows add to them as they go.
type carried struct{ opened, sent, received, dropped atomic.Int64 }

type totals struct {
	mu sync.Mutex
	by map[trafficKey]*carried
}

// of finds the counts for a service that was authorised: the peer cannot fill the map with names.
func (t *totals) of(p peer.ID, service, role string) *carried {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := trafficKey{p, service, role}
	c := t.by[k]
	if c == nil {
		c = new(carried)
		t.by[k] = c
	}
	return c
}

// Totals are the counts of this moment, in no order.
func (e *Endpoint) Totals() []Traffic {
	e.totals.mu.Lock()
	defer e.totals.mu.Unlock()
	list := make([]Traffic, 0, len(e.totals.by))
	for k, c := range e.totals.by {
		list = append(list, Traffic{Peer: k.peer, Service: k.service, Role: k.role, Opened: c.opened.Load(),
			Sent: c.sent.Load(), Received: c.received.Load(), Dropped: c.dropped.Load()})
	}
	return list
}
