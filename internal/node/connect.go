package node

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/peerstore"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
)

const (
	// dialWithin is how long one address may take, attemptWithin all that is tried in one Connect: two
	// rounds of packet loss on a slow wire.
	dialWithin    = 10 * time.Second
	attemptWithin = 15 * time.Second
	// maxDials is how many addresses one attempt tries; discovery's answers are hints from others.
	maxDials = 32
	// tcpAfter is how long TCP waits for QUIC to the same peer, in a race among direct addresses.
	tcpAfter = 250 * time.Millisecond
	// webAfter is how long WebSocket waits for the others: it is for networks that let out nothing else.
	webAfter = 2 * tcpAfter
	// relayTarries is when a relay's connection is asked for a sign of life, while a circuit is dialled.
	relayTarries = time.Second
	// circuitRetry is when a circuit that was refused is tried again, at first; in this time a peer
	// reserves over a slow wire.
	circuitRetry = 250 * time.Millisecond
	// maxKnown is how many last good addresses are kept for a peer.
	maxKnown = 4
	// knownFor is how long addresses stay in the peer store.
	knownFor = 10 * time.Minute
)

// rankDials dials all addresses at once, TCP a little later. Relays are not held back, as the library
// would by 500 ms: they are what works first.
func rankDials(addrs []ma.Multiaddr) []network.AddrDelay {
	out := make([]network.AddrDelay, 0, len(addrs))
	has := make(map[string]bool)
	for _, a := range addrs {
		if relayOf(a) == "" {
			has[transportOf(a)] = true
		}
	}
	for _, a := range addrs {
		d := network.AddrDelay{Addr: a}
		if relayOf(a) == "" && (has["quic-v1"] || has["tcp"]) {
			d.Delay = dialAfter(a)
			if !has["quic-v1"] {
				d.Delay = max(d.Delay-tcpAfter, 0)
			}
		}
		out = append(out, d)
	}
	return out
}

// dialAfter is how long an address waits for those of better transports.
func dialAfter(a ma.Multiaddr) time.Duration {
	switch transportOf(a) {
	case "tcp":
		return tcpAfter
	case "ws", "wss":
		return webAfter
	}
	return 0
}

// Connect finds p and connects to it. It races the addresses that were good last time, circuits over
// every relay of the roster, and what discovery finds; the first connection whose handshake proves p
// ends the call, and what is still being dialled goes on, so that a better path may follow. It fails
// with ErrUnreachable when all have failed or ctx ends. Calls for the same peer share one attempt.
func (n *Node) Connect(ctx context.Context, p peer.ID) error {
	if n.paths.has(p, Auto) {
		return nil
	}
	return n.attempt(ctx, p, Auto, nil)
}

// call is an attempt to reach a peer that several callers wait for.
type call struct {
	done chan struct{}
	err  error // set before done is closed

	refused atomic.Pointer[RelayRefusal] // the last, while it goes on
}

// ended is why ctx's end left p unreached: what a relay said meanwhile tells more than the time.
func (c *call) ended(ctx context.Context) error {
	if r := c.refused.Load(); r != nil {
		return fmt.Errorf("%w (%w)", r, ctx.Err())
	}
	return ctx.Err()
}

// attempt waits for a shared attempt until p is reached by kind over another connection than avoid.
func (n *Node) attempt(ctx context.Context, p peer.ID, kind PathKind, avoid network.Conn) error {
	news, stop := n.paths.listen(p)
	defer stop()
	var c *call
	n.mu.Lock()
	if c = n.calls[p]; c == nil {
		c = &call{done: make(chan struct{})}
		if !n.tasks.start(func() { n.race(p, c) }) {
			n.mu.Unlock()
			return fmt.Errorf("connect to %s: this node has ended", p)
		}
		n.calls[p] = c
	}
	n.mu.Unlock()
	for {
		if n.paths.best(p, avoid, kind) != nil {
			n.finish(p, c) // who comes when this connection is lost starts afresh
			return nil
		}
		select {
		case <-news:
		case <-c.done:
			if kind == Direct && n.paths.has(p, Relay) {
				n.tryPunch(ctx, p)
			}
			if n.paths.best(p, avoid, kind) != nil {
				return nil
			}
			return fmt.Errorf("connect to %s: %w: %w", p, ErrUnreachable, c.err)
		case <-ctx.Done():
			return fmt.Errorf("connect to %s: %w: %w", p, ErrUnreachable, c.ended(ctx))
		}
	}
}

