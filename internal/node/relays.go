package node

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/event"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
)

// Reservations, by an own loop for each relay: libp2p's AutoRelay waits for AutoNAT, knows a back-off
// of an hour after one refusal, and takes its candidates at random. Steps for one relay:
//
//  1. connect, and take one of the places (wantRelays): the relays that answer first get them, the
//     others wait for a place to become free
//  2. exchange rosters (BeforeReserve), reserve
//  3. dial the other transport too, so that both our UDP and our TCP mapping are known, now and again while it is missing
//  4. renew in time; after any loss of a connection look, and reserve again
//  5. after a failure give the place up, wait, and start again

const (
	// wantRelays is how many relays hold a reservation for us at a time.
	wantRelays = 2
	// maxRelays is how many of a roster's relays are considered.
	maxRelays = 16
	// retryFirst and retryLast, later retryLater, bound the wait between attempts at a relay,
	// in the first minute of an outage, when many wait, and later.
	retryFirst, retryLast, retryLater = 200 * time.Millisecond, 2 * time.Second, 5 * time.Second
	retryEager                        = time.Minute
	// steadyAfter is how long a reservation has to last for the next attempt to be as soon as the first: there are relays,
	// and firewalls before them, that let everybody in and cut each connection a moment later.
	steadyAfter = 10 * time.Second
	// reserveWithin is how long one attempt may take.
	reserveWithin = 10 * time.Second
	// renewUnknown is when to renew if the relay's clock tells us nothing; reservations last 1 h by
	// default (circuitv2/relay/resources.go).
	renewUnknown = 20 * time.Minute
	renewAtLeast = time.Minute
	// missingRetry is how long a failed dial of the other transport rests, and the most that one rests after a loss.
	missingRetry = 5 * time.Minute
)

// relayLoops are the relays that this node holds or seeks reservations at.
type relayLoops struct {
	mu    sync.Mutex
	loops map[peer.ID]*relayLoop
}

type relayLoop struct {
	relay    peer.ID
	cancel   context.CancelFunc
	reserved bool      // guarded by relayLoops.mu
	seeking  bool      // holds a place; guarded by relayLoops.mu
	since    time.Time // of the latest reservation
}

func (r *relayLoops) has(p peer.ID) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.loops[p]
	return l != nil && l.seeking
}

// keepRelays runs a loop for each of the roster's relays until ctx ends.
func (n *Node) keepRelays(ctx context.Context) {
	wake, stop := n.wake.listen()
	defer stop()
	places := make(chan struct{}, wantRelays)
	var wg sync.WaitGroup
	defer wg.Wait()
	n.relays.mu.Lock()
	n.relays.loops = make(map[peer.ID]*relayLoop)
	n.relays.mu.Unlock()
	for {
		listed := make(map[peer.ID]bool)
		for _, relay := range n.cfg.Relays() {
			if relay.ID == n.self || len(listed) >= maxRelays {
				continue
			}
			listed[relay.ID] = true
			n.parts.host.Peerstore().AddAddrs(relay.ID, relay.Addrs, knownFor)
			n.relays.mu.Lock()
			if n.relays.loops[relay.ID] == nil {
				ctx, cancel := context.WithCancel(ctx)
				l := &relayLoop{relay: relay.ID, cancel: cancel}
				n.relays.loops[relay.ID] = l
				wg.Go(func() { n.keepRelay(ctx, l, places) })
			}
			n.relays.mu.Unlock()
		}
		n.relays.mu.Lock()
		for id, l := range n.relays.loops {
			if !listed[id] {
				l.cancel()
				delete(n.relays.loops, id)
			}
		}
		n.relays.mu.Unlock()
		n.publishReserved()
		select {
		case <-wake:
		case <-ctx.Done():
			return
		}
	}
}

// relayInfo is the relay as the roster has it now; false: no longer on it.
func (n *Node) relayInfo(id peer.ID) (peer.AddrInfo, bool) {
	for _, r := range n.cfg.Relays() {
		if r.ID == id {
			return r, true
		}
	}
	return peer.AddrInfo{}, false
}

