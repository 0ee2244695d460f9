package doctor

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Port mapping: three protocols by which a router opens a port on request. They are only asked whether
// they are there and what the external address is; the mapping itself is the node's.

const (
	// routerWithin is how long the router may take: NAT-PMP and PCP begin at 250 ms and double (RFC 6886
	// §3.1), SSDP devices answer within MX = 1 s.
	routerWithin = 1500 * time.Millisecond
	mappingPort  = 5351 // NAT-PMP's and PCP's
)

// gateway is what the router said.
type gateway struct {
	upnp, natpmp, pcp bool
	external          netip.Addr // by NAT-PMP; zero: it did not say
}

func askRouter(ctx context.Context, router netip.Addr) (g gateway) {
	ctx, cancel := context.WithTimeout(ctx, routerWithin)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	if !router.Is4() {
		return g // nobody to ask
	}
	at := netip.AddrPortFrom(router, mappingPort)
	own := outgoing(at)
	wg.Go(func() { g.upnp = searchUPnP(ctx, own) })
	wg.Go(func() {
		answer := exchange(ctx, at, []byte{0, 0}) // version 0, opcode 0: external address
		if len(answer) >= 12 && answer[0] == 0 && answer[1] == 128 && binary.BigEndian.Uint16(answer[2:]) == 0 {
			g.natpmp = true
			if a := netip.AddrFrom4([4]byte(answer[8:12])); !a.IsUnspecified() {
				g.external = a
			}
		}
	})
	wg.Go(func() {
		announce := make([]byte, 24) // version 2, opcode 0: ANNOUNCE, life time 0, our address
		announce[0] = 2
		if own.IsValid() {
			mapped := own.As16()
			copy(announce[8:], mapped[:])
		}
		answer := exchange(ctx, at, announce)
		g.pcp = len(answer) >= 24 && answer[0] == 2 && answer[1] == 0x80 && answer[3] == 0
	})
	return g
}

// exchange sends a packet to the router until it answers.
func exchange(ctx context.Context, to netip.AddrPort, packet []byte) []byte {
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil
	}
	defer c.Close()
	b := make([]byte, 1100) // PCP's largest
	for wait := 250 * time.Millisecond; ctx.Err() == nil; wait *= 2 {
		if _, err := c.Write(packet); err != nil {
			return nil
		}
		deadline := time.Now().Add(wait)
		if end, ok := ctx.Deadline(); ok && end.Before(deadline) {
			deadline = end
		}
		c.SetReadDeadline(deadline)
		if n, err := c.Read(b); err == nil {
			return b[:n]
		} else if !isTimeout(err) {
			return nil // refused: nobody listens
		}
	}
	return nil
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}

// searchUPnP asks the LAN that own belongs to for an internet gateway, by SSDP.
func searchUPnP(ctx context.Context, own netip.Addr) bool {
	if !own.IsValid() {
		return false
	}
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(own, 0)))
	if err != nil {
		return false
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })()
	everyone := netip.MustParseAddrPort("239.255.255.250:1900")
	for _, version := range []string{"1", "2"} {
		search := "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n" +
			"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:" + version + "\r\n\r\n"
		if _, err := c.WriteToUDPAddrPort([]byte(search), everyone); err != nil {
			return false
		}
	}
	b := make([]byte, 2048)
	for {
		n, _, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return false
		}
		if bytes.HasPrefix(b[:n], []byte("HTTP/1.1 200")) && bytes.Contains(b[:n], []byte("InternetGatewayDevice")) {
			return true
		}
	}
}

var carrier = netip.MustParsePrefix("100.64.0.0/10") // RFC 6598

func isInside(a netip.Addr) bool {
	return a.IsPrivate() || carrier.Contains(a) || a.IsLinkLocalUnicast()
}

// router says what the port mapping is worth, and whether there is a second NAT.
func (e *examination) router(n NAT) (checks []Check) {
	var speaks []string
	for _, p := range []struct {
		has  bool
		name string
	}{{e.gateway.upnp, "UPnP"}, {e.gateway.natpmp, "NAT-PMP"}, {e.gateway.pcp, "PCP"}} {
		if p.has {
			speaks = append(speaks, p.name)
		}
	}
	external := e.gateway.external
	var mapped []string
	for _, a := range e.m.Mapped {
		mapped = append(mapped, a.String())
		if !external.IsValid() {
			external = a.Addr()
		}
	}
	public := n.Kind == Public || n.Kind == Firewall
	c := Check{ID: "port-mapping", Level: OK}
	switch {
	case len(mapped) > 0 && !isInside(external):
		c.What = "the router has opened " + strings.Join(slices.Compact(mapped), ", ")
		if len(speaks) > 0 {
			c.What += "; it speaks " + strings.Join(speaks, ", ")
		}
	case len(speaks) > 0 && external.IsValid() && isInside(external):
		c.Level, c.What = Hint, "the router speaks "+strings.Join(speaks, ", ")+", but has no public address itself"
		c.Mend = "see double NAT below"
	case len(speaks) > 0 && len(mapped) == 0:
		c.Level, c.What = Hint, "the router speaks "+strings.Join(speaks, ", ")+", but has opened no port for fwd"
		c.Mend = "allow this machine to map ports, in the router's settings"
	case public:
		c.What = "not needed"
	case !e.m.Gateway.Is4():
		c.Level, c.What, c.Mend = Hint, "cannot be told: no router is known", "check this machine's default route"
	default:
		c.Level, c.What = Hint, "the router speaks neither UPnP, NAT-PMP nor PCP"
		c.Mend = "turn on UPnP, NAT-PMP or PCP in the router's settings: direct paths then come about at once"
	}
	checks = append(checks, c)

	double := Check{ID: "double-nat", Level: Hint}
	mend := "ask the provider for a public address or IPv6, or put the second router into bridge mode"
	carried := slices.ContainsFunc(e.m.Interfaces, func(i Interface) bool { return !i.P2P && slices.ContainsFunc(i.Addrs, carrier.Contains) })
	switch {
	case external.IsValid() && carrier.Contains(external), carried:
		double.What, double.Mend = "the provider shares one public address among customers (carrier-grade NAT): ports opened on the router are not reached from outside", mend
	case external.IsValid() && isInside(external):
		double.What, double.Mend = "the router's own address, "+external.String()+", is private: there is another router behind it, and ports opened on the first are not reached from outside", mend
	case e.m.DoubleNAT:
		double.What, double.Mend = "the router that opens ports has no public address: there is another NAT behind it", mend
	case external.IsValid() && n.Public != "" && external.String() != n.Public:
		double.What, double.Mend = "the router has "+external.String()+", the relays see "+n.Public+": there is another NAT behind it", mend
	default:
		return checks
	}
	return append(checks, double)
}
