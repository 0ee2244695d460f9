package daemon

import (
	"context"
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A turnstile lets few in at a time, and of each peer fewer. The others wait.
type turnstile struct {
	atOnce, ofOne int

	mu     sync.Mutex
	inside int
	of     map[peer.ID]int
	left   chan struct{} // closed when somebody leaves
}

func newTurnstile(atOnce, ofOne int) *turnstile {
	return &turnstile{atOnce: atOnce, ofOne: ofOne, of: map[peer.ID]int{}, left: make(chan struct{})}
}

// enter waits for p's turn until ctx ends; then it is errBusy.
func (t *turnstile) enter(ctx context.Context, p peer.ID) (leave func(), err error) {
	for {
		left, ok := t.try(p)
		if ok {
			return func() { t.leave(p) }, nil
		}
		select {
		case <-left:
		case <-ctx.Done():
			return nil, errBusy
		}
	}
}

func (t *turnstile) try(p peer.ID) (left <-chan struct{}, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.inside >= t.atOnce || t.of[p] >= t.ofOne {
		return t.left, false
	}
	t.inside++
	t.of[p]++
	return nil, true
}

func (t *turnstile) leave(p peer.ID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.inside--
	if t.of[p]--; t.of[p] == 0 {
		delete(t.of, p)
	}
	close(t.left)
	t.left = make(chan struct{})
}