func (n *Node) keepRelay(ctx context.Context, l *relayLoop, places chan struct{}) {
	retry := backoff{first: retryFirst, last: retryLast, rand: rand.Float64}
	wake, stop := n.wake.listen()
	defer stop()
	var lost time.Time // since when there was no reservation that lasted; zero: there is one
	for {
		err := n.meetRelay(ctx, l.relay)
		if err == nil {
			select {
			case places <- struct{}{}:
			case <-ctx.Done():
				return
			}
			n.setLoop(l, true, false)
			n.parts.host.ConnManager().Protect(l.relay, "relay")
			err = n.useRelay(ctx, l)
			n.parts.host.ConnManager().Unprotect(l.relay, "relay")
			if n.lasted(l) {
				retry.reset()
				lost = time.Time{}
			}
			n.setLoop(l, false, false)
			<-places
		}
		if ctx.Err() != nil {
			return
		}
		if lost.IsZero() {
			lost = time.Now()
		}
		if retry.last = retryLast; time.Since(lost) > retryEager {
			retry.last = retryLater
		}
		n.log.Info("relay lost", "peer", l.relay, "err", err)
		if another, ok := waitUnlessNews(ctx, retry.wait(), wake); !ok {
			return
		} else if another { // another network, other luck
			retry.reset()
		}
	}
}

// waitUnlessNews waits for d, or until there is news of more than a relay that is back: that may be the very one that
// is waited for, and was lost again. False: ctx ended.
func waitUnlessNews(ctx context.Context, d time.Duration, wake <-chan news) (came, ok bool) {
	over := time.NewTimer(d)
	defer over.Stop()
	for {
		select {
		case <-over.C:
			return false, true
		case what := <-wake:
			if what != relayBack {
				return true, true
			}
		case <-ctx.Done():
			return false, false
		}
	}
}

// lasted says whether l has a reservation that has lasted.
func (n *Node) lasted(l *relayLoop) bool {
	n.relays.mu.Lock()
	defer n.relays.mu.Unlock()
	return l.reserved && time.Since(l.since) > steadyAfter
}

// meetRelay connects to a relay at its address in the roster.
func (n *Node) meetRelay(ctx context.Context, id peer.ID) error {
	relay, ok := n.relayInfo(id)
	if !ok {
		return errors.New("no longer on the roster")
	}
	ctx, cancel := context.WithTimeout(ctx, reserveWithin)
	defer cancel()
	return n.connectRelay(ctx, relay)
}

// useRelay reserves at a relay and keeps the reservation; it returns when that fails.
func (n *Node) useRelay(ctx context.Context, l *relayLoop) error {
	news, stop := n.paths.listen(l.relay)
	defer stop()
	wake, stopWake := n.wake.listen()
	defer stopWake()
	dialMissing := func() { n.tasks.start(func() { n.dialMissing(ctx, l.relay) }) }
	missing := time.NewTimer(0)
	defer missing.Stop()
	pace := backoff{first: retryFirst, last: missingRetry, rand: rand.Float64}
	renewing, stopRenewing := context.WithCancel(ctx)
	defer stopRenewing() // who finds all connections lost dials by itself
	var renewed <-chan struct{}
	var lostAt time.Time
	for first := true; ; first = false {
		had := len(n.paths.links(l.relay)) // one that is lost while reserving is lost, too
		renew, err := n.reserve(ctx, l.relay)
		if err != nil {
			if first {
				// What connects may be refused a round trip later, as QUIC is where a clock is wrong.
				dialMissing()
			}
			// A connection that looked alive may be the reason.
			n.checkLinks(l.relay)
			return err
		}
		n.setLoop(l, true, true)
		n.log.Debug("reserved", "relay", l.relay, "for", renew)
		timer := time.NewTimer(renew)
	wait:
		for {
			select {
			case <-timer.C:
				break wait
			case <-missing.C:
				dialMissing()
				missing.Reset(missingRetry)
			case what := <-wake:
				if what&networkChanged != 0 {
					renewed = n.renewLinks(renewing, l.relay)
				}
			case <-renewed:
				renewed = nil
				pace.reset()
				missing.Reset(0)
				break wait
			case <-news:
				has := len(n.paths.links(l.relay))
				lost := has < had
				had = has
				if !lost {
					continue
				}
				// With a restarted relay the reservation is gone and the other connections are dead,
				// only they do not know it yet.
				if !n.checkLinks(l.relay) {
					return errors.New("connection lost")
				}
				// It may be that of what was just dialled, each time.
				if time.Since(lostAt) > missingRetry {
					pace.reset()
				}
				lostAt = time.Now()
				missing.Reset(pace.wait())
				break wait
			case <-ctx.Done():
				timer.Stop()
				return ctx.Err()
			}
		}
		timer.Stop()
	}
}

