package punch

import (
	"net/netip"
	"slices"
	"time"
)

// Where a NAT gives each destination another port, the port is foretold (steps 3 and 4 of the ladder).
// All of this is IPv4 and UDP: nobody translates IPv6 so, and many TCP connections are no probe.

const (
	// predictArray is how many sockets a sequential NAT's side opens, predictAhead how many ports the
	// other side covers: foreign flows take some of the numbers in between.
	predictArray, predictAhead = 8, 32
	// bothArray is the arrays' size where both NATs are sequential; each aims at the other's middle.
	bothArray = 16
	// predictHead is how long the array has before the peer's packets come, predictFor all of it.
	predictHead = 150 * time.Millisecond
	predictFor  = time.Second
	// speakTimes is how often an array speaks: a packet may be lost.
	speakTimes = 2
	// guessArray meets 1024 probes with 98.4 %; blockArray is enough where the NAT has a small range.
	guessArray, blockArray = 256, 64
	// meetFor is what a round takes beyond its packets: the last one's way and a handshake.
	meetFor = 1000 * time.Millisecond
)

// arrayHops are how far the packets get that open our NAT for an array: those to the peer's QUIC port, and those to a
// fresh port of the peer's. The former must not reach its router: one that answers strangers would remember them, and
// then give that port another number for all that follows. But a carrier's NAT may be some hops away, so those to the
// fresh port, which nothing else needs, go further.
var arrayHops = [rounds]int{openerHops, 4}

// aim is the port of an easy side's at which a hard side's array waits for it, and the round that this makes it.
func aim(hard, easySide Report) (at netip.AddrPort, round int) {
	fresh, ok := easySide.fresh4()
	if ok && slices.Contains(hard.Steps, Again) && slices.Contains(easySide.Steps, Again) {
		return fresh, 1
	}
	at, _ = easySide.UDP.seen4()
	return at, 0
}

// easy says whether new destinations see the port that the relays see.
func easy(t Transport) bool {
	return t.Mapping == None || t.Mapping == Independent || t.Mapping == Unknown && t.Kept
}

// predictSteps is the meeting with one or two sequential NATs.
func predictSteps(low, high Report, at time.Duration) []Step {
	sequential := func(t Transport) bool { return t.Mapping == Dependent && t.Ports.Order == Sequential }
	s := Step{Name: StepPredict, At: at, For: predictFor}
	l, okl := low.UDP.seen4()
	h, okh := high.UDP.seen4()
	switch {
	case !okl || !okh:
		return nil
	case sequential(low.UDP) && sequential(high.UDP):
		middle := func(of Report) uint16 { return of.UDP.Ports.after(bothArray / 2) }
		toHigh, toLow := middle(high), middle(low)
		if toHigh == 0 || toLow == 0 {
			return nil
		}
		s.Low.Array = &Array{Sockets: bothArray, To: withPort(h, toHigh), Role: Client, Hops: arrayHops[0], Speak: predictHead, Times: speakTimes}
		s.High.Array = &Array{Sockets: bothArray, To: withPort(l, toLow), Role: Server, Hops: arrayHops[0], Speak: predictHead, Times: speakTimes}
	case sequential(low.UDP) && easy(high.UDP):
		s.At += openFirst(high.UDP)
		s.Low.Array, s.High.Spray = predictRound(low, high)
	case sequential(high.UDP) && easy(low.UDP):
		s.At += openFirst(low.UDP)
		s.High.Array, s.Low.Spray = predictRound(high, low)
	default:
		return nil
	}
	return []Step{s}
}

// predictRound is the meeting of a sequential NAT's side with an easy one. Where it is the second, the same ports are
// covered as in a first one now: the report is new.
func predictRound(hard, easySide Report) (*Array, *Spray) {
	from, _ := hard.UDP.seen4()
	to, round := aim(hard, easySide)
	return &Array{Sockets: predictArray, To: to, Role: Client, Hops: arrayHops[round]},
		&Spray{To: from.Addr(), After: predictHead, List: hard.UDP.Ports.next(predictAhead), Times: 2, Fresh: round > 0}
}

// guessSteps is the birthday punch with a NAT of random ports: it meets if any of the array's ports is
// among the sprayed ones.
func guessSteps(low, high Report, at time.Duration) []Step {
	_, okl := low.UDP.seen4()
	_, okh := high.UDP.seen4()
	if !okl || !okh {
		return nil
	}
	random := func(t Transport) bool { return t.Mapping == Dependent && t.Ports.Order != Sequential }
	s := Step{Name: StepGuess, At: at}
	switch {
	case random(low.UDP) && easy(high.UDP):
		s.At += openFirst(high.UDP)
		s.Low.Array, s.High.Spray = guessRound(low, high)
		s.For = s.High.Spray.lasts()
	case random(high.UDP) && easy(low.UDP):
		s.At += openFirst(low.UDP)
		s.High.Array, s.Low.Spray = guessRound(high, low)
		s.For = s.Low.Spray.lasts()
	default:
		return nil
	}
	return []Step{s}
}

// guessRound is one round with a NAT that gives random ports; the second has twice the sockets.
func guessRound(hard, easySide Report) (*Array, *Spray) {
	from, _ := hard.UDP.seen4()
	to, round := aim(hard, easySide)
	a := &Array{Sockets: guessArray, To: to, Role: Client, Hops: arrayHops[round]}
	s := &Spray{To: from.Addr(), Low: lowestPort, High: 65535, Round: round, Fresh: round > 0}
	p := hard.UDP.Ports
	if p.Order != NoOrder {
		s.Low, s.High = p.Low, p.High
	}
	if p.Order == Block {
		a.Sockets = blockArray
	}
	a.Sockets <<= round
	// The array goes first: what came before it would spoil some ports. Half of it is enough to begin.
	s.After = time.Duration(a.Sockets/2)*time.Second/openRate + openSlack
	return a, s
}

// openSlack is how much later than "go" one side may begin, beyond half a round trip.
const openSlack = 100 * time.Millisecond

// lasts is how long a round of spraying takes.
func (s *Spray) lasts() time.Duration {
	n := min(s.size(), roundPorts)
	return s.After + time.Duration(n)*time.Second/probeRate + meetFor
}

// openFirst is how long simultaneous open goes before: not at all if it cannot work.
func openFirst(easySide Transport) time.Duration {
	switch easySide.Filtering {
	case SamePort:
		return 0
	case NotTested:
		return openHead
	}
	return openFor
}

func withPort(a netip.AddrPort, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr(), port)
}

// size is how many ports the rounds together choose from.
func (s *Spray) size() int { return int(s.High) - int(s.Low) + 1 }
