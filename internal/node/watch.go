package node

import (
	"sync"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// Watch tells of each change of a peer's best path until stop is called; then, or at the node's end,
// the channel is closed. A slow reader finds several changes of one peer drawn together into one.
func (n *Node) Watch() (changes <-chan PathChange, stop func()) { return n.paths.watch() }

// watcher holds what one reader has not read yet, at most one change a peer.
type watcher struct {
	out  chan PathChange
	more chan struct{} // capacity 1: order is not empty
	quit chan struct{}
	once sync.Once

	// Guarded by paths.mu.
	pending map[peer.ID]PathChange
	order   []peer.ID
}

func (ps *paths) watch() (<-chan PathChange, func()) {
	w := &watcher{
		out: make(chan PathChange), more: make(chan struct{}, 1), quit: make(chan struct{}),
		pending: make(map[peer.ID]PathChange),
	}
	ps.mu.Lock()
	ps.watchers[w] = true
	ps.mu.Unlock()
	if !ps.node.tasks.start(func() { ps.feed(w) }) {
		close(w.out)
	}
	return w.out, func() { w.once.Do(func() { close(w.quit) }) }
}

// feed hands w its changes; it ends when the reader stops or the node ends.
func (ps *paths) feed(w *watcher) {
	defer close(w.out)
	defer func() {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		delete(ps.watchers, w)
	}()
	for {
		change, ok := ps.takeFrom(w)
		if !ok {
			select {
			case <-w.more:
				continue
			case <-w.quit:
				return
			case <-ps.node.ctx.Done():
				return
			}
		}
		select {
		case w.out <- change:
		case <-w.quit:
			return
		case <-ps.node.ctx.Done():
			return
		}
	}
}

func (ps *paths) takeFrom(w *watcher) (PathChange, bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if len(w.order) == 0 {
		return PathChange{}, false
	}
	p := w.order[0]
	w.order = w.order[1:]
	c := w.pending[p]
	delete(w.pending, p)
	return c, true
}

func (ps *paths) tellLocked(c PathChange) {
	for w := range ps.watchers {
		if earlier, ok := w.pending[c.Peer]; ok {
			w.pending[c.Peer] = PathChange{Peer: c.Peer, Old: earlier.Old, New: c.New}
			continue
		}
		w.pending[c.Peer] = c
		w.order = append(w.order, c.Peer)
		select {
		case w.more <- struct{}{}:
		default:
		}
	}
}

func sameAddr(a, b ma.Multiaddr) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	return a.Equal(b)
}
