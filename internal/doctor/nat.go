package doctor

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
)

// Kinds of NAT, stable names.
const (
	Public            = "public"             // no NAT, packets come in unasked
	Firewall          = "firewall"           // no NAT, only answers come in
	FullCone          = "full-cone"          // one port for all, packets come in unasked
	AddressRestricted = "address-restricted" // … from addresses that were sent to
	PortRestricted    = "port-restricted"    // … from addresses and ports that were sent to
	Symmetric         = "symmetric"          // another port for each destination
	SymmetricBlock    = "symmetric-block"    // … within a small block
	Sequential        = "sequential"         // … the next one each time
	UDPBlocked        = "udp-blocked"
	Unknown           = "unknown"
)

// Whose packets come in to a port that has sent some, in the words of RFC 4787, as fwd status has them.
const (
	anybody     = "endpoint-independent"
	sameAddress = "address-dependent" // of an address that was sent to; by one relay's word: of that or anybody's
	samePort    = "address-and-port-dependent"
)

// NAT is what the network here makes of UDP, IPv4.
type NAT struct {
	Kind      string `json:"kind"`
	Mapping   string `json:"mapping"`   // none, endpoint-independent, endpoint-dependent, blocked, unknown
	Filtering string `json:"filtering"` // see anybody; or unknown
	PortKept  bool   `json:"port_kept"`
	Public    string `json:"public,omitempty"` // the address that the world sees

	addr  netip.Addr     // where relays see this machine; private where they all are in networks of ours
	seen  netip.AddrPort // where one sees a socket
	asked reflector      // that one
	fresh []uint16       // ports of further sockets, in order
	keeps bool           // one of those kept its port

	silent []netip.AddrPort // reflectors that did not answer
	deaf   []string         // relays at which no UDP arrives
}

const (
	// rowStep is how far apart ports "in a row" may be: other machines use some meanwhile.
	rowStep = 16
	// blockSize is the widest that counts as a carrier's block of ports.
	blockSize = 4096
)

// name judges what was measured.
func (n *NAT) name() {
	switch n.Mapping {
	case "none":
		switch {
		case n.besideRelays():
			n.Kind = Unknown
		case n.Filtering == anybody, n.Filtering == sameAddress:
			n.Kind = Public
		default:
			n.Kind = Firewall
		}
	case "endpoint-independent":
		n.Kind = map[string]string{anybody: FullCone, sameAddress: AddressRestricted, samePort: PortRestricted}[n.Filtering]
	case "endpoint-dependent":
		n.Kind = Symmetric
		switch {
		case inARow(n.fresh):
			n.Kind = Sequential
		case len(n.fresh) >= samples-1 && int(slices.Max(n.fresh))-int(slices.Min(n.fresh)) < blockSize:
			n.Kind = SymmetricBlock
		}
	}
	if n.Kind == "" {
		n.Kind = Unknown
	}
}

// besideRelays says whether relays and this machine are in one private network: what is between it and the internet they
// cannot tell.
func (n *NAT) besideRelays() bool { return n.Mapping == "none" && isInside(n.addr) }

func inARow(ports []uint16) bool {
	for i := 1; i < len(ports); i++ {
		if step := int(ports[i]) - int(ports[i-1]); step < 1 || step > rowStep {
			return false
		}
	}
	return len(ports) >= 3
}

