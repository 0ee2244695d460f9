package datagram

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A Flow is what one application at the entry exchanges with one service.
type Flow struct {
	half    *half
	number  uint64
	service string
	began   time.Time

	opened   atomic.Bool  // C: E has said that it knows the flow
	last     atomic.Int64 // when a datagram moved, Unix ns
	back     atomic.Int32 // datagrams from E to C, up to enoughBack
	sent     atomic.Int64
	received atomic.Int64
	dropped  atomic.Int64

	all *carried // all flows of the service with the peer

	over    bool     // under half.mu
	queued  int      // under half.mu: what it has in the queue
	pending [][]byte // under half.mu, E: what came before it was accepted

	mu   sync.Mutex // before half.mu
	sink Sink       // E: nil until it is accepted
}

// enoughBack is how many datagrams must have come back for a flow to be more than a question and an answer.
const enoughBack = 2

func newFlow(h *half, number uint64, service string, sink Sink) *Flow {
	f := &Flow{half: h, number: number, service: service, sink: sink, began: time.Now(), all: h.e.totals.of(h.peer, service, h.role)}
	f.touch(f.began)
	return f
}

// lost counts a datagram that was dropped, gone one that was sent.
func (f *Flow) lost() {
	f.dropped.Add(1)
	f.all.dropped.Add(1)
}

func (f *Flow) gone(bytes int) {
	f.sent.Add(int64(bytes))
	f.all.sent.Add(int64(bytes))
}

func (f *Flow) touch(now time.Time) { f.last.Store(now.UnixNano()) }

// returned counts a datagram from E to C.
func (f *Flow) returned() {
	if f.back.Load() < enoughBack {
		f.back.Add(1)
	}
}

func (f *Flow) idle(now time.Time) time.Duration { return now.Sub(time.Unix(0, f.last.Load())) }

func (f *Flow) expired(now time.Time) bool {
	if f.back.Load() < enoughBack {
		return f.idle(now) > idleShort
	}
	return f.idle(now) > idleLong
}

// Send sends b if the path takes it within 200 ms. It never waits, and says nothing of what became of it; what is larger than
// MaxSize is dropped.
func (f *Flow) Send(b []byte) {
	if len(b) > MaxSize {
		f.lost()
		return
	}
	now := time.Now()
	f.touch(now)
	if f.half.role == roleExit {
		f.returned()
	}
	f.half.push(item{f, bytes.Clone(b), now})
}

// Close ends the flow; Ended, or at an exit the reason, is told to the peer. The sink hears no more of it.
func (f *Flow) Close(code Code) {
	if f.half.remove(f) {
		f.half.close(f.number, code)
	}
}

// Info tells how the flow fares.
func (f *Flow) Info() Info {
	f.half.mu.Lock()
	attached := f.half.via != nil
	f.half.mu.Unlock()
	return Info{
		ID: f.id(), Service: f.service, Peer: f.half.peer, Role: f.half.role, Attached: attached, Opened: f.began,
		Sent: f.sent.Load(), Received: f.received.Load(), Dropped: f.dropped.Load(),
	}
}

// id is the same at both ends: the boot number and the flow's, well mixed (2^64 divided by the golden ratio).
func (f *Flow) id() string { return fmt.Sprintf("%016x", f.half.boot+f.number*0x9e3779b97f4a7c15) }

// deliver hands what came to the sink, or keeps it until there is one.
func (f *Flow) deliver(b []byte) {
	f.touch(time.Now())
	f.received.Add(int64(len(b)))
	f.all.received.Add(int64(len(b)))
	if f.half.role == roleEntry {
		f.returned()
	}
	f.mu.Lock()
	sink := f.sink
	if sink == nil && !f.half.park(f, b) {
		f.lost()
	}
	f.mu.Unlock()
	if sink != nil {
		sink.Deliver(b)
	}
}

// accept gives the flow its sink, and that what came before.
func (f *Flow) accept(sink Sink) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, b := range f.half.unpark(f) {
		sink.Deliver(b)
	}
	f.sink = sink
}

func (f *Flow) accepted() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.sink != nil
}

// end takes the flow off and tells its sink why.
func (f *Flow) end(err error) {
	if !f.half.remove(f) {
		return
	}
	f.mu.Lock()
	sink := f.sink
	f.mu.Unlock()
	if sink != nil {
		sink.Ended(err)
	}
}

// Incoming is a flow that a peer has opened, to be accepted or refused.
type Incoming struct {
	flow *Flow
}

// Peer is who asks.
func (in *Incoming) Peer() peer.ID { return in.flow.half.peer }

// Service is what the peer asks for.
func (in *Incoming) Service() string { return in.flow.service }

// Accept begins the flow: what has come already is delivered at once. It fails if the flow is over meanwhile.
func (in *Incoming) Accept(sink Sink) (*Flow, error) {
	f := in.flow
	f.accept(sink)
	f.half.mu.Lock()
	over := f.over
	f.half.mu.Unlock()
	if over {
		return nil, ErrClosed
	}
	f.half.control(frame{typ: frameOpened, number: f.number})
	return f, nil
}

// Refuse ends it with a reason.
func (in *Incoming) Refuse(code Code) { in.flow.Close(code) }