// reserve exchanges rosters with the relay and reserves; it says when to renew.
func (n *Node) reserve(ctx context.Context, id peer.ID) (renew time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, reserveWithin)
	defer cancel()
	if n.cfg.BeforeReserve != nil {
		// The relay may not know us yet; what it answers to the reservation decides.
		if err := n.cfg.BeforeReserve(ctx, id); err != nil {
			n.log.Debug("no roster exchange with the relay", "relay", id, "err", err)
		}
	}
	// The connection is there; this must not dial a relay that just went away.
	res, err := circuit.Reserve(network.WithNoDial(ctx, "reserve"), n.parts.host, peer.AddrInfo{ID: id})
	if isClockSkew(err) {
		return renewUnknown, nil
	}
	if err != nil {
		return 0, err
	}
	return renewAfter(time.Until(res.Expiration)), nil
}

// renewAfter is when to renew a reservation that seems to last for left. A clock that is behind the relay's finds more
// time left than there is, so no later than what the library's relays give allows.
func renewAfter(left time.Duration) time.Duration {
	return min(max(left*2/3, renewAtLeast), 2*renewUnknown)
}

// isClockSkew recognises a reservation that was granted, by a relay whose clock is behind ours: the
// client library takes its expiry for an error.
func isClockSkew(err error) bool {
	var re circuit.ReservationError
	return errors.As(err, &re) && strings.Contains(re.Reason, "expiration date in the past")
}

// setLoop notes how far the loop is, and announces the circuit address where that changed.
func (n *Node) setLoop(l *relayLoop, seeking, reserved bool) {
	n.relays.mu.Lock()
	back := reserved && !l.reserved
	if back {
		l.since = time.Now()
	}
	l.seeking, l.reserved = seeking, reserved
	n.relays.mu.Unlock()
	n.publishReserved()
	if back {
		if m := n.addrs.currentMapper(); m != nil {
			m.look() // the connection may be new because the router's address is
		}
		n.wake.send(relayBack) // peers that were out of reach may not be
	}
}

// publishReserved puts the relays that hold a reservation among our addresses.
func (n *Node) publishReserved() {
	n.relays.mu.Lock()
	var held []*relayLoop
	for _, l := range n.relays.loops {
		if l.reserved {
			held = append(held, l)
		}
	}
	slices.SortFunc(held, func(a, b *relayLoop) int { return a.since.Compare(b.since) })
	var ids []peer.ID
	for _, l := range held {
		ids = append(ids, l.relay)
	}
	n.relays.mu.Unlock()
	if n.addrs.setReserved(ids) {
		n.announceAgain()
	}
}

// announceAgain has identify push our addresses and discovery announce them.
func (n *Node) announceAgain() {
	// The host looks at its addresses every 5 s; this event, AutoRelay's, makes it look now.
	if e, err := n.parts.host.EventBus().Emitter(new(event.EvtAutoRelayAddrsUpdated)); err == nil {
		e.Emit(event.EvtAutoRelayAddrsUpdated{RelayAddrs: n.addrs.circuits()})
		e.Close()
	}
	n.mu.Lock()
	served := n.served
	n.mu.Unlock()
	if served && n.cfg.Changed != nil { // before, a quick router's answer would find the caller half assembled
		n.tasks.start(n.cfg.Changed)
	}
}

// RelayStates are the roster's relays as this node uses them.
func (n *Node) RelayStates() []RelayState {
	var out []RelayState
	for _, r := range n.cfg.Relays() {
		if r.ID == n.self {
			continue
		}
		s := RelayState{Peer: r.ID}
		for _, l := range n.paths.links(r.ID) {
			s.Connected = s.Connected || l.direct()
			if rtt := n.paths.rtt(l); l.direct() && rtt > 0 && (s.RTT == 0 || rtt < s.RTT) {
				s.RTT = rtt
			}
		}
		n.relays.mu.Lock()
		if l := n.relays.loops[r.ID]; l != nil {
			s.Reserved = l.reserved
		}
		n.relays.mu.Unlock()
		out = append(out, s)
	}
	return out
}