// finish takes c out of the attempts that can be joined; it may still be dialling.
func (n *Node) finish(p peer.ID, c *call) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.calls[p] == c {
		delete(n.calls, p)
	}
}

// race dials everything that may lead to p. It owns the dials: it returns when all have ended.
func (n *Node) race(p peer.ID, c *call) {
	ctx, cancel := context.WithTimeout(n.network.ctx(), attemptWithin)
	defer cancel()
	r := &runners{node: n, call: c, peer: p, tried: make(map[string]bool), last: make(chan struct{})}
	for _, relay := range n.cfg.Relays() {
		if relay.ID != p && relay.ID != n.self {
			r.start(ctx, &r.circuits, circuitVia(relay.ID), func(ctx context.Context) error { return r.circuit(ctx, relay) })
		} else if relay.ID == p {
			r.dial(ctx, relay.Addrs)
		}
	}
	if n.cfg.Known.Get != nil {
		r.dial(ctx, n.cfg.Known.Get(p))
	}
	r.dial(ctx, n.parts.host.Peerstore().Addrs(p))
	if n.cfg.Find != nil {
		found := n.cfg.Find(ctx, p)
		for open := true; open; {
			select {
			case info, ok := <-found:
				if open = ok; ok && info.ID == p {
					r.dial(ctx, info.Addrs)
				}
			case <-ctx.Done():
				open = false
			}
		}
	}
	r.direct.Wait()
	close(r.last)
	r.circuits.Wait()

	if c.err = errors.Join(r.errs...); c.err == nil {
		c.err = errors.New("no address known that would do")
	}
	n.finish(p, c)
	close(c.done)
}

// runners are the dials of one race.
type runners struct {
	node *Node
	call *call
	peer peer.ID

	direct, circuits sync.WaitGroup
	last             chan struct{} // closed when discovery has said all it knows and the direct dials have ended

	mu    sync.Mutex
	tried map[string]bool
	errs  []error
}

// dial starts dialling each of addrs that was not tried yet, QUIC first.
func (r *runners) dial(ctx context.Context, addrs []ma.Multiaddr) {
	for _, a := range addrs {
		if relay := relayOf(a); relay != "" {
			// A relay outside the roster leads nowhere; one on it is being tried.
			continue
		}
		a, _ = peer.SplitAddr(a)
		if len(a) == 0 || !isIP(a) {
			continue
		}
		r.start(ctx, &r.direct, a, func(ctx context.Context) error {
			if !sleep(ctx, dialAfter(a)) {
				return ctx.Err()
			}
			if r.node.paths.has(r.peer, Direct) {
				return nil
			}
			return r.node.dialDirect(ctx, r.peer, a)
		})
	}
}

// circuit dials through a relay, again and again while other dials go on: where it has just restarted the
// peer may be about to reserve.
func (r *runners) circuit(ctx context.Context, relay peer.AddrInfo) error {
	retry := backoff{first: circuitRetry, last: circuitRetry * 4, rand: rand.Float64}
	for {
		err := r.node.dialCircuit(ctx, r.peer, relay)
		if err == nil {
			return nil
		}
		if refused := new(RelayRefusal); errors.As(err, &refused) {
			r.call.refused.Store(refused)
		}
		timer := time.NewTimer(retry.wait())
		select {
		case <-timer.C:
		case <-r.last:
			timer.Stop()
			return err
		case <-ctx.Done():
			timer.Stop()
			return err
		}
	}
}

func (r *runners) start(ctx context.Context, wg *sync.WaitGroup, a ma.Multiaddr, dial func(context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if key := string(a.Bytes()); !r.tried[key] && len(r.tried) < maxDials {
		r.tried[key] = true
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, dialWithin)
			defer cancel()
			if err := dial(ctx); err != nil {
				r.mu.Lock()
				defer r.mu.Unlock()
				r.errs = append(r.errs, err)
			}
		})
	}
}

