package daemon

import (
	"sync"

	"fwd/forward/datagram"
	"fwd/forward/session"
)

// A tally counts what one local end of a forward carries. The endpoints count by service and machine, to which several
// forwards, and SOCKS, may lead.
type tally struct {
	mu   sync.Mutex
	live map[*carriage]bool
	past Rate // bytes of what has ended
	last Rate // bytes at the last look
	rate Rate // between the last two
}

// A carriage is a session or flow; moved is its bytes so far.
type carriage struct{ moved func() Rate }

// begin counts one that has begun; ended, which may be called again, that it is over.
func (t *tally) begin(moved func() Rate) (ended func()) {
	c := &carriage{moved}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.live == nil {
		t.live = map[*carriage]bool{}
	}
	t.live[c] = true
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.live[c] {
			delete(t.live, c)
			t.past = t.past.plus(moved())
		}
	}
}

func (t *tally) session(s *session.Conn) (ended func()) {
	return t.begin(func() Rate {
		i := s.Info()
		return Rate{i.Sent, i.Received}
	})
}

// A talliedFlow is counted until the peer's word or its own Close ends it; it is its flow's sink, too.
type talliedFlow struct {
	*datagram.Flow
	datagram.Sink

	mu    sync.Mutex
	over  bool
	ended func() // nil: not counted yet
}

func (f *talliedFlow) Close(code datagram.Code) {
	f.Flow.Close(code)
	f.end()
}

func (f *talliedFlow) Ended(err error) {
	f.end()
	f.Sink.Ended(err)
}

func (f *talliedFlow) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.over = true
	if f.ended != nil {
		f.ended()
	}
}

// begin counts the flow, which may be over already.
func (f *talliedFlow) begin(t *tally) {
	ended := t.begin(func() Rate {
		i := f.Info()
		return Rate{i.Sent, i.Received}
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended = ended; f.over {
		ended()
	}
}

// look takes the rate since the last look.
func (t *tally) look(seconds float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.past
	for c := range t.live {
		now = now.plus(c.moved())
	}
	t.rate = Rate{perSecond(now.Sent-t.last.Sent, seconds), perSecond(now.Received-t.last.Received, seconds)}
	t.last = now
}

// now is how many it carries, and at what rate.
func (t *tally) now() (sessions int, rate Rate) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.live), t.rate
}

// lookAtForwards takes the rates of all local ends.
func (d *Daemon) lookAtForwards(seconds float64) {
	d.mu.Lock()
	tallies := make([]*tally, 0, 2*len(d.forwards))
	for f := range d.forwards {
		tallies = append(tallies, &f.tcp, &f.udp)
	}
	d.mu.Unlock()
	for _, t := range tallies {
		t.look(seconds)
	}
}
