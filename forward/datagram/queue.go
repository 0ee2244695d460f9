package datagram

import "time"

const (
	// queueBytes is how much waits for the path, 64 KiB: some 50 full packets, a quarter of a second of video at 2 Mbit/s.
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

// push appends a datagram. Where there is no room the oldest go of the flow that has most here: who sends more than the path
// takes crowds out itself, and another program's question in between is carried. The largest alone fits.
func (q *queue) push(it item) {
	if q.head > 0 && len(q.items) == cap(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, it)
	q.count(it, 1)
	for q.bytes > queueBytes && len(q.items)-q.head > 1 {
		i := q.crowding()
		it := q.items[i]
		copy(q.items[q.head+1:i+1], q.items[q.head:i])
		q.items[q.head] = it
		q.drop()
		q.shed++
	}
}

// crowding is where the oldest datagram stands of the flow that has most here.
func (q *queue) crowding() int {
	most := q.head
	for i := q.head; i < len(q.items) && 2*q.items[most].flow.queued < q.bytes; i++ { // none has more than one that has half
		if q.items[i].flow.queued > q.items[most].flow.queued {
			most = i
		}
	}
	return most
}

// count adds what a datagram takes to what is here, or takes it off.
func (q *queue) count(it item, sign int) {
	cost := sign * (len(it.data) + itemCost)
	q.bytes += cost
	it.flow.queued += cost
}

// first is the oldest one that is not too old, nor of a flow that is over: the other side has been told of that end, and would
// begin the flow anew. Those before it are dropped.
func (q *queue) first(now time.Time) (item, bool) {
	for !q.empty() && (now.Sub(q.items[q.head].at) > queueAge || q.items[q.head].flow.over) {
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
	q.count(it, -1)
	return it
}
