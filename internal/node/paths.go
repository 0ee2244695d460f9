package node

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	manet "github.com/multiformats/go-multiaddr/net"
)

const (
	// firstPings is how many round trips a new connection is measured by, the lowest counting.
	firstPings = 3
	// firstPingTimeout is how long a new connection may take to answer.
	firstPingTimeout = 5 * time.Second
	// probeEvery is how often the path of a peer in use is probed, and standbyEvery its other
	// connections: often enough to keep NAT mappings (most live 30 s and longer).
	probeEvery   = 15 * time.Second
	standbyEvery = 25 * time.Second
	// relayEvery is how often a relay is pinged: its death has to be known within seconds, for all
	// paths over it die with it, and silent death shows by nothing else for 30 s.
	relayEvery = 5 * time.Second
	// probeTimeout is the longest wait for a probe; quickTimeout the shortest for one that was asked for
	// because the connection fell silent, which else is quickRTTs round trips.
	probeTimeout = 3 * time.Second
	quickTimeout = time.Second
	quickRTTs    = 4
	// misses is how many probes in a row may fail before a connection is closed.
	misses = 2
	// spareLife is how long a connection beside the path is kept at least: the relay that has just been
	// upgraded from is the way back if the direct path proves to be bad.
	spareLife = time.Minute
)

// link is one connection to a peer and what was measured on it.
type link struct {
	conn  network.Conn
	relay peer.ID // the relay, if relayed
	class class
	quic  bool
	since time.Time
	done  chan struct{}  // closed when the connection is
	poke  chan chan bool // asks the probing goroutine for a quick answer

	// Guarded by paths.mu.
	rtt    time.Duration
	silent bool
	wins   int // measurements running at which it was better than the path
}

func (l *link) measured() measured {
	return measured{class: l.class, quic: l.quic, rtt: l.rtt, silent: l.silent}
}

func (l *link) direct() bool { return l.relay == "" }

// peerPaths are the links to one peer; best is its path.
type peerPaths struct {
	links []*link
	best  *link
	since time.Time // when best became it
	told  Path      // what watchers were told last
}

// paths follows every connection, measures it, and chooses each peer's path.
type paths struct {
	node *Node

	mu       sync.Mutex
	peers    map[peer.ID]*peerPaths
	watchers map[*watcher]bool
	news     map[peer.ID]map[chan struct{}]bool // who waits for any change of a peer's links
}

func newPaths(n *Node) *paths {
	return &paths{
		node:     n,
		peers:    make(map[peer.ID]*peerPaths),
		watchers: make(map[*watcher]bool),
		news:     make(map[peer.ID]map[chan struct{}]bool),
	}
}

func newLink(c network.Conn) *link {
	l := &link{
		conn: c, relay: relayOf(c.RemoteMultiaddr()), since: time.Now(),
		class: overInternet,
		quic:  transportOf(c.RemoteMultiaddr()) == "quic-v1",
		done:  make(chan struct{}),
		poke:  make(chan chan bool),
	}
	switch remote := c.RemoteMultiaddr(); {
	case l.relay != "":
		l.class = overRelay
	case manet.IsPrivateAddr(remote) || manet.IsIPLoopback(remote):
		l.class = onLAN
	}
	return l
}

// connected runs within the swarm's notification: it may not open streams here.
func (ps *paths) connected(c network.Conn) {
	l := newLink(c)
	p := c.RemotePeer()
	ps.mu.Lock()
	if c.IsClosed() { // its Disconnected may have been told already
		ps.mu.Unlock()
		return
	}
	pp := ps.peers[p]
	if pp == nil {
		pp = &peerPaths{}
		ps.peers[p] = pp
	}
	pp.links = append(pp.links, l)
	ps.chooseLocked(p, nil)
	ps.mu.Unlock()
	ps.node.tasks.start(func() { ps.probe(p, l) })
}

func (ps *paths) disconnected(c network.Conn) {
	p := c.RemotePeer()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	pp := ps.peers[p]
	if pp == nil {
		return
	}
	for i, l := range pp.links {
		if l.conn != c {
			continue
		}
		close(l.done)
		pp.links = append(pp.links[:i:i], pp.links[i+1:]...)
		break
	}
	ps.chooseLocked(p, nil)
	if len(pp.links) == 0 {
		delete(ps.peers, p)
	}
}

