package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/libp2p/go-reuseport"
	manet "github.com/multiformats/go-multiaddr/net"

	"fwd/internal/punch"
)

// Examination: what our NAT makes of packets, shown by the relays' UDP reflectors. One takes at most
// 24 packets (IPv4; IPv6 is not translated), and 3 more where the second relay of step 3 is seen later:
//
//  1. from the QUIC port, to a second port of the relay: another address than by the QUIC connection to
//     its first port means that the mapping depends on the destination (1 packet, up to 3 if lost), and
//     to a third one, for a NAT of few ports gives the same one twice by chance (1)
//  2. from 6 fresh sockets in a row, to the same port: how new flows get their ports; the last two ask
//     for a second answer from a port that they have not sent to, for the filter (6, up to 18 if lost)
//  3. if there is a second relay: from the QUIC port to it, that it answer to a fresh socket, which has
//     not sent to its address (1, again once)

const (
	freshSockets = 6
	askTimes     = 3 // with askAgain between: two losses on the slowest path still leave an answer
	askAgain     = 250 * time.Millisecond
	// freshPause keeps the order of flows on their way to the NAT.
	freshPause = time.Millisecond
	// filterWait is how much later than the asked answer the other one may come: both left at once.
	filterWait = 250 * time.Millisecond
	// examineEvery is how long an examination holds.
	examineEvery = 5 * time.Minute
)

// examination is what one found. Each part is there as soon as it is known.
type examination struct {
	at        time.Time
	observed  netip.AddrPort // of the QUIC port, by the connection
	alone     bool           // there was one relay to ask
	mapping   punch.Mapping
	ports     punch.Ports
	filtering punch.Filtering
	mapped    chan struct{} // closed when all but the filtering is known
	done      chan struct{}
}

// point is where a relay reflects, as we may ask it.
type point struct {
	to       netip.AddrPort
	other    netip.AddrPort // one more port; may be invalid
	token    [tokenSize]byte
	observed netip.AddrPort // by the QUIC connection to the same relay
}

// points are the reflectors of the relays that see us by QUIC over IPv4.
func points(seen map[*link]observation) []point {
	var out []point
	hosts := make(map[netip.Addr]bool)
	for l, o := range seen {
		relay, err := netip.ParseAddr(hostOf(l.conn.RemoteMultiaddr()))
		us, ok := quicAddrPort(o.addr)
		if err == nil && ok && o.port != 0 && relay.Is4() && us.Addr().Is4() && !hosts[relay] {
			hosts[relay] = true
			p := point{to: netip.AddrPortFrom(relay, o.port), token: o.token, observed: us}
			if o.other != 0 {
				p.other = netip.AddrPortFrom(relay, o.other)
			}
			out = append(out, p)
		}
	}
	return out
}

// examine examines the NAT, if that was not done lately; mapped is closed when as much is known as
// punching needs. The rest comes by itself.
func (v *natView) examine(seen map[*link]observation) (mapped <-chan struct{}) {
	v.mu.Lock()
	defer v.mu.Unlock()
	at := points(seen)
	if e := v.exam; e != nil && (len(at) == 0 || time.Since(e.at) < examineEvery && anyObserved(at, e.observed)) {
		if e.alone && len(at) > 1 {
			e.alone = !v.node.tasks.start(func() { v.runFilter(e, at) })
		}
		return e.mapped
	}
	e := &examination{at: time.Now(), alone: len(at) == 1, mapped: make(chan struct{}), done: make(chan struct{})}
	if len(at) == 0 {
		close(e.mapped)
		return e.mapped
	}
	e.observed = at[0].observed
	if !v.node.tasks.start(func() { v.run(e, at) }) {
		close(e.mapped)
		return e.mapped
	}
	v.exam = e
	return e.mapped
}

// anyObserved says whether some relay still sees us where the examination was made.
func anyObserved(at []point, addr netip.AddrPort) bool {
	for _, p := range at {
		if p.observed == addr {
			return true
		}
	}
	return false
}

