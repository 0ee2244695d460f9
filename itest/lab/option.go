//go:build linux

package lab

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Option says what is special about a host, a home or a carrier.
type Option func(*options)

type options struct {
	ipv6     bool
	hairpin  bool
	behind   *Carrier
	shaped   bool
	up, down Shape
	mtu      int
	lan, wan string
	firewall []string // nil: none
	tracking *Conntrack
	maps     []Mapping
	between  bool
}

func (l *Lab) options(opts []Option) options {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	return o
}

// IPv6 gives global IPv6 addresses besides IPv4. Home routers let nobody in over IPv6 who was not called.
func IPv6() Option { return func(o *options) { o.ipv6 = true } }

// Hairpin lets hosts reach each other by their router's external address and mapped ports.
func Hairpin() Option { return func(o *options) { o.hairpin = true } }

// Behind puts a home behind a carrier's NAT instead of on the internet.
func Behind(c *Carrier) Option { return func(o *options) { o.behind = c } }

// Shaped gives the access cable delay, loss, a rate: up for what the customer sends, down for what it gets.
func Shaped(up, down Shape) Option {
	return func(o *options) { o.shaped, o.up, o.down = true, up, down }
}

// Slow is Shaped with nothing but the same one-way delay in both directions.
func Slow(delay time.Duration) Option { return Shaped(Shape{Delay: delay}, Shape{Delay: delay}) }

// MTU sets that of the access cable, bytes.
func MTU(bytes int) Option { return func(o *options) { o.mtu = bytes } }

// LAN chooses a home's private prefix; the router is its first address. Two homes may have the same.
func LAN(prefix string) Option { return func(o *options) { o.lan = prefix } }

// WAN chooses a home's or carrier's external address.
func WAN(addr string) Option { return func(o *options) { o.wan = addr } }

// MapsPorts makes a home's router open ports for its hosts on request, by those protocols. By PCP and NAT-PMP it gives
// other ports than those asked for, so that who takes its wish for the answer is found out.
func MapsPorts(by ...Mapping) Option { return func(o *options) { o.maps = by } }

// Between lets a carrier's customers reach each other at the addresses that it gave them; else they are kept apart.
func Between() Option { return func(o *options) { o.between = true } }

// Firewall makes the host drop what it did not ask for, but for some open ports: Firewall("udp/4001", "tcp/22").
func Firewall(open ...string) Option {
	return func(o *options) { o.firewall = append([]string{}, open...) }
}

// Conntrack are life times of a router's NAT entries; zero leaves the kernel's default.
type Conntrack struct {
	UDP            time.Duration // unanswered (30 s)
	UDPStream      time.Duration // answered (120 s)
	TCPEstablished time.Duration // (5 days)
}

// Tracking sets the life times of a router's NAT entries; whole seconds.
func Tracking(c Conntrack) Option { return func(o *options) { o.tracking = &c } }

type port struct {
	proto  byte
	number uint16
}

func parsePort(s string) (port, error) {
	proto, number, _ := strings.Cut(s, "/")
	n, err := strconv.ParseUint(number, 10, 16)
	switch {
	case err != nil:
	case proto == "udp":
		return port{unix.IPPROTO_UDP, uint16(n)}, nil
	case proto == "tcp":
		return port{unix.IPPROTO_TCP, uint16(n)}, nil
	}
	return port{}, fmt.Errorf("port %q is not like udp/4001", s)
}

func (l *Lab) prefix(s string) netip.Prefix {
	l.t.Helper()
	p, err := netip.ParsePrefix(s)
	l.must(err, "prefix")
	return p
}
