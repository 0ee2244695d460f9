package node

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	manet "github.com/multiformats/go-multiaddr/net"
)

// spareLife is how long a connection beside the path is kept at least: the relay that has just been
// upgraded from is the way back if the direct path proves to be bad.
const spareLife = time.Minute

// link is one connection to a peer and what was measured on it.
type link struct {
	conn  network.Conn
	relay peer.ID // the relay, if relayed
	class class
	quic  bool
	host  string     // at the other end of the wire
	from  netip.Addr // ours, from which a direct one's packets left at first
	since time.Time
	done  chan struct{} // closed when the connection is
	again chan struct{} // tells the probing goroutine that an inquiry is over: its next measurement may be due sooner

	// Guarded by paths.mu.
	rtt      time.Duration
	answered time.Time     // last
	least    time.Duration // the shortest so far: what the way takes without a queue
	silent   bool
	asked    *inquiry // for a sign of life, under way
	wins     int      // measurements running at which it was better than the path
	further  bool     // dialled by us beside another of its kind, for bulk alone

	opening  atomic.Int32 // streams for bulk that are being opened
	retiring atomic.Bool  // a relay's: replaced by a newer one, closed when no circuit is left on it
}

func (l *link) measured() measured {
	return measured{class: l.class, quic: l.quic, rtt: l.rtt, silent: l.silent, least: l.least, host: l.host, further: l.further}
}

func (l *link) direct() bool { return l.relay == "" }

// peerPaths are the links to one peer; best is its path.
type peerPaths struct {
	links []*link
	best  *link
	since time.Time    // when best became it
	told  Path         // what watchers were told last
	bulk  [kinds]*link // what carries bulk where it is not the path, of each kind

	falls int       // direct paths that were lost of late
	fell  time.Time // the last one
}

// paths follows every connection, measures it, and chooses each peer's path.
type paths struct {
	node *Node

	mu       sync.Mutex
	peers    map[peer.ID]*peerPaths
	watchers map[*watcher]bool
	left     map[peer.ID]time.Time              // members: when the last direct connection ended, or the path went silent, for forgiveAfter
	beside   map[peer.ID]*search                // when a way for bulk was last looked for
	news     map[peer.ID]map[chan struct{}]bool // who waits for any change of a peer's links
}

func newPaths(n *Node) *paths {
	return &paths{
		node:     n,
		peers:    make(map[peer.ID]*peerPaths),
		watchers: make(map[*watcher]bool),
		left:     make(map[peer.ID]time.Time),
		beside:   make(map[peer.ID]*search),
		news:     make(map[peer.ID]map[chan struct{}]bool),
	}
}

func newLink(c network.Conn) *link {
	l := &link{
		conn: c, relay: relayOf(c.RemoteMultiaddr()), since: time.Now(),
		class: overInternet,
		quic:  transportOf(c.RemoteMultiaddr()) == "quic-v1",
		host:  hostOf(c.RemoteMultiaddr()),
		done:  make(chan struct{}),
		again: make(chan struct{}, 1),
	}
	if to, ok := addrPortOf(c.RemoteMultiaddr()); ok && l.direct() {
		l.from = Outgoing(to)
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
		if l.direct() && !slices.ContainsFunc(pp.links, (*link).direct) {
			ps.leftLocked(p)
		}
		break
	}
	ps.chooseLocked(p, nil)
	if len(pp.links) == 0 {
		delete(ps.peers, p)
	}
}

// reconsider tells watchers if what is to be said of p's path has changed.
func (ps *paths) reconsider(p peer.ID) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if ps.peers[p] != nil {
		ps.chooseLocked(p, nil)
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
		case l.measured().upgrades(best.measured()) && time.Since(pp.fell) < trial(pp.falls):
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
	moved := ps.chooseBulkLocked(p, pp)
	now := ps.describeLocked(p, pp)
	if moved || now.Kind != pp.told.Kind || now.Relay != pp.told.Relay || !sameAddr(now.Remote, pp.told.Remote) ||
		now.Spread != pp.told.Spread || now.Since != pp.told.Since || now.Reason != pp.told.Reason {
		ps.tellLocked(PathChange{Peer: p, Old: pp.told, New: now})
		pp.told = now
	}
	ps.pokeLocked(p)
}

// poke has those look anew who wait for changes of p's links.
func (ps *paths) poke(p peer.ID) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.pokeLocked(p)
}

func (ps *paths) pokeLocked(p peer.ID) {
	for c := range ps.news[p] {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// fellLocked notes that l is lost as p's path, or feared to be.
func (ps *paths) fellLocked(p peer.ID, l *link) {
	pp := ps.peers[p]
	if pp == nil || pp.best != l || l.silent || !l.direct() {
		return
	}
	if time.Since(pp.fell) > forgiveAfter {
		pp.falls = 0
	}
	pp.falls, pp.fell = pp.falls+1, time.Now()
	ps.leftLocked(p)
}

// leftLocked notes that p had a direct path, if p is a member: strangers come and go as they like, and are not punched with.
func (ps *paths) leftLocked(p peer.ID) {
	if ps.node.cfg.Member(p) {
		ps.left[p] = time.Now()
	}
}

// forgetLeft drops what leftLocked noted long ago.
func (ps *paths) forgetLeft() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	maps.DeleteFunc(ps.left, func(_ peer.ID, at time.Time) bool { return time.Since(at) >= forgiveAfter })
}

// hadDirect says whether a direct connection to p ended some minutes ago, for whatever reason; also if nothing is left
// of p since: a machine that changes networks loses all.
func (ps *paths) hadDirect(p peer.ID) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	at, ok := ps.left[p]
	return ok && time.Since(at) < forgiveAfter
}

// forgive forgets what was lost in another network.
func (ps *paths) forgive() {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, pp := range ps.peers {
		pp.falls = 0
	}
}

// trialLeft is how long l has to wait until it may be p's path again; it is measured then.
func (ps *paths) trialLeft(p peer.ID, l *link) time.Duration {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	if pp := ps.peers[p]; pp != nil && pp.best != nil && pp.best != l && l.measured().upgrades(pp.best.measured()) {
		return trial(pp.falls) - time.Since(pp.fell)
	}
	return 0
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
	path := ps.describeLinkLocked(p, pp.best, pp.since)
	if l := pp.bulk[Auto]; l != nil {
		path.Bulk = l.conn.RemoteMultiaddr()
	}
	path.Spread = ps.spreadLocked(p, Auto)
	return path
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

func (ps *paths) find(p peer.ID, c network.Conn) *link {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return ps.findLocked(p, c)
}

func (ps *paths) findLocked(p peer.ID, c network.Conn) *link {
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

func (ps *paths) isFurther(l *link) bool {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	return l.further
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
