package discovery

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
)

// How an announcement goes:
//
//  1. Serve keeps one schedule for each rendezvous point and one for the DHT.
//  2. What is due gets our records under every key, each place in a goroutine
//     of its own, so that a dead point delays nobody.
//  3. A success is due again at 7/8 of the time granted, a failure after
//     0.2 s, growing to 5 s.
//  4. All is due at once on Announce, and a point's share, with the DHT's,
//     when a connection to it comes up: it may have been restarted and forgotten.

const (
	retryMin = 200 * time.Millisecond // first retry; a relay that restarts is back soon
	retryMax = 5 * time.Second        // slowest retry at a point: one that is back is found within seconds
	dhtRetry = time.Minute            // slowest retry in the DHT: a failed lookup costs several peers work
	renewMin = 30 * time.Second       // least time between two successes, whatever was granted
	reread   = time.Minute            // latest time at which the list of points is read again
)

// errNothing means that there is no key or no address to announce yet.
var errNothing = errors.New("nothing to announce yet: no discovery key or no address")

// place is where we announce ourselves: a rendezvous point, or the DHT.
type place struct {
	point peer.ID      // "" for the DHT
	dht   *dht.IpfsDHT // nil for a point
}

// schedule says when a place is due. It belongs to Serve's goroutine.
type schedule struct {
	due     time.Time
	backoff time.Duration
	busy    bool // an attempt is under way
	again   bool // and another one is wanted at its end
}

type outcome struct {
	place   place
	granted time.Duration
	err     error
}

// Announce makes Serve announce us again at once: our addresses have changed,
// or the roster has. It also has mDNS look at the interfaces anew. It does not
// block.
func (f *Finder) Announce() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
	if f.lan != nil {
		select {
		case f.lan.restart <- struct{}{}:
		default:
		}
	}
}

// Serve announces this peer until ctx ends, then returns nil. Announcements are
// not taken back: they expire.
func (f *Finder) Serve(ctx context.Context) error {
	connected := make(chan peer.ID, 64)
	bundle := &network.NotifyBundle{ConnectedF: func(_ network.Network, c network.Conn) {
		select {
		case connected <- c.RemotePeer():
		default: // full: a retry will do
		}
	}}
	f.cfg.Host.Network().Notify(bundle)
	defer f.cfg.Host.Network().StopNotify(bundle)

	var wg sync.WaitGroup // attempts and mDNS: both end with ctx
	defer wg.Wait()
	if f.lan != nil {
		wg.Go(func() { f.lan.serve(ctx) })
	}

	plan := make(map[place]*schedule)
	outcomes := make(chan outcome)
	for {
		f.replan(plan)
		next := time.Now().Add(reread)
		for at, s := range plan {
			switch {
			case s.busy:
			case s.due.After(time.Now()):
				if s.due.Before(next) {
					next = s.due
				}
			default:
				s.busy, s.again = true, false
				wg.Go(func() {
					granted, err := f.announceAt(ctx, at)
					send(ctx, outcomes, outcome{at, granted, err})
				})
			}
		}

		timer := time.NewTimer(time.Until(next))
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		case <-f.wake:
			for _, s := range plan {
				s.now()
			}
		case p := <-connected:
			if s := plan[place{point: p}]; s != nil {
				s.now()
				if s := plan[place{dht: f.cfg.DHT}]; s != nil {
					s.now()
				}
			}
		case o := <-outcomes:
			if s := plan[o.place]; s != nil {
				f.record(s, o)
			}
		}
		timer.Stop()
	}
}

// replan makes the plan match the points there are now, and the DHT.
func (f *Finder) replan(plan map[place]*schedule) {
	want := make(map[place]bool)
	for _, p := range f.cfg.Points() {
		if p != f.cfg.Host.ID() {
			want[place{point: p}] = true
		}
	}
	if d := f.cfg.DHT; d != nil {
		want[place{dht: d}] = true
	}
	for at := range plan {
		if !want[at] {
			delete(plan, at)
		}
	}
	for at := range want {
		if plan[at] == nil {
			plan[at] = &schedule{}
		}
	}
}

// now makes the place due.
func (s *schedule) now() {
	s.due, s.backoff = time.Time{}, 0
	s.again = s.busy
}

// record notes the end of an attempt.
func (f *Finder) record(s *schedule, o outcome) {
	s.busy = false
	failing := s.backoff > 0
	where := "dht"
	limit := dhtRetry
	if o.place.dht == nil {
		where, limit = o.place.point.String(), retryMax
	}
	switch {
	case s.again:
		s.now()
	case o.err == nil:
		s.backoff = 0
		s.due = time.Now().Add(max(renewMin, o.granted*7/8))
		f.cfg.Log.Debug("announced", "point", where, "for", o.granted)
	default:
		s.backoff = min(max(2*s.backoff, retryMin), limit)
		s.due = time.Now().Add(jitter(s.backoff))
		if !failing && !errors.Is(o.err, errNothing) {
			f.cfg.Log.Debug("announcing failed, trying again", "point", where, "error", o.err)
		}
	}
}

// announceAt puts our records under every key at one place.
func (f *Finder) announceAt(ctx context.Context, at place) (time.Duration, error) {
	keys := boundKeys(f.cfg.Keys())
	if len(keys) == 0 || len(f.cfg.Addrs()) == 0 {
		return 0, errNothing
	}
	sealed := make([][]byte, len(keys))
	for i, k := range keys {
		var err error
		if sealed[i], err = f.points.seal(Namespace(k, f.cfg.Host.ID()), f.cfg.TTL); err != nil {
			return 0, err
		}
	}
	if at.dht == nil {
		return f.points.register(ctx, at.point, sealed)
	}
	for i, k := range keys {
		if err := dhtPut(ctx, at.dht, Namespace(k, f.cfg.Host.ID()), sealed[i]); err != nil {
			return 0, err
		}
	}
	return f.cfg.TTL, nil
}

func boundKeys(keys [][]byte) [][]byte { return keys[:min(len(keys), maxKeys)] }

// jitter spreads d by 30 % to either side.
func jitter(d time.Duration) time.Duration {
	return time.Duration(float64(d) * (0.7 + 0.6*rand.Float64()))
}
