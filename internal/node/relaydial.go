package node

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	ma "github.com/multiformats/go-multiaddr"
	madns "github.com/multiformats/go-multiaddr-dns"
	"golang.org/x/sync/singleflight"
)

const (
	// relayDialWithin is how long one dial of a relay may take. Short, for a dial that began while the
	// relay was away resends ever more seldom, and the swarm lets no second one begin beside it; each
	// relayDialPatient-th has longer, for the slowest of networks.
	relayDialWithin, relayDialLonger = 2 * time.Second, 6 * time.Second
	relayDialPatient                 = 3
	// doubtEvery bounds how often a lost path makes us ask the relays anew how they see us; while they give the same
	// answer the pause doubles, up to doubtLast.
	doubtEvery, doubtLast = 5 * time.Second, time.Minute
	// retireEvery is how often an old connection to a relay is looked at: circuits move on within a
	// second or two of a better path.
	retireEvery = time.Second
)

// relayDials are the dials of relays under way: one a relay, whoever waits for it.
type relayDials struct {
	running singleflight.Group

	mu     sync.Mutex
	failed map[peer.ID]int // in a row

	asked    time.Time     // when the relays were last dialled anew and asked how they see us
	pause    time.Duration // until that is done again for a doubt alone
	doubting bool          // somebody does it, or is about to
}

// connectRelay makes sure that there is a connection to relay.
func (n *Node) connectRelay(ctx context.Context, relay peer.AddrInfo) error {
	if n.paths.has(relay.ID, Direct) {
		return nil
	}
	done := n.dials.running.DoChan(string(relay.ID), func() (any, error) { return nil, n.dialRelay(relay) })
	select {
	case r := <-done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Node) dialRelay(relay peer.AddrInfo) error {
	ctx, cancel := context.WithTimeout(n.network.ctx(), n.dials.patience(relay.ID))
	defer cancel()
	n.parts.host.Peerstore().AddAddrs(relay.ID, relay.Addrs, knownFor)
	// After an outage the swarm would refuse to dial for up to 5 min.
	n.parts.swarm.Backoff().Clear(relay.ID)
	_, err := n.parts.swarm.DialPeer(network.WithForceDirectDial(ctx, "relay"), relay.ID)
	n.dials.mu.Lock()
	defer n.dials.mu.Unlock()
	if n.dials.failed[relay.ID]++; err == nil {
		delete(n.dials.failed, relay.ID)
	}
	return err
}

func (d *relayDials) patience(relay peer.ID) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if (d.failed[relay]+1)%relayDialPatient == 0 {
		return relayDialLonger
	}
	return relayDialWithin
}

// doubtAddress says that a direct path was lost: our router may have another address, which nothing here
// shows. The relays go on seeing an old connection where it began, so they are dialled anew and asked. Only if they
// see us elsewhere is it a change to anybody else.
func (n *Node) doubtAddress() {
	doubted := time.Now()
	wait, first := n.dials.doubtIn()
	if !first {
		return // somebody waits to do it already
	}
	n.tasks.start(func() {
		if !sleep(n.ctx, wait) || !n.dials.ask(doubted) {
			return
		}
		if m := n.addrs.currentMapper(); m != nil {
			m.look()
		}
		before := n.nat.sights()
		var dials sync.WaitGroup
		for _, relay := range n.cfg.Relays() {
			if n.relays.has(relay.ID) {
				dials.Go(func() { n.redial(n.ctx, relay.ID, func() {}) })
			}
		}
		dials.Wait()
		n.nat.refresh(n.ctx)
		moved := elsewhere(before, n.nat.sights())
		n.dials.told(moved)
		if moved {
			n.log.Info("relays see this machine at another address")
			n.wake.send(addressChanged)
		}
	})
}

// doubtIn says when the relays may be asked anew for a doubt, and whether the caller is the one to do it.
func (d *relayDials) doubtIn() (wait time.Duration, first bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	since := time.Since(d.asked)
	if since > doubtLast {
		d.pause = doubtEvery
	}
	first, d.doubting = !d.doubting, true
	return d.pause - since, first
}