// chooseLocked settles p's path and tells watchers if it changed. measured is the link that has just
// been measured, if that is why.
func (ps *paths) chooseLocked(p peer.ID, measured *link) {
	pp := ps.peers[p]
	best := pp.best
	if best != nil && best.conn.IsClosed() || !contains(pp.links, best) {
		best = nil
	}
	for _, l := range pp.links {
		switch {
		case best == nil:
			best = l
		case l == best:
		case !l.measured().beats(best.measured()):
			l.wins = 0
		case l.measured().urgent(best.measured()):
			best = l
		case l == measured:
			if l.wins++; l.wins >= betterTimes {
				best = l
			}
		}
	}
	if best != pp.best {
		pp.best, pp.since = best, time.Now()
		for _, l := range pp.links {
			l.wins = 0
		}
	}
	now := ps.describeLocked(p, pp)
	if now.Kind != pp.told.Kind || now.Relay != pp.told.Relay || !sameAddr(now.Remote, pp.told.Remote) || now.Since != pp.told.Since {
		ps.tellLocked(PathChange{Peer: p, Old: pp.told, New: now})
		pp.told = now
	}
	for c := range ps.news[p] {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

func contains(links []*link, l *link) bool {
	for _, k := range links {
		if k == l {
			return true
		}
	}
	return false
}

func (ps *paths) describeLocked(p peer.ID, pp *peerPaths) Path {
	if pp.best == nil {
		return Path{}
	}
	return ps.describeLinkLocked(p, pp.best, pp.since)
}

func (ps *paths) describeLinkLocked(p peer.ID, l *link, since time.Time) Path {
	path := Path{
		Kind: "direct", Transport: transportOf(l.conn.RemoteMultiaddr()), Remote: l.conn.RemoteMultiaddr(),
		Relay: l.relay, RTT: l.rtt, Since: since,
	}
	if l.relay != "" {
		path.Kind, path.Reason = "relay", ps.node.reason(p)
	}
	return path
}

// probe measures l until it closes: at once, then now and again if its peer is in use or a relay, and
// whenever it is asked to.
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
			}
		case answer := <-l.poke:
			timer.Stop()
			ok := measure(max(quickTimeout, quickRTTs*ps.rtt(l)))
			answer <- ok
			if !ok && ctx.Err() == nil {
				// Whoever asked has seen silence on it too: that is two.
				ps.node.log.Debug("connection fell silent, closed", "peer", p, "path", l.conn.RemoteMultiaddr())
				l.conn.Close()
				return
			}
		case <-ctx.Done():
			timer.Stop()
			return
		}
		if missed >= misses {
			ps.node.log.Debug("connection fell silent, closed", "peer", p, "path", l.conn.RemoteMultiaddr())
			l.conn.Close()
			return
		}
	}
}

// watched says whether p's connections are probed: peers in use, and relays that we reserve at.
func (ps *paths) watched(p peer.ID) bool { return ps.node.isHeld(p) || ps.node.relays.has(p) }

func (ps *paths) interval(p peer.ID, l *link, missed int) time.Duration {
	if missed > 0 {
		return quickTimeout
	}
	if ps.node.relays.has(p) {
		return relayEvery
	}
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if pp := ps.peers[p]; pp != nil && pp.best == l {
		return probeEvery
	}
	return standbyEvery
}

func (ps *paths) rtt(l *link) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return l.rtt
}

// measuredRTT takes a result in: the first ones by their minimum, later ones smoothed.
func (ps *paths) measuredRTT(p peer.ID, l *link, rtt time.Duration, ok bool) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	pp := ps.peers[p]
	if pp == nil || !contains(pp.links, l) {
		return
	}
	l.silent = !ok
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
	if l == nil {
		return
	}
	ps.mu.Lock()
	l.silent = true
	ps.chooseLocked(p, nil)
	ps.mu.Unlock()
	ps.node.tasks.start(func() { ps.check(l) })
}

// check asks l for a sign of life now; false: there was none, and l is closed.
func (ps *paths) check(l *link) bool {
	answer := make(chan bool, 1)
	select {
	case l.poke <- answer:
	case <-l.done:
		return false
	case <-ps.node.ctx.Done():
		return false
	}
	select {
	case ok := <-answer:
		return ok
	case <-l.done:
		return false
	case <-ps.node.ctx.Done():
		return false
	}
}

