package punch

import (
	"net"
	"net/netip"
	"slices"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// The ladder's steps (docs/paths.md). Both sides compute the same plan from the same two reports, so that
// nothing but "go" has to be said. A further step is one more name here, one more function that plans
// it, and its own way to act in Puncher.act; it is taken only if both reports list it.

// Names of the steps, as reports list them.
const (
	StepDirect  = "direct"  // dial confirmed and LAN addresses
	StepOpen    = "open"    // simultaneous open from the main sockets
	StepFresh   = "fresh"   // simultaneous open from sockets without a past
	StepPredict = "predict" // meet at the ports that a sequential NAT will give next
	StepGuess   = "guess"   // meet by chance: many sockets here, many ports there
	StepForward = "forward" // dial the port that somebody may have forwarded by hand
)

// Again, listed among them, says that a side makes a second attempt where one in vain left something to try (wantFresh).
const Again = "again"

var knownSteps = map[string]bool{StepDirect: true, StepOpen: true, StepFresh: true, StepPredict: true, StepGuess: true, StepForward: true, Again: true}

const (
	// directFor is how long confirmed addresses are dialled, and directAlone how long without anything
	// beside: one round trip to most of the world, so that what is reachable costs no punching.
	directFor   = time.Second
	directAlone = 300 * time.Millisecond
	// openFor is one round of simultaneous open: time for two lost packets (QUIC sends again after
	// 200 ms, then 600).
	openFor = 1500 * time.Millisecond
	// tcpAfter is how long TCP waits for QUIC, unless one side has no UDP.
	tcpAfter = 300 * time.Millisecond
	// openHead is the start that simultaneous open gets where nobody knows whether it can work.
	openHead = 500 * time.Millisecond
)

// Role is how an address is dialled.
type Role int

const (
	Plain  Role = iota // as any address
	Client             // simultaneous open; we speak first
	Server             // simultaneous open; the other side speaks first
)

func (r Role) String() string { return [...]string{"plain", "client", "server"}[r] }

// Dial is one address that a side dials in a step, After the step's beginning.
type Dial struct {
	Addr  ma.Multiaddr
	Role  Role
	After time.Duration
}

// Step begins At and lasts For, both counted from "go" on each side. Low and High are what the peer
// with the lower and the higher ID does.
type Step struct {
	Name      string
	At, For   time.Duration
	Low, High Part
}

// Part is what one side does in a step: dials, or, where ports have to be foretold, one of the other two.
type Part struct {
	Dials []Dial
	Array *Array
	Spray *Spray
}

// Array is many fresh sockets that wait for the peer's packets: what a side does whose own ports nobody
// knows. Each of them first sends To a packet that dies on the way, which opens its NAT.
type Array struct {
	Sockets int
	To      netip.AddrPort
	Role    Role
	Hops    int // how far those packets get
	// Speak, if not 0, is when the sockets send To packets that arrive, and the pause until they do so again, so
	// many Times; for peers that both have arrays.
	Speak time.Duration
	Times int
	Fresh bool // it is the one socket that the side's report tells of
}

// Spray is packets from one socket to many ports of one address: what a side does whose peer has
// an array. List is in its order; without a list the ports are random ones of Low to High, and Round
// counts the rounds, for no port is tried twice.
type Spray struct {
	To        netip.Addr
	After     time.Duration // the array has to be there first
	List      []uint16
	Times     int // how often the list is gone through
	Low, High uint16
	Round     int
	Fresh     bool // from the socket that the side's report tells of; else from its QUIC socket
}

// Plan is what both sides do.
type Plan struct{ Steps []Step }

// MakePlan is the plan for the peer with the lower ID, whose report is low, and the other.
func MakePlan(low, high Report) Plan {
	low, high = outside(low, high)
	var p Plan
	at := time.Duration(0)
	knows := func(step string) bool {
		return slices.Contains(low.Steps, step) && slices.Contains(high.Steps, step)
	}
	if knows(StepDirect) {
		s := Step{Name: StepDirect, For: directFor}
		s.Low.Dials, s.High.Dials = plainDials(low, high), plainDials(high, low)
		if len(s.Low.Dials)+len(s.High.Dials) > 0 {
			p.Steps = append(p.Steps, s)
			at += directAlone
		}
	}
	var further []Step
	if knows(StepPredict) {
		further = predictSteps(low, high, at)
	}
	if knows(StepGuess) && further == nil {
		further = guessSteps(low, high, at)
	}
	if knows(StepForward) {
		further = append(further, forwardSteps(low, high, at)...)
	}
	if knows(StepFresh) {
		further = append(further, freshSteps(low, high, at)...)
	}
	if knows(StepOpen) {
		lowIsClient := hardness(low.UDP) >= hardness(high.UDP)
		for range 2 { // the second time with roles swapped
			s := Step{Name: StepOpen, At: at, For: openFor}
			s.Low.Dials, s.High.Dials = openDials(low, high, lowIsClient), openDials(high, low, !lowIsClient)
			if len(s.Low.Dials) > 0 && len(s.High.Dials) > 0 {
				p.Steps = append(p.Steps, s)
				at += openFor
			}
			lowIsClient = !lowIsClient
		}
	}
	p.Steps = append(p.Steps, further...)
	slices.SortStableFunc(p.Steps, func(a, b Step) int { return int(a.At - b.At) })
	return p
}

// usesFresh says whether any step does something from a fresh socket that a report tells of.
func (p Plan) usesFresh() bool {
	return slices.ContainsFunc(p.Steps, func(s Step) bool {
		return slices.ContainsFunc([]Part{s.Low, s.High}, func(p Part) bool {
			return p.Array != nil && p.Array.Fresh || p.Spray != nil && p.Spray.Fresh
		})
	})
}

// plainDials are the addresses of the other side that need no punching.
func plainDials(self, other Report) []Dial {
	var out []Dial
	for _, a := range other.Confirmed {
		out = append(out, Dial{Addr: a})
	}
	if neighbours(self, other) {
		for _, a := range other.LAN {
			out = append(out, Dial{Addr: a})
		}
	}
	return out
}

// neighbours says whether both may be in one local network: seen at the same public address, or with
// interfaces in one subnet. Others' private addresses are not worth a packet: they are somebody
// else's machine here.
func neighbours(a, b Report) bool {
	outside := func(r Report) (ips []netip.Addr) {
		for _, addr := range slices.Concat(r.UDP.Observed, r.TCP.Observed) {
			if ap, ok := addrPort(addr); ok {
				ips = append(ips, ap.Addr())
			}
		}
		return ips
	}
	for _, ip := range outside(a) {
		if slices.Contains(outside(b), ip) {
			return true
		}
	}
	nets := func(r Report) (nets []netip.Prefix) {
		for _, addr := range r.LAN {
			if ap, ok := addrPort(addr); ok {
				bits := 24
				if ap.Addr().Is6() {
					bits = 64
				}
				n, _ := ap.Addr().Prefix(bits)
				nets = append(nets, n)
			}
		}
		return nets
	}
	for _, n := range nets(a) {
		if slices.Contains(nets(b), n) {
			return true
		}
	}
	return false
}

// outside are both reports without the private addresses at which a relay in a side's own network sees it, where they lead
// the other side to somebody else's machine. Sides that are both seen so may well be in one network with that relay,
// whatever its subnets.
func outside(a, b Report) (Report, Report) {
	if neighbours(a, b) || a.inside() && b.inside() {
		return a, b
	}
	return a.public(), b.public()
}

// inside says whether relays see the side at private addresses alone.
func (r Report) inside() bool {
	return len(r.UDP.Observed)+len(r.TCP.Observed) > 0 && len(r.UDP.public().Observed)+len(r.TCP.public().Observed) == 0
}

func (r Report) public() Report {
	was, _ := r.UDP.seen4()
	r.UDP, r.TCP = r.UDP.public(), r.TCP.public()
	if is, _ := r.UDP.seen4(); is != was {
		r.Fresh = 0 // it is at the address that was
	}
	return r
}

func (t Transport) public() Transport {
	seen := slices.DeleteFunc(slices.Clone(t.Observed), func(a ma.Multiaddr) bool { return !manet.IsPublicAddr(a) })
	if len(seen) == 0 {
		return Transport{} // what a relay inside sees says nothing of the NAT
	}
	t.Observed = seen
	return t
}

// forwardSteps dial the port that a side listens on at its public address, in case its router forwards it: somebody may
// have followed a reason's advice. It is done where nothing else can work but luck, and only to NATs that use another
// port for each destination: another router that gets such a packet unasked may give that port to nobody else for a while.
func forwardSteps(low, high Report, at time.Duration) []Step {
	if canOpen(low.UDP, high.UDP) || !reaches(low, "quic-v1") || !reaches(high, "quic-v1") {
		return nil
	}
	s := Step{Name: StepForward, At: at, For: directFor}
	for _, steps := range predictSteps(low, high, at) {
		s.At = steps.At + steps.For // a dial uses up a port that was foretold
	}
	dials := func(other Report) []Dial {
		seen, ok := other.UDP.seen4()
		port := other.port4()
		if !ok || port == 0 || other.UDP.Mapping != Dependent {
			return nil
		}
		to, err := manet.FromNetAddr(net.UDPAddrFromAddrPort(withPort(seen, port)))
		if err != nil {
			return nil
		}
		return []Dial{{Addr: to.Encapsulate(quicV1)}}
	}
	s.Low.Dials, s.High.Dials = dials(high), dials(low)
	if len(s.Low.Dials)+len(s.High.Dials) == 0 {
		return nil
	}
	return []Step{s}
}

var quicV1 = ma.StringCast("/quic-v1")

// port4 is the UDP port on which the side's IPv4 interfaces listen; 0: not known.
func (r Report) port4() uint16 {
	for _, a := range r.LAN {
		if ap, ok := addrPort(a); ok && transportOf(a) == "quic-v1" && ap.Addr().Is4() {
			return ap.Port()
		}
	}
	return 0
}

// openDials are the addresses that self opens to. Confirmed ones are among them: a firewall may stand
// before a public address. IPv6 is not translated, so there a firewall is all that has to be passed.
func openDials(self, other Report, client bool) []Dial {
	role := Server
	if client {
		role = Client
	}
	var out []Dial
	add := func(list []ma.Multiaddr, transport string, after time.Duration, v4 bool) {
		for _, a := range list {
			if transportOf(a) == transport && (v4 || !isIPv4(a)) && !slices.ContainsFunc(out, func(d Dial) bool { return d.Addr.Equal(a) }) {
				out = append(out, Dial{Addr: a, Role: role, After: after})
			}
		}
	}
	quic := func(a Dial) bool { return transportOf(a.Addr) == "quic-v1" }
	if reaches(self, "quic-v1") && reaches(other, "quic-v1") {
		v4 := canOpen(self.UDP, other.UDP)
		add(other.UDP.Observed, "quic-v1", 0, v4)
		add(other.Confirmed, "quic-v1", 0, v4)
	}
	after := tcpAfter
	if !slices.ContainsFunc(out, quic) {
		after = 0
	}
	if reaches(self, "tcp") && reaches(other, "tcp") {
		v4 := canOpen(self.TCP, other.TCP)
		add(other.TCP.Observed, "tcp", after, v4)
		add(other.Confirmed, "tcp", after, v4)
	}
	return out
}

// canOpen says whether simultaneous open by what the relays saw can work: not if both sides' ports are
// others than those, nor if one's is and the other lets in only the ports that it knows.
func canOpen(a, b Transport) bool {
	hard := func(t Transport) bool { return t.Mapping == Dependent }
	strict := func(t Transport) bool { return t.Filtering == SamePort }
	return !(hard(a) && hard(b)) && !(hard(a) && strict(b)) && !(hard(b) && strict(a))
}

// reaches says whether a side can be reached by that transport at all, as far as anyone saw.
func reaches(r Report, transport string) bool {
	seen := slices.Concat(r.UDP.Observed, r.TCP.Observed, r.Confirmed)
	return slices.ContainsFunc(seen, func(a ma.Multiaddr) bool { return transportOf(a) == transport })
}

// hardness orders NATs by how little can be said about the port that a new destination will see. The
// harder side is the QUIC client: the server then answers to whatever port the client came from.
func hardness(t Transport) int {
	switch {
	case t.Mapping == None:
		return 0
	case t.Mapping == Independent:
		return 1
	case t.Mapping == Unknown && t.Kept:
		return 2
	case t.Mapping == Unknown:
		return 3
	}
	return 4
}