// ask notes that the relays are being asked anew because of a doubt; false: they were meanwhile, for a change of network.
func (d *relayDials) ask(doubted time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.asked.After(doubted) {
		d.doubting = false
		return false
	}
	d.asked = time.Now()
	return true
}

// told takes in what the relays say, for whom a doubt had them asked.
func (d *relayDials) told(moved bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.doubting = false
	if d.pause = min(2*d.pause, doubtLast); moved {
		d.pause = doubtEvery
	}
}

// networkChanged notes that the relays are being asked anew because of what the system tells.
func (d *relayDials) networkChanged() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked, d.pause = time.Now(), doubtEvery
}

// doubtful says whether the silence of what answered last at that time is a reason to doubt our address: what has never
// answered says nothing, nor does what was silent before the relays were last asked.
func (d *relayDials) doubtful(answered time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return answered.After(d.asked)
}

// dialMissing dials the relay by the transports that it is not connected by yet, from the listen ports,
// and over IPv4 even if it is reached by IPv6: nobody knows else at which addresses our ports are mapped.
func (n *Node) dialMissing(ctx context.Context, id peer.ID) {
	relay, ok := n.relayInfo(id)
	if !ok {
		return
	}
	n.nat.look(ctx)
	dialling, cancel := context.WithTimeout(ctx, reserveWithin)
	defer cancel()
	var dials sync.WaitGroup
	for _, transport := range []string{"quic-v1", "tcp"} {
		dials.Go(func() {
			for _, a := range n.resolved(dialling, relay.Addrs, transport) {
				if n.connectedBy(id, transport, isIPv4(a)) {
					continue
				}
				if err := n.dialDirect(dialling, id, a); err != nil {
					n.log.Debug("no further connection to the relay", "relay", id, "addr", a, "err", err)
				}
			}
		})
	}
	dials.Wait()
	n.nat.look(ctx)
}

// connectedBy says whether there is a connection to p by a transport, with v4 over IPv4.
func (n *Node) connectedBy(p peer.ID, transport string, v4 bool) bool {
	return slices.ContainsFunc(n.paths.links(p), func(l *link) bool {
		a := l.conn.RemoteMultiaddr()
		return l.direct() && !l.retiring.Load() && transportOf(a) == transport && (!v4 || isIPv4(a))
	})
}

// resolved are the IP addresses of one transport behind a relay's addresses, IPv4 first.
func (n *Node) resolved(ctx context.Context, addrs []ma.Multiaddr, transport string) (v4 []ma.Multiaddr) {
	var v6 []ma.Multiaddr
	for _, a := range addrs {
		if a, _ = peer.SplitAddr(a); len(a) == 0 || transportOf(a) != transport {
			continue
		}
		found, err := madns.DefaultResolver.Resolve(ctx, a)
		if err != nil {
			n.log.Debug("relay's name not resolved", "addr", a, "err", err)
		}
		for _, a := range found {
			if isIPv4(a) {
				v4 = append(v4, a)
			} else {
				v6 = append(v6, a)
			}
		}
	}
	return append(v4, v6...)
}

func isIPv4(a ma.Multiaddr) bool { return len(a) > 0 && a[0].Protocol().Code == ma.P_IP4 }

// renewLinks dials the relay anew by each transport and closes the old connections once they carry no
// circuit. After a change of network the old ones may live on (QUIC survives it), but the relay goes
// on seeing them at the old address, which nobody can punch to.
//
// The channel is closed when the first one is there, or none came.
func (n *Node) renewLinks(ctx context.Context, id peer.ID) <-chan struct{} {
	done := make(chan struct{})
	first := sync.OnceFunc(func() { close(done) })
	if !n.tasks.start(func() { n.redial(ctx, id, first) }) {
		first()
	}
	return done
}

