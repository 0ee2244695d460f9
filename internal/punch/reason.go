package punch

import (
	"fmt"
	"slices"
	"strings"
)

// Why a peer is relayed, for a person: which pair of NATs, what was tried, what came back, what would
// help.

// end is one side as a reason speaks of it.
type end struct {
	Report
	where  string // "here", "at nas-box"
	within bool   // its relays are in its own network
}

// reason puts it together. tried is what was done, empty if the plan was.
func reason(here, there Report, name, tried string) string {
	if name == "" {
		name = "the peer"
	}
	a, b := end{Report: here, where: "here"}, end{Report: there, where: "at " + name}
	near, far := outside(here, there)
	a.within, b.within = here.inside() && !near.inside(), there.inside() && !far.inside()
	text := fmt.Sprintf("%s: %s %s; %s %s", pair(near, far), a.where, a.describe(), b.where, b.describe())
	if tried == "" {
		tried = "nothing could be tried"
	}
	return text + ". " + capital(tried) + unguessed(a, b) + ". " + help(a, b)
}

// unguessed says whose doing it is that ports were not foretold where they could have been.
func unguessed(a, b end) string {
	if (a.UDP.Mapping == Dependent) == (b.UDP.Mapping == Dependent) {
		return ""
	}
	for _, s := range []end{a, b} {
		if len(s.Steps) > 0 && !slices.Contains(s.Steps, StepGuess) {
			return "; guessing ports is turned off " + s.where + ", or used up for today"
		}
	}
	return ""
}

// pair names the combination in a few words.
func pair(a, b Report) string {
	udp := reaches(a, "quic-v1") && reaches(b, "quic-v1")
	tcp := reaches(a, "tcp") && reaches(b, "tcp")
	hard := func(t Transport) bool { return t.Mapping == Dependent }
	maybe := func(t Transport) bool { return t.Mapping == Unknown && !t.Kept && len(t.Observed) > 0 }
	switch {
	case !udp && !tcp:
		return "No relay can tell at which address the peers are seen"
	case hard(a.UDP) && hard(b.UDP):
		return "Both NATs change ports per destination"
	case hard(a.UDP) || hard(b.UDP):
		return "One NAT changes ports per destination"
	case maybe(a.UDP) && maybe(b.UDP):
		return "Both NATs change ports, perhaps per destination (seen by one relay only)"
	case !udp:
		return "UDP is blocked on one side, and TCP did not get through"
	}
	return "Both sides let nothing in that was not asked for"
}

// describe says what a side's NAT does.
func (s end) describe() string {
	var what string
	u := s.UDP
	switch {
	case s.within:
		what = "a relay in the same network, which sees no NAT"
	case len(u.Observed) == 0 && len(s.TCP.Observed) == 0:
		what = "nothing is known"
	case len(u.Observed) == 0:
		what = "UDP is blocked"
	case u.Mapping == None && u.Filtering == SamePort:
		what = "a firewall"
	case u.Mapping == None:
		what = "a public address"
	case u.Mapping == Dependent && u.Ports.Order == Sequential:
		what = "the next port in a row for each destination"
	case u.Mapping == Dependent && u.Ports.Order == Block:
		what = "a random port of a small range for each destination"
	case u.Mapping == Dependent:
		what = "a random port for each destination"
	case u.Mapping == Independent:
		what = "one port for all destinations"
	default:
		what = "a NAT that one relay cannot judge"
	}
	if s.Router.Double {
		what += ", two NATs in a row"
	}
	return what
}

