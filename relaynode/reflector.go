package relaynode

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	ma "github.com/multiformats/go-multiaddr"
	manet "github.com/multiformats/go-multiaddr/net"
	"golang.org/x/time/rate"
)

// Reflection by plain UDP and TCP, so that a peer learns what its NAT makes of single packets: does another of
// our ports see another address (mapping), are the ports of fresh sockets in a row (prediction), does an
// answer from a port that was not asked get in (filtering)? Packets, sizes in bytes:
//
//	request  0x11 ‖ nonce (16) ‖ token (16) ‖ extra (1) ‖ port (2) ‖ zeros, 80 in all
//	answer   0x12 ‖ nonce (16) ‖ the sender's IP as 16, then port (2), both xor nonce; 35 in all
//
// extra 0: nothing; 1: the answer is sent once more, from the other port; 2: it is sent
// once more, to that port of the sender's IP. Two answers are shorter than the request, so this amplifies
// nothing; the token is bound to the IP and given to members alone, so a stranger gets no answer at all.
// The first byte marks it as no QUIC, for a peer asks from its QUIC socket, too. The address is xored
// because some NATs rewrite addresses that they find in packets. By TCP one request and its answer are all of a
// connection: it shows whether our second port sees the same address as the one that the peer is connected to.
const (
	kindRequest  = 0x11
	kindAnswer   = 0x12
	nonceSize    = 16
	tokenSize    = 16
	requestSize  = 80
	answerSize   = 1 + nonceSize + 16 + 2
	extraOther   = 1                // also from our other port
	extraPort    = 2                // also to another port of the sender
	reflectRate  = 2000             // answers a second, all peers: 70 kB
	reflectBurst = 2000             // a network's peers wake up together
	tokenSlot    = 10 * time.Minute // a token lives one to two of them; peers ask anew every 5 min
	streamLimit  = 128              // TCP connections at once
	streamWithin = 2 * time.Second  // what one may take
)

// reflector answers requests on one UDP port for each address family.
type reflector struct {
	secret [32]byte
	now    func() time.Time
	limit  *rate.Limiter

	sockets []reflectorSockets // set by open, before anyone asks

	mu     sync.Mutex
	ports  map[bool]uint16 // by "is IPv4"
	others map[bool]uint16 // likewise, of the second sockets
	tcp    map[bool]uint16 // likewise, of TCP
}

// reflectorSockets are the one that is asked and the one that answers besides; and TCP's, which may be nil.
type reflectorSockets struct {
	main, other *net.UDPConn
	tcp         net.Listener
}

func newReflector(now func() time.Time) *reflector {
	r := &reflector{now: now, limit: rate.NewLimiter(reflectRate, reflectBurst), ports: make(map[bool]uint16), others: make(map[bool]uint16), tcp: make(map[bool]uint16)}
	rand.Read(r.secret[:])
	return r
}

// permission is the port (2) and the token for requests from ip; nil: nobody answers.
func (r *reflector) permission(ip net.IP) []byte {
	a, ok := netip.AddrFromSlice(ip)
	if !ok {
		return nil
	}
	a = a.Unmap()
	r.mu.Lock()
	port := r.ports[a.Is4()]
	r.mu.Unlock()
	if port == 0 {
		return nil
	}
	token := r.token(a, r.slot())
	return append(binary.BigEndian.AppendUint16(nil, port), token[:]...)
}

// second is the other port (2), which answers as well, and stream TCP's.
func (r *reflector) second(ip net.IP) []byte { return r.portOf(r.others, ip) }
func (r *reflector) stream(ip net.IP) []byte { return r.portOf(r.tcp, ip) }

func (r *reflector) portOf(ports map[bool]uint16, ip net.IP) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if port := ports[ip.To4() != nil]; port != 0 {
		return binary.BigEndian.AppendUint16(nil, port)
	}
	return nil
}

func (r *reflector) slot() uint64 { return uint64(r.now().Unix() / int64(tokenSlot/time.Second)) }

func (r *reflector) token(a netip.Addr, slot uint64) (t [tokenSize]byte) {
	mac := hmac.New(sha256.New, r.secret[:])
	ip := a.As16()
	mac.Write(ip[:])
	mac.Write(binary.BigEndian.AppendUint64(nil, slot))
	copy(t[:], mac.Sum(nil))
	return t
}

// answer reads a request; ok is false if it deserves none.
func (r *reflector) answer(packet []byte, from netip.AddrPort) (answer []byte, extra byte, port uint16, ok bool) {
	if len(packet) != requestSize || packet[0] != kindRequest {
		return nil, 0, 0, false
	}
	nonce, token, rest := packet[1:1+nonceSize], packet[1+nonceSize:1+nonceSize+tokenSize], packet[1+nonceSize+tokenSize:]
	ip := from.Addr().Unmap()
	now, before := r.token(ip, r.slot()), r.token(ip, r.slot()-1)
	if !hmac.Equal(token, now[:]) && !hmac.Equal(token, before[:]) {
		return nil, 0, 0, false
	}
	if !r.limit.Allow() {
		return nil, 0, 0, false
	}
	seen := ip.As16()
	answer = append(append([]byte{kindAnswer}, nonce...), seen[:]...)
	answer = binary.BigEndian.AppendUint16(answer, from.Port())
	for i, b := range answer[1+nonceSize:] {
		answer[1+nonceSize+i] = b ^ nonce[i%nonceSize]
	}
	return answer, rest[0], binary.BigEndian.Uint16(rest[1:3]), true
}

