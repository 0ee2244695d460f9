// Package doctor examines a machine's way to its network and names the mend for each thing that stands
// in the way of a direct path.
//
//	report := doctor.Examine(ctx, doctor.Machine{Relays: relays, Probe: probe, …})
//	for _, c := range report.Checks { fmt.Println(c.Level, c.ID, c.Of, c.What, c.Mend) }
//
// What happens in one examination: each relay is connected to at each of its addresses, by name at each
// that the name leads to (Probe); with the permission that comes back, some ten plain UDP packets show
// what the NAT here makes of them (udp.go); the router is asked which port mapping it speaks (router.go);
// the rest is read from the system. The checks know nothing of each other but what Examine hands on, and
// take a few seconds together; only the life time of UDP mappings, measured on request, takes up to five
// minutes.
//
// It changes nothing on this machine or the router, asks nobody but the relays and the router (and an
// address that nobody has, where no relay is reached), and imports no other room: what it needs is handed
// in.
package doctor

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Level says how much a check matters.
type Level string

const (
	OK    Level = "ok"
	Hint  Level = "hint"  // works, could be better or could not be told
	Wrong Level = "wrong" // stands in the way of a direct path, or of any
)

// Check is one thing examined.
type Check struct {
	ID    string  `json:"check"`        // stable: relay-udp, nat, clock, …
	Of    string  `json:"of,omitempty"` // the relay or interface, where there are several
	Level Level   `json:"level"`
	What  string  `json:"what"`           // for a person
	Mend  string  `json:"mend,omitempty"` // what to do about it
	RTT   float64 `json:"rtt_ms,omitempty"`
}

// Report is all that was found.
type Report struct {
	V      int     `json:"v"`
	OK     bool    `json:"ok"` // nothing is wrong
	NAT    NAT     `json:"nat"`
	Checks []Check `json:"checks"`
}

// Relay is one of the roster's relays.
type Relay struct {
	Name  string
	Addrs []Addr
}

// Addr is one address of a relay.
type Addr struct {
	Transport string // udp, tcp, wss
	Host      string // an IP address or a name
	Family    string // "4" or "6", where Host is a name that stands for such addresses alone
	Port      uint16
	Dial      any // what Probe needs to dial it
	// IP is the address behind Host that Probe shall dial; zero: it has to find one.
	IP netip.Addr
}

// Seen is what came of connecting to a relay.
type Seen struct {
	RTT       time.Duration
	Observed  netip.AddrPort // where the relay sees this connection; zero: through a proxy, or it does not say
	Reflector netip.AddrPort // answers plain UDP packets; zero: it does not
	Token     []byte         // its permission
	Clock     time.Time      // the relay's; zero: it does not say
	Unserved  bool           // it was reached, but does not serve this machine
}

// Machine is what is examined. Functions may be called from several goroutines.
type Machine struct {
	Network string // the network's name; "": none joined
	Revoked bool   // its owner has taken this machine off the roster
	Relays  []Relay
	Probe   func(context.Context, Relay, Addr) (Seen, error) // a new connection to that address alone, at its IP
	Lookup  func(ctx context.Context, host string) ([]netip.Addr, error)

	Relay     bool             // it is one itself, and listens where it was told to
	Listening []Addr           // Transport and Port
	Reached   []netip.AddrPort // UDP addresses at which relays have dialled fwd
	Gateway   netip.Addr       // the router; zero: unknown
	Mapped    []netip.AddrPort // what the router's port mapping gave fwd

	// Mapping is what the node learns of its own UDP port, whose two destinations may be one relay's:
	// endpoint-independent, endpoint-dependent, or something else. Asked if our packets do not tell; may be nil.
	Mapping func(context.Context) string
	// DoubleNAT: the router that maps ports is itself behind another one, as far as the node knows.
	DoubleNAT bool

	// Fetch asks http://host/ past any proxy, follows nothing, and returns the status and where it is sent on to; nil:
	// captive portals are not looked for.
	Fetch func(ctx context.Context, host string) (status int, location string, err error)

	Proxy   string // HTTPS_PROXY's, as it would be used; "": none
	NoProxy string // what is wrong with it; "": nothing

	Interfaces []Interface
	Now        time.Time
	Signed     time.Time // the owner's last signature seen; zero: none
	ReadFile   func(path string) ([]byte, error)
	Exists     func(path string) bool

	Lifetime bool         // measure that of UDP mappings
	Progress func(string) // told what takes long; may be nil
}

// Interface is a network interface that is up.
type Interface struct {
	Name  string
	P2P   bool // point to point
	Addrs []netip.Addr
}

const (
	// probeWithin is how long a connection to one address may take.
	probeWithin = 8 * time.Second
	// lookupWithin is how long a name may take.
	lookupWithin = 5 * time.Second
	// fetchWithin is how long an answer in the place of a relay may take.
	fetchWithin = 4 * time.Second
)

