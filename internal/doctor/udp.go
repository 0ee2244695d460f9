package doctor

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// What a NAT makes of single UDP packets, asked from the relays' reflectors (relaynode/reflector.go has
// the packets' form):
//
//  1. one fresh socket asks each relay: the same port seen by all, or another each (mapping)
//  2. some more fresh sockets ask the first relay: ports in a row, within a block, anywhere
//  3. a socket asks the first relay to answer from another port too, which gets in or not (filtering)
//  4. where it does, the second relay is asked to send to a socket that never spoke to it

const (
	requestKind, answerKind = 0x11, 0x12
	requestSize, answerSize = 80, 35
	alsoOther, alsoPort     = 1, 2

	// resend and resends: a request is sent three times, 300 ms apart, for packets get lost.
	resend  = 300 * time.Millisecond
	resends = 3
	// unasked is how long an unasked answer may come after the asked one: as long as one that is resent.
	unasked = 700 * time.Millisecond
	// samples is how many fresh sockets show how ports are chosen.
	samples = 5
)

// reflector is a relay that answers plain UDP.
type reflector struct {
	at    netip.AddrPort
	token []byte
}

// reflectors are those of the relays, IPv4, one a relay's address.
func reflectors(probes []*probe) (list []reflector) {
	for _, p := range probes {
		at := p.seen.Reflector
		if p.err != nil || !at.IsValid() || !at.Addr().Is4() {
			continue
		}
		if !slices.ContainsFunc(list, func(r reflector) bool { return r.at.Addr() == at.Addr() }) {
			list = append(list, reflector{at, p.seen.Token})
		}
	}
	return list
}

// socket is one UDP port of ours, and what has come to it.
type socket struct {
	conn *net.UDPConn
	mu   sync.Mutex
	came []arrival
	news chan struct{}
	done chan struct{}
}

type arrival struct {
	from  netip.AddrPort
	nonce [16]byte
	seen  netip.AddrPort
}

func listen() (*socket, error) {
	c, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, err
	}
	s := &socket{conn: c, news: make(chan struct{}, 1), done: make(chan struct{})}
	go s.read() // ends with close
	return s, nil
}

func (s *socket) close() {
	s.conn.Close()
	<-s.done
}

func (s *socket) port() uint16 { return s.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

func (s *socket) read() {
	defer close(s.done)
	b := make([]byte, answerSize+1)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			if isClosed(err) {
				return
			}
			continue // an ICMP error about an earlier packet
		}
		a, ok := parseAnswer(b[:n])
		if !ok {
			continue
		}
		a.from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		s.mu.Lock()
		s.came = append(s.came, a)
		s.mu.Unlock()
		select {
		case s.news <- struct{}{}:
		default:
		}
	}
}

func parseAnswer(b []byte) (a arrival, ok bool) {
	if len(b) != answerSize || b[0] != answerKind {
		return a, false
	}
	copy(a.nonce[:], b[1:17])
	body := slices.Clone(b[17:])
	for i := range body {
		body[i] ^= a.nonce[i%len(a.nonce)]
	}
	ip := netip.AddrFrom16([16]byte(body[:16])).Unmap()
	a.seen = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(body[16:]))
	return a, a.seen.Port() != 0
}

func request(nonce [16]byte, r reflector, extra byte, port uint16) []byte {
	b := append([]byte{requestKind}, nonce[:]...)
	b = append(b, r.token...)
	b = binary.BigEndian.AppendUint16(append(b, extra), port)
	return append(b, make([]byte, max(0, requestSize-len(b)))...)
}

// find is something that came and is as wanted.
func (s *socket) find(wanted func(arrival) bool) (arrival, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.came, wanted)
	if i < 0 {
		return arrival{}, false
	}
	return s.came[i], true
}

// wait waits until something that came is as wanted, or until then.
func (s *socket) wait(ctx context.Context, until time.Time, wanted func(arrival) bool) (arrival, bool) {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	for {
		if a, ok := s.find(wanted); ok {
			return a, true
		}
		select {
		case <-s.news:
		case <-timer.C:
			return arrival{}, false
		case <-ctx.Done():
			return arrival{}, false
		}
	}
}

// ask asks r, and where it sees us. extra and port are the request's.
func (s *socket) ask(ctx context.Context, r reflector, extra byte, port uint16) (arrival, bool) {
	var nonce [16]byte
	rand.Read(nonce[:])
	packet := request(nonce, r, extra, port)
	for range resends {
		if ctx.Err() != nil {
			break
		}
		s.conn.WriteToUDPAddrPort(packet, r.at)
		if a, ok := s.wait(ctx, time.Now().Add(resend), func(a arrival) bool { return a.nonce == nonce && a.from == r.at }); ok {
			return a, true
		}
	}
	return arrival{}, false
}

// measure shows the NAT of this network, IPv4.
func (e *examination) measure(ctx context.Context, probes []*probe) (n NAT) {
	n = NAT{Kind: Unknown, Mapping: "unknown", Filtering: "unknown"}
	list := reflectors(probes)
	if len(list) > 0 {
		e.progress("asking how the network here treats UDP")
	}
	told := n.measureMapping(ctx, list)
	if len(told) == 0 {
		n.takeConnections(probes)
		return n
	}
	if n.Mapping == "unknown" && e.m.Mapping != nil {
		if m := e.m.Mapping(ctx); strings.HasPrefix(m, "endpoint-") {
			n.Mapping = m
		}
	}
	n.measureFiltering(ctx, told)
	n.name()
	return n
}

