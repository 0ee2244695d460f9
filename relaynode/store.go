package relaynode

import (
	"container/heap"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// maxPerPeer is how many records a peer may have: 9 for its own addresses
	// (one a discovery key), the rest to spare.
	maxPerPeer = 64
	// maxBytes is the memory of all records together, 16 MiB: a small VPS bears
	// it, whatever is thrown at its rendezvous.
	maxBytes = 16 << 20
	// recordCost is what a record takes beside its own bytes: entry, maps, keys.
	recordCost = 1024
)

// entry is one registered record.
type entry struct {
	peer      peer.ID
	namespace string
	sealed    []byte
	expires   time.Time
	position  uint64 // in the order of registration
}

func (e *entry) cost() int64 { return int64(len(e.sealed)+len(e.namespace)) + recordCost }

// holder is a peer with records.
type holder struct {
	peer    peer.ID
	bytes   int64
	records map[string]*entry // by namespace
	index   int               // in store.most
}

// store holds the records of a point within maxBytes. When that is used up, a
// new record displaces the oldest one of the peer that uses most, so that no
// peer can push out one that uses less than itself.
type store struct {
	mu         sync.Mutex
	bytes      int64
	count      int
	last       uint64                        // position given last
	namespaces map[string]map[peer.ID]*entry // what discover asks
	holders    map[peer.ID]*holder           // what the quotas ask
	most       holderHeap                    // whoever uses most first
	swept      time.Time
}

func newStore() *store {
	return &store{namespaces: make(map[string]map[peer.ID]*entry), holders: make(map[peer.ID]*holder)}
}

// put registers a record that was checked, in place of p's former one under ns.
func (s *store) put(p peer.ID, ns string, sealed []byte, expires, now time.Time) status {
	s.mu.Lock()
	defer s.mu.Unlock()
	fresh := &entry{peer: p, namespace: ns, sealed: slices.Clone(sealed), expires: expires}

	var mine int64
	if h := s.holders[p]; h != nil {
		if old := h.records[ns]; old != nil {
			s.removeLocked(old)
		} else if len(h.records) >= maxPerPeer {
			for _, e := range h.records {
				if !now.Before(e.expires) {
					s.removeLocked(e)
				}
			}
			if len(h.records) >= maxPerPeer {
				return statusQuota
			}
		}
		mine = h.bytes
	}
	if s.bytes+fresh.cost() > maxBytes && now.Sub(s.swept) >= time.Second {
		s.sweepLocked(now)
	}
	for s.bytes+fresh.cost() > maxBytes {
		biggest := s.most[0]
		if biggest.peer == p || biggest.bytes <= mine+fresh.cost() {
			return statusFull
		}
		var oldest *entry
		for _, e := range biggest.records {
			if oldest == nil || e.position < oldest.position {
				oldest = e
			}
		}
		s.removeLocked(oldest)
	}
	s.last++
	fresh.position = s.last
	s.addLocked(fresh)
	return statusOK
}

// get returns records under ns in the order of registration: those of who if
// it is not empty, registered after the given position, at most limit.
func (s *store) get(ns string, who peer.ID, after uint64, limit int, now time.Time) []*entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*entry
	take := func(e *entry) {
		if e != nil && e.position > after && now.Before(e.expires) {
			found = append(found, e)
		}
	}
	if who != "" {
		take(s.namespaces[ns][who])
	} else {
		for _, e := range s.namespaces[ns] {
			take(e)
		}
	}
	slices.SortFunc(found, func(a, b *entry) int {
		if a.position < b.position {
			return -1
		}
		return 1
	})
	return found[:min(len(found), limit)]
}

// sweep drops what has expired.
func (s *store) sweep(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sweepLocked(now)
}

func (s *store) sweepLocked(now time.Time) {
	s.swept = now
	for _, h := range s.holders {
		for _, e := range h.records {
			if !now.Before(e.expires) {
				s.removeLocked(e)
			}
		}
	}
}

// dropStrangers drops the records of peers that are no members.
func (s *store) dropStrangers(member func(peer.ID) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, h := range s.holders {
		if !member(p) {
			for _, e := range h.records {
				s.removeLocked(e)
			}
		}
	}
}

// size is the number of records and the memory they are counted at.
func (s *store) size() (records int, bytes int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.count, s.bytes
}

func (s *store) addLocked(e *entry) {
	under := s.namespaces[e.namespace]
	if under == nil {
		under = make(map[peer.ID]*entry, 1)
		s.namespaces[e.namespace] = under
	}
	under[e.peer] = e
	h := s.holders[e.peer]
	if h == nil {
		h = &holder{peer: e.peer, records: make(map[string]*entry, 1)}
		s.holders[e.peer] = h
		heap.Push(&s.most, h)
	}
	h.records[e.namespace] = e
	h.bytes += e.cost()
	heap.Fix(&s.most, h.index)
	s.bytes += e.cost()
	s.count++
}

func (s *store) removeLocked(e *entry) {
	under := s.namespaces[e.namespace]
	delete(under, e.peer)
	if len(under) == 0 {
		delete(s.namespaces, e.namespace)
	}
	h := s.holders[e.peer]
	delete(h.records, e.namespace)
	h.bytes -= e.cost()
	if len(h.records) == 0 {
		heap.Remove(&s.most, h.index)
		delete(s.holders, e.peer)
	} else {
		heap.Fix(&s.most, h.index)
	}
	s.bytes -= e.cost()
	s.count--
}

// holderHeap is a container/heap of holders by use, the largest first.
type holderHeap []*holder

func (h holderHeap) Len() int           { return len(h) }
func (h holderHeap) Less(i, j int) bool { return h[i].bytes > h[j].bytes }
func (h holderHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *holderHeap) Push(x any) {
	x.(*holder).index = len(*h)
	*h = append(*h, x.(*holder))
}
func (h *holderHeap) Pop() any {
	old := *h
	x := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return x
}
