package punch

import (
	"context"
	"net/netip"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Meeting at fresh ports: for two sides with one port for all destinations, whose simultaneous open should work
// and has failed. Then most likely a router remembers more than it should: a machine that has come home with
// another LAN address and the port of before is seen at that port by the relay, but towards the peer it still
// leads to the old address, the machine's own packets get another one, and each packet of the peer keeps it so.
// Nothing that either side does from its QUIC port helps there.
//
//  1. the side that begins the next punch opens one socket, has a relay say where it is seen, and reports it
//  2. the other side does the same, for its QUIC port may be the one that is spoilt
//  3. both send from it to the other's; who hears the peer makes it a connection, as in foretell.go
//
// Nothing is guessed: it is a few packets to one port, of an address at which a relay saw the peer.

const (
	// freshFor is a round trip to anywhere, another one for a handshake, and what came too late once more.
	freshFor = 2 * time.Second
	// freshSpeak is the pause before each of freshTimes packets: as with arrays the openers go first.
	freshSpeak = predictHead
	freshTimes = 4
)

// freshSteps is the meeting, if both sides have a socket for it. What simultaneous open can do it has done before
// this begins.
func freshSteps(low, high Report, at time.Duration) []Step {
	l, okl := low.fresh4()
	h, okh := high.fresh4()
	if !okl || !okh {
		return nil
	}
	s := Step{Name: StepFresh, At: at + openHead, For: freshFor}
	s.Low.Array = &Array{Fresh: true, Sockets: 1, To: h, Role: Client, Hops: arrayHops[0], Speak: freshSpeak, Times: freshTimes}
	s.High.Array = &Array{Fresh: true, Sockets: 1, To: l, Role: Server, Hops: arrayHops[0], Speak: freshSpeak, Times: freshTimes}
	return []Step{s}
}

// fresh4 is where the side's fresh socket is seen.
func (r Report) fresh4() (netip.AddrPort, bool) {
	at, ok := r.UDP.seen4()
	return withPort(at, r.Fresh), ok && r.Fresh != 0 && easy(r.UDP)
}

// freshen opens the fresh socket that r, our report, tells of, if there is use for one: theirs has one, or, where we
// begin, our last punch with them was in vain, or there was a direct path lately: then a router may hold its ports.
func (pu *Puncher) freshen(ctx context.Context, m *meeting, r *Report, theirs *Report) {
	at, ok := r.UDP.seen4()
	if !ok || !easy(r.UDP) {
		return
	}
	hadDirect := pu.cfg.Wire.HadDirect
	if theirs == nil && !pu.inVain(m.peer) && (hadDirect == nil || !hadDirect(m.peer)) {
		return
	}
	if theirs != nil {
		if _, ok := theirs.fresh4(); !ok {
			return
		}
	}
	s, seen, err := pu.cfg.Wire.Fresh(ctx)
	if err != nil {
		pu.cfg.Log.Debug("no fresh socket to punch with", "peer", m.peer, "err", err)
		return
	}
	m.fresh = s
	if seen.Addr() == at.Addr() { // else the carrier has several, and nobody vouches for this one
		r.Fresh = seen.Port()
	}
}

// inVain says whether our last punch with p went through its plan and led to nothing.
func (pu *Puncher) inVain(p peer.ID) bool {
	pu.mu.Lock()
	defer pu.mu.Unlock()
	return pu.vain[p]
}

func (pu *Puncher) setVain(p peer.ID, vain bool) {
	pu.mu.Lock()
	defer pu.mu.Unlock()
	if delete(pu.vain, p); vain {
		pu.vain[p] = true
	}
}

// takeFresh is the fresh socket, for whoever closes it.
func (m *meeting) takeFresh() Socket {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.fresh
	m.fresh = nil
	return s
}

// end closes the fresh socket, if no step has taken it.
func (m *meeting) end() {
	if s := m.takeFresh(); s != nil {
		s.Close()
	}
}
