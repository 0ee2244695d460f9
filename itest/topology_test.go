//go:build linux

package itest

import (
	"strings"
	"testing"

	"fwd/itest/lab"
)

// Where the two hosts are in relation to each other matters as much as what their routers do.

func TestTopologies(t *testing.T) {
	v4 := []string{"/ip4/7.0.0.10/" + quic4001, "/ip4/7.0.0.10/" + tcp4001}
	for _, c := range []struct {
		name  string
		hosts func(*lab.Lab) (a, b *lab.Host)
		route string
		via   string // part of the address at the other end
		break4,
		only6,
		onlyUDP bool
	}{
		{name: "one LAN behind a symmetric NAT", route: "direct", via: "192.168.",
			hosts: func(l *lab.Lab) (a, b *lab.Host) {
				h := l.Home("home", lab.Symmetric, slow())
				return h.Host("a"), h.Host("b")
			}},
		{name: "one LAN behind a NAT with hairpin", route: "direct", via: "192.168.",
			hosts: func(l *lab.Lab) (a, b *lab.Host) {
				h := l.Home("home", lab.PortRestricted, slow(), lab.Hairpin())
				return h.Host("a"), h.Host("b")
			}},
		{name: "one carrier with hairpin", route: "direct", via: "/ip4/7.",
			hosts: customers(lab.PortRestricted, lab.Hairpin())},
		{name: "one carrier without hairpin", route: "relay", hosts: customers(lab.PortRestricted)},
		{name: "one symmetric carrier with hairpin", route: "relay", hosts: customers(lab.Symmetric, lab.Hairpin())},
		{name: "two NATs in a row and one", route: "direct",
			hosts: func(l *lab.Lab) (a, b *lab.Host) {
				c := l.Carrier("carrier", lab.PortRestricted)
				return l.Home("a", lab.PortRestricted, slow(), lab.Behind(c)).Host("a"), l.Home("b", lab.PortRestricted, slow()).Host("b")
			}},
		{name: "a home behind a symmetric carrier and a home", route: "direct",
			hosts: func(l *lab.Lab) (a, b *lab.Host) {
				c := l.Carrier("carrier", lab.Symmetric)
				return l.Home("a", lab.PortRestricted, slow(), lab.Behind(c)).Host("a"), l.Home("b", lab.PortRestricted, slow()).Host("b")
			}},
		{name: "a home and one behind a carrier of port blocks", route: "direct",
			hosts: func(l *lab.Lab) (a, b *lab.Host) {
				c := l.Carrier("carrier", lab.SymmetricBlock)
				return l.Home("b", lab.PortRestricted, slow()).Host("b"), l.Home("a", lab.PortRestricted, slow(), lab.Behind(c)).Host("a")
			}},
		{name: "a home behind a sequential carrier and a home, by UDP", route: "direct", onlyUDP: true,
			hosts: func(l *lab.Lab) (a, b *lab.Host) {
				c := l.Carrier("carrier", lab.Sequential)
				return l.Home("a", lab.PortRestricted, slow(), lab.Behind(c)).Host("a"), l.Home("b", lab.PortRestricted, slow()).Host("b")
			}},
		{name: "IPv6 alone", route: "direct", via: "/ip6/", only6: true, hosts: dualStack(lab.PortRestricted)},
		{name: "IPv6 where IPv4 is symmetric", route: "direct", via: "/ip6/", hosts: dualStack(lab.Symmetric)},
		{name: "IPv6 where IPv4 is broken", route: "direct", via: "/ip6/", break4: true, hosts: dualStack(lab.PortRestricted)},
		{name: "two public hosts with firewalls", route: "direct",
			hosts: func(l *lab.Lab) (a, b *lab.Host) {
				return l.Public("a", "7.0.0.30", slow(), lab.Firewall()), l.Public("b", "7.0.0.31", slow(), lab.Firewall())
			}},
		{name: "a public host with a firewall and a symmetric home", route: "direct",
			hosts: func(l *lab.Lab) (a, b *lab.Host) {
				return l.Public("a", "7.0.0.30", slow(), lab.Firewall()), l.Home("b", lab.Symmetric, slow()).Host("b")
			}},
		{name: "a host behind its own firewall and its router", route: "direct",
			hosts: func(l *lab.Lab) (a, b *lab.Host) {
				return l.Home("a", lab.PortRestricted, slow()).Host("a", lab.Firewall()), l.Home("b", lab.PortRestricted, slow()).Host("b", lab.Firewall())
			}},
		{name: "a cloud's host and a home", route: "direct",
			hosts: func(l *lab.Lab) (a, b *lab.Host) {
				return l.Cloud("a", "7.0.0.40", slow()), l.Home("b", lab.PortRestricted, slow()).Host("b")
			}},
	} {
		met := func(t *testing.T) meeting {
			l := lab.New(t)
			vps := l.Public("relay", "7.0.0.10", lab.IPv6())
			a, b := c.hosts(l)
			v6 := []string{"/ip6/" + vps.Addr6().String() + "/" + quic4001, "/ip6/" + vps.Addr6().String() + "/" + tcp4001}
			listen := append(listenOn4(quic4001, tcp4001), "/ip6/::/"+quic4001, "/ip6/::/"+tcp4001)
			addrs := append(v6, v4...)
			switch {
			case c.only6:
				listen, addrs = listen[2:], v6
			case c.onlyUDP:
				listen, addrs = listen[:1], v4
			case !a.Addr6().IsValid():
				listen, addrs = listen[:2], v4
			case c.break4:
				l.Sever(vps.Addr(), a.PublicAddr())
				l.Sever(vps.Addr(), b.PublicAddr())
				l.Sever(a.PublicAddr(), b.PublicAddr())
			}
			startPlayer(t, vps, playerSpec{Number: 1, Relay: true, Listen: append(listenOn4(quic4001, tcp4001), "/ip6/::/"+quic4001, "/ip6/::/"+tcp4001)}).ready()
			relays := map[int][]string{1: addrs}
			pa := startPlayer(t, a, playerSpec{Number: 2, Relays: relays, Listen: listen})
			pb := startPlayer(t, b, playerSpec{Number: 3, Relays: relays, Listen: listen})
			pa.ready()
			pb.ready()
			if !c.only6 && !c.break4 {
				pa.examined()
				pb.examined()
			}
			return pa.meet(pb, knownCeiling)
		}
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			for try := 1; ; try++ {
				m := met(t)
				t.Logf("%+v", m)
				if m.Route == c.route && strings.Contains(m.Remote, c.via) {
					return
				}
				if try == tries {
					t.Fatalf("want %s by %q", c.route, c.via)
				}
			}
		})
	}
}

// customers are two homes behind one carrier.
func customers(kind lab.NAT, opts ...lab.Option) func(*lab.Lab) (a, b *lab.Host) {
	return func(l *lab.Lab) (a, b *lab.Host) {
		c := l.Carrier("carrier", kind, opts...)
		return l.Home("a", lab.PortRestricted, slow(), lab.Behind(c)).Host("a"), l.Home("b", lab.PortRestricted, slow(), lab.Behind(c)).Host("b")
	}
}

// dualStack are two homes with IPv6 besides; their routers let nobody in by it.
func dualStack(kind lab.NAT) func(*lab.Lab) (a, b *lab.Host) {
	return func(l *lab.Lab) (a, b *lab.Host) {
		return l.Home("a", kind, slow(), lab.IPv6()).Host("a"), l.Home("b", kind, slow(), lab.IPv6()).Host("b")
	}
}
