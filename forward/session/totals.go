package session

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Traffic is what the sessions of one service with one peer have carried since the endpoint began, those that have
// ended included. Its counts never fall.
type Traffic struct {
	Peer           peer.ID
	Service        string
	Role           string // "entry" or "exit"
	Opened         int64  // sessions
	Sent, Received int64  // bytes written and read here
}

// Totals are the endpoint's counts since it began.
type Totals struct {
	Traffic    []Traffic      // by peer, service and role
	Refused    map[Code]int64 // what this machine's exits answered with no
	Migrations int64          // lanes that changed their stream
}

// Totals gives the counts of this moment.
func (e *Endpoint) Totals() Totals {
	t := Totals{Refused: map[Code]int64{}, Migrations: e.totals.migrations.Load()}
	for code := range e.totals.refused {
		if n := e.totals.refused[code].Load(); n > 0 {
			t.Refused[Code(code)] = n
		}
	}
	e.totals.mu.Lock()
	for k, v := range e.totals.carried {
		t.Traffic = append(t.Traffic, Traffic{Peer: k.peer, Service: k.service, Role: k.role.String(),
			Opened: v.opened.Load(), Sent: v.sent.Load(), Received: v.received.Load()})
	}
	e.totals.mu.Unlock()
	slices.SortFunc(t.Traffic, func(a, b Traffic) int {
		return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Service, b.Service), cmp.Compare(a.Role, b.Role))
	})
	return t
}

// totals are the counters behind it.
type totals struct {
	refused    [Overload + 1]atomic.Int64
	migrations atomic.Int64

	mu      sync.Mutex
	carried map[carriedKey]*carried
}

type carriedKey struct {
	peer    peer.ID
	service string
	role    role
}

type carried struct{ opened, sent, received atomic.Int64 }

// begin counts a session that was accepted: a name that a peer only asked for gets no counter.
func (t *totals) begin(p peer.ID, service string, r role) *carried {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := carriedKey{p, service, r}
	c := t.carried[k]
	if c == nil {
		if t.carried == nil {
			t.carried = map[carriedKey]*carried{}
		}
		c = new(carried)
		t.carried[k] = c
	}
	c.opened.Add(1)
	return c
}

func (t *totals) refuse(code Code) {
	if int(code) < len(t.refused) {
		t.refused[code].Add(1)
	}
}
