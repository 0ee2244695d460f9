package node

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/punch"
)

// newPuncher gives internal/punch what it acts with.
func (n *Node) newPuncher() *punch.Puncher {
	return punch.New(punch.Config{
		Self:   n.self,
		Report: n.nat.report,
		Open: func(ctx context.Context, p peer.ID) (punch.Stream, error) {
			c := n.paths.best(p, nil, Relay)
			if c == nil {
				return nil, errors.New("no relayed connection")
			}
			return openOn(ctx, c, punch.Protocol)
		},
		Dial: func(ctx context.Context, p peer.ID, a ma.Multiaddr, role punch.Role) error {
			if role != punch.Plain {
				ctx = network.WithSimultaneousConnect(ctx, role == punch.Client, "punch")
			}
			_, err := n.door.dial(ctx, p, a)
			return err
		},
		Opener: func(to netip.AddrPort, hops int) { n.parts.sockets.opener(to, hops) },
		Wire:   n.wire(),
		Name:   n.cfg.Name,
		Direct: n.paths.whenDirect,
		Log:    n.log,
	})
}

// wire is UDP beneath QUIC, as punching at foretold ports needs it.
func (n *Node) wire() *punch.Wire {
	return &punch.Wire{
		Probe: n.parts.sockets.send,
		Hear:  n.hearPunch,
		Socket: func() (punch.Socket, error) {
			s, err := newFreshSocket()
			return s, err
		},
		Fresh:     n.fresh,
		HadDirect: n.paths.hadDirect,
		Take:      n.take,
		Vouched:   n.vouched,
		Guessing:  func() bool { return !n.cfg.NoGuessing },
	}
}

// fresh is a socket without a past, and where a relay sees it.
func (n *Node) fresh(ctx context.Context) (punch.Socket, netip.AddrPort, error) {
	s, seen, err := n.nat.fresh(ctx, n.nat.refresh(ctx))
	if err != nil {
		return nil, seen, err
	}
	return s, seen, nil
}

// hearPunch tells where a punch's packets at the QUIC port come from.
func (n *Node) hearPunch(t punch.Token) (<-chan netip.AddrPort, func()) {
	heard, stopHearing := n.packets.hear(t)
	from := make(chan netip.AddrPort, 1)
	ctx, cancel := context.WithCancel(n.ctx)
	n.tasks.start(func() {
		defer stopHearing()
		for {
			select {
			case p := <-heard:
				if _, ok := punch.ReadToken(p.data); ok {
					select {
					case from <- p.from:
					default:
					}
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return from, cancel
}

// whenDirect's channel is closed when there is a direct connection to p that was made, or has answered, from now on. One
// of before may be dead, and the peer knows it: that is why it punches.
func (ps *paths) whenDirect(p peer.ID) (<-chan struct{}, func()) {
	now := time.Now()
	for _, l := range ps.links(p) {
		if l.direct() {
			ps.node.tasks.start(func() { ps.check(l) })
		}
	}
	return ps.when(p, func() bool {
		return slices.ContainsFunc(ps.links(p), func(l *link) bool {
			return l.direct() && !l.conn.IsClosed() && (l.since.After(now) || ps.answered(l).After(now))
		})
	})
}

// handlePunch serves a punch that the peer started.
func (n *Node) handlePunch(s network.Stream) {
	p := s.Conn().RemotePeer()
	if relayOf(s.Conn().RemoteMultiaddr()) == "" {
		s.Reset() // there is a direct path already
		return
	}
	if !n.tasks.start(func() {
		ctx := n.network.ctx()
		outcome, err := n.punch.Handle(ctx, p, s)
		n.punched(ctx, p, outcome, err)
	}) {
		s.Reset()
	}
}

// tryPunch tries for a direct path to p and says whether there is one.
func (n *Node) tryPunch(ctx context.Context, p peer.ID) bool {
	outcome, err := n.punch.Punch(ctx, p)
	n.punched(ctx, p, outcome, err)
	return n.paths.has(p, Direct)
}

// punched notes why p is still relayed, and has watchers told. ctx is whose punch it was.
func (n *Node) punched(ctx context.Context, p peer.ID, o punch.Outcome, err error) {
	n.log.Debug("punch", "peer", p, "direct", o.Direct, "step", o.Step, "took", o.Took, "probes", o.Probes, "sockets", o.Sockets, "reason", o.Reason, "err", err)
	switch {
	case ctx.Err() != nil, errors.Is(err, context.Canceled), errors.Is(err, punch.ErrBusy):
		return // it was given up, or there is another one: neither is a reason
	case err == nil && o.Reason == "" && !o.Direct:
		return // told to wait for the other run
	}
	n.mu.Lock()
	switch {
	case o.Direct:
		delete(n.reasons, p)
	case err == nil:
		n.reasons[p] = o.Reason
	case n.reasons[p] == "": // a plan that came to nothing says more
		n.reasons[p] = n.nameOf(p) + " did not answer when asked for a direct path; it is asked again by itself"
	}
	n.mu.Unlock()
	n.paths.reconsider(p)
}

// nameOf is what a person calls p, to begin a sentence with.
func (n *Node) nameOf(p peer.ID) string {
	if n.cfg.Name != nil {
		if name := n.cfg.Name(p); name != "" {
			return name
		}
	}
	return "The peer"
}

// forgetPunches drops what was found out in another network.
func (n *Node) forgetPunches() {
	n.punch.Moved()
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.reasons)
}

// reason says why p is relayed, as far as known.
func (n *Node) reason(p peer.ID) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.reasons[p]
}
