//go:build linux

package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Cable is what joins a home, a carrier or a public host to its provider, or a host to its LAN.
//
// Cut is a fault further out: packets vanish, both ends see nothing. Unplug is a fault at the socket: the near end
// sees its link go.
type Cable struct {
	lab  *Lab
	name string
	wire *wire // nil: a perfect cable

	block func(up, down bool) error // drop packets towards the provider, towards the customer
	plug  func(in bool) error
}

// Cut drops everything, both ways, without either end noticing.
func (c *Cable) Cut() { c.lab.t.Helper(); c.lab.must(c.block(true, true), "cut "+c.name) }

// CutUp drops what the customer sends, CutDown what comes to it. LAN cables can only be cut both ways.
func (c *Cable) CutUp()   { c.lab.t.Helper(); c.lab.must(c.block(true, false), "cut "+c.name) }
func (c *Cable) CutDown() { c.lab.t.Helper(); c.lab.must(c.block(false, true), "cut "+c.name) }

// Heal ends a cut.
func (c *Cable) Heal() { c.lab.t.Helper(); c.lab.must(c.block(false, false), "heal "+c.name) }

// Unplug takes the customer's link down ("no carrier"; addresses stay), Plug brings it back.
func (c *Cable) Unplug() { c.lab.t.Helper(); c.lab.must(c.plug(false), "unplug "+c.name) }
func (c *Cable) Plug()   { c.lab.t.Helper(); c.lab.must(c.plug(true), "plug in "+c.name) }

// Reshape changes what the wire does from now on. Only for cables made with Shaped, Slow and the like.
func (c *Cable) Reshape(up, down Shape) {
	c.lab.t.Helper()
	if c.wire == nil {
		c.lab.t.Fatalf("lab: %s was not made with a shape", c.name)
	}
	c.wire.up.shape.Store(&up)
	c.wire.down.shape.Store(&down)
}

// uplink is where cables to customers begin: the core, or a carrier.
type uplink struct {
	node *node
	addr netip.Addr // the provider's address, the customers' default gateway
	link string     // prefix of its links' names
}

func (l *Lab) uplink() uplink { return uplink{l.core, gateway, "c"} }

// site is where a cable ends.
type site struct {
	node    *node
	link    string
	addr    netip.Addr
	routed  []netip.Prefix // further IPv4 prefixes behind it
	prefix6 netip.Prefix   // all its IPv6 addresses; zero: none
}

// Addresses of the two ends of an access cable for IPv6.
const (
	linkLocal6 = "fe80::1" // the provider's and every LAN's router
	customer6  = "fe80::2"
)

// attach lays a cable and sets up addresses and routes at both ends.
func (l *Lab) attach(u uplink, s site, o options) *Cable {
	l.t.Helper()
	l.mu.Lock()
	l.cables++
	number := l.cables
	l.mu.Unlock()
	link := fmt.Sprintf("%s%d", u.link, number)
	c := &Cable{lab: l, name: "cable of " + s.node.name}

	if o.shaped {
		w, err := newWire(u.node, s.node, link, s.link, o.up, o.down, uint64(number))
		if err != nil && notSupported(err) {
			unavailable(l.t, err)
		}
		l.must(err, c.name)
		l.mu.Lock()
		l.wires = append(l.wires, w)
		l.mu.Unlock()
		c.wire = w
	} else {
		l.must(vethPair(u.node, link, s.node, s.link), c.name)
		l.must(errors.Join(u.node.pointToPoint(link), s.node.pointToPoint(s.link)), c.name)
	}

	provider := func() error {
		addrs := []netip.Prefix{host(u.addr), netip.MustParsePrefix(linkLocal6 + "/64")}
		routes := []route{{to: host(s.addr).String()}}
		for _, p := range s.routed {
			routes = append(routes, route{p.String(), s.addr.String()})
		}
		if s.prefix6.IsValid() {
			routes = append(routes, route{s.prefix6.String(), customer6})
		}
		return u.node.up(link, o.mtu, addrs, routes...)
	}
	customer := func() error {
		addrs := []netip.Prefix{host(s.addr), netip.MustParsePrefix(customer6 + "/64")}
		routes := []route{{"0.0.0.0/0", u.addr.String()}}
		if s.prefix6.IsValid() {
			addrs = append(addrs, host(wan6(s.prefix6)))
			routes = append(routes, route{"::/0", linkLocal6})
		}
		return s.node.up(s.link, o.mtu, addrs, routes...)
	}
	l.must(provider(), c.name)
	l.must(customer(), c.name)
	l.must(u.node.ready(link), c.name)
	l.must(s.node.ready(s.link), c.name)

	c.block = func(up, down bool) error {
		var walls []wall
		if up {
			walls = append(walls, wall{nftables.ChainHookPrerouting, inOnly(link)})
		}
		if down {
			walls = append(walls, wall{nftables.ChainHookPostrouting, outOnly(link)})
		}
		return u.node.wall("cable "+link, walls...)
	}
	c.plug = func(in bool) error {
		if c.wire != nil {
			if err := c.wire.carrier(in); err != nil {
				return err
			}
			return c.block(!in, !in)
		}
		if in {
			// Its routes went with the link.
			return errors.Join(provider(), u.node.ready(link), s.node.ready(s.link))
		}
		end, err := u.node.nl.LinkByName(link)
		if err != nil {
			return err
		}
		return u.node.nl.LinkSetDown(end)
	}
	return c
}