// help says what would make it direct, the easiest first.
func help(a, b end) string {
	switch {
	case a.within:
		return "Would help: a relay outside the network " + a.where
	case b.within:
		return "Would help: a relay outside the network " + b.where
	case len(a.UDP.Observed) == 0 && len(a.TCP.Observed) == 0 || len(b.UDP.Observed) == 0 && len(b.TCP.Observed) == 0:
		return "Would help: a relay that can be reached from both sides"
	case len(a.UDP.Observed) == 0:
		return "Would help: let UDP out " + a.where
	case len(b.UDP.Observed) == 0:
		return "Would help: let UDP out " + b.where
	}
	// A port of one side that anybody can reach is enough. A home's router can give it, a carrier cannot.
	sides := []end{a, b}
	slices.SortStableFunc(sides, func(x, y end) int { return x.trouble() - y.trouble() })
	best := sides[0]
	var advice []string
	if best.carrier() {
		advice = append(advice, "IPv6 or a public address on either side: these carriers change ports per destination")
	} else {
		other := sides[1]
		// Where one NAT changes ports, only the port forwarded on that one is dialled (forwardSteps).
		forward := best.UDP.Mapping == Dependent || other.UDP.Mapping != Dependent
		advice = append(advice, best.open(forward))
		switch {
		case other.carrier():
			advice = append(advice, "the carrier "+other.where+" changes ports per destination, which only it can end")
		case !forward:
			advice = append(advice, fmt.Sprintf("or forward UDP port%s on the router %s", other.port(), other.where))
		}
	}
	return "Would help: " + strings.Join(advice, "; ")
}

// trouble orders sides by how hard it is to open a port there.
func (s end) trouble() int {
	switch {
	case s.carrier():
		return 3
	case s.UDP.Mapping == None:
		return 0
	case s.UDP.Mapping == Dependent:
		return 2
	}
	return 1
}

// carrier says whether the NAT looks like a carrier's, which its customer cannot configure.
func (s end) carrier() bool {
	return s.Router.Double || s.UDP.Mapping == Dependent && s.UDP.Ports.Order == Block
}

// open says how to let the other side in.
func (s end) open(forward bool) string {
	if s.UDP.Mapping == None {
		return fmt.Sprintf("open UDP port%s in the firewall %s", s.port(), s.where)
	}
	text := "turn on UPnP or NAT-PMP on the router " + s.where
	if forward {
		text += fmt.Sprintf(", or forward UDP port%s on it", s.port())
	}
	return text
}

// port is the one that the side listens on, as a sentence goes on with it.
func (s end) port() string {
	if n := s.port4(); n != 0 {
		return fmt.Sprintf(" %d", n)
	}
	return ""
}

// tried tells what a plan's steps did and what came back.
func tried(p Plan, m *meeting) string {
	var did []string
	dials, fresh := map[string]bool{}, false
	for _, s := range p.Steps {
		for _, d := range slices.Concat(s.Low.Dials, s.High.Dials) {
			dials[s.Name+transportOf(d.Addr)] = true
		}
		fresh = fresh || s.Name == StepFresh
	}
	add := func(what string, done bool) {
		if done {
			did = append(did, what)
		}
	}
	add("direct dials", dials[StepDirect+"quic-v1"] || dials[StepDirect+"tcp"])
	add("simultaneous open by UDP", dials[StepOpen+"quic-v1"])
	add("simultaneous open by TCP", dials[StepOpen+"tcp"])
	add("simultaneous open from fresh UDP ports", fresh)
	add("the ports that may be forwarded", dials[StepForward+"quic-v1"])
	m.mu.Lock()
	defer m.mu.Unlock()
	add(fmt.Sprintf("%d packets to foretold ports", m.probes), m.probes > 0)
	add(fmt.Sprintf("%d sockets for the peer to meet", m.sockets), m.sockets > 0)
	if len(did) == 0 && !m.refused {
		return ""
	}
	text := "tried " + strings.Join(did, ", ")
	switch {
	case m.failed != nil:
		text += fmt.Sprintf("; %d packets came, but no connection: %v", m.heard, m.failed)
	case m.heard > 0:
		text += fmt.Sprintf("; %d packets came, but no connection", m.heard)
	default:
		text += "; nothing came back"
	}
	if m.refused {
		text += "; no ports were tried, because no relay vouches for the peer's address"
	}
	if m.spent {
		text += "; no more packets are allowed for now"
	}
	return text
}

func capital(s string) string { return strings.ToUpper(s[:1]) + s[1:] }
