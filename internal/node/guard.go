package node

import (
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/autonatv2"
	"github.com/libp2p/go-libp2p/p2p/protocol/identify"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"golang.org/x/time/rate"

	"fwd/internal/punch"
)

const (
	// strangerLife is how long a peer outside the roster may stay: long enough to show a newer roster
	// that names it, or an invite.
	strangerLife = 5 * time.Second
	// strangerMost is how long one that dialled us may stay whatever is allowed to it: an invite's way to
	// the owner takes at most 30 s, and then it is a member.
	strangerMost = time.Minute
	// negotiateWithin is how long a stream may take to say what it is for; the library's own figure.
	negotiateWithin = 10 * time.Second
	// sweepEvery is how often connections are looked over for members whose time ran out.
	sweepEvery = 5 * time.Second

	// maxStrangers is how many connections of strangers are kept at once, and maxStrangersHost how many
	// from one address; who comes then takes the place of the one that has been here longest. At some
	// 100 KiB each they cost 50 MiB at most, and never a member its place.
	maxStrangers     = 512
	maxStrangersHost = 64
	// Streams at once: of one stranger, of all strangers, of one member. A stranger identifies, pings and
	// shows an invite or a roster. A member's bound is a relay's: a stream for each of its 1024 circuits.
	maxStrangerStreams  = 8
	maxStrangersStreams = 1024
	maxMemberStreams    = 2048

	// A peer's punches have us send packets to addresses that it names: punchBurst at once, and one each
	// punchEvery. Its own plans are minutes apart but for changes of network.
	punchBurst = 12
	punchEvery = 10 * time.Second
)

// guard stands before every stream: it has the host's mux negotiate the protocol, asks whether the
// peer may speak it, and serves it or not. It is set before the first listen, so that libp2p's own
// protocols are behind it too.
//
// Strangers may identify, ping, speak the protocols of open, and dial back where AutoNAT asked them
// to (the handler knows its nonces). Services do not exist for them, nor do our private addresses.
// What they cost is bounded here, since the resource manager cannot tell them from members.
type guard struct {
	member func(peer.ID) bool
	open   map[protocol.ID]bool

	mu        sync.Mutex
	closed    bool
	strangers map[network.Conn]*stranger // connections of peers that were never members
	welcome   map[peer.ID]time.Time      // strangers that may stay until then
	streams   map[peer.ID]int            // incoming, being served
	theirs    int                        // of those, strangers'
	punches   map[peer.ID]*rate.Limiter
}

// stranger is one connection of a peer that is not on the roster.
type stranger struct {
	timer *time.Timer
	since time.Time
	from  string // the address it comes from, or the relay
	out   bool   // to make room for another
}

// most is how long a stranger's connection may still stay at the most. One that we dialled ourselves,
// to join, is ours to end.
func (s *stranger) most(c network.Conn) time.Duration {
	if c.Stat().Direction != network.DirInbound {
		return time.Hour
	}
	return time.Until(s.since.Add(strangerMost))
}

func newGuard(member func(peer.ID) bool, open map[protocol.ID]bool) *guard {
	return &guard{
		member:    member,
		open:      open,
		strangers: make(map[network.Conn]*stranger),
		welcome:   make(map[peer.ID]time.Time),
		streams:   make(map[peer.ID]int),
		punches:   make(map[peer.ID]*rate.Limiter),
	}
}

func (g *guard) mayServe(p peer.ID, proto protocol.ID) bool {
	switch proto {
	case identify.ID, identify.IDPush, ping.ID, autonatv2.DialBackProtocol:
		return true
	}
	return g.open[proto] || g.member(p)
}

// serve is the swarm's stream handler.
func (g *guard) serve(mux protocol.Switch) network.StreamHandler {
	return func(s network.Stream) {
		p := s.Conn().RemotePeer()
		leave, ok := g.enter(p)
		if !ok {
			s.ResetWithError(network.StreamResourceLimitExceeded)
			return
		}
		defer leave()
		s.SetDeadline(time.Now().Add(negotiateWithin))
		proto, handle, err := mux.Negotiate(s)
		if err != nil {
			s.ResetWithError(network.StreamProtocolNegotiationFailed)
			return
		}
		if !g.mayServe(p, proto) || (proto == punch.Protocol || proto == besideProtocol) && !g.mayPunch(p) {
			s.ResetWithError(network.StreamGated)
			return
		}
		s.SetDeadline(time.Time{})
		if err := s.SetProtocol(proto); err != nil {
			s.ResetWithError(network.StreamResourceLimitExceeded)
			return
		}
		if proto == identify.ID && !g.member(p) {
			s = &discreet{Stream: s}
		}
		handle(proto, s)
	}
}

