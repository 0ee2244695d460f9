package daemon

import (
	"context"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Rosters are compared with each peer that is met, and with everyone connected when
// there is news. Nobody waits for another's answer: a laptop asleep must not keep a
// revocation from the rest, nor this machine from acting on the next.
type comparisons struct {
	met  chan peer.ID
	news chan struct{} // there is something to tell everyone

	mu  sync.Mutex
	now map[peer.ID]bool // true: once more after this one
}

// comparedAtOnce: a relay may have thousands of peers, and many of them asleep.
const comparedAtOnce = 256

func newComparisons() *comparisons {
	return &comparisons{met: make(chan peer.ID, 1024), news: make(chan struct{}, 1), now: map[peer.ID]bool{}}
}

// connected notes a peer met.
func (d *Daemon) connected(n network.Network, c network.Conn) {
	p := c.RemotePeer()
	if !d.member(p) || len(n.ConnsToPeer(p)) > 1 {
		return
	}
	select {
	case d.compared.met <- p:
	default: // a relay after its restart: who is missed here asks by itself
	}
}

// tellEveryone has the rosters compared with all who are connected.
func (d *Daemon) tellEveryone() {
	select {
	case d.compared.news <- struct{}{}:
	default: // a word is waiting already
	}
}

// followComparisons compares until ctx ends. Both ends of a connection do: the one whose
// roster does not name the other yet cannot ask.
func (d *Daemon) followComparisons(ctx context.Context) error {
	places := make(chan struct{}, comparedAtOnce)
	var all sync.WaitGroup
	defer all.Wait()
	compare := func(p peer.ID) {
		if !d.compared.begin(p) {
			return
		}
		all.Go(func() {
			for more := true; more; more = d.compared.end(p) {
				select {
				case <-ctx.Done():
					continue
				case places <- struct{}{}:
				}
				if err := d.exchange(ctx, p); err != nil {
					d.log.Debug("compare rosters", "err", err)
				}
				<-places
			}
		})
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case p := <-d.compared.met:
			compare(p)
		case <-d.compared.news:
			for _, p := range d.node.Connected() {
				if d.book.Member(p, time.Now()) {
					compare(p)
				}
			}
		}
	}
}

// begin tells whether p is to be compared with now; if it is already, then once more.
func (c *comparisons) begin(p peer.ID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, now := c.now[p]
	c.now[p] = now
	return !now
}

func (c *comparisons) end(p peer.ID) (more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now[p] {
		c.now[p] = false
		return true
	}
	delete(c.now, p)
	return false
}
