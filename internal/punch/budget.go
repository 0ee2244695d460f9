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
// beyond is not sent (nat.md §2.8, where the numbers come from).
const (
	// packetsPerSecond and packetsAtOnce bound all guessing of this process together. At once goes what
	// opens our own NAT for one round; it dies two hops away.
	packetsPerSecond = 250
	packetsAtOnce    = 256
	// openRate and probeRate are the pace of one punch, packets a second.
	openRate  = 500
	probeRate = 200
	// roundPorts is how many distinct ports one round of guessing may try, rounds how many rounds one
	// punch has: 98.4 % and then 99.97 % of pairs meet.
	roundPorts = 1024
	rounds     = 2
	// dayPorts is four full rounds, for one peer and day; a round that met early leaves the rest.
	dayPorts = 4 * roundPorts
	day      = 24 * time.Hour
	// addrPorts is how many ports of one address may be tried in addrSpan, whoever asks.
	addrPorts = 2 * roundPorts
	addrSpan  = 10 * time.Minute
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
}

// spent counts ports since from.
type spent struct {
	from  time.Time
	ports int
}

func newBudget() *budget {
	return &budget{
		packets: rate.NewLimiter(packetsPerSecond, packetsAtOnce),
		peers:   make(map[peer.ID]*spent), recent: make(map[peer.ID]*spent), addrs: make(map[netip.Addr]*spent),
	}
}

// packet waits until one more may be sent; an error means that ctx ends before.
func (b *budget) packet(ctx context.Context) error { return b.packets.Wait(ctx) }

// port takes one more distinct port of p's address, or one more socket for it, if that is within the limits.
func (b *budget) port(p peer.ID, a netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	today, recent, addr := since(b.peers, p, day), since(b.recent, p, addrSpan), since(b.addrs, a, addrSpan)
	if today.ports >= dayPorts || addr.ports >= addrPorts {
		return false
	}
	today.ports++
	recent.ports++
	addr.ports++
	return true
}

// left says whether another round with p may be begun: there is no use in one that has to end at once.
func (b *budget) left(p peer.ID) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return since(b.peers, p, day).ports+enoughPorts <= dayPorts && since(b.recent, p, addrSpan).ports+enoughPorts <= addrPorts
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
