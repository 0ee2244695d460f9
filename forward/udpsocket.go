package forward

import (
	"net"
	"net/netip"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// A udpClient is who sent a datagram, and to which of our addresses: an answer from another one would be dropped
// by most programs. At is only known, and only matters, on a socket that listens at all addresses.
type udpClient struct {
	addr netip.AddrPort
	at   netip.Addr
}

// A udpSocket is an entry's socket. One that listens at all addresses has the kernel tell and set the local one of each
// datagram, where the system can (not on Windows).
type udpSocket struct {
	conn *net.UDPConn
	v4   *ipv4.PacketConn
	v6   *ipv6.PacketConn
}

func newUDPSocket(c *net.UDPConn) *udpSocket {
	s := &udpSocket{conn: c}
	local := c.LocalAddr().(*net.UDPAddr)
	if !local.IP.IsUnspecified() {
		return s
	}
	if local.IP.To4() != nil {
		if p := ipv4.NewPacketConn(c); p.SetControlMessage(ipv4.FlagDst, true) == nil {
			s.v4 = p
		}
	} else if p := ipv6.NewPacketConn(c); p.SetControlMessage(ipv6.FlagDst, true) == nil {
		s.v6 = p
	}
	return s
}

func (s *udpSocket) read(b []byte) (n int, from udpClient, err error) {
	var at net.IP
	var src net.Addr
	switch {
	case s.v4 != nil:
		var cm *ipv4.ControlMessage
		if n, cm, src, err = s.v4.ReadFrom(b); cm != nil {
			at = cm.Dst
		}
	case s.v6 != nil:
		var cm *ipv6.ControlMessage
		if n, cm, src, err = s.v6.ReadFrom(b); cm != nil {
			at = cm.Dst
		}
	default:
		n, from.addr, err = s.conn.ReadFromUDPAddrPort(b)
		return n, from, err
	}
	if err != nil {
		return 0, from, err
	}
	from.addr = src.(*net.UDPAddr).AddrPort()
	if a, ok := netip.AddrFromSlice(at); ok && !a.IsMulticast() {
		from.at = a
	}
	return n, from, nil
}

func (s *udpSocket) write(b []byte, to udpClient) {
	var control []byte
	switch at := to.at.Unmap(); { // an IPv4 client of an IPv6 socket is told as IPv4
	case !at.IsValid():
	case at.Is4():
		control = (&ipv4.ControlMessage{Src: at.AsSlice()}).Marshal()
	default:
		control = (&ipv6.ControlMessage{Src: at.AsSlice()}).Marshal()
	}
	if control != nil {
		if _, _, err := s.conn.WriteMsgUDPAddrPort(b, control, to.addr); err == nil {
			return
		}
	}
	s.conn.WriteToUDPAddrPort(b, to.addr) // an error is a program that is gone
}
