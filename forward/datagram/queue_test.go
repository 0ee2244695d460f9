package datagram

import (
	"testing"
	"time"
)

func TestAProgramThatSendsTooMuchCrowdsOutItselfAlone(t *testing.T) {
	now := time.Now()
	counts := func() *Flow { return &Flow{all: new(carried)} }
	flood, other, large := counts(), counts(), counts()
	var q queue
	push := func(f *Flow, size int, n byte) { q.push(item{f, append(make([]byte, size-1), n), now}) }
	for n := range byte(200) { // three times what there is room for
		push(flood, 1000, n)
		switch n {
		case 50:
			push(other, 100, n)
		case 60:
			push(large, 20_000, n)
		}
	}
	if flood.dropped.Load() == 0 || other.dropped.Load() != 0 || large.dropped.Load() != 0 {
		t.Errorf("dropped: %d of the flood, %d and %d of others", flood.dropped.Load(), other.dropped.Load(), large.dropped.Load())
	}
	var last int
	for n := -1; !q.empty(); {
		it, _ := q.first(now)
		if last = int(it.data[len(it.data)-1]); last < n {
			t.Errorf("datagram %d comes after %d", last, n)
		}
		n = last
		q.take()
	}
	if last != 199 || q.bytes != 0 || flood.queued != 0 || other.queued != 0 || large.queued != 0 {
		t.Errorf("the last is %d; of the empty queue count %d bytes, of its flows %d, %d, %d", last, q.bytes, flood.queued, other.queued, large.queued)
	}
}
