package node

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"golang.org/x/net/ipv4"
)

// sockets remembers the UDP sockets that QUIC opened, to send from the very ports it is mapped at.
type sockets struct {
	mu   sync.Mutex
	open []*net.UDPConn
}

// listen opens a socket. It is handed on as it is: wrapped, quic-go would lose batching and ECN.
func (s *sockets) listen(network string, addr *net.UDPAddr) (net.PacketConn, error) {
	c, err := net.ListenUDP(network, addr)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open = append(s.open, c)
	return c, nil
}

// addrs are where the sockets listen.
func (s *sockets) addrs() []*net.UDPAddr {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*net.UDPAddr
	for _, c := range s.open {
		out = append(out, c.LocalAddr().(*net.UDPAddr))
	}
	return out
}

// each calls f for the sockets of a's address family and forgets those that are closed.
func (s *sockets) each(a netip.Addr, f func(*net.UDPConn) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	alive := s.open[:0]
	for _, c := range s.open {
		v4 := c.LocalAddr().(*net.UDPAddr).IP.To4() != nil
		if v4 != a.Unmap().Is4() || !isClosed(f(c)) {
			alive = append(alive, c)
		}
	}
	clear(s.open[len(alive):])
	s.open = alive
}

// opener is what an opening packet holds: the two top bits are 0, so that QUIC takes it for foreign.
var opener = make([]byte, 16)

// opener sends one packet to a that dies after ttl hops: it opens our own NATs for answers from a and
// never arrives. A full packet that arrives too early would make some routers unpunchable for good: they
// take it for a connection to themselves, and give its port pair to nobody else (docs/paths.md).
func (s *sockets) opener(a netip.AddrPort, ttl int) {
	if hopLimit(true, ttl) == nil {
		return
	}
	to := net.UDPAddrFromAddrPort(a)
	s.each(a.Addr(), func(c *net.UDPConn) error {
		v4 := c.LocalAddr().(*net.UDPAddr).IP.To4() != nil
		_, _, err := c.WriteMsgUDP(opener, hopLimit(v4, ttl), to)
		return err
	})
}

// send sends one packet beside QUIC, from the first socket that can.
func (s *sockets) send(a netip.AddrPort, b []byte) error {
	err := errors.New("no QUIC socket of that family")
	s.each(a.Addr(), func(c *net.UDPConn) error {
		if err == nil {
			return nil
		}
		_, err = c.WriteToUDPAddrPort(b, a)
		return err
	})
	return err
}

// freshSocket is one that nothing was sent from yet; IPv4.
type freshSocket struct {
	*net.UDPConn
	ttl int // the usual one
}

func newFreshSocket() (*freshSocket, error) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{}) // of no interface: QUIC has to be able to take it over
	if err != nil {
		return nil, err
	}
	ttl, err := ipv4.NewConn(c).TTL()
	if err != nil || ttl == 0 {
		ttl = 64
	}
	return &freshSocket{c, ttl}, nil
}

// Send sends a packet that dies after so many hops; 0: as usual.
func (s *freshSocket) Send(b []byte, to netip.AddrPort, hops int) error {
	if hops > 0 {
		if err := ipv4.NewConn(s.UDPConn).SetTTL(hops); err != nil {
			return err // a full packet would do harm
		}
		defer ipv4.NewConn(s.UDPConn).SetTTL(s.ttl)
	}
	_, err := s.WriteToUDPAddrPort(b, to)
	return err
}

// Receive waits for a packet until the socket is closed or its deadline over. An ICMP error, which the
// death of an opener may bring, is nothing to stop at.
func (s *freshSocket) Receive(b []byte) (int, netip.AddrPort, error) {
	for {
		n, from, err := s.ReadFromUDPAddrPort(b)
		var timeout net.Error
		if err == nil || isClosed(err) || errors.As(err, &timeout) && timeout.Timeout() {
			return n, unmapped(from), err
		}
	}
}
