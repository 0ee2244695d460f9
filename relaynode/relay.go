// Package relaynode lends this machine's reachability to the peers of one
// network, and to nobody else.
//
//	r, err := relaynode.New(h, relaynode.Config{Member: member, Network: id})
//	go r.Serve(ctx)
//	…
//	r.Refresh() // the roster has changed
//
// On the given host it serves
//
//   - circuits (libp2p circuit-relay v2) from member to member, without the
//     stock limits on bytes and time, and within the Limits the owner sets;
//   - a rendezvous point (/fwd/rendezvous/1): who is where, see docs/rendezvous.md;
//   - reflection (/fwd/reflect/1, plain UDP and TCP): the address a peer is seen at.
//
// What happens to one circuit: the exposing peer reserves; the connecting peer
// asks for it; the access list is asked about both; the bytes of the two
// streams, encrypted end to end, are copied and counted, and paced where there
// are limits; they end when a side ends, when a peer leaves the roster (Refresh),
// or when the month's quota is used up.
//
// The package does not decide who is a member, does not read what it carries,
// and keeps nothing on disk. The host must let relayed streams through its
// resource manager, whose defaults are too small for a forwarder.
package relaynode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/relay"
	ma "github.com/multiformats/go-multiaddr"
)

// Resources of the circuit service. The stock ones (128 reservations, 16
// circuits a peer, 8 reservations an IP, 2 KiB buffers) are meant for strangers.
const (
	maxReservations = 4096      // one a peer; rosters have up to some thousand
	maxCircuits     = 1024      // for each peer, as source and destination together
	copyBuffer      = 64 << 10  // bytes, twice a circuit; libp2p's 2 KiB halves TCP's throughput (measured)
	reservationTTL  = time.Hour // libp2p's default; clients renew before

	sweepEvery = time.Minute // expired records, full buckets
)

// Config says for whom the relay works and how much.
type Config struct {
	// Member says who is on the roster now. It is called often and must be quick.
	Member func(peer.ID) bool
	// Network is the network's ID now: the point refuses records bound to another
	// one. nil or "": it leaves that to those who read them.
	Network func() string
	Limits  Limits
	// Usage is what was used of the month's quota before this start, as given
	// by Relay.Usage at the end of the last run.
	Usage Usage
	// Now is the time of day, for expiry and the month; nil: time.Now.
	Now func() time.Time
	Log *slog.Logger // nil: silent
}

// Stats is how busy the relay is.
type Stats struct {
	Reservations int   // peers that hold one now
	Circuits     int   // open now
	Bytes        int64 // relayed since the start, each byte once
	Records      int   // at the rendezvous point
	RecordBytes  int64 // memory they take, about
}

// Relay is a relay at work. Its methods may be called from many goroutines.
type Relay struct {
	host  host.Host
	cfg   Config
	meter *meter
	point *point
	gate  *gate
	stats *counters
	older *older

	reflector *reflector

	mu       sync.Mutex
	ended    bool             // Serve takes no more streams
	handlers sync.WaitGroup   // streams of our own protocols
	served   map[peer.ID]bool // members we have done something for and that are connected
}

// New makes a relay on h. It starts to work with Serve.
func New(h host.Host, cfg Config) (*Relay, error) {
	if cfg.Member == nil {
		return nil, errors.New("relaynode: Member is required: a relay for everyone is not wanted")
	}
	if cfg.Network == nil {
		cfg.Network = func() string { return "" }
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := cfg.Limits.Check(); err != nil {
		return nil, err
	}
	r := &Relay{host: h, cfg: cfg, stats: new(counters), served: make(map[peer.ID]bool)}
	r.meter = newMeter(cfg.Limits, cfg.Usage, cfg.Now)
	r.gate = newGate()
	r.reflector = newReflector(cfg.Now)
	p, err := newPoint(cfg.Network, r.admit, r.gate, cfg.Now)
	if err != nil {
		return nil, err
	}
	r.point = p
	r.older = newOlder(r.member, r.meter.heard, cfg.Log)
	return r, nil
}

// Serve relays until ctx ends. Then circuits are cut, and it returns when
// everything it began has ended. It is called once.
func (r *Relay) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	metered := r.meter.host(ctx, r.host)
	circuits, err := relay.New(metered,
		relay.WithResources(relay.Resources{
			ReservationTTL:        reservationTTL,
			MaxReservations:       maxReservations,
			MaxCircuits:           maxCircuits,
			BufferSize:            copyBuffer,
			MaxReservationsPerIP:  maxReservations, // a household behind one address
			MaxReservationsPerASN: maxReservations,
		}),
		relay.WithInfiniteLimits(),
		relay.WithACL(acl{r, &metered.legs}),
		relay.WithReservationAddressFilter(func(ma.Multiaddr) bool { return true }), // LAN relays announce private addresses
		relay.WithMetricsTracer(r.stats),
	)
	if err != nil {
		return fmt.Errorf("start the circuit service: %w", err)
	}

	net := r.host.Network()
	bundle := &network.NotifyBundle{DisconnectedF: r.disconnected}
	net.Notify(bundle)
	r.reflector.open(net.ListenAddresses(), r.cfg.Log)
	r.serveStreams(ctx, ProtocolRendezvous, r.point.handle)
	r.serveStreams(ctx, ProtocolReflect, r.reflect)

	var wg sync.WaitGroup // all end with ctx
	wg.Go(func() { r.sweep(ctx) })
	wg.Go(func() { r.older.serve(ctx, net) })
	wg.Go(func() { r.reflector.serve(ctx) })

	<-ctx.Done()
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.host.RemoveStreamHandler(ProtocolReflect)
	r.host.RemoveStreamHandler(ProtocolRendezvous)
	net.StopNotify(bundle)
	circuits.Close()
	metered.close()
	wg.Wait()
	r.handlers.Wait()
	return nil
}

