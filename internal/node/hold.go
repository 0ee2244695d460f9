package node

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// reconnectFirst and reconnectLast, later reconnectLater, bound the wait between attempts to reach a peer in use: who
	// was away for reconnectEager is off, most likely, and each attempt costs packets to all addresses known of it. A relay
	// or a network that is back, and a new roster, end the wait.
	reconnectFirst, reconnectLast, reconnectLater = 200 * time.Millisecond, 10 * time.Second, time.Minute
	reconnectEager                                = 5 * time.Minute
	// tidyEvery is how often connections that are not needed beside the path are looked for.
	tidyEvery = 15 * time.Second
)

// punchAgain are the waits after failed punches; the last one repeats.
var punchAgain = [...]time.Duration{5 * time.Second, 15 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour}

// punchSoon is the longest of these waits for a peer that had a direct path a moment ago: one of the two is
// changing its network, and what failed was likely begun in the midst of it. But only punchSoonTimes: what a router
// remembers wrongly lives as long as packets come for it (Linux: 2 min).
const (
	punchSoon      = 10 * time.Second
	punchSoonTimes = 4
)

// punchWaits counts the failed punches in a row.
type punchWaits struct{ failed, soon int }

// next is how long to wait after one more.
func (w *punchWaits) next(hadDirect bool) time.Duration {
	wait := punchAgain[min(w.failed, len(punchAgain)-1)]
	if hadDirect && wait > punchSoon && w.soon < punchSoonTimes {
		w.soon++
		return punchSoon
	}
	w.failed++
	return wait
}

// hold is a peer in use.
type hold struct {
	users   int
	relayed int                // of them, how many want no direct path
	cancel  context.CancelFunc // set once it is kept
}

// Hold says that p is in use until release is called: p is kept connected (reconnected with growing
// pauses), protected, its path probed, and a direct path sought while it is relayed, unless kind is
// Relay. Holds add up.
func (n *Node) Hold(p peer.ID, kind PathKind) (release func()) {
	defer n.paths.poke(p) // who wanted no direct path so far may want one now; after n.mu, which paths' lock goes before
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.holds[p]
	if h == nil {
		h = &hold{}
		n.holds[p] = h
		n.parts.host.ConnManager().Protect(p, "fwd")
		if n.served {
			n.startHoldLocked(p, h)
		}
	}
	h.users++
	if kind == Relay {
		h.relayed++
	}
	return sync.OnceFunc(func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if kind == Relay {
			h.relayed--
		}
		if h.users--; h.users > 0 {
			return
		}
		n.parts.host.ConnManager().Unprotect(p, "fwd")
		delete(n.holds, p)
		if h.cancel != nil {
			h.cancel()
		}
	})
}

func (n *Node) isHeld(p peer.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.holds[p] != nil
}

// wantsDirect says whether anyone who holds p would have a direct path.
func (n *Node) wantsDirect(p peer.ID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	h := n.holds[p]
	return h != nil && h.users > h.relayed
}

func (n *Node) startHoldLocked(p peer.ID, h *hold) {
	ctx, cancel := context.WithCancel(n.ctx)
	h.cancel = cancel
	n.tasks.start(func() { n.keep(ctx, p) })
}

// keep reaches p and stays with it until ctx ends.
func (n *Node) keep(ctx context.Context, p peer.ID) {
	news, stop := n.paths.listen(p)
	defer stop()
	wake, stopWake := n.wake.listen()
	defer stopWake()
	retry := backoff{first: reconnectFirst, last: reconnectLast, rand: rand.Float64}
	var away time.Time // since when p is not reached; zero: it is
	var waits punchWaits
	var punchAt time.Time
	var punching chan bool                 // gets the result of the punch under way
	endPunch, outdated := func() {}, false // what it rests on has changed since it began
	for {
		pause := time.Duration(1<<63 - 1)
		if n.paths.has(p, Auto) {
			away = time.Time{}
		}
		switch {
		case !n.cfg.Member(p):
			// Until the roster changes there is nobody to reach.
		case !n.paths.has(p, Auto):
			waits, punchAt = punchWaits{}, time.Time{}
			if err := n.Connect(ctx, p); err != nil {
				n.log.Debug("peer not reached", "peer", p, "err", err)
				if away.IsZero() {
					away = time.Now()
				}
				retry.last = longestWait(time.Since(away))
				pause = retry.wait()
			} else {
				retry.reset()
				continue
			}
		case n.paths.has(p, Direct):
			waits, punchAt = punchWaits{}, time.Time{}
		case !n.wantsDirect(p):
		case time.Now().Before(punchAt):
			pause = time.Until(punchAt)
		case punching == nil:
			result := make(chan bool, 1)
			punch, end := context.WithCancel(ctx)
			n.tasks.start(func() {
				defer end()
				result <- n.tryPunch(punch, p)
			})
			punching, endPunch, outdated = result, end, false
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-news:
		case ok := <-punching:
			punching = nil
			if !ok && !outdated {
				punchAt = time.Now().Add(waits.next(n.paths.hadDirect(p)))
			}
		case what := <-wake: // another network, other luck
			retry.reset()
			if what != relayBack {
				away, waits, punchAt, outdated = time.Time{}, punchWaits{}, time.Time{}, true
			}
			if what&(networkChanged|addressChanged) != 0 {
				endPunch() // it aims from where we are no more
			}
		case <-ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// longestWait is the most that is waited until a peer that was not reached for so long is tried again.
func longestWait(away time.Duration) time.Duration {
	if away < reconnectEager {
		return reconnectLast
	}
	return reconnectLater
}

// keepTidy looks after the connections to all peers. Relays, and their peers, keep one by each transport and IP version,
// and lose only what was dialled for bulk.
func (n *Node) keepTidy(ctx context.Context) {
	tick := time.NewTicker(tidyEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			for _, p := range n.Connected() {
				if _, relay := n.relayInfo(p); relay || n.cfg.Relay {
					n.tidyFurther(p)
				} else {
					n.tidy(p)
				}
			}
		case <-ctx.Done():
			return
		}
	}
}

// tidy closes spare connections to p that nobody has used for spareLife: of each transport and of the
// relays one is kept. The peer with the lower ID does it, or both would close the other's choice.
func (n *Node) tidy(p peer.ID) {
	if n.self > p {
		return
	}
	best := make(map[string]*link)
	links := n.paths.links(p)
	for _, l := range links {
		if k := l.sort(); best[k] == nil || n.paths.prefer(l, best[k]) {
			best[k] = l
		}
	}
	for _, l := range links {
		if best[l.sort()] != l && n.isSpare(p, l) {
			n.log.Debug("spare connection closed", "peer", p, "path", l.conn.RemoteMultiaddr())
			l.conn.Close()
		}
	}
}

// tidyFurther closes the connections that we dialled to p for bulk, once they are spare.
func (n *Node) tidyFurther(p peer.ID) {
	for _, l := range n.paths.links(p) {
		if n.paths.isFurther(l) && n.isSpare(p, l) {
			n.log.Debug("further connection closed", "peer", p, "path", l.conn.RemoteMultiaddr())
			l.conn.Close()
		}
	}
}

// isSpare says whether nobody has used l for spareLife.
func (n *Node) isSpare(p peer.ID, l *link) bool {
	return time.Since(l.since) > spareLife && !inUse(l) && !n.paths.isBest(p, l)
}

// sort says for what kind of spare a link is good.
func (l *link) sort() string {
	if l.relay != "" {
		return "relay"
	}
	return transportOf(l.conn.RemoteMultiaddr())
}
