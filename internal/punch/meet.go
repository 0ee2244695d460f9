package punch

import (
	"context"
	"crypto/sha256"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/time/rate"
)

// Meeting at foretold ports: one side waits with an array of sockets, the other one sprays (or both have
// arrays). A packet that arrives proves nothing but that a way is open; who is at its other end is
// proved by the QUIC handshake that follows on it.
//
//	probe   0x13 ‖ token (16)    "do you hear me?"
//	heard   0x14 ‖ token (16)    the answer, from the socket that heard it
//
// The token follows from both reports' nonces, so only the two peers know it. The first byte marks
// these as no QUIC: the side that sprays does so from its QUIC socket.

const (
	kindProbe = 0x13
	kindHeard = 0x14
	tokenSize = 16
	// heardTimes is how often that is said, for a fresh socket that sprays waits for nothing else.
	heardTimes = 3
	// takeWithin is how long a handshake on a socket that was heard at may take.
	takeWithin = 3 * time.Second
)

// Token marks the packets of one punch.
type Token [tokenSize]byte

func tokenOf(low, high Report) (t Token) {
	h := sha256.New()
	h.Write([]byte("fwd punch 1\n"))
	h.Write(low.Nonce)
	h.Write(high.Nonce)
	copy(t[:], h.Sum(nil))
	return t
}

func (t Token) packet(kind byte) []byte { return append([]byte{kind}, t[:]...) }

// ReadToken is what a packet that is not QUIC says if it belongs to a punch.
func ReadToken(packet []byte) (t Token, ok bool) {
	if len(packet) != 1+tokenSize || packet[0] != kindProbe && packet[0] != kindHeard {
		return t, false
	}
	copy(t[:], packet[1:])
	return t, true
}

// Wire is UDP beneath QUIC. Without it nothing is foretold.
type Wire struct {
	// Probe sends from the QUIC socket.
	Probe func(to netip.AddrPort, packet []byte) error
	// Hear tells of packets with that token at the QUIC socket, by where they came from.
	Hear func(Token) (from <-chan netip.AddrPort, stop func())
	// Socket opens a fresh one, IPv4.
	Socket func() (Socket, error)
	// Fresh opens one and has a relay say where it is seen.
	Fresh func(context.Context) (Socket, netip.AddrPort, error)
	// HadDirect says whether a direct path to p was lost lately; nil: no.
	HadDirect func(p peer.ID) bool
	// Take makes a socket to which the peer's packets come the connection to p. It owns the socket.
	Take func(ctx context.Context, p peer.ID, s Socket, to netip.AddrPort, role Role) error
	// Vouched says whether one of the roster's relays saw p at its Report's UDP address.
	Vouched func(p peer.ID, r Report) bool
	// Guessing says whether ports may be guessed at all; nil: yes.
	Guessing func() bool
}

// Socket is one fresh UDP socket.
type Socket interface {
	// Send sends a packet that dies after so many hops; 0: as usual.
	Send(b []byte, to netip.AddrPort, hops int) error
	Receive(b []byte) (n int, from netip.AddrPort, err error)
	Close() error
}

// meeting is what the foretold steps of one punch share.
type meeting struct {
	peer    peer.ID
	high    bool // our ID is the higher one
	second  bool // attempt
	plan    Plan // the attempt's
	token   Token
	vouched bool

	mu      sync.Mutex
	fresh   Socket   // that our report tells of, until a step has taken it; nil: none
	order   []uint16 // a permutation of the ports to guess
	sockets int
	probes  int
	heard   int
	failed  error // of the last handshake
	refused bool  // the address was not vouched for
	spent   bool  // a budget was used up
}

func (m *meeting) note(change func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change()
}

// heardAt is a socket of an array that got the peer's packet, and from where.
type heardAt struct {
	socket Socket
	from   netip.AddrPort
}