// nat tells the NAT in plain words.
func (e *examination) nat(n NAT) []Check {
	c := Check{ID: "nat", Level: OK}
	changing := "turn on UPnP or NAT-PMP on the router here, or forward this machine's UDP port by hand; if a carrier is behind it, ask for IPv6"
	at := n.where()
	switch n.Kind {
	case Public:
		c.What = "none: this machine has the public address " + at + " and is reached there"
	case Firewall:
		c.What = "none, but a firewall in front of " + at + " lets in only answers; direct paths still come about"
		if e.letsIn(n) {
			c.What = "none: this machine has the public address " + at + ", and a firewall that lets in what comes to fwd"
		}
	case FullCone:
		c.What = "full cone at " + at + ": one port for all, open to all; direct paths come about with everyone"
	case AddressRestricted:
		c.What = "address-restricted at " + at + ": one port for all; direct paths come about with everyone"
	case PortRestricted:
		c.What = "port-restricted at " + at + ", as most homes: one port for all; direct paths come about, with symmetric NATs after a while"
		if !n.PortKept {
			c.What = "port-restricted at " + at + ": one port for all, though not the one asked for; direct paths come about, with symmetric NATs after a while"
		}
	case Symmetric:
		c.Level, c.Mend = Wrong, changing
		c.What = "symmetric at " + at + ": another, random port for each destination; no direct path to networks of the same kind"
	case SymmetricBlock:
		c.Level, c.Mend = Wrong, changing
		c.What = fmt.Sprintf("symmetric at %s: another port for each destination, within a block (%d to %d seen); direct paths are a matter of luck", at, slices.Min(n.fresh), slices.Max(n.fresh))
	case Sequential:
		c.Level, c.Mend = Hint, changing
		c.What = "symmetric at " + at + ": the next port for each destination; direct paths come about by foretelling it"
	case UDPBlocked:
		c.Level, c.What = Wrong, "no UDP leaves this network, TCP does; fwd falls back to it"
		c.Mend = "let UDP out, in the router or firewall here, at least to the relays' ports"
		if len(n.deaf) == 1 { // which may just be the one that lets none in
			c.What = "no UDP gets from here to " + n.deaf[0] + ", TCP does; fwd falls back to it"
			c.Mend = "open UDP in the firewall of " + n.deaf[0] + " and its provider's (see above); where it is open, " + c.Mend
		}
	default:
		c.Level, c.What = e.unknownNAT(n)
		c.Mend = "a second relay tells more: fwd invite --relay"
		if isInside(n.addr) {
			c.Mend = "a relay on the internet tells more: fwd invite --relay"
		} else if len(e.m.Relays) == 0 || !n.seen.IsValid() {
			c.Mend = "a relay that answers plain UDP tells more; it listens at the port after its own (4002)"
		}
	}
	if opened := e.opened(n); opened.IsValid() && (n.Kind == Symmetric || n.Kind == SymmetricBlock || n.Kind == Sequential) {
		c.Level, c.Mend = OK, ""
		c.What = n.Kind + " at " + at + ", but the router has opened a port: direct paths come about by " + opened.String()
	}
	return []Check{c}
}

// opened is a port of ours that the router has opened where the world sees us; zero: none.
func (e *examination) opened(n NAT) netip.AddrPort {
	i := slices.IndexFunc(e.m.Mapped, func(a netip.AddrPort) bool { return a.Addr().String() == n.Public })
	if i < 0 {
		return netip.AddrPort{}
	}
	return e.m.Mapped[i]
}

// where is where relays see this machine.
func (n *NAT) where() string {
	if isInside(n.addr) {
		return n.addr.String() + ", a private address"
	}
	return n.addr.String()
}

// unknownNAT is what can be said by one relay alone.
func (e *examination) unknownNAT(n NAT) (Level, string) {
	at := n.where()
	switch {
	case n.besideRelays():
		return Hint, "none towards the relays, which see " + at + "; what the internet sees they cannot tell"
	case !n.seen.IsValid() && n.addr.IsValid():
		return Hint, "seen at " + at + "; its kind cannot be told, for no relay answers plain UDP here"
	case !n.seen.IsValid():
		return Hint, "cannot be told: no relay sees this machine by IPv4"
	case n.PortKept || n.keeps:
		return OK, "seen at " + at + " with its own port: most likely " + map[bool]string{true: "port-restricted", false: "an easy one"}[n.Filtering == samePort] + ", by one relay's word"
	case inARow(n.fresh):
		return Hint, "seen at " + at + ", each new flow at the next port: perhaps symmetric, by one relay's word"
	}
	return Hint, "seen at " + at + " with changed ports: perhaps symmetric, by one relay's word"
}

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