// redial tells by done when the first connection is there, or none came; it returns when all dials have ended.
func (n *Node) redial(ctx context.Context, id peer.ID, done func()) {
	defer done()
	old := n.paths.links(id)
	relay, _ := n.relayInfo(id)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(n.network.ctx(), cancel)()
	var dials sync.WaitGroup
	var any atomic.Bool
	for _, transport := range []string{"quic-v1", "tcp"} {
		dials.Go(func() {
			fits := func(a ma.Multiaddr) bool { return transportOf(a) == transport }
			before := linksAt(old, fits)
			stands := transport == "tcp" && slices.ContainsFunc(before, n.stands)
			if !stands && !n.dialAny(ctx, relay, fits) {
				return
			}
			any.Store(true)
			done()
			if !stands {
				n.retire(before)
			}
		})
	}
	dials.Go(func() {
		if sleep(ctx, webAfter) && !any.Load() && n.dialAny(ctx, relay, isWeb) {
			done()
			n.retire(linksAt(old, isWeb))
		}
	})
	dials.Wait()
	if any.Load() { // the web is for where nothing else gets out
		n.retire(linksAt(n.paths.links(id), isWeb))
	}
}

// linksAt are the direct links whose far end's address fits.
func linksAt(links []*link, fits func(ma.Multiaddr) bool) []*link {
	return slices.DeleteFunc(slices.Clone(links), func(l *link) bool { return !l.direct() || !fits(l.conn.RemoteMultiaddr()) })
}

// stands says whether a TCP connection to a relay is as good as a new one: it answers, and comes from the address that
// the system would use now. TCP does not move to another address, so the relay sees it where it is. And it holds the
// listen port's place: another one would come from a port of which no punch can be made.
func (n *Node) stands(l *link) bool {
	return l.direct() && !l.retiring.Load() && n.addrs.ownPort(l.conn) && fromHere(l.conn) && n.paths.check(l)
}

// fromHere says whether a new connection to the same address would come from the same one of ours.
func fromHere(c network.Conn) bool {
	local, ok := addrPortOf(c.LocalMultiaddr())
	remote, ok2 := addrPortOf(c.RemoteMultiaddr())
	if !ok || !ok2 {
		return false
	}
	return Outgoing(remote) == local.Addr()
}

// Outgoing is the address of ours from which the system would send to a; the zero address where it has no way there.
// Nothing is sent.
func Outgoing(a netip.AddrPort) netip.Addr {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a))
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

// dialAny dials a relay's addresses that fit, all at once, until one answers.
func (n *Node) dialAny(ctx context.Context, relay peer.AddrInfo, fits func(ma.Multiaddr) bool) bool {
	ctx, cancel := context.WithTimeout(ctx, reserveWithin)
	defer cancel()
	var at []ma.Multiaddr
	for _, a := range relay.Addrs {
		if a, _ = peer.SplitAddr(a); len(a) > 0 && fits(a) {
			at = append(at, a)
		}
	}
	return firstOf(ctx, at, func(ctx context.Context, a ma.Multiaddr) error { return n.dialDirect(ctx, relay.ID, a) }) == nil
}

// retire closes connections to a relay as soon as they carry no circuit. What goes on at once on the new
// ones, a reservation among it, may still be made over an old one.
func (n *Node) retire(old []*link) {
	old = slices.DeleteFunc(old, func(l *link) bool { return l.retiring.Swap(true) })
	n.tasks.start(func() {
		for {
			old = slices.DeleteFunc(old, func(l *link) bool {
				if !l.conn.IsClosed() && carriesCircuit(l.conn) {
					return false
				}
				l.conn.Close()
				return true
			})
			if len(old) == 0 || !sleep(n.ctx, retireEvery) {
				return
			}
		}
	})
}

// carriesCircuit says whether c carries a circuit, or a reservation is being made over it.
func carriesCircuit(c network.Conn) bool {
	return slices.ContainsFunc(c.GetStreams(), func(s network.Stream) bool {
		return s.Protocol() == proto.ProtoIDv2Hop || s.Protocol() == proto.ProtoIDv2Stop
	})
}
