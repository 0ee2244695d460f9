// Package discovery answers where a peer is now: from a peer ID to addresses.
//
//	f, err := discovery.New(discovery.Config{Host: h, Keys: keys, Points: relays, Member: member, …})
//	go f.Serve(ctx)                       // announces us until ctx ends
//	for info := range f.Find(ctx, peer) { // first answers first
//		…dial info.Addrs…
//	}
//
// Find asks at once: what was good last time, the local network (mDNS), the
// rendezvous points on the relays, and the network's own DHT. Any of them is
// enough; none is waited for. Serve announces our own addresses at the points
// and in the DHT, under a namespace that only holders of the discovery key can
// name, and on the LAN. The wire is in docs/rendezvous.md.
//
// Every record is signed by the peer it speaks of and bound to network,
// namespace and expiry; what fails a check is left out. Even so an answer is a
// hint: only the handshake of a dial proves the peer.
//
// The package does not dial the peers it finds, does not know names or
// services, and contacts nobody outside the network.
package discovery

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// maxKeys is the current discovery key and the last 8: a revocation changes it, and who was away knows an older one.
const maxKeys = 9

// Config is what a Finder needs to know. Functions are called often, from many
// goroutines, and must be quick.
type Config struct {
	Host host.Host
	// Network gives the ID of the network, to which records are bound and by
	// which the LAN tells networks apart; nil: "".
	Network func() string
	// Keys gives the discovery keys to announce under, the current one first:
	// one for most peers, up to 9 for relays and the owner. Find asks under the
	// first. None: nothing is announced at points or in the DHT.
	Keys func() [][]byte
	// Points gives the rendezvous points: the relays, without ourselves.
	Points func() []peer.ID
	// Member says who is on the roster; others are neither looked for nor heard.
	Member func(peer.ID) bool
	// Addrs gives the addresses to announce, best first; nil: the host's.
	Addrs func() []ma.Multiaddr
	// Known gives the addresses at which a peer was last reached; may be nil.
	Known func(peer.ID) []ma.Multiaddr
	// LAN turns mDNS on.
	LAN bool
	// DHT is the network's DHT, see NewDHT; nil: none. It stays the caller's to
	// close, after Serve has returned.
	DHT *dht.IpfsDHT
	// TTL is the life of our records; 0: MaxTTL, which also is the most. A long
	// life lets peers whose clocks differ understand each other; a record that
	// has outlived its addresses costs a failed dial.
	TTL time.Duration
	// Now is the time of day; nil: time.Now.
	Now func() time.Time
	Log *slog.Logger // nil: silent
}

// Finder finds peers and announces this one. Its methods may be called from
// many goroutines.
type Finder struct {
	cfg    Config
	points *Rendezvous
	lan    *lan          // nil: off
	wake   chan struct{} // capacity 1: announce again now
}

// New returns a Finder. Nothing runs before Serve; Find works without it, but
// for the LAN.
func New(cfg Config) (*Finder, error) {
	if cfg.Host == nil || cfg.Keys == nil || cfg.Points == nil || cfg.Member == nil {
		return nil, errors.New("discovery: Host, Keys, Points and Member are required")
	}
	if cfg.Network == nil {
		cfg.Network = func() string { return "" }
	}
	if cfg.Addrs == nil {
		cfg.Addrs = cfg.Host.Addrs
	}
	if cfg.TTL <= 0 || cfg.TTL > MaxTTL {
		cfg.TTL = MaxTTL
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	f := &Finder{cfg: cfg, wake: make(chan struct{}, 1)}
	f.points = NewRendezvous(cfg.Host, cfg.Points)
	f.points.Network, f.points.Addrs, f.points.Member, f.points.Now = cfg.Network, cfg.Addrs, cfg.Member, cfg.Now
	if cfg.LAN {
		f.lan = newLAN(cfg.Host, cfg.Network, cfg.Member, cfg.Log)
	}
	return f, nil
}

// Find asks everyone at once where p is and gives what they say, first answers
// first: each address once, at most MaxAddrs in an answer. The channel is
// closed when all have answered, after some seconds at most, or when ctx has
// ended; read until then, or end ctx. Nothing is found of strangers or of
// ourselves.
func (f *Finder) Find(ctx context.Context, p peer.ID) <-chan peer.AddrInfo {
	out := make(chan peer.AddrInfo)
	if p == f.cfg.Host.ID() || !f.cfg.Member(p) {
		close(out)
		return out
	}
	ctx, cancel := context.WithCancel(ctx)
	found := make(chan peer.AddrInfo)
	give := func(info peer.AddrInfo) bool { return send(ctx, found, info) }

	var all sync.WaitGroup // the askers: each ends by itself or with ctx
	if f.cfg.Known != nil {
		all.Go(func() { give(peer.AddrInfo{ID: p, Addrs: boundAddrs(f.cfg.Known(p))}) })
	}
	var asked sync.WaitGroup // those that end by themselves
	if keys := f.cfg.Keys(); len(keys) > 0 {
		ns := Namespace(keys[0], p)
		for _, point := range f.cfg.Points() {
			if point == p {
				continue // whoever reaches it has no need to ask
			}
			asked.Go(func() { f.note(point, f.points.discover(ctx, point, ns, p, give)) })
		}
		if d := f.cfg.DHT; d != nil {
			asked.Go(func() {
				f.note("", dhtFind(ctx, d, ns, func(sealed []byte) bool {
					info, err := f.points.open(sealed, ns, p)
					return err != nil || give(info)
				}))
			})
		}
	}
	if f.lan != nil {
		lanCtx, lanDone := context.WithCancel(ctx)
		all.Go(func() { f.lan.find(lanCtx, p, give) })
		all.Go(func() { // ends the LAN's part when the others have answered
			asked.Wait()
			select {
			case <-time.After(f.lan.settle()):
			case <-ctx.Done():
			}
			lanDone()
		})
	}
	go func() { // ends with the askers
		asked.Wait()
		all.Wait()
		close(found)
	}()
	go func() { // ends with the askers
		defer close(out)
		defer cancel()
		fresh := newSieve()
		for info := range found {
			if info = fresh.pass(info); len(info.Addrs) > 0 {
				send(ctx, out, info)
			}
		}
	}()
	return out
}

// note tells the log what an asker failed on; the others may know more.
func (f *Finder) note(point peer.ID, err error) {
	if err != nil && !errors.Is(err, context.Canceled) {
		f.cfg.Log.Debug("looking up a peer failed", "point", point, "error", err)
	}
}

// sieve lets each address of a peer pass once.
type sieve struct{ seen map[peer.ID]map[string]bool }

func newSieve() sieve { return sieve{make(map[peer.ID]map[string]bool)} }

func (s sieve) pass(info peer.AddrInfo) peer.AddrInfo {
	seen := s.seen[info.ID]
	if seen == nil {
		seen = make(map[string]bool)
		s.seen[info.ID] = seen
	}
	fresh := peer.AddrInfo{ID: info.ID}
	for _, a := range info.Addrs {
		if key := string(a.Bytes()); !seen[key] {
			seen[key] = true
			fresh.Addrs = append(fresh.Addrs, a)
		}
	}
	return fresh
}
