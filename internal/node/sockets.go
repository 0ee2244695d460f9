package node

import (
	"net"
	"net/netip"
	"sync"
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

// opener is what an opening packet holds: the two top bits are 0, so that QUIC takes it for foreign.
var opener = make([]byte, 16)

// opener sends one packet to a that dies after ttl hops: it opens our own NATs for answers from a and
// never arrives. A full packet that arrives too early would make some routers unpunchable for good
// (their conntrack confirms it, nat.md §3.2).
func (s *sockets) opener(a netip.AddrPort, ttl int) {
	if hopLimit(true, ttl) == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	to := net.UDPAddrFromAddrPort(a)
	alive := s.open[:0]
	for _, c := range s.open {
		v4 := c.LocalAddr().(*net.UDPAddr).IP.To4() != nil
		if v4 != a.Addr().Unmap().Is4() {
			alive = append(alive, c)
			continue
		}
		_, _, err := c.WriteMsgUDP(opener, hopLimit(v4, ttl), to)
		if !isClosed(err) {
			alive = append(alive, c)
		}
	}
	clear(s.open[len(alive):])
	s.open = alive
}
