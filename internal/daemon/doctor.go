package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"

	"fwd/internal/doctor"
	"fwd/internal/node"
)

// DoctorRequest asks for an examination of this machine's way to the network.
// The answer is the event "doctor", whose Result is a Diagnosis.
type DoctorRequest struct {
	Lifetime bool `json:"lifetime,omitempty"` // that of UDP mappings too: up to 5 min
}

// Diagnosis is what the doctor found; Finding is one check.
type (
	Diagnosis = doctor.Report
	Finding   = doctor.Check
)

// The levels of a Finding.
const (
	FindingOK    = doctor.OK
	FindingHint  = doctor.Hint
	FindingWrong = doctor.Wrong
)

// doctor hands the examination what it needs of this daemon.
func (d *Daemon) doctor(ctx context.Context, req DoctorRequest, emit func(Event)) error {
	m := doctor.Machine{
		Relays: d.patientsRelays(),
		Relay:  d.relay != nil,
		Probe:  d.probeRelay,
		Lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		},
		Interfaces: interfaces(),
		Now:        time.Now(),
		Signed:     d.book.Now(time.Time{}),
		ReadFile:   os.ReadFile,
		Exists:     func(path string) bool { _, err := os.Stat(path); return err == nil },
		Lifetime:   req.Lifetime,
		Progress:   func(s string) { emit(Event{Event: "progress", Message: s}) },
	}
	if s := d.book.Current(); s != nil {
		m.Network = s.Name
		_, err := d.belongs()
		m.Revoked = err != nil
	}
	for _, a := range d.node.ListenAddrs() {
		if transport, _, port, ok := splitAddr(a); ok {
			m.Listening = append(m.Listening, doctor.Addr{Transport: transport, Port: port})
		}
	}
	for _, a := range d.node.DialledAddrs() {
		if transport, host, port, ok := splitAddr(a); ok && transport == "udp" {
			if ip, err := netip.ParseAddr(host); err == nil {
				m.Reached = append(m.Reached, netip.AddrPortFrom(ip, port))
			}
		}
	}
	nat := d.node.NAT()
	m.DoubleNAT, m.Mapping = nat.DoubleNAT, d.learntMapping
	if nat.PortMapping == "mapped" {
		m.Mapped = d.mappedAddrs(nat.Public)
	}
	m.Gateway = gatewayTowards(m.Relays)
	m.Fetch = fetchPast
	m.Proxy, m.NoProxy = proxyWords(os.Getenv)
	return emitResult(emit, "doctor", doctor.Examine(ctx, m))
}

// patientsRelays are the roster's other relays at their addresses there.
func (d *Daemon) patientsRelays() []doctor.Relay {
	s := d.book.Current()
	if s == nil {
		return nil
	}
	var list []doctor.Relay
	for _, r := range s.Relays {
		if r.Peer == d.self {
			continue
		}
		relay := doctor.Relay{Name: d.nameOf(r.Peer)}
		for _, a := range r.Addrs {
			if transport, host, port, ok := splitAddr(a); ok {
				family := map[int]string{ma.P_DNS4: "4", ma.P_DNS6: "6"}[a[0].Protocol().Code]
				relay.Addrs = append(relay.Addrs, doctor.Addr{Transport: transport, Host: host, Family: family, Port: port, Dial: target{r.Peer, a}})
			}
		}
		list = append(list, relay)
	}
	return list
}

