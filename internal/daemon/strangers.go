package daemon

import (
	"net/netip"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/time/rate"
)

// Strangers may join and show a newer roster, and nothing else. How often is
// counted by the address they come from, since a peer ID costs nothing.
const (
	// strangersBurst and strangersRate, a second: a site behind one address may
	// bring some dozen machines at once. Who guesses gets no further than that.
	strangersBurst = 32
	strangersRate  = 1
	// carriedBurst and carriedRate bound what one member brings of others': a
	// relay's own bound is that of the addresses it serves.
	carriedBurst = 256
	carriedRate  = 16
	// strangersAtOnce: a join waits for the owner's disk, perhaps behind a relay.
	strangersAtOnce = 64
	// maxSources is how many addresses are remembered.
	maxSources = 4096
)

// A lobby bounds what comes from outside the roster, one for each protocol.
type lobby struct {
	mu      sync.Mutex
	inside  int
	sources map[string]*rate.Limiter
}

func newLobby() *lobby { return &lobby{sources: map[string]*rate.Limiter{}} }

// enter takes a place for a stream of one who is, or speaks for, a stranger.
func (l *lobby) enter(c network.Conn, member bool) (leave func(), ok bool) {
	source, per, burst := sourceOf(c.RemoteMultiaddr(), c.RemotePeer()), rate.Limit(strangersRate), strangersBurst
	if member {
		source, per, burst = string(c.RemotePeer()), carriedRate, carriedBurst
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	limit := l.sources[source]
	if limit == nil {
		l.forgetLocked()
		limit = rate.NewLimiter(per, burst)
		l.sources[source] = limit
	}
	if l.inside >= strangersAtOnce || !limit.Allow() {
		return nil, false
	}
	l.inside++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.inside--
	}, true
}

// forgetLocked makes room for one source more: those that may do all again are
// forgotten, and if there are none, any.
func (l *lobby) forgetLocked() {
	if len(l.sources) < maxSources {
		return
	}
	for s, limit := range l.sources {
		if limit.Tokens() >= float64(limit.Burst()) {
			delete(l.sources, s)
		}
	}
	for s := range l.sources {
		if len(l.sources) < maxSources {
			return
		}
		delete(l.sources, s)
	}
}

// sourceOf is an IPv4 address, an IPv6 network of 64 bits, or for a circuit the
// relay's address: whoever comes by it shares that.
func sourceOf(a ma.Multiaddr, p peer.ID) string {
	ip, err := manet.ToIP(a)
	if err != nil {
		return string(p)
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return string(p)
	}
	if addr = addr.Unmap(); addr.Is6() {
		if n, err := addr.Prefix(64); err == nil {
			return n.String()
		}
	}
	return addr.String()
}