// dialDirect opens one more connection to p at a; a name's addresses are dialled all at once.
func (n *Node) dialDirect(ctx context.Context, p peer.ID, a ma.Multiaddr) error {
	addrs, err := madns.DefaultResolver.Resolve(ctx, a)
	if err != nil {
		return &swarm.TransportError{Address: a, Cause: err}
	}
	return firstOf(ctx, addrs, func(ctx context.Context, a ma.Multiaddr) error {
		_, err := n.door.dial(ctx, p, a)
		if err == nil {
			n.remember(p, a)
		}
		return err
	})
}

// firstOf dials all of addrs at once. It returns when one has answered, which ends the others, or all have failed.
func firstOf(ctx context.Context, addrs []ma.Multiaddr, dial func(context.Context, ma.Multiaddr) error) error {
	if len(addrs) == 0 {
		return errors.New("no address")
	}
	ctx, cancel := context.WithCancel(ctx)
	var dials sync.WaitGroup
	defer dials.Wait()
	defer cancel()
	answers := make(chan error, len(addrs))
	for _, a := range addrs {
		dials.Go(func() { answers <- dial(ctx, a) })
	}
	var errs []error
	for range addrs {
		err := <-answers
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// dialCircuit opens a connection to p through relay, connecting to the relay first if need be.
func (n *Node) dialCircuit(ctx context.Context, p peer.ID, relay peer.AddrInfo) error {
	via := circuitVia(relay.ID)
	if err := n.connectRelay(ctx, relay); err != nil {
		return &swarm.TransportError{Address: via, Cause: &relayUnreached{err}}
	}
	// The connection to the relay may be dead without anyone knowing: ask it if the answer tarries.
	ask := time.AfterFunc(relayTarries, func() {
		n.tasks.start(func() { n.checkLinks(relay.ID) })
	})
	defer ask.Stop()
	_, err := n.door.dial(ctx, p, via)
	return refusedBy(relay.ID, err)
}

// RelayRefusal says that a relay is there and carries nothing for us.
type RelayRefusal struct {
	Relay peer.ID
	Why   string
}

func (r *RelayRefusal) Error() string { return fmt.Sprintf("relay %s refuses: %s", r.Relay, r.Why) }

// refusedBy makes a reason of the status with which a relay answered. The library has it in its text alone. Both
// ends are on the roster as far as we know, so a relay that forbids has used up its quota.
func refusedBy(relay peer.ID, err error) error {
	if err == nil {
		return nil
	}
	for _, is := range []struct {
		status pb.Status
		why    string
	}{
		{pb.Status_PERMISSION_DENIED, "its quota for this month is used up, or by its roster one of the two does not belong"},
		{pb.Status_RESOURCE_LIMIT_EXCEEDED, "it carries as many connections as it can"},
	} {
		if strings.Contains(err.Error(), is.status.String()) {
			return &RelayRefusal{Relay: relay, Why: is.why}
		}
	}
	return err
}

// checkLinks asks each connection to p for a sign of life and closes those without.
func (n *Node) checkLinks(p peer.ID) (alive bool) {
	var wg sync.WaitGroup
	var any atomic.Bool
	for _, l := range n.paths.links(p) {
		wg.Go(func() {
			if n.paths.check(l) {
				any.Store(true)
			}
		})
	}
	wg.Wait()
	return any.Load()
}

// ConnectStranger dials a peer outside the roster, such as an invite's contact, at its addresses. Its
// connection lives 5 s unless AllowStranger said longer.
func (n *Node) ConnectStranger(ctx context.Context, who peer.AddrInfo) error {
	if n.paths.has(who.ID, Direct) {
		return nil
	}
	n.parts.host.Peerstore().AddAddrs(who.ID, who.Addrs, peerstore.TempAddrTTL)
	n.parts.swarm.Backoff().Clear(who.ID)
	if _, err := n.parts.swarm.DialPeer(ctx, who.ID); err != nil {
		var dial *swarm.DialError
		if errors.As(err, &dial) {
			return fmt.Errorf("connect to %s: %w: %w", who.ID, ErrUnreachable, err)
		}
		return fmt.Errorf("connect to %s at %v: %w: %w", who.ID, who.Addrs, ErrUnreachable, err)
	}
	return nil
}

// ConnectStrangerByTCP is [Node.ConnectStranger] for who got a QUIC connection and lost it at once: to a machine whose
// clock is fast its own handshake looks done when the far side is about to refuse its certificate, which is not good yet.
func (n *Node) ConnectStrangerByTCP(ctx context.Context, who peer.AddrInfo) error {
	addrs := n.resolved(ctx, who.Addrs, "tcp")
	if len(addrs) == 0 {
		return fmt.Errorf("connect to %s by TCP: %w", who.ID, ErrUnreachable)
	}
	return n.ConnectAt(ctx, peer.AddrInfo{ID: who.ID, Addrs: addrs})
}

// ConnectAt dials p at those very addresses, whatever connection to it there is already: it is asked whether p is there.
func (n *Node) ConnectAt(ctx context.Context, p peer.AddrInfo) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.ctx, cancel)()
	err := firstOf(ctx, p.Addrs, func(ctx context.Context, a ma.Multiaddr) error {
		if !sleep(ctx, dialAfter(a)) {
			return ctx.Err()
		}
		return n.dialDirect(ctx, p.ID, a)
	})
	if n.ctx.Err() != nil {
		return fmt.Errorf("connect to %s: this node has ended", p.ID)
	}
	if err != nil {
		return fmt.Errorf("connect to %s: %w: %w", p.ID, ErrUnreachable, err)
	}
	return nil
}