// learntMapping is how the node's own UDP port is mapped; a daemon that has just started learns it while
// it reserves at the relays.
func (d *Daemon) learntMapping(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, learnWithin)
	defer cancel()
	for {
		if m := d.node.NAT().UDP; m != "unknown" {
			return m
		}
		select {
		case <-ctx.Done():
			return "unknown"
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// learnWithin is how long a daemon's first NAT report may take: some reservations and packets.
const learnWithin = 4 * time.Second

// target is what probeRelay dials.
type target struct {
	relay peer.ID
	addr  ma.Multiaddr
}

func (d *Daemon) probeRelay(ctx context.Context, _ doctor.Relay, a doctor.Addr) (doctor.Seen, error) {
	t := a.Dial.(target)
	s, err := d.node.Look(ctx, t.relay, atIP(t.addr, a.IP))
	if errors.Is(err, node.ErrNotServed) {
		return doctor.Seen{Unserved: true}, nil
	}
	return doctor.Seen{RTT: s.RTT, Observed: s.Observed, Reflector: s.Reflector, Token: s.Token, Clock: s.Clock}, err
}

// atIP is a with ip in the place of its name; as it is where ip is zero.
func atIP(a ma.Multiaddr, ip netip.Addr) ma.Multiaddr {
	if !ip.IsValid() {
		return a
	}
	_, end := ma.SplitFirst(a)
	return ma.StringCast(ipPrefix(ip)).Encapsulate(end)
}

// mappedAddrs are the public addresses that are no interface's: the router's.
func (d *Daemon) mappedAddrs(public []ma.Multiaddr) []netip.AddrPort {
	own := make(map[string]bool)
	for _, i := range interfaces() {
		for _, a := range i.Addrs {
			own[a.String()] = true
		}
	}
	var list []netip.AddrPort
	for _, a := range public {
		_, host, port, ok := splitAddr(a)
		if ip, err := netip.ParseAddr(host); ok && err == nil && !own[host] {
			list = append(list, netip.AddrPortFrom(ip, port))
		}
	}
	return list
}

// splitAddr takes an address apart: udp, tcp or wss; host or name; port.
func splitAddr(a ma.Multiaddr) (transport, host string, port uint16, ok bool) {
	if len(a) < 2 {
		return "", "", 0, false
	}
	switch end := a[2:].String(); {
	case a[1].Protocol().Code == ma.P_UDP && end == "/quic-v1":
		transport = "udp"
	case a[1].Protocol().Code == ma.P_TCP && len(a) == 2:
		transport = "tcp"
	case a[1].Protocol().Code == ma.P_TCP && strings.HasSuffix(end, "ws"), strings.HasSuffix(end, "wss"):
		transport = "wss"
	default:
		return "", "", 0, false
	}
	n, err := strconv.ParseUint(a[1].Value(), 10, 16)
	return transport, a[0].Value(), uint16(n), err == nil
}

// fetchPast asks http://host/ as a browser would that knows of no proxy, and does not go where it is sent.
func fetchPast(ctx context.Context, host string) (status int, location string, err error) {
	if ip, err := netip.ParseAddr(host); err == nil && ip.Is6() {
		host = "[" + host + "]"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/", nil)
	if err != nil {
		return 0, "", err
	}
	past := &http.Transport{DisableKeepAlives: true}
	defer past.CloseIdleConnections()
	answer, err := past.RoundTrip(r) // which follows nothing
	if err != nil {
		return 0, "", err
	}
	defer answer.Body.Close()
	return answer.StatusCode, answer.Header.Get("Location"), nil
}

// interfaces are those that are up, loopback aside.
func interfaces() []doctor.Interface {
	all, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var list []doctor.Interface
	for _, i := range all {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		out := doctor.Interface{Name: i.Name, P2P: i.Flags&net.FlagPointToPoint != 0}
		addrs, _ := i.Addrs() // an interface that just went has none
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				if ip, ok := netip.AddrFromSlice(n.IP); ok && !ip.IsLinkLocalUnicast() {
					out.Addrs = append(out.Addrs, ip.Unmap())
				}
			}
		}
		list = append(list, out)
	}
	return list
}

// gatewayTowards is the router by which the relays, or else the internet, are reached; zero: unknown.
func gatewayTowards(relays []doctor.Relay) netip.Addr {
	to := net.IPv4(192, 0, 2, 1) // documentation's: routed like any; nothing is sent
	for _, r := range relays {
		for _, a := range r.Addrs {
			if ip := net.ParseIP(a.Host).To4(); ip != nil {
				to = ip
			}
		}
	}
	a, err := node.Gateway(to)
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// proxyWords names the environment's proxy, or says what is wrong with it.
func proxyWords(env func(string) string) (proxy, wrong string) {
	find := proxyFromEnv(env)
	if find == nil {
		return "", ""
	}
	u := find("relay.invalid:443")
	switch {
	case u == nil:
		return "", "HTTPS_PROXY or ALL_PROXY holds no proxy that can be read"
	case u.Scheme != "http" && u.Scheme != "https":
		return "", fmt.Sprintf("a proxy of kind %q cannot be used; http and https can", u.Scheme)
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host}).String(), "" // never its password
}