// run is one examination; it ends by itself after some round trips.
func (v *natView) run(e *examination, at []point) {
	defer close(e.done)
	ctx, cancel := context.WithTimeout(v.node.ctx, observeWithin)
	defer cancel()
	var fresh [freshSockets]freshAnswer
	var main, third netip.AddrPort
	var asking sync.WaitGroup
	asking.Go(func() { main, _ = v.askMain(ctx, at[0], answerOnly, 0, askTimes) })
	if at[0].other.IsValid() {
		asking.Go(func() { third, _ = v.askMain(ctx, point{to: at[0].other, token: at[0].token}, answerOnly, 0, 1) })
	}
	open := make([]*freshSocket, 0, freshSockets)
	defer func() {
		for _, s := range open {
			s.Close()
		}
	}()
	for i := range fresh {
		s, err := newFreshSocket()
		if err != nil {
			break
		}
		open = append(open, s)
		extra := byte(answerOnly)
		if i >= freshSockets-2 {
			extra = answerOther
		}
		ask := newQuestion(at[0].token, extra, 0)
		s.Send(ask.data, at[0].to, 0)
		asking.Go(func() { fresh[i] = awaitFresh(ctx, s, ask, at[0]) })
		sleep(ctx, freshPause)
	}
	asking.Wait()

	var samples []uint16
	filtering := punch.NotTested
	for i := range open {
		if a := fresh[i].seen; a.IsValid() {
			samples = append(samples, a.Port())
		}
	}
	v.mu.Lock()
	if main.IsValid() {
		e.mapping = punch.Independent
		if main != e.observed || third.IsValid() && third != main {
			e.mapping = punch.Dependent
		}
	}
	e.ports = punch.Spread(samples)
	v.mu.Unlock()
	close(e.mapped)

	for i := len(open) - 2; i >= 0 && i < len(open); i++ {
		switch a := fresh[i]; {
		case !a.seen.IsValid():
		case a.heardOther(ctx, open[i]):
			filtering = punch.SameAddress
		case filtering == punch.NotTested:
			filtering = punch.SamePort
		}
	}
	if filtering == punch.SameAddress && len(at) > 1 && fresh[0].seen.IsValid() && v.letsAnybodyIn(ctx, at[1], open[0], fresh[0].seen) {
		filtering = punch.Anybody
	}
	v.mu.Lock()
	e.filtering = filtering
	v.mu.Unlock()
	v.node.log.Debug("NAT examined", "mapping", e.mapping, "ports", e.ports, "filtering", filtering, "samples", samples, "observed", e.observed, "main", main)
}

// runFilter is step 3, for which there was no second relay when the rest was done.
func (v *natView) runFilter(e *examination, at []point) {
	<-e.done
	ctx, cancel := context.WithTimeout(v.node.ctx, observeWithin)
	defer cancel()
	v.mu.Lock()
	filtering := e.filtering
	v.mu.Unlock()
	if filtering != punch.SameAddress {
		return
	}
	s, mapped, err := freshVia(ctx, at[0])
	if err != nil {
		return
	}
	defer s.Close()
	if v.letsAnybodyIn(ctx, at[1], s, mapped) {
		v.mu.Lock()
		e.filtering = punch.Anybody
		v.mu.Unlock()
		v.node.log.Debug("NAT lets anybody in")
	}
}

// freshAnswer is what one fresh socket heard.
type freshAnswer struct {
	ask   question
	from  netip.AddrPort // the relay's port that was asked
	seen  netip.AddrPort
	other bool // an answer came from another port, too
}

// awaitFresh waits for the answer and asks again if it tarries.
func awaitFresh(ctx context.Context, s *freshSocket, ask question, at point) freshAnswer {
	a := freshAnswer{ask: ask, from: at.to}
	for range askTimes - 1 {
		s.SetReadDeadline(time.Now().Add(askAgain))
		a.read(s, func() bool { return a.seen.IsValid() })
		if a.seen.IsValid() || ctx.Err() != nil {
			return a
		}
		s.Send(ask.data, at.to, 0)
	}
	s.SetReadDeadline(time.Now().Add(askAgain))
	a.read(s, func() bool { return a.seen.IsValid() })
	return a
}

// read takes answers until enough or the deadline is over.
func (a *freshAnswer) read(s *freshSocket, enough func() bool) {
	b := make([]byte, 128)
	for !enough() {
		n, from, err := s.Receive(b)
		if err != nil {
			return
		}
		if seen, ok := a.ask.read(b[:n]); ok {
			if from == a.from {
				a.seen = seen
			} else {
				a.other = true
			}
		}
	}
}

// heardOther waits for the answer from a port that was not asked.
func (a *freshAnswer) heardOther(ctx context.Context, s *freshSocket) bool {
	s.SetReadDeadline(time.Now().Add(filterWait))
	a.read(s, func() bool { return a.other || ctx.Err() != nil })
	return a.other
}

