package punch

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Fresh ports: where ports that can be told should have met and have not, most likely a router remembers more than it
// should. A machine that has come home with another LAN address and the port of before is seen at that port by the
// relay, but towards the peer it still leads to the old address, the machine's own packets get another one, and each
// packet of the peer keeps it so. Or a packet of the peer's was early, and the router has answered it itself. Nothing
// that either side does from its QUIC port helps there, so the next attempt leaves those ports alone:
//
//  1. the side that begins, if it has one port for all destinations, opens one socket, has a relay say where it is
//     seen, and reports it
//  2. so does the other one, for its QUIC port may be the one that is spoilt
//  3. two such sides send from there to each other's; who hears the peer makes it a connection, as in foretell.go.
//     With a side whose ports have to be foretold, the one that sprays does it from there, and packets may go further
//     (arrayHops): what they spoil is this port, which nothing else needs.

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

// wantFresh says whether an attempt in vain is worth another one at once: fresh sockets were not there yet, and there
// is a step that uses them.
func wantFresh(mine, theirs Report) bool {
	mine, theirs = outside(mine, theirs)
	lacks, foretold, meet := false, false, true
	for _, r := range []Report{mine, theirs} {
		if _, seen := r.UDP.seen4(); !seen || !slices.Contains(r.Steps, Again) {
			return false
		}
		switch _, fresh := r.fresh4(); {
		case !easy(r.UDP) && r.UDP.Mapping != Dependent:
			return false // nobody knows whether its ports are to be foretold
		case !easy(r.UDP):
			foretold = true
		case !fresh:
			lacks = true
		}
		meet = meet && slices.Contains(r.Steps, StepGuess)
	}
	return lacks && (meet || !foretold)
}

// freshen opens the fresh socket that r, our report, tells of, if there is use for one: theirs has one or has none to
// have, and our last attempt with them was in vain; where we begin it is enough that there was a direct path lately,
// for then a router may hold its ports.
func (pu *Puncher) freshen(ctx context.Context, m *meeting, r *Report, theirs *Report) {
	at, ok := r.UDP.seen4()
	if !ok || !easy(r.UDP) {
		return
	}
	hadDirect := pu.cfg.Wire.HadDirect
	wanted := pu.inVain(m.peer)
	if theirs == nil {
		wanted = wanted || hadDirect != nil && hadDirect(m.peer)
	} else if easy(theirs.UDP) {
		_, wanted = theirs.fresh4()
	} else if theirs.UDP.Mapping != Dependent {
		return // no step meets it
	}
	if !wanted {
		return
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

// inVain says whether our last attempt with p went through its plan and led to nothing.
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

// Moved says that our network is another one: what was in vain there says nothing here.
func (pu *Puncher) Moved() {
	pu.mu.Lock()
	defer pu.mu.Unlock()
	clear(pu.vain)
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
