package node

import (
	"slices"
	"sync"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/p2p/host/basic"
	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
)

// addresses knows where this node can be found. It has the last word on what is announced: libp2p
// alone would drop circuits as soon as AutoNAT v2 confirms one address (go-libp2p #3515), and
// announce unconfirmed observed ones.
type addresses struct {
	announce []ma.Multiaddr
	mapping  *mapperConfig // nil: no port mapping
	host     *basichost.BasicHost

	mu       sync.Mutex
	mapper   *mapper
	reserved []peer.ID // relays that hold a reservation for us
}

func listenAnywhere() []ma.Multiaddr {
	return []ma.Multiaddr{
		ma.StringCast("/ip4/0.0.0.0/udp/0/quic-v1"), ma.StringCast("/ip4/0.0.0.0/tcp/0"),
		ma.StringCast("/ip6/::/udp/0/quic-v1"), ma.StringCast("/ip6/::/tcp/0"),
	}
}

// announced is the host's AddrsFactory. It is given interface and port-mapped addresses, without those
// that AutoNAT v2 found unreachable.
func (a *addresses) announced(found []ma.Multiaddr) []ma.Multiaddr {
	var out []ma.Multiaddr
	for _, addr := range found {
		if isIP(addr) && !manet.IsIP6LinkLocal(addr) {
			out = append(out, addr)
		}
	}
	if slices.ContainsFunc(out, isRemotelyUseful) {
		out = slices.DeleteFunc(out, manet.IsIPLoopback)
	}
	out = append(out, a.announce...)
	return append(out, a.circuits()...)
}

// circuits are the addresses by which the relays that hold a reservation lead to us. They name the
// relay alone; who wants to use them has its addresses from the roster.
func (a *addresses) circuits() []ma.Multiaddr {
	a.mu.Lock()
	defer a.mu.Unlock()
	var out []ma.Multiaddr
	for _, r := range a.reserved {
		out = append(out, circuitVia(r))
	}
	return out
}

// setReserved returns whether the set changed.
func (a *addresses) setReserved(relays []peer.ID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.Equal(a.reserved, relays) {
		return false
	}
	a.reserved = relays
	return true
}

func circuitVia(relay peer.ID) ma.Multiaddr {
	return ma.StringCast("/p2p/" + relay.String() + "/p2p-circuit")
}

// listening are the listen addresses with their real ports.
func (a *addresses) listening() []ma.Multiaddr {
	return slices.DeleteFunc(a.host.Network().ListenAddresses(), func(addr ma.Multiaddr) bool { return !isIP(addr) })
}

// ownPort says whether a connection uses a port that we listen on, so that what a relay sees of it tells
// where that port is mapped. One through a proxy, or from a port of its own, does not.
func (a *addresses) ownPort(c network.Conn) bool {
	transport, port := transportOf(c.LocalMultiaddr()), portOf(c.LocalMultiaddr())
	return slices.ContainsFunc(a.listening(), func(l ma.Multiaddr) bool {
		return transportOf(l) == transport && portOf(l) == port
	})
}

// local are the interface addresses on which we listen, read anew: libp2p's list is up to a minute old.
func (a *addresses) local() []ma.Multiaddr {
	ifaces, err := manet.InterfaceMultiaddrs()
	if err != nil {
		return nil
	}
	addrs, err := manet.ResolveUnspecifiedAddresses(a.listening(), ifaces)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(addrs, manet.IsIP6LinkLocal)
}

// lan are the addresses that only our neighbours can use; loopback only if there is nothing else.
func (a *addresses) lan() []ma.Multiaddr {
	local := a.local()
	lan := slices.DeleteFunc(slices.Clone(local), func(addr ma.Multiaddr) bool {
		return manet.IsPublicAddr(addr) || manet.IsIPLoopback(addr)
	})
	if len(lan) == 0 && !slices.ContainsFunc(local, isRemotelyUseful) {
		return local
	}
	return lan
}

// confirmed are the addresses that can be dialled from the internet: announced by hand, port-mapped,
// and public ones of our interfaces unless AutoNAT v2 found them unreachable (a firewall).
func (a *addresses) confirmed() []ma.Multiaddr {
	out := slices.Clone(a.announce)
	reachable, unreachable, _ := a.host.ConfirmedAddrs()
	out = append(out, reachable...)
	candidates := a.local()
	if m := a.currentMapper(); m != nil {
		for _, l := range a.listening() {
			if addr := m.GetMapping(l); addr != nil {
				candidates = append(candidates, addr)
			}
		}
	}
	for _, addr := range candidates {
		if manet.IsPublicAddr(addr) && !ma.Contains(unreachable, addr) {
			out = append(out, addr)
		}
	}
	return ma.Unique(out)
}

// mapped says what the router's port mapping gave: the external addresses, if any.
func (a *addresses) mapped() (found bool, addrs []ma.Multiaddr) {
	m := a.currentMapper()
	if m == nil || !m.HasDiscoveredNAT() {
		return false, nil
	}
	for _, l := range a.listening() {
		if addr := m.GetMapping(l); addr != nil {
			addrs = append(addrs, addr)
		}
	}
	return true, ma.Unique(addrs)
}

func (a *addresses) currentMapper() *mapper {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.mapper
}

// isIP tells addresses on the wire from the door's and the circuit listener's.
func isIP(addr ma.Multiaddr) bool {
	if len(addr) == 0 {
		return false
	}
	switch addr[0].Protocol().Code {
	case ma.P_IP4, ma.P_IP6, ma.P_IP6ZONE, ma.P_DNS, ma.P_DNS4, ma.P_DNS6:
		return relayOf(addr) == ""
	}
	return false
}

// isWeb tells WebSocket, with TLS or without.
func isWeb(addr ma.Multiaddr) bool {
	t := transportOf(addr)
	return t == "ws" || t == "wss"
}

func isRemotelyUseful(addr ma.Multiaddr) bool { return !manet.IsIPLoopback(addr) }

// transportOf is "quic-v1", "tcp", "wss" or "ws", by the address of a connection's wire.
func transportOf(addr ma.Multiaddr) string {
	transport := ""
	ma.ForEach(addr, func(c ma.Component) bool {
		switch c.Protocol().Code {
		case ma.P_QUIC_V1, ma.P_WSS:
			transport = c.Protocol().Name
			return false
		case ma.P_TCP:
			transport = "tcp" // unless more follows
		case ma.P_WS:
			transport = "ws"
			if isTLS(addr) {
				transport = "wss"
			}
			return false
		case ma.P_CIRCUIT:
			return false
		}
		return true
	})
	return transport
}
