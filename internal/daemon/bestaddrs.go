package daemon

import (
	"cmp"
	"net/netip"
	"slices"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"

	"fwd/identity"
	"fwd/internal/node"
)

// A machine with many interfaces has more addresses than an invite or a roster takes.

// inviteAddrs: each makes the code longer that somebody has to copy.
const inviteAddrs = identity.MaxAddrs / 2

// bestAddrs are the max of addrs that others are likeliest to reach: those announced by
// hand, those that the routes to the internet lead from, public ones, and then the rest,
// such as those of containers' bridges.
func bestAddrs(max int, addrs, announced []ma.Multiaddr, routed []netip.Addr) []ma.Multiaddr {
	rank := func(a ma.Multiaddr) int {
		ip, err := manet.ToIP(a)
		own, _ := netip.AddrFromSlice(ip)
		switch {
		case err != nil || ma.Contains(announced, a): // a DNS name is announced, too
			return 0
		case slices.Contains(routed, own.Unmap()):
			return 1
		case manet.IsPublicAddr(a) && own.Unmap().Is4():
			return 2 // IPv6 has many, some of them for a day only
		case manet.IsPublicAddr(a):
			return 3
		}
		return 4
	}
	best := slices.Clone(addrs)
	slices.SortStableFunc(best, func(a, b ma.Multiaddr) int { return cmp.Compare(rank(a), rank(b)) })
	return best[:min(len(best), max)]
}

// routedAddrs are this machine's addresses on the routes to the internet.
func routedAddrs() (own []netip.Addr) {
	for _, to := range []string{"192.0.2.1:9", "[2001:db8::1]:9"} { // documentation's: routed like any
		if a := node.Outgoing(netip.MustParseAddrPort(to)); a.IsValid() {
			own = append(own, a)
		}
	}
	return own
}
