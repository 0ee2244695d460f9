//go:build linux

package lab

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Home is a router and the hosts on its LAN.
type Home struct {
	Router
	hosts  int
	mapper *portMapper // nil: it opens no ports
}

// Carrier is a router whose customers are homes: carrier-grade NAT. Customers are kept apart, unless Between says otherwise.
type Carrier struct {
	Router
	customers int
}

// Router is what homes and carriers have in common.
type Router struct {
	lab     *Lab
	node    *node
	kind    NAT
	wan     netip.Addr
	lan     netip.Prefix // with the router's own address
	inside  netip.Prefix // what is translated
	site    int          // its number
	change  int          // how often the address has changed
	prefix6 netip.Prefix
	opts    options
	cable   *Cable
	up      uplink
}

// Home adds a home with a router of that kind: LAN 192.168.N.0/24, external address 7.N.0.1.
func (l *Lab) Home(name string, kind NAT, opts ...Option) *Home {
	l.t.Helper()
	return l.home(name, kind, opts)
}

func (l *Lab) home(name string, kind NAT, opts []Option) *Home {
	l.t.Helper()
	o := l.options(opts)
	n := l.site()
	lan := fmt.Sprintf("192.168.%d.0/24", n)
	if kind == Open {
		lan = fmt.Sprintf("7.%d.1.0/24", n) // routed, so public
	}
	h := &Home{Router: l.router(name, kind, n, lan, o)}
	l.bridge(h.node, h.lan, o.ipv6)
	if o.maps != nil {
		h.mapPorts(o.maps)
	}
	return h
}

// Carrier adds a carrier: customers have addresses 100.64.N.2 and up, together one external address 7.N.0.1.
func (l *Lab) Carrier(name string, kind NAT, opts ...Option) *Carrier {
	l.t.Helper()
	n := l.site()
	return &Carrier{Router: l.router(name, kind, n, fmt.Sprintf("100.64.%d.0/24", n), l.options(opts))}
}

func (l *Lab) router(name string, kind NAT, n int, lan string, o options) Router {
	l.t.Helper()
	if o.lan != "" {
		lan = o.lan
	}
	prefix := l.prefix(lan).Masked()
	r := Router{
		lab: l, node: l.node(name), kind: kind, site: n, opts: o, up: l.uplink(),
		inside: prefix, lan: netip.PrefixFrom(prefix.Addr().Next(), prefix.Bits()),
		wan: netip.AddrFrom4([4]byte{7, byte(n), 0, 1}),
	}
	if kind == oneToOne {
		r.inside = host(hostAddr(r.lan, 0))
	}
	if o.ipv6 {
		r.prefix6 = prefix6(n, 0)
	}
	if c := o.behind; c != nil {
		c.customers++
		r.up = uplink{c.node, c.lan.Addr(), "lan"}
		r.wan = nth(c.lan, c.customers+1)
		if o.ipv6 {
			r.prefix6 = prefix6(c.site, c.customers)
		}
	}
	if o.wan != "" {
		r.wan = l.addr(o.wan)
	}
	l.must(r.node.router(), name)
	end := site{node: r.node, link: "wan", addr: r.wan, prefix6: r.prefix6}
	if kind == Open {
		end.routed = []netip.Prefix{r.inside}
	}
	r.cable = l.attach(r.up, end, o)
	l.must(r.rules(), name)
	if o.ipv6 {
		// The rest of the prefix is nobody's; without this it would be sent back up.
		l.must(r.node.nl.RouteAdd(&netlink.Route{Dst: ipNet(r.prefix6), Type: unix.RTN_BLACKHOLE}), name)
	}
	if o.tracking != nil {
		r.Tracking(*o.tracking)
	}
	return r
}

// rules installs NAT and filter for the router's present address.
func (r *Router) rules() error {
	if err := r.node.nat(r.kind, r.wan, r.inside, r.opts); err != nil {
		return err
	}
	if !r.opts.ipv6 {
		return nil
	}
	return r.node.filter6(r.kind)
}

// bridge makes a router's LAN.
func (l *Lab) bridge(n *node, addr netip.Prefix, ipv6 bool) {
	l.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "lan0"
	// Fixed, else it follows the lowest of the ports' and so changes as hosts come and go.
	attrs.HardwareAddr = net.HardwareAddr{0x02, 0xfd, 0, 0, 0, 1}
	noSnooping := false // nobody queries here, so a snooping bridge could lose multicast
	l.must(n.nl.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &noSnooping}), "lan")
	l.must(n.up("lan0", 0, []netip.Prefix{addr, netip.MustParsePrefix(linkLocal6 + "/64")}), "lan")

	// A port that is always there, as in the switch of a real router: with its last live port gone a bridge goes
	// down and the router forgets its neighbours, so that one cut cable would be noticed after all.
	l.must(vethPair(n, "sw0", n, "sw1"), "lan")
	bridge, err := n.nl.LinkByName("lan0")
	l.must(err, "lan")
	port, err := n.nl.LinkByName("sw0")
	l.must(err, "lan")
	l.must(n.nl.LinkSetMaster(port, bridge), "lan")
	for _, link := range []string{"sw0", "sw1"} {
		l.must(n.up(link, 0, nil), "lan")
	}
	l.must(n.ready("sw0"), "lan")
	l.must(n.ready("lan0"), "lan")
}