// letsAnybodyIn has a relay answer to a port of ours that never sent to it.
func (v *natView) letsAnybodyIn(ctx context.Context, from point, s *freshSocket, mapped netip.AddrPort) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*askAgain)
	defer cancel()
	var heard bool
	var reading sync.WaitGroup
	reading.Go(func() {
		s.SetReadDeadline(time.Now().Add(2 * askAgain))
		b := make([]byte, 128)
		for !heard {
			n, at, err := s.Receive(b)
			if err != nil {
				return
			}
			heard = n == reflectedSize && b[0] == kindReflected && at.Addr() == from.to.Addr()
		}
	})
	v.askMain(ctx, from, answerPort, mapped.Port(), 2)
	reading.Wait()
	return heard
}

// askMain asks from the QUIC port.
func (v *natView) askMain(ctx context.Context, at point, extra byte, port uint16, times int) (netip.AddrPort, bool) {
	ask := newQuestion(at.token, extra, port)
	heard, stop := v.node.packets.hear(ask.nonce)
	defer stop()
	for range times {
		v.node.parts.sockets.send(at.to, ask.data)
		again := time.NewTimer(askAgain)
		select {
		case p := <-heard:
			again.Stop()
			if seen, ok := ask.read(p.data); ok {
				return seen, true
			}
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return netip.AddrPort{}, false
		}
	}
	return netip.AddrPort{}, false
}

// askTCP asks a relay's second TCP port where it sees our TCP port: another address than its first port sees means that
// the mapping depends on the destination. IPv4; IPv6 is not translated.
func (v *natView) askTCP(l *link, r reflected) {
	at, ok := addrPortOf(l.conn.RemoteMultiaddr())
	if transportOf(r.addr) != "tcp" || r.tcp == 0 || !ok || !at.Addr().Is4() {
		return
	}
	own, ok := addrPortOf(l.conn.LocalMultiaddr())
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(v.node.ctx, observeWithin)
	defer cancel()
	d := net.Dialer{LocalAddr: &net.TCPAddr{Port: int(own.Port())}, Control: reuseport.Control}
	c, err := d.DialContext(ctx, "tcp4", netip.AddrPortFrom(at.Addr(), r.tcp).String())
	if err != nil {
		v.node.log.Debug("the relay's second TCP port does not answer", "relay", at.Addr(), "port", r.tcp, "err", err)
		return
	}
	defer c.Close()
	c.(*net.TCPConn).SetLinger(0) // else our port cannot ask there again for a minute (TIME-WAIT)
	defer context.AfterFunc(ctx, func() { c.Close() })()
	ask := newQuestion(r.token, answerOnly, 0)
	c.Write(ask.data)
	answer := make([]byte, reflectedSize)
	if _, err := io.ReadFull(c, answer); err != nil {
		return
	}
	seen, ok := ask.read(answer)
	if !ok {
		return
	}
	addr, err := manet.FromNetAddr(net.TCPAddrFromAddrPort(seen))
	if err != nil {
		return
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if o, ok := v.seen[l]; ok && o.token == r.token {
		o.second = addr
		v.seen[l] = o
	}
}

// latest is the port of the newest flow, now: a sequence goes on with every one.
func (v *natView) latest(ctx context.Context, seen map[*link]observation) (uint16, bool) {
	s, at, err := v.fresh(ctx, seen)
	if err != nil {
		return 0, false
	}
	s.Close()
	return at.Port(), true
}

// fresh is a new socket, and where a relay sees it.
func (v *natView) fresh(ctx context.Context, seen map[*link]observation) (*freshSocket, netip.AddrPort, error) {
	at := points(seen)
	if len(at) == 0 {
		return nil, netip.AddrPort{}, errors.New("no relay reflects by UDP")
	}
	return freshVia(ctx, at[0])
}

func freshVia(ctx context.Context, at point) (*freshSocket, netip.AddrPort, error) {
	s, err := newFreshSocket()
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	ask := newQuestion(at.token, answerOnly, 0)
	s.Send(ask.data, at.to, 0)
	a := awaitFresh(ctx, s, ask, at)
	if !a.seen.IsValid() {
		s.Close()
		return nil, netip.AddrPort{}, fmt.Errorf("no answer from the relay's reflector at %s", at.to)
	}
	s.SetReadDeadline(time.Time{}) // the answer's
	return s, a.seen, nil
}