// serveStreams hands incoming streams to handle, each counted until it ends.
func (r *Relay) serveStreams(ctx context.Context, id protocol.ID, handle func(network.Stream)) {
	r.host.SetStreamHandler(id, func(s network.Stream) {
		r.mu.Lock()
		if r.ended {
			r.mu.Unlock()
			s.Reset()
			return
		}
		r.handlers.Add(1)
		r.mu.Unlock()
		defer r.handlers.Done()
		stop := context.AfterFunc(ctx, func() { s.Reset() })
		defer stop()
		from := s.Conn().RemotePeer()
		if !r.cfg.Member(from) { // before anything is remembered of it
			s.Reset()
			return
		}
		leave, ok := r.gate.enter(from)
		if !ok {
			s.Reset()
			return
		}
		defer leave()
		handle(s)
	})
}

// sweep drops what has expired until ctx ends.
func (r *Relay) sweep(ctx context.Context) {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			r.point.store.sweep(r.cfg.Now())
			r.gate.sweep()
			r.meter.sweep()
		}
	}
}

// Refresh ends what the relay does for peers that are no members any more:
// their connections are closed, and with them their circuits and reservations;
// their records are dropped. It returns when that is done. Peers that the relay
// has done nothing for, such as one that is joining, are left to others.
func (r *Relay) Refresh() {
	r.mu.Lock()
	var gone []peer.ID
	for p := range r.served {
		if !r.cfg.Member(p) {
			gone = append(gone, p)
			delete(r.served, p)
		}
	}
	r.mu.Unlock()

	var wg sync.WaitGroup
	for _, p := range gone {
		wg.Go(func() {
			r.cfg.Log.Info("closing the connections of a peer that left the roster", "peer", p)
			r.host.Network().ClosePeer(p)
		})
	}
	r.point.store.dropStrangers(r.cfg.Member)
	wg.Wait()
}

// Stats counts reservations, circuits, bytes and records.
func (r *Relay) Stats() Stats {
	s := Stats{
		Reservations: int(r.stats.reservations.Load()),
		Circuits:     int(r.stats.circuits.Load()),
		Bytes:        r.stats.bytes.Load(),
	}
	s.Records, s.RecordBytes = r.point.store.size()
	return s
}

// Usage is what was relayed in this month, for the next start's Config.
func (r *Relay) Usage() Usage { return r.meter.usage() }

// Spent tells whether the month's quota is used up.
func (r *Relay) Spent() bool { return r.meter.spent() }

func (r *Relay) member(p peer.ID) bool { return r.cfg.Member(p) }

// admit is member, and remembers for Refresh that p was served.
func (r *Relay) admit(p peer.ID) bool {
	if !r.cfg.Member(p) {
		return false
	}
	r.mu.Lock()
	r.served[p] = true
	r.mu.Unlock()
	// Refresh may have run between the two: look again, so that p is either
	// refused here or found there.
	return r.cfg.Member(p)
}

func (r *Relay) disconnected(n network.Network, c network.Conn) {
	r.meter.forget(c)
	if p := c.RemotePeer(); n.Connectedness(p) == network.NotConnected {
		r.mu.Lock()
		delete(r.served, p)
		r.mu.Unlock()
	}
}

// acl lets members reserve, and members connect to members while there is quota.
type acl struct {
	r    *Relay
	legs *legs
}

func (a acl) AllowReserve(p peer.ID, _ ma.Multiaddr) bool { return a.r.admit(p) }

func (a acl) AllowConnect(src peer.ID, over ma.Multiaddr, dst peer.ID) bool {
	if src == dst || !a.r.admit(src) || !a.r.admit(dst) || a.r.meter.spent() {
		return false
	}
	a.legs.came(over, dst)
	return true
}
