package node

import (
	"sync"
	"time"
)

// tasks counts the goroutines that a node began, so that its end can wait for theirs. Each of them
// ends with the node's context or with its connection.
type tasks struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// start runs f, unless the node has ended.
func (t *tasks) start(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Go(f)
	return true
}

func (t *tasks) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
}

func (t *tasks) wait() { t.wg.Wait() }

// news is what loops are woken for.
type news int

const (
	rosterChanged news = 1 << iota
	networkChanged
	portsMapped    // the router has opened or closed ports of ours
	relayBack      // a relay holds a reservation for us that did not before
	addressChanged // relays see us elsewhere, which nothing here shows
)

// signals tells any number of loops that something changed; what is not yet read adds up.
type signals struct {
	mu   sync.Mutex
	subs map[chan news]bool
}

func newSignals() *signals { return &signals{subs: make(map[chan news]bool)} }

func (s *signals) listen() (<-chan news, func()) {
	c := make(chan news, 1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.subs[c] = true
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.subs, c)
	}
}

func (s *signals) send(what news) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.subs {
		select {
		case old := <-c:
			c <- old | what
		default:
			c <- what
		}
	}
}

// backoff grows from first to last twofold each time, with a fifth of jitter, so that a thousand
// peers do not come back to a restarted relay in one instant.
type backoff struct {
	first, last time.Duration
	next        time.Duration
	rand        func() float64
}

func (b *backoff) wait() time.Duration {
	if b.next == 0 {
		b.next = b.first
	}
	d := time.Duration(float64(b.next) * (0.8 + 0.4*b.rand()))
	b.next = min(b.next*2, b.last)
	return d
}

func (b *backoff) reset() { b.next = 0 }