// Examine does all checks; it returns early, with what there is, when ctx ends.
func Examine(ctx context.Context, m Machine) Report {
	e := &examination{m: m}
	var wg sync.WaitGroup
	var local, router []Check
	wg.Go(func() { local = e.local() })
	wg.Go(func() { e.gateway = askRouter(ctx, m.Gateway) })
	named := e.lookup(ctx)
	probes := e.probeAll(ctx)
	nat := e.measure(ctx, probes)
	wg.Wait()
	router = e.router(nat)
	portal := e.portal(ctx, probes)

	var checks []Check
	checks = append(checks, e.network()...)
	checks = append(checks, e.relays(probes, nat)...)
	checks = append(checks, portal...)
	checks = append(checks, named...)
	checks = append(checks, e.proxy(probes)...)
	checks = append(checks, e.nat(nat)...)
	checks = append(checks, router...)
	checks = append(checks, e.ipv6(probes)...)
	checks = append(checks, e.firewall(nat)...)
	checks = append(checks, e.vpn()...)
	checks = append(checks, e.clock(probes)...)
	checks = append(checks, local...)
	if m.Lifetime {
		checks = append(checks, e.lifetime(ctx, nat))
	}
	bad := slices.ContainsFunc(checks, func(c Check) bool { return c.Level == Wrong })
	return Report{V: 1, OK: !bad, NAT: nat, Checks: checks}
}

// examination is one run.
type examination struct {
	m       Machine
	gateway gateway
	named   map[string][]netip.Addr // relays' names, IPv4 first; set by lookup
}

func (e *examination) progress(s string) {
	if e.m.Progress != nil {
		e.m.Progress(s)
	}
}

// ips are the addresses behind a, IPv4 first.
func (e *examination) ips(a Addr) (list []netip.Addr) {
	if ip, err := netip.ParseAddr(a.Host); err == nil {
		return []netip.Addr{ip}
	}
	for _, ip := range e.named[a.Host] {
		if a.Family == "" || (a.Family == "4") == ip.Is4() {
			list = append(list, ip)
		}
	}
	return list
}

// split is a, once for each address behind it: who dials a name is content with the first that answers, and what the
// others are worth, IPv4 to learn of the NAT, remains unknown. WebSocket keeps its name, by which a proxy or a web server
// in front of the relay goes.
func (e *examination) split(a Addr) (list []Addr) {
	if a.Transport == "wss" {
		return []Addr{a}
	}
	for _, ip := range e.ips(a) {
		a.IP = ip
		list = append(list, a)
	}
	return list
}

// probe is one address of a relay and what came of it.
type probe struct {
	relay Relay
	addr  Addr
	seen  Seen
	err   error
}

// at is the probe's address as the roster has it.
func (p *probe) at() string { return net.JoinHostPort(p.addr.Host, strconv.Itoa(int(p.addr.Port))) }

func (e *examination) probeAll(ctx context.Context) []*probe {
	var all []*probe
	var wg sync.WaitGroup
	for _, r := range e.m.Relays {
		for _, named := range r.Addrs {
			list := e.split(named)
			if len(list) == 0 {
				all = append(all, &probe{relay: r, addr: named, err: errNoAddress})
			}
			for _, a := range list {
				p := &probe{relay: r, addr: a}
				all = append(all, p)
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(ctx, probeWithin)
					defer cancel()
					p.seen, p.err = e.m.Probe(ctx, p.relay, p.addr)
				})
			}
		}
	}
	if len(all) > 0 {
		e.progress("connecting to each relay")
	}
	wg.Wait()
	return all
}

var errNoAddress = errors.New("the name leads to no address")

func (e *examination) network() []Check {
	switch {
	case e.m.Network == "":
		return []Check{{ID: "network", Level: Wrong, What: "this machine is in no network", Mend: "fwd join, with an invite from \"fwd invite\" on a machine that is"}}
	case e.m.Revoked:
		return []Check{{ID: "network", Level: Wrong, What: "the owner of " + quote(e.m.Network) + " has taken this machine off the roster", Mend: "fwd join, with a new invite from there"}}
	case len(e.m.Relays) == 0 && e.m.Relay:
		return []Check{{ID: "network", Level: OK, What: "the only relay of " + quote(e.m.Network)}}
	case len(e.m.Relays) == 0:
		return []Check{{ID: "network", Level: Hint, What: "the network " + quote(e.m.Network) + " has no relay beside this machine: only machines on one LAN, or with public addresses, meet",
			Mend: "on a server with a public address: fwd relay"}}
	}
	return []Check{{ID: "network", Level: OK, What: "member of " + quote(e.m.Network)}}
}

func quote(s string) string { return "\"" + s + "\"" }