// enter takes a place for a stream of p.
func (g *guard) enter(p peer.ID) (leave func(), ok bool) {
	member := g.member(p)
	g.mu.Lock()
	defer g.mu.Unlock()
	most := maxMemberStreams
	if !member {
		most = maxStrangerStreams
	}
	if g.streams[p] >= most || !member && g.theirs >= maxStrangersStreams {
		return nil, false
	}
	g.streams[p]++
	if !member {
		g.theirs++
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.streams[p]--; g.streams[p] == 0 {
			delete(g.streams, p)
		}
		if !member {
			g.theirs--
		}
	}, true
}

// mayPunch paces a member's punches.
func (g *guard) mayPunch(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.punches[p]
	if l == nil {
		l = rate.NewLimiter(rate.Every(punchEvery), punchBurst)
		g.punches[p] = l
	}
	return l.Allow()
}

// connected starts the clock of a stranger's connection.
func (g *guard) connected(c network.Conn) {
	if g.member(c.RemotePeer()) {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed || c.IsClosed() {
		return
	}
	s := &stranger{since: time.Now(), from: originOf(c.RemoteMultiaddr())}
	if out, full := g.crowdedLocked(s.from); full {
		if out == nil {
			out = s
		}
		out.out = true
		if out != s {
			out.timer.Reset(0)
		}
	}
	life := strangerLife
	if s.out {
		life = 0
	}
	g.strangers[c] = s
	s.timer = time.AfterFunc(life, func() { g.expire(c) })
}

// crowdedLocked: are there as many strangers as may be, and which one makes room for another from that
// address? Nobody does who is welcome.
func (g *guard) crowdedLocked(from string) (out *stranger, full bool) {
	here := 0
	for _, s := range g.strangers {
		if s.from == from {
			here++
		}
	}
	crowd := here >= maxStrangersHost
	if !crowd && len(g.strangers) < maxStrangers {
		return nil, false
	}
	for c, s := range g.strangers {
		if s.out || crowd && s.from != from || time.Now().Before(g.welcome[c.RemotePeer()]) {
			continue
		}
		if out == nil || s.since.Before(out.since) {
			out = s
		}
	}
	return out, true
}

func (g *guard) disconnected(c network.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if s := g.strangers[c]; s != nil {
		s.timer.Stop()
		delete(g.strangers, c)
	}
}

// expire closes a stranger's connection unless it has become a member or may stay longer.
func (g *guard) expire(c network.Conn) {
	p := c.RemotePeer()
	member := g.member(p)
	g.mu.Lock()
	s := g.strangers[c]
	if g.closed || s == nil {
		g.mu.Unlock()
		return
	}
	left := min(time.Until(g.welcome[p]), s.most(c))
	if left > 0 && !member && !s.out {
		s.timer.Reset(left)
		g.mu.Unlock()
		return
	}
	delete(g.strangers, c)
	g.mu.Unlock()
	if !member {
		c.CloseWithError(network.ConnGated)
	}
}

// allow lets a stranger stay for d from now on, instead of strangerLife. The returned function ends
// that; a last answer still gets through.
func (g *guard) allow(p peer.ID, d time.Duration) (release func()) {
	until := time.Now().Add(d)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.welcome[p].Before(until) {
		g.welcome[p] = until
	}
	return func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if !g.welcome[p].Equal(until) {
			return // someone else allowed it longer
		}
		delete(g.welcome, p)
		for c, s := range g.strangers {
			if c.RemotePeer() == p && !s.out {
				s.timer.Reset(min(strangerLife, s.most(c)))
			}
		}
	}
}

// sweep closes the connections of peers that were members and are no more.
func (g *guard) sweep(conns []network.Conn) {
	now := time.Now()
	for _, c := range conns {
		p := c.RemotePeer()
		if g.member(p) {
			continue
		}
		g.mu.Lock()
		waits := g.strangers[c] != nil || now.Before(g.welcome[p])
		g.mu.Unlock()
		if !waits {
			c.CloseWithError(network.ConnGated)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for p, l := range g.punches {
		if l.Tokens() >= punchBurst {
			delete(g.punches, p)
		}
	}
	for p, until := range g.welcome {
		if now.After(until) {
			delete(g.welcome, p)
		}
	}
}

func (g *guard) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for _, s := range g.strangers {
		s.timer.Stop()
	}
}
