package datagram

import "time"

const (
	// queueBytes is how much waits for the path, 64 KiB (DESIGN.md §6); when it is full the oldest goes.
	queueBytes = 64 << 10
	// queueAge is how long a datagram waits, 200 ms: what a voice call bears. Later it is dropped.
	queueAge = 200 * time.Millisecond
	// itemCost is what a datagram counts besides its bytes, so that empty ones are bounded too: 64, about
	// what the queue keeps of each.
	itemCost = 64
)

// A queue holds what waits to be sent; it is used under its half's mutex.
type queue struct {
	items []item
	head  int // items before it are gone
	bytes int
	shed  int // how many were dropped for want of room
}

type item struct {
	flow *Flow
	data []byte
	at   time.Time
}

func (q *queue) empty() bool { return q.head == len(q.items) }

// push appends a datagram and drops the oldest ones where there is no room. The largest alone fits.
func (q *queue) push(it item) {
	if q.head > 0 && len(q.items) == cap(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, it)
	q.bytes += len(it.data) + itemCost
	for q.bytes > queueBytes && len(q.items)-q.head > 1 {
		q.drop()
		q.shed++
	}
}

// first is the oldest one that is not too old; those that are it drops.
func (q *queue) first(now time.Time) (item, bool) {
	for !q.empty() && now.Sub(q.items[q.head].at) > queueAge {
		q.drop()
	}
	if q.empty() {
		return item{}, false
	}
	return q.items[q.head], true
}

func (q *queue) drop() { q.take().flow.lost() }

// take removes the oldest one, which there must be.
func (q *queue) take() item {
	it := q.items[q.head]
	q.items[q.head] = item{}
	q.head++
	if q.empty() {
		q.items, q.head = q.items[:0], 0
	}
	q.bytes -= len(it.data) + itemCost
	return it
}