// plugIn joins a host's eth0 to a LAN's bridge and names the bridge's port.
func (l *Lab) plugIn(lan *node, h *node) (c *Cable, port string) {
	l.t.Helper()
	l.mu.Lock()
	l.cables++
	port = fmt.Sprintf("p%d", l.cables)
	l.mu.Unlock()
	c = &Cable{lab: l, name: "cable of " + h.name}
	l.must(vethPair(lan, port, h, "eth0"), c.name)
	bridge, err := lan.nl.LinkByName("lan0")
	l.must(err, c.name)
	end, err := lan.nl.LinkByName(port)
	l.must(err, c.name)
	l.must(lan.nl.LinkSetMaster(end, bridge), c.name)
	l.must(lan.nl.LinkSetUp(end), c.name)

	c.block = func(up, down bool) error {
		if up != down {
			return fmt.Errorf("a LAN cable can only be cut both ways")
		}
		return lan.bridgePort(end, !up)
	}
	c.plug = func(in bool) error {
		if in {
			return lan.nl.LinkSetUp(end)
		}
		return lan.nl.LinkSetDown(end)
	}
	return c, port
}

// bridgePort makes a bridge forward packets of a port, or drop them in silence.
func (n *node) bridgePort(port netlink.Link, forward bool) error {
	const disabled, forwarding = 0, 3 // linux/if_bridge.h, BR_STATE_
	state := byte(disabled)
	if forward {
		state = forwarding
	}
	return n.do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
		msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
		msg.Index = int32(port.Attrs().Index)
		req.AddData(msg)
		info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
		info.AddRtAttr(nl.IFLA_BRPORT_STATE, []byte{state})
		req.AddData(info)
		_, err := req.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

func vethPair(a *node, aLink string, b *node, bLink string) error {
	return a.nl.LinkAdd(&netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: aLink, Namespace: netlink.NsFd(a.ns)},
		PeerName:      bLink,
		PeerNamespace: netlink.NsFd(b.ns),
	})
}

// pointToPoint makes an end of a veth pair send without asking for the neighbour's address, which costs a second
// when the question is lost: without ARP the kernel sends to the link's own address, so both ends get the same.
func (n *node) pointToPoint(link string) error {
	l, err := n.nl.LinkByName(link)
	if err != nil {
		return err
	}
	mac := net.HardwareAddr{0x02, 0xfd, 0, 0, 0, 2}
	return errors.Join(n.nl.LinkSetHardwareAddr(l, mac), n.nl.LinkSetARPOff(l))
}

// host is the prefix that holds one address.
func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Masked().Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefix6 is the IPv6 space of customer k of site n: 2a00:n:k::/48, for k = 0 the whole 2a00:n::/32.
func prefix6(n, k int) netip.Prefix {
	var a [16]byte
	binary.BigEndian.PutUint16(a[0:], 0x2a00)
	binary.BigEndian.PutUint16(a[2:], uint16(n))
	binary.BigEndian.PutUint16(a[4:], uint16(k))
	if k == 0 {
		return netip.PrefixFrom(netip.AddrFrom16(a), 32)
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}

// wan6 is the address of the cable's near end, lan6 the address of host i behind it.
func wan6(p netip.Prefix) netip.Addr { return p.Addr().Next() }

func lan6(p netip.Prefix, i int) netip.Addr {
	a := p.Addr().As16()
	a[7] = 1 // the subnet …:1::/64
	binary.BigEndian.PutUint16(a[14:], uint16(i))
	return netip.AddrFrom16(a)
}
