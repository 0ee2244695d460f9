package punch

import (
	"net/netip"
	"slices"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// maxAddrs is how many addresses of one kind a report may list. It bounds what a peer can have us
// send packets to: no scanner for hire.
const maxAddrs = 8

func texts(list []ma.Multiaddr, transport string) []string {
	var out []string
	for _, a := range list {
		if len(out) < maxAddrs && punchable(a, transport) {
			out = append(out, a.String())
		}
	}
	return out
}

func addrs(list []string, transport string) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, s := range list {
		if len(out) >= maxAddrs {
			break
		}
		a, err := ma.NewMultiaddr(s)
		if err == nil && punchable(a, transport) && !slices.ContainsFunc(out, a.Equal) {
			out = append(out, a)
		}
	}
	return out
}

// punchable says whether a is an IP address and port of that transport ("" for either), and nothing more.
func punchable(a ma.Multiaddr, transport string) bool {
	ap, ok := addrPort(a)
	if !ok || ap.Port() == 0 || ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() || ap.Addr().Zone() != "" {
		return false
	}
	return transport == "" || transport == transportOf(a)
}

// transportOf is "quic-v1", "tcp", or nothing for what is neither.
func transportOf(a ma.Multiaddr) string {
	switch p := a.Protocols(); {
	case len(p) == 2 && p[1].Code == ma.P_TCP:
		return "tcp"
	case len(p) == 3 && p[1].Code == ma.P_UDP && p[2].Code == ma.P_QUIC_V1:
		return "quic-v1"
	}
	return ""
}

// addrPort is the IP address and port of a QUIC or TCP address.
func addrPort(a ma.Multiaddr) (netip.AddrPort, bool) {
	if len(a) == 0 || transportOf(a) == "" {
		return netip.AddrPort{}, false
	}
	ip, err := manet.ToIP(a)
	if err != nil {
		return netip.AddrPort{}, false
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok {
		return netip.AddrPort{}, false
	}
	port, err := netip.ParseAddrPort("0.0.0.0:" + a[1].Value())
	if err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr.Unmap(), port.Port()), true
}

func isIPv4(a ma.Multiaddr) bool {
	ap, ok := addrPort(a)
	return ok && ap.Addr().Is4()
}

// seen4 is the newest IPv4 address at which a transport was seen.
func (t Transport) seen4() (netip.AddrPort, bool) {
	for _, a := range t.Observed {
		if isIPv4(a) {
			return addrPort(a)
		}
	}
	return netip.AddrPort{}, false
}

// Seen4 is the IPv4 address at which the side's UDP port was seen last.
func (r Report) Seen4() (netip.AddrPort, bool) { return r.UDP.seen4() }