// WAN is the router's external address now.
func (r *Router) WAN() netip.Addr { return r.wan }

// Cable is the router's access cable.
func (r *Router) Cable() *Cable { return r.cable }

// ChangeAddress gives the router another external IPv4 address, as after a reconnect: what was translated is
// forgotten, the old address leads nowhere. It returns the new one.
func (r *Router) ChangeAddress() netip.Addr {
	r.lab.t.Helper()
	r.change++
	b := r.wan.As4()
	next := netip.AddrFrom4([4]byte{b[0], b[1], b[2], b[3] + 100})
	if r.change > 1 {
		next = r.wan.Next()
	}
	old := r.wan
	r.wan = next
	wan, err := r.node.nl.LinkByName("wan")
	r.lab.must(err, "change address")
	// First the new one: with its last address gone a link loses its default route.
	r.lab.must(r.node.nl.AddrReplace(wan, address(host(next))), "change address")
	r.lab.must(r.node.nl.AddrDel(wan, address(host(old))), "change address")
	r.lab.must(r.node.route(wan, route{"0.0.0.0/0", r.up.addr.String()}), "change address")
	r.lab.must(r.up.node.renumber(old, next), "change address")
	r.lab.must(r.rules(), "change address")
	r.FlushNAT()
	return next
}

// renumber moves the host route of a customer from one address to another.
func (n *node) renumber(old, next netip.Addr) error {
	routes, err := n.nl.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Dst: ipNet(host(old))}, netlink.RT_FILTER_DST)
	if err != nil {
		return err
	}
	for _, r := range routes {
		if err := n.nl.RouteDel(&r); err != nil {
			return err
		}
		r.Dst = ipNet(host(next))
		if err := n.nl.RouteReplace(&r); err != nil {
			return err
		}
	}
	return nil
}

// FlushNAT makes the router forget every connection and mapping, as a reboot does.
func (r *Router) FlushNAT() {
	r.lab.t.Helper()
	r.lab.must(r.rules(), "flush mappings") // sets learnt from packets begin empty
	r.lab.must(r.node.nl.ConntrackTableFlush(netlink.ConntrackTable), "flush conntrack")
}

// Tracking changes the life times of NAT entries from now on.
func (r *Router) Tracking(c Conntrack) {
	r.lab.t.Helper()
	for key, life := range map[string]time.Duration{
		"udp_timeout": c.UDP, "udp_timeout_stream": c.UDPStream, "tcp_timeout_established": c.TCPEstablished,
	} {
		if life != 0 {
			seconds := strconv.Itoa(int(life.Seconds()))
			r.lab.must(r.node.sysctl("netfilter/nf_conntrack_"+key, seconds), "conntrack life time")
		}
	}
}

// BlockUDP drops every UDP packet through the router from now on, existing flows included.
func (r *Router) BlockUDP() {
	r.lab.t.Helper()
	r.lab.must(r.node.wall("udp", wall{forwarded, l4(unix.IPPROTO_UDP)}), "block udp")
}

// UnblockUDP takes BlockUDP back.
func (r *Router) UnblockUDP() { r.lab.t.Helper(); r.lab.must(r.node.wall("udp"), "unblock udp") }

// BlockTCP drops every TCP packet through the router from now on; UnblockTCP takes it back.
func (r *Router) BlockTCP() {
	r.lab.t.Helper()
	r.lab.must(r.node.wall("tcp", wall{forwarded, l4(unix.IPPROTO_TCP)}), "block tcp")
}
func (r *Router) UnblockTCP() { r.lab.t.Helper(); r.lab.must(r.node.wall("tcp"), "unblock tcp") }

// OnlyTCP drops all that the LAN sends out but TCP to that port, as networks do that let out the web alone.
func (r *Router) OnlyTCP(port uint16) {
	r.lab.t.Helper()
	var drops []wall
	if port > 0 {
		drops = append(drops, wall{forwarded, slices.Concat(in("lan"), l4(unix.IPPROTO_TCP), dportRange(0, port-1))})
	}
	if port < 65535 {
		drops = append(drops, wall{forwarded, slices.Concat(in("lan"), l4(unix.IPPROTO_TCP), dportRange(port+1, 65535))})
	}
	drops = append(drops, wall{forwarded, slices.Concat(in("lan"), l4(unix.IPPROTO_UDP))})
	r.lab.must(r.node.wall("only", drops...), "only tcp")
}

var forwarded = nftables.ChainHookForward

// Host adds a host to the LAN, with the next address from .10.
func (h *Home) Host(name string, opts ...Option) *Host {
	h.lab.t.Helper()
	host := &Host{lab: h.lab, node: h.lab.node(name), name: name}
	host.join(h)
	host.protect(h.lab.options(opts))
	return host
}

// nth is the address i places after a prefix's first.
func nth(p netip.Prefix, i int) netip.Addr {
	a := p.Masked().Addr()
	for range i {
		a = a.Next()
	}
	return a
}

// hostAddr is the address of host i of a LAN: .10 and up.
func hostAddr(lan netip.Prefix, i int) netip.Addr { return nth(lan, 10+i) }
