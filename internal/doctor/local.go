package doctor

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// What the system itself says.

// udpBuffer is what quic-go asks for, bytes: with less, fast paths lose packets
// (quic-go, wiki "UDP Buffer Sizes").
const udpBuffer = 7_500_000

// local are the checks that ask nobody.
func (e *examination) local() []Check {
	return slices.Concat(e.ports(), e.buffers(), e.congestion())
}

// ports says where this machine listens. A relay that does not get its ports does not start; any other machine wants a
// port of its own, UDP and TCP.
func (e *examination) ports() []Check {
	if len(e.m.Listening) == 0 {
		return nil
	}
	c := Check{ID: "port", Level: OK}
	var at []string
	for _, t := range transports {
		ports := e.listening(t.kind)
		missing := len(ports) == 0 && t.kind != "wss" && !e.m.Relay
		if missing {
			c.Level, ports = Wrong, []string{"nothing"}
			c.Mend = "another program has the port: end it, or with \"fwd stop\" let fwd choose another one"
		}
		if len(ports) > 0 {
			at = append(at, t.name+" "+strings.Join(ports, " and "))
		}
	}
	c.What = "listens on " + strings.Join(at, ", ")
	return []Check{c}
}

// listening are the ports of one transport.
func (e *examination) listening(transport string) (ports []string) {
	for _, a := range e.m.Listening {
		if port := strconv.Itoa(int(a.Port)); a.Transport == transport && !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	return ports
}

// number reads a file that holds one number; false: there is none.
func (e *examination) number(path string) (int, bool) {
	b, err := e.m.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return n, err == nil
}

func (e *examination) buffers() []Check {
	r, okR := e.number("/proc/sys/net/core/rmem_max")
	w, okW := e.number("/proc/sys/net/core/wmem_max")
	if !okR || !okW {
		return nil
	}
	c := Check{ID: "udp-buffers", Level: OK, What: fmt.Sprintf("receive %.1f MB, send %.1f MB", float64(r)/1e6, float64(w)/1e6)}
	if r < udpBuffer || w < udpBuffer {
		c.Level = Hint
		c.What += "; fast direct paths want 7.5 MB"
		c.Mend = fmt.Sprintf("sysctl -w net.core.rmem_max=%d net.core.wmem_max=%d", max(r, udpBuffer), max(w, udpBuffer))
	}
	return []Check{c}
}

func (e *examination) congestion() []Check {
	b, err := e.m.ReadFile("/proc/sys/net/ipv4/tcp_available_congestion_control")
	if err != nil {
		return nil
	}
	c := Check{ID: "bbr", Level: OK, What: "available for TCP"}
	if !slices.Contains(strings.Fields(string(b)), "bbr") {
		c.Level, c.What = Hint, "not loaded; on lossy paths TCP is much faster with it"
		c.Mend = "modprobe tcp_bbr"
	}
	return []Check{c}
}

// ipv6 says whether it is there and of use.
func (e *examination) ipv6(probes []*probe) []Check {
	global := global6(e.m)
	tried, reached := false, false
	var seen netip.Addr // where a relay sees us by IPv6
	for _, p := range probes {
		tried = tried || slices.ContainsFunc(e.ips(p.addr), netip.Addr.Is6)
		if p.err != nil {
			continue
		}
		reached = reached || p.addr.IP.Is6()
		if at := p.seen.Observed.Addr().Unmap(); at.Is6() {
			seen, reached = at, true
		}
	}
	own := seen
	if !own.IsValid() && len(global) > 0 {
		own = global[0]
	}
	c := Check{ID: "ipv6", Level: OK}
	switch {
	case !own.IsValid():
		c.Level, c.What, c.Mend = Hint, "none here; with it on both sides, no NAT is in the way", "turn it on in the router, or ask the provider"
	case seen.IsValid() && !slices.Contains(global, seen):
		c.Level, c.What = Hint, "works, but translated: the relays see "+seen.String()+", which is no address of this machine"
		c.Mend = "turn off NAT for IPv6 in the router here: without it no NAT is in the way"
	case reached:
		c.What = "works, as " + own.String()
	case tried:
		c.Level, c.What, c.Mend = Hint, "this machine has "+own.String()+", but no relay is reached by IPv6", "check IPv6 in the router here, and on the relay"
	default:
		c.What = "this machine has " + own.String() + "; no relay has IPv6 to try it with"
	}
	return []Check{c}
}

// global6 are the machine's IPv6 addresses that the internet could know.
func global6(m Machine) (global []netip.Addr) {
	for _, i := range m.Interfaces {
		for _, a := range i.Addrs {
			if a.Is6() && a.IsGlobalUnicast() && !a.IsPrivate() {
				global = append(global, a)
			}
		}
	}
	return global
}

// firewall speaks up only where packets from outside were seen not to come in, and no NAT is why, nor has it been opened
// for fwd.
func (e *examination) firewall(n NAT) []Check {
	if n.Kind != Firewall || e.letsIn(n) {
		return nil
	}
	c := Check{ID: "firewall", Level: Hint, What: "a public address, but packets from outside do not come in"}
	port := "fwd's port"
	if ports := e.listening("udp"); len(ports) > 0 {
		port = "port " + ports[0]
	}
	c.Mend = "let " + port + " in, UDP and TCP, in the firewall here or in front"
	for _, f := range []struct{ path, name, mend string }{
		{"/run/firewalld", "firewalld", "firewall-cmd --add-port"},
		{"/etc/ufw/ufw.conf", "ufw", "ufw allow"},
	} {
		if e.m.Exists(f.path) {
			c.What += "; " + f.name + " is installed here"
			c.Mend = "let " + port + " in, UDP and TCP: " + f.mend
			return []Check{c}
		}
	}
	for _, module := range []struct{ path, name string }{{"/sys/module/nf_tables", "nftables"}, {"/sys/module/ip_tables", "iptables"}} {
		if e.m.Exists(module.path) {
			c.What += "; " + module.name + " is loaded here"
			break
		}
	}
	return []Check{c}
}

// letsIn says whether the firewall, which keeps out what comes to any other port, lets in what comes to fwd's.
func (e *examination) letsIn(n NAT) bool {
	return slices.ContainsFunc(e.m.Reached, func(a netip.AddrPort) bool { return a.Addr().String() == n.Public })
}

// vpnNames begin the names of interfaces that VPNs make.
var vpnNames = []string{"tun", "tap", "wg", "utun", "ppp", "tailscale", "zt", "nebula", "ipsec", "nordlynx", "proton", "mullvad", "CloudflareWARP"}

// vpn names other tunnels, and says whether the relays are reached through one.
func (e *examination) vpn() []Check {
	out := e.towardsRelays()
	var checks []Check
	for _, i := range e.m.Interfaces {
		named := slices.ContainsFunc(vpnNames, func(n string) bool { return strings.HasPrefix(i.Name, n) })
		if !named && !i.P2P || len(i.Addrs) == 0 {
			continue
		}
		c := Check{ID: "vpn", Of: i.Name, Level: OK, What: "another tunnel; the relays are not reached through it"}
		if slices.Contains(i.Addrs, out) {
			c.Level, c.What = Hint, "another tunnel, and all traffic goes through it: direct paths get its NAT and its detour"
			c.Mend = "leave the relays and your machines out of it (split tunnel), or turn it off"
		}
		checks = append(checks, c)
	}
	return checks
}

// towardsRelays is the address by which this machine sends to the first relay that it can send to; zero: to none.
func (e *examination) towardsRelays() netip.Addr {
	for _, r := range e.m.Relays {
		for _, a := range r.Addrs {
			for _, ip := range e.ips(a) {
				if out := outgoing(netip.AddrPortFrom(ip, a.Port)); out.IsValid() {
					return out
				}
			}
		}
	}
	return netip.Addr{}
}
