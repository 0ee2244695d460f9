package node

import (
	"context"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Each connection is measured by a goroutine of its own, which also finds out that it is dead.

const (
	// firstPings is how many round trips a new connection is measured by, the lowest counting.
	firstPings = 3
	// firstPingTimeout is how long a new connection may take to answer.
	firstPingTimeout = 5 * time.Second
	// probeEvery is how often the path of a peer in use is probed, and standbyEvery its other
	// connections: often enough to keep NAT mappings (most live 30 s and longer).
	probeEvery   = 15 * time.Second
	standbyEvery = 25 * time.Second
	// A connection of a better kind than the path's that is clearly slower, as on a busy machine, is measured each
	// slowEvery until it is slowFor old, and longer while it is clearly slower than it was at its best.
	slowEvery, slowFor = 2 * time.Second, 30 * time.Second
	// relayEvery is how often a relay is pinged by which some peer's path goes: its death has to be known
	// within seconds, for all paths over it die with it, and silent death shows by nothing else for 30 s.
	// Under load whoever waits for bytes notices sooner, and asks. With no such path it would be most of
	// what an idle machine sends.
	relayEvery = 5 * time.Second
	// probeTimeout is the longest wait for a probe: some resends on a lossy wire. quickTimeout is the
	// shortest for one that was asked for because the connection fell silent, which else is quickRTTs
	// round trips.
	probeTimeout = 2 * time.Second
	quickTimeout = time.Second
	quickRTTs    = 4
	// misses is how many probes in a row may fail before a connection is closed.
	misses = 2
)

// probe measures l until it closes: at once, then now and again if its peer is in use or a relay.
func (ps *paths) probe(p peer.ID, l *link) {
	pinger := &pinger{conn: l.conn}
	defer pinger.close()
	ctx, cancel := context.WithCancel(ps.node.ctx)
	defer cancel()
	stop := make(chan struct{})
	defer close(stop)
	go func() { // ends with l or with the loop below
		select {
		case <-l.done:
			cancel()
		case <-stop:
		}
	}()

	missed := 0
	measure := func(timeout time.Duration) bool {
		rtt, err := pinger.ping(ctx, timeout)
		if ctx.Err() != nil {
			return false
		}
		ps.measuredRTT(p, l, rtt, err == nil)
		if err != nil {
			missed++
			return false
		}
		missed = 0
		return true
	}
	for range firstPings {
		if !measure(firstPingTimeout) {
			break
		}
	}
	for {
		timer := time.NewTimer(ps.interval(p, l, missed))
		select {
		case <-timer.C:
			if ps.watched(p) {
				measure(probeTimeout)
			} else {
				missed = 0 // it is not asked again, so there is no hurry
			}
		case <-l.again:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if missed >= misses {
			ps.giveUp(p, l)
			return
		}
	}
}

// giveUp closes a connection that does not answer.
func (ps *paths) giveUp(p peer.ID, l *link) {
	ps.node.log.Debug("connection fell silent, closed", "peer", p, "path", l.conn.RemoteMultiaddr())
	if l.direct() && !ps.node.relays.has(p) && ps.node.dials.doubtful(ps.answered(l)) {
		ps.node.doubtAddress()
	}
	l.conn.Close()
}

// watched says whether p's connections are probed: peers in use, and relays that we reserve at.
func (ps *paths) watched(p peer.ID) bool { return ps.node.isHeld(p) || ps.node.relays.has(p) }

func (ps *paths) interval(p peer.ID, l *link, missed int) time.Duration {
	if missed > 0 {
		return quickTimeout
	}
	if left := ps.trialLeft(p, l); left > 0 {
		return left
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.node.relays.has(p) {
		for _, pp := range ps.peers {
			if pp.best != nil && pp.best.relay == p {
				return relayEvery
			}
		}
	}
	switch pp := ps.peers[p]; {
	case pp != nil && pp.best == l:
		return probeEvery
	case pp != nil && pp.best != nil && l.class < pp.best.class && (time.Since(l.since) < slowFor || clearlyWorse(l.rtt, l.least)):
		return slowEvery
	}
	return standbyEvery
}

func (ps *paths) rtt(l *link) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return l.rtt
}

// answered is when l last did.
func (ps *paths) answered(l *link) time.Time {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return l.answered
}

// measuredRTT takes a result in: the first ones by their minimum, later ones smoothed.
func (ps *paths) measuredRTT(p peer.ID, l *link, rtt time.Duration, ok bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	pp := ps.peers[p]
	if pp == nil || !contains(pp.links, l) {
		return
	}
	if !ok {
		ps.fellLocked(p, l)
	}
	if l.silent = !ok; ok {
		l.answered = time.Now()
	}
	if ok && (l.least == 0 || rtt < l.least) {
		l.least = rtt
	}
	switch {
	case !ok:
	case l.rtt == 0, time.Since(l.since) < firstPingTimeout && rtt < l.rtt:
		l.rtt = rtt
	case time.Since(l.since) >= firstPingTimeout:
		l.rtt = (7*l.rtt + rtt) / 8
	}
	ps.chooseLocked(p, l)
}

// suspect keeps streams away from c and asks it for a sign of life; without one it is closed.
func (ps *paths) suspect(p peer.ID, c network.Conn) {
	l := ps.find(p, c)
	ps.mu.Lock()
	pp := ps.peers[p]
	if l == nil || pp == nil {
		ps.mu.Unlock()
		return
	}
	for _, k := range pp.links {
		// Another transport to the same host goes the same way.
		if k == l || k.direct() && l.direct() && k.host == l.host {
			ps.fellLocked(p, k)
			k.silent = true
		}
	}
	ps.chooseLocked(p, nil)
	ps.mu.Unlock()
	// What killed it may have killed the ways beside it too, and their relays' connections: a change of our address does.
	// Whoever flees there should not have to find out one by one.
	asked := map[peer.ID]bool{p: true}
	for _, l := range ps.links(p) {
		if l.relay != "" {
			asked[l.relay] = true
		}
	}
	for p := range asked {
		ps.node.tasks.start(func() { ps.node.checkLinks(p) })
	}
}

// inquiry is one for a sign of life; whoever else wants one waits for the same answer.
type inquiry struct {
	answered chan struct{}
	alive    bool // once answered
}

// check asks l for a sign of life now; false: there was none, and l is closed.
func (ps *paths) check(l *link) bool {
	ps.mu.Lock()
	q := l.asked
	if q == nil {
		q = &inquiry{answered: make(chan struct{})}
		if !ps.node.tasks.start(func() { ps.ask(l, q) }) {
			ps.mu.Unlock()
			return false
		}
		l.asked = q
	}
	ps.mu.Unlock()
	<-q.answered
	return q.alive
}

// ask puts a question, beside the probing, which may be in the midst of a patient one.
func (ps *paths) ask(l *link, q *inquiry) {
	p := l.conn.RemotePeer()
	pinger := &pinger{conn: l.conn}
	defer pinger.close()
	rtt, err := pinger.ping(ps.node.ctx, max(quickTimeout, quickRTTs*ps.rtt(l)))
	if ps.node.ctx.Err() == nil {
		ps.measuredRTT(p, l, rtt, err == nil)
	}
	ps.mu.Lock()
	l.asked, q.alive = nil, err == nil
	ps.mu.Unlock()
	if err != nil && ps.node.ctx.Err() == nil && !l.conn.IsClosed() {
		// Whoever asked has seen silence on it, or beside it, too: that is two.
		ps.giveUp(p, l)
	}
	close(q.answered)
	select {
	case l.again <- struct{}{}:
	default:
	}
}
