package punch

import (
	"net/netip"
	"slices"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

// The ladder's steps (nat.md §8). Both sides compute the same plan from the same two reports, so that
// nothing but "go" has to be said. A further step is one more name here, one more function in steps,
// and its own way to act in Puncher.do; it is taken only if both reports list it.

// Names of the steps, as reports list them.
const (
	StepDirect = "direct" // dial confirmed and LAN addresses
	StepOpen   = "open"   // simultaneous open from the main sockets
)

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
	Low, High []Dial
}

// Plan is what both sides do. Without steps, or if they fail, Reason says why to a person.
type Plan struct {
	Steps  []Step
	Reason string
}

// MakePlan is the plan for the peer with the lower ID, whose report is low, and the other.
func MakePlan(low, high Report) Plan {
	var p Plan
	at := time.Duration(0)
	knows := func(step string) bool {
		return slices.Contains(low.Steps, step) && slices.Contains(high.Steps, step)
	}
	if knows(StepDirect) {
		s := Step{Name: StepDirect, At: at, For: directFor, Low: plainDials(low, high), High: plainDials(high, low)}
		if len(s.Low)+len(s.High) > 0 {
			p.Steps = append(p.Steps, s)
			at += directAlone
		}
	}
	if knows(StepOpen) {
		lowIsClient := hardness(low.UDP) >= hardness(high.UDP)
		for range 2 { // the second time with roles swapped
			s := Step{Name: StepOpen, At: at, For: openFor}
			s.Low, s.High = openDials(low, high, lowIsClient), openDials(high, low, !lowIsClient)
			if len(s.Low) > 0 && len(s.High) > 0 {
				p.Steps = append(p.Steps, s)
				at += openFor
			}
			lowIsClient = !lowIsClient
		}
	}
	p.Reason = reason(low, high)
	return p
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

// openDials are the addresses that self opens to. Confirmed ones are among them: a firewall may stand
// before a public address.
func openDials(self, other Report, client bool) []Dial {
	role := Server
	if client {
		role = Client
	}
	var out []Dial
	add := func(list []ma.Multiaddr, transport string, after time.Duration) {
		for _, a := range list {
			if transportOf(a) == transport && !slices.ContainsFunc(out, func(d Dial) bool { return d.Addr.Equal(a) }) {
				out = append(out, Dial{Addr: a, Role: role, After: after})
			}
		}
	}
	udp, tcp := reaches(self, "quic-v1") && reaches(other, "quic-v1"), reaches(self, "tcp") && reaches(other, "tcp")
	after := tcpAfter
	if udp && !(self.UDP.Mapping == Dependent && other.UDP.Mapping == Dependent) {
		add(other.UDP.Observed, "quic-v1", 0)
		add(other.Confirmed, "quic-v1", 0)
	} else {
		after = 0
	}
	if tcp && !(self.TCP.Mapping == Dependent && other.TCP.Mapping == Dependent) {
		add(other.TCP.Observed, "tcp", after)
		add(other.Confirmed, "tcp", after)
	}
	return out
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

// reason says why there may be no direct path, for `status`; both sides see the same.
func reason(a, b Report) string {
	udp := reaches(a, "quic-v1") && reaches(b, "quic-v1")
	tcp := reaches(a, "tcp") && reaches(b, "tcp")
	hard := func(t Transport) bool { return t.Mapping == Dependent }
	maybeHard := func(t Transport) bool { return t.Mapping == Unknown && !t.Kept && len(t.Observed) > 0 }
	switch {
	case !udp && !tcp:
		return "no relay can tell at which address the peers are seen"
	case hard(a.UDP) && hard(b.UDP):
		return "both NATs change ports per destination"
	case hard(a.UDP) || hard(b.UDP):
		return "one NAT changes ports per destination"
	case maybeHard(a.UDP) && maybeHard(b.UDP):
		return "both NATs change ports, perhaps per destination (seen by one relay only)"
	case !udp:
		return "UDP is blocked on one side, and TCP did not get through"
	}
	return "the NATs let nothing in that was asked for from inside"
}