// takeConnections is what connections alone show, where nobody answers plain UDP.
func (n *NAT) takeConnections(probes []*probe) {
	if n.deaf = deaf(probes); len(n.deaf) > 0 {
		n.Kind, n.Mapping, n.Filtering = UDPBlocked, "blocked", "unknown"
		return
	}
	for _, p := range probes {
		if at := p.seen.Observed.Addr(); p.err == nil && at.Is4() && n.Public == "" {
			n.seenAt(at)
		}
	}
}

// seenAt notes where relays see this machine.
func (n *NAT) seenAt(a netip.Addr) {
	if n.addr = a; !isInside(a) {
		n.Public = a.String()
	}
}

// deaf are the relays that are reached, but not by UDP, at which it was tried; none where any relay is reached by it.
func deaf(probes []*probe) (relays []string) {
	for _, p := range probes {
		udp := reachOf(probes, p.relay.Name, "udp")
		switch {
		case udp.best != nil:
			return nil
		case udp.tried > 0 && p.err == nil && !slices.Contains(relays, p.relay.Name):
			relays = append(relays, p.relay.Name)
		}
	}
	return relays
}

// sighting is where a relay sees a socket of ours.
type sighting struct {
	by reflector
	at netip.AddrPort
}

// measureMapping asks all relays where they see one socket, and returns those whose word counts.
func (n *NAT) measureMapping(ctx context.Context, list []reflector) []sighting {
	s, err := listen()
	if err != nil {
		return nil
	}
	defer s.close()
	told := n.sightings(ctx, s, list)
	if len(told) == 0 {
		return nil
	}
	n.judgeMapping(told, s.port())
	if n.Mapping != "none" && !(n.Mapping == "endpoint-independent" && n.PortKept) {
		n.sample(ctx)
	}
	return told
}

// sightings are the relays' of s. A relay that sees a private address is in a network of ours, in front of the NAT that
// the others see through: its word counts where there is no other.
func (n *NAT) sightings(ctx context.Context, s *socket, list []reflector) []sighting {
	var all, public []sighting
	for _, r := range list {
		a, ok := s.ask(ctx, r, 0, 0)
		if !ok {
			n.silent = append(n.silent, r.at)
			continue
		}
		all = append(all, sighting{r, a.seen})
		if !isInside(a.seen.Addr()) {
			public = append(public, sighting{r, a.seen})
		}
	}
	if len(public) > 0 {
		return public
	}
	return all
}

// judgeMapping judges by where one socket is seen, whose port here is port.
func (n *NAT) judgeMapping(told []sighting, port uint16) {
	n.asked, n.seen = told[0].by, told[0].at
	n.seenAt(n.seen.Addr())
	n.PortKept = n.seen.Port() == port
	switch {
	case n.PortKept && isOurs(n.seen.Addr(), n.asked.at):
		n.Mapping = "none"
	case len(told) < 2:
	case slices.ContainsFunc(told, func(s sighting) bool { return s.at.Port() != n.seen.Port() }):
		n.Mapping = "endpoint-dependent"
	default:
		n.Mapping = "endpoint-independent"
	}
}

// sample has further sockets seen, one after the other, so that ports in a row show.
func (n *NAT) sample(ctx context.Context) {
	for range samples {
		s, err := listen()
		if err != nil {
			continue
		}
		if a, ok := s.ask(ctx, n.asked, 0, 0); ok {
			n.fresh = append(n.fresh, a.seen.Port())
			n.keeps = n.keeps || a.seen.Port() == s.port()
		}
		s.close()
	}
}

// isOurs says whether the address that a relay sees is that of our interface.
func isOurs(seen netip.Addr, relay netip.AddrPort) bool {
	out := outgoing(relay)
	return out.IsValid() && out == seen
}

// outgoing is the address by which this machine sends to a. Nothing is sent.
func outgoing(a netip.AddrPort) netip.Addr {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(a))
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

func (n *NAT) measureFiltering(ctx context.Context, told []sighting) {
	s, err := listen()
	if err != nil {
		return
	}
	defer s.close()
	asked, ok := s.ask(ctx, n.asked, alsoOther, 0)
	if !ok {
		return
	}
	n.Filtering = samePort
	if _, ok := s.wait(ctx, time.Now().Add(unasked), func(a arrival) bool { return a.from != n.asked.at }); !ok {
		return
	}
	n.Filtering = sameAddress // at most
	if len(told) < 2 || n.Mapping == "endpoint-dependent" {
		return
	}
	second := told[1].by
	helper, err := listen()
	if err != nil {
		return
	}
	defer helper.close()
	if _, ok := helper.ask(ctx, second, alsoPort, asked.seen.Port()); !ok {
		return
	}
	if _, ok := s.wait(ctx, time.Now().Add(unasked), func(a arrival) bool { return a.from == second.at }); ok {
		n.Filtering = anybody
	}
}