// Open opens a stream for proto on the best path to p now, connecting if there is none; kind limits
// which paths will do. The protocol's name travels with the first bytes, so opening costs no round
// trip, and a peer that does not speak proto shows at the first read.
//
// avoid, if not nil, is a connection that has gone silent: the stream takes another one, made anew if
// need be, and avoid is asked for a sign of life and closed if there is none.
func (n *Node) Open(ctx context.Context, p peer.ID, proto protocol.ID, avoid network.Conn, kind PathKind) (network.Stream, error) {
	return n.OpenFor(ctx, p, proto, Wish{Kind: kind, Now: avoid, Silent: avoid != nil})
}

// OpenFor is Open for a stream of which more is known. ErrStay says that it would go by the connection it goes by now.
func (n *Node) OpenFor(ctx context.Context, p peer.ID, proto protocol.ID, w Wish) (network.Stream, error) {
	var avoid network.Conn
	if w.Silent {
		avoid = w.Now
		n.paths.suspect(p, avoid)
	}
	if w.Bulk {
		n.seekBeside(p, w.Kind)
	}
	kind := w.Kind
	for {
		l := n.linkFor(p, proto, w, avoid)
		if l == nil {
			if err := n.attempt(ctx, p, kind, avoid); err != nil {
				return nil, err
			}
			continue
		}
		if l.conn == w.Now {
			l.opening.Add(-1)
			return nil, ErrStay
		}
		s, err := openOn(ctx, l.conn, proto)
		l.opening.Add(-1)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil || !l.conn.IsClosed() {
			return nil, err
		}
	}
}

// Suspect says that nothing came from p over c although something should have: c is kept out of use
// and asked for a sign of life, and if it is a circuit its relay, too. What does not answer is closed.
func (n *Node) Suspect(p peer.ID, c network.Conn) { n.paths.suspect(p, c) }

// remember keeps an address that was dialled without punching for the next time.
func (n *Node) remember(p peer.ID, a ma.Multiaddr) {
	if n.cfg.Known.Get == nil || n.cfg.Known.Set == nil || !n.cfg.Member(p) {
		return
	}
	addrs := []ma.Multiaddr{a}
	for _, old := range n.cfg.Known.Get(p) {
		if len(addrs) < maxKnown && !old.Equal(a) {
			addrs = append(addrs, old)
		}
	}
	n.cfg.Known.Set(p, addrs)
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