// open listens beside one QUIC address of each family that the host listens on: at the next two ports by UDP and the next
// by TCP or, where one is taken, at any.
func (r *reflector) open(listening []ma.Multiaddr, log *slog.Logger) {
	for _, v4 := range []bool{true, false} {
		at, ok := quicAddr(listening, v4)
		if !ok {
			continue
		}
		main, other, err := listenBeside(at)
		if err != nil {
			log.Warn("no UDP reflection: peers may not learn how their NAT maps ports", "beside", at, "err", err)
			continue
		}
		port := main.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		stream, err := listenTCP(at, port)
		if err != nil {
			log.Warn("no TCP reflection: peers may not learn how their NAT maps TCP ports", "beside", at, "err", err)
		}
		r.sockets = append(r.sockets, reflectorSockets{main, other, stream})
		log.Debug("reflecting", "udp", port)
		r.mu.Lock()
		if stream != nil {
			r.tcp[v4] = stream.Addr().(*net.TCPAddr).AddrPort().Port()
		}
		r.ports[v4] = port
		r.others[v4] = other.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		r.mu.Unlock()
	}
}

// serve answers on what open opened, until ctx ends.
func (r *reflector) serve(ctx context.Context) {
	var wg sync.WaitGroup
	for _, s := range r.sockets {
		wg.Go(func() { r.reply(s) })
		wg.Go(func() { r.reply(reflectorSockets{main: s.other, other: s.main}) })
		if s.tcp != nil {
			wg.Go(func() { r.accept(ctx, s.tcp) })
		}
	}
	<-ctx.Done()
	for _, s := range r.sockets {
		s.main.Close()
		s.other.Close()
		if s.tcp != nil {
			s.tcp.Close()
		}
	}
	wg.Wait()
}

// accept answers by TCP until l is closed.
func (r *reflector) accept(ctx context.Context, l net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	places := make(chan struct{}, streamLimit)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			select { // out of descriptors, mostly
			case <-time.After(streamWithin):
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case places <- struct{}{}:
			wg.Go(func() { r.stand(ctx, c); <-places })
		default:
			c.Close()
		}
	}
}

// stand answers one TCP connection.
func (r *reflector) stand(ctx context.Context, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	c.SetDeadline(time.Now().Add(streamWithin))
	b := make([]byte, requestSize)
	if _, err := io.ReadFull(c, b); err != nil {
		return
	}
	from := c.RemoteAddr().(*net.TCPAddr).AddrPort()
	if answer, _, _, ok := r.answer(b, netip.AddrPortFrom(from.Addr().Unmap(), from.Port())); ok {
		c.Write(answer)
	}
}

// reply answers until its socket is closed.
func (r *reflector) reply(s reflectorSockets) {
	b := make([]byte, requestSize+1)
	for {
		n, from, err := s.main.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		answer, extra, port, ok := r.answer(b[:n], from)
		if !ok {
			continue
		}
		s.main.WriteToUDPAddrPort(answer, from)
		switch {
		case extra == extraOther:
			s.other.WriteToUDPAddrPort(answer, from)
		case extra == extraPort && port != 0:
			s.main.WriteToUDPAddrPort(answer, netip.AddrPortFrom(from.Addr(), port))
		}
	}
}

// listenTCP opens that port by TCP, or any other one.
func listenTCP(at netip.AddrPort, port uint16) (net.Listener, error) {
	family := "tcp6"
	if at.Addr().Is4() {
		family = "tcp4"
	}
	listen := func(port uint16) (net.Listener, error) {
		return net.ListenTCP(family, net.TCPAddrFromAddrPort(netip.AddrPortFrom(at.Addr(), port)))
	}
	if l, err := listen(port); err == nil {
		return l, nil
	}
	return listen(0)
}

// listenBeside opens the two ports after at's; where one is taken, any.
func listenBeside(at netip.AddrPort) (main, other *net.UDPConn, err error) {
	family := "udp6"
	if at.Addr().Is4() {
		family = "udp4"
	}
	listen := func(port uint16) (*net.UDPConn, error) {
		return net.ListenUDP(family, net.UDPAddrFromAddrPort(netip.AddrPortFrom(at.Addr(), port)))
	}
	orAny := func(port uint16) (*net.UDPConn, error) {
		if c, err := listen(port); err == nil {
			return c, nil
		}
		return listen(0)
	}
	if main, err = orAny(at.Port() + 1); err != nil {
		return nil, nil, err
	}
	if other, err = orAny(at.Port() + 2); err != nil {
		main.Close()
		return nil, nil, err
	}
	return main, other, nil
}

// quicAddr is the QUIC address of that family beside which we reflect. The host gives its addresses in another order each
// time, but firewalls are open for certain ports: so it is that of the lowest port from 1024 on (443 is mostly one more,
// for networks that let nothing else out) or, where there is none, of the lowest.
func quicAddr(listening []ma.Multiaddr, v4 bool) (at netip.AddrPort, ok bool) {
	before := func(a, b netip.AddrPort) bool {
		if low := a.Port() < 1024; low != (b.Port() < 1024) {
			return !low
		}
		return cmp.Or(cmp.Compare(a.Port(), b.Port()), a.Addr().Compare(b.Addr())) < 0
	}
	for _, a := range listening {
		if _, err := a.ValueForProtocol(ma.P_QUIC_V1); err != nil {
			continue
		}
		udp, _ := ma.SplitFunc(a, func(c ma.Component) bool { return c.Protocol().Code == ma.P_QUIC_V1 })
		n, err := manet.ToNetAddr(udp)
		if err != nil {
			continue
		}
		next := n.(*net.UDPAddr).AddrPort()
		next = netip.AddrPortFrom(next.Addr().Unmap(), next.Port())
		if next.Addr().Is4() == v4 && (!ok || before(next, at)) {
			at, ok = next, true
		}
	}
	return at, ok
}
