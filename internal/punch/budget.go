package punch

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"
)

// What guessing may cost. To routers and carriers many packets to many ports look like a scan, and a
// router's table of connections has some thousand entries. All of these are hard limits: what would go
// beyond is not sent.
const (
	// packetsPerSecond and packetsAtOnce bound all guessing of this process together. At once goes what
	// opens our own NAT for one round; it dies two hops away.
	packetsPerSecond = 250
	packetsAtOnce    = 256
	// openRate and probeRate are the pace of one punch, packets a second.
	openRate  = 500
	probeRate = 200
	// roundPorts is how many distinct ports one round of guessing may try, rounds how many rounds one
	// punch has, one each attempt: 98.4 % and then 99.97 % of pairs meet.
	roundPorts = 1024
	rounds     = 2
	// dayPorts is four full rounds, for one peer and day; a round that met early leaves the rest.
	dayPorts = 4 * roundPorts
	day      = 24 * time.Hour
	// addrPorts is how many ports of one address may be tried in addrSpan, whoever asks.
	addrPorts = 2 * roundPorts
	addrSpan  = 10 * time.Minute
	// redials is how often a peer's punches may dial TCP again in addrSpan: four punches that are refused at once all
	// the time. A report may lead to a machine that has nothing to do with it.
	redials = 200
	// enoughPorts is what must be left for another round to be begun; half of them meet with 175.
	enoughPorts = 256
)

// budget is what guessing has cost so far. Both sides count: one the ports that it tried, the other its
// sockets.
type budget struct {
	packets *rate.Limiter

	mu     sync.Mutex
	peers  map[peer.ID]*spent // of a day
	recent map[peer.ID]*spent // of addrSpan
	addrs  map[netip.Addr]*spent
	dials  map[peer.ID]*spent // of TCP, again
}

// spent counts ports, or dials, since from.
type spent struct {
	from  time.Time
	count int
}

func newBudget() *budget {
	return &budget{
		packets: rate.NewLimiter(packetsPerSecond, packetsAtOnce),
		peers:   make(map[peer.ID]*spent), recent: make(map[peer.ID]*spent), addrs: make(map[netip.Addr]*spent),
		dials: make(map[peer.ID]*spent),
	}
}

// packet waits until one more may be sent; an error means that ctx ends before.
func (b *budget) packet(ctx context.Context) error { return b.packets.Wait(ctx) }

// port takes one more distinct port of p's address, or one more socket for it, if that is within the limits.
func (b *budget) port(p peer.ID, a netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	today, recent, addr := since(b.peers, p, day), since(b.recent, p, addrSpan), since(b.addrs, a, addrSpan)
	if today.count >= dayPorts || addr.count >= addrPorts {
		return false
	}
	today.count++
	recent.count++
	addr.count++
	return true
}

// redial takes one more dial of TCP after the first one of a step, if that is within the limit.
func (b *budget) redial(p peer.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := since(b.dials, p, addrSpan)
	if s.count >= redials {
		return false
	}
	s.count++
	return true
}

// left says whether another round with p may be begun: there is no use in one that has to end at once.
func (b *budget) left(p peer.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return since(b.peers, p, day).count+enoughPorts <= dayPorts && since(b.recent, p, addrSpan).count+enoughPorts <= addrPorts
}

// since finds what was spent on k, forgetting what is older than span.
func since[K comparable](m map[K]*spent, k K, span time.Duration) *spent {
	now := time.Now()
	for other, s := range m {
		if now.Sub(s.from) >= span {
			delete(m, other)
		}
	}
	if m[k] == nil {
		m[k] = &spent{from: now}
	}
	return m[k]
}