func (ps *paths) find(p peer.ID, c network.Conn) *link {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if pp := ps.peers[p]; pp != nil {
		for _, l := range pp.links {
			if l.conn == c {
				return l
			}
		}
	}
	return nil
}

// links are p's connections now.
func (ps *paths) links(p peer.ID) []*link {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if pp := ps.peers[p]; pp != nil {
		return append([]*link(nil), pp.links...)
	}
	return nil
}

// best is the connection to use for kind, never avoid; nil if there is none. One that is suspected to
// be dead is given only if there is no other.
func (ps *paths) best(p peer.ID, avoid network.Conn, kind PathKind) network.Conn {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if l := ps.bestLocked(p, avoid, kind); l != nil {
		return l.conn
	}
	return nil
}

func (ps *paths) bestLocked(p peer.ID, avoid network.Conn, kind PathKind) *link {
	pp := ps.peers[p]
	if pp == nil {
		return nil
	}
	fits := func(l *link) bool {
		return l != nil && l.conn != avoid && !l.conn.IsClosed() &&
			(kind == Auto || (kind == Direct) == l.direct())
	}
	best := pp.best
	if !fits(best) || best.silent {
		best = nil
		for _, l := range pp.links {
			if fits(l) && (best == nil || l.measured().beats(best.measured())) {
				best = l
			}
		}
	}
	return best
}

// has says whether p can be reached by a path of this kind.
func (ps *paths) has(p peer.ID, kind PathKind) bool { return ps.best(p, nil, kind) != nil }

// listen returns a channel that gets a token whenever p's links change or were measured.
func (ps *paths) listen(p peer.ID) (<-chan struct{}, func()) {
	c := make(chan struct{}, 1)
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.news[p] == nil {
		ps.news[p] = make(map[chan struct{}]bool)
	}
	ps.news[p][c] = true
	return c, func() {
		ps.mu.Lock()
		defer ps.mu.Unlock()
		delete(ps.news[p], c)
		if len(ps.news[p]) == 0 {
			delete(ps.news, p)
		}
	}
}

// Path says how p is reached now; false: not at all.
func (n *Node) Path(p peer.ID) (Path, bool) {
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	pp := n.paths.peers[p]
	if pp == nil || pp.best == nil {
		return Path{}, false
	}
	return n.paths.describeLocked(p, pp), true
}

// PathBy says by which path of that kind Open would go now; false: it would have to make one.
func (n *Node) PathBy(p peer.ID, kind PathKind) (Path, bool) {
	if kind == Auto {
		return n.Path(p)
	}
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	l := n.paths.bestLocked(p, nil, kind)
	if l == nil {
		return Path{}, false
	}
	return n.paths.describeLinkLocked(p, l, l.since), true
}

// Ping measures the round trip on p's path now, and returns the path with it.
func (n *Node) Ping(ctx context.Context, p peer.ID) (Path, error) {
	c := n.paths.best(p, nil, Auto)
	if c == nil {
		return Path{}, fmt.Errorf("ping %s: %w", p, ErrUnreachable)
	}
	pinger := &pinger{conn: c}
	defer pinger.close()
	rtt, err := pinger.ping(ctx, firstPingTimeout)
	if err != nil {
		return Path{}, fmt.Errorf("ping %s at %s: %w", p, c.RemoteMultiaddr(), err)
	}
	n.paths.mu.Lock()
	defer n.paths.mu.Unlock()
	if pp := n.paths.peers[p]; pp != nil && pp.best != nil && pp.best.conn == c {
		path := n.paths.describeLocked(p, pp)
		path.RTT = rtt
		return path, nil
	}
	return Path{}, fmt.Errorf("ping %s: the path changed meanwhile", p)
}

// prefer compares two links by what was measured.
func (ps *paths) prefer(a, b *link) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return a.measured().beats(b.measured())
}

func (ps *paths) isBest(p peer.ID, l *link) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	pp := ps.peers[p]
	return pp != nil && pp.best == l
}

// inUse says whether l carries streams of anything but pings and identify.
func inUse(l *link) bool {
	for _, s := range l.conn.GetStreams() {
		switch s.Protocol() {
		case ping.ID, identify.ID, identify.IDPush, "":
		default:
			return true
		}
	}
	return false
}