// wait does an array's part: opens the sockets, waits on all of them, and has the first that hears the
// peer taken; if that fails, the next one. Many sockets are many packets to whose address it is; one fresh one sends no
// more than simultaneous open does.
func (pu *Puncher) wait(ctx context.Context, m *meeting, a Array) {
	if !m.vouched && !a.Fresh {
		m.note(func() { m.refused = true })
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	heard := make(chan heardAt, a.Sockets)
	var readers sync.WaitGroup
	var mu sync.Mutex
	open := make(map[Socket]bool)
	defer func() {
		cancel()
		mu.Lock()
		for s := range open {
			s.Close() // ends its reader
		}
		mu.Unlock()
		readers.Wait()
	}()
	readers.Go(func() {
		pace := rate.NewLimiter(openRate, 1)
		for range a.Sockets {
			if pace.Wait(ctx) != nil || pu.budget.packet(ctx) != nil {
				return
			}
			if !pu.budget.port(m.peer, a.To.Addr()) {
				m.note(func() { m.spent = true })
				return
			}
			s, err := pu.socket(m, a)
			if err != nil {
				pu.cfg.Log.Debug("no further socket to punch with", "peer", m.peer, "err", err)
				return
			}
			mu.Lock()
			open[s] = true
			if ctx.Err() != nil {
				s.Close()
			}
			mu.Unlock()
			if !a.Fresh {
				m.note(func() { m.sockets++ })
			}
			s.Send(make([]byte, 1+tokenSize), a.To, a.Hops)
			readers.Go(func() { listenOn(s, m.token, a.To.Addr(), heard) })
		}
	})
	if a.Speak > 0 {
		readers.Go(func() { pu.speak(ctx, m, a, &mu, open) })
	}
	for {
		select {
		case h := <-heard:
			m.note(func() { m.heard++ })
			for range heardTimes {
				h.socket.Send(m.token.packet(kindHeard), h.from, 0)
			}
			mu.Lock()
			delete(open, h.socket)
			mu.Unlock()
			err := pu.take(ctx, m, h, a.Role)
			pu.cfg.Log.Debug("heard at a foretold port", "peer", m.peer, "from", h.from, "err", err)
			if err == nil {
				return
			}
			m.note(func() { m.failed = err })
		case <-ctx.Done():
			return
		}
	}
}

// socket is one more for an array.
func (pu *Puncher) socket(m *meeting, a Array) (Socket, error) {
	if !a.Fresh {
		return pu.cfg.Wire.Socket()
	}
	if s := m.takeFresh(); s != nil {
		return s, nil
	}
	return nil, net.ErrClosed
}

func (pu *Puncher) take(ctx context.Context, m *meeting, h heardAt, role Role) error {
	ctx, cancel := context.WithTimeout(ctx, takeWithin)
	defer cancel()
	return pu.cfg.Wire.Take(ctx, m.peer, h.socket, h.from, role)
}

// listenOn reads s until the peer's packet comes, or s is closed.
func listenOn(s Socket, token Token, from netip.Addr, heard chan<- heardAt) {
	b := make([]byte, 64)
	for {
		n, at, err := s.Receive(b)
		if err != nil {
			return
		}
		if t, ok := ReadToken(b[:n]); ok && t == token && at.Addr().Unmap() == from {
			heard <- heardAt{s, at}
			return
		}
	}
}

// speak sends from each socket of an array.
func (pu *Puncher) speak(ctx context.Context, m *meeting, a Array, mu *sync.Mutex, open map[Socket]bool) {
	if !m.vouched {
		m.note(func() { m.refused = true })
		return
	}
	if !sleep(ctx, a.Speak) {
		return
	}
	for range a.Times {
		mu.Lock()
		for s := range open {
			if pu.budget.packets.Allow() {
				if !a.Fresh {
					m.note(func() { m.probes++ })
				}
				s.Send(m.token.packet(kindProbe), a.To, 0)
			}
		}
		mu.Unlock()
		if !sleep(ctx, a.Speak) {
			return
		}
	}
}

// spray sends from one socket to many ports, until the peer has heard.
func (pu *Puncher) spray(ctx context.Context, m *meeting, s Spray) {
	if !m.vouched {
		m.note(func() { m.refused = true })
		return
	}
	if s.Fresh {
		if socket := m.takeFresh(); socket != nil {
			pu.sprayFresh(ctx, m, s, socket)
		}
		return
	}
	heard, stop := pu.cfg.Wire.Hear(m.token)
	defer stop()
	pu.sprayFrom(ctx, m, s, pu.cfg.Wire.Probe, func() bool {
		select {
		case from := <-heard:
			if from.Addr() != s.To {
				return false
			}
			m.note(func() { m.heard++ })
			return true
		default:
			return false
		}
	}) // the handshake comes to the QUIC socket by itself
}

// sprayFresh sprays from a fresh socket, and has it taken if the peer answers there.
func (pu *Puncher) sprayFresh(ctx context.Context, m *meeting, s Spray, socket Socket) {
	heard := make(chan heardAt, 1)
	var reading sync.WaitGroup
	defer reading.Wait()
	reading.Go(func() { listenOn(socket, m.token, s.To, heard) })
	send := func(to netip.AddrPort, packet []byte) error { return socket.Send(packet, to, 0) }
	pu.sprayFrom(ctx, m, s, send, func() bool { return len(heard) > 0 })
	select {
	case h := <-heard:
		m.note(func() { m.heard++ })
		if err := pu.take(ctx, m, h, Server); err != nil {
			m.note(func() { m.failed = err })
		}
	case <-ctx.Done():
		socket.Close() // ends its reader
	}
}

// sprayFrom sends to one port after the other, until met.
func (pu *Puncher) sprayFrom(ctx context.Context, m *meeting, s Spray, send func(netip.AddrPort, []byte) error, met func() bool) {
	if !sleep(ctx, s.After) {
		return
	}
	pace := rate.NewLimiter(probeRate, 1)
	packet := m.token.packet(kindProbe)
	for i, port := range m.ports(s) {
		if met() {
			return
		}
		again := s.List != nil && i >= len(s.List) // a port that is counted already
		if !again && !pu.budget.port(m.peer, s.To) {
			m.note(func() { m.spent = true })
			return
		}
		if pace.Wait(ctx) != nil || pu.budget.packet(ctx) != nil {
			return
		}
		m.note(func() { m.probes++ })
		send(netip.AddrPortFrom(s.To, port), packet)
	}
}

// ports is what one spray tries, in this order.
func (m *meeting) ports(s Spray) []uint16 {
	if s.List != nil {
		return slices.Repeat(s.List, s.Times)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	size := s.size()
	if len(m.order) != size {
		m.order = make([]uint16, size)
		for i := range m.order {
			m.order[i] = s.Low + uint16(i)
		}
		rand.Shuffle(size, func(i, j int) { m.order[i], m.order[j] = m.order[j], m.order[i] })
	}
	if size <= roundPorts {
		return m.order
	}
	return m.order[s.Round*roundPorts%size : min(s.Round*roundPorts%size+roundPorts, size)]
}
