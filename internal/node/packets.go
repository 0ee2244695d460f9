package node

import (
	"context"
	"net"
	"net/netip"
	"sync"
)

// Packets that are not QUIC, at the very ports where QUIC is spoken: answers of the relays' reflectors
// (reflect.go) and what peers send who punch with us. All begin with a kind, whose upper two bits are 0,
// and 16 bytes that say whom they are for: a nonce or a token that we have told nobody else.

const keySize = 16

type packetKey = [keySize]byte

// packet is one that somebody waited for.
type packet struct {
	from netip.AddrPort
	data []byte
}

// packets hands incoming ones to who waits for them; all others are dropped.
type packets struct {
	mu   sync.Mutex
	ears map[packetKey]chan packet
}

func newPackets() *packets { return &packets{ears: make(map[packetKey]chan packet)} }

// hear has packets with that key collected until stop is called; a reader that is slow misses some.
func (p *packets) hear(key packetKey) (<-chan packet, func()) {
	c := make(chan packet, 8)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ears[key] = c
	return c, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.ears, key)
	}
}

func (p *packets) deliver(b []byte, from netip.AddrPort) {
	if len(b) < 1+keySize || b[0]&0xc0 != 0 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.ears[packetKey(b[1:1+keySize])]; c != nil {
		select {
		case c <- packet{from, append([]byte(nil), b...)}:
		default:
		}
	}
}

// read takes what comes at one port; it ends when that is closed.
func (p *packets) read(c net.PacketConn) {
	b := make([]byte, 256)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		if a, ok := from.(*net.UDPAddr); ok {
			p.deliver(b[:n], unmapped(a.AddrPort()))
		}
	}
}

// readPackets begins to read beside QUIC on every port that it listens on.
func (n *Node) readPackets() {
	for _, at := range n.parts.sockets.addrs() {
		network := "udp6"
		if at.IP.To4() != nil {
			network = "udp4"
		}
		c, err := n.parts.quic.SharedNonQUICPacketConn(network, at)
		if err != nil {
			n.log.Debug("no packets beside QUIC", "addr", at, "err", err)
			continue
		}
		n.tasks.start(func() {
			defer context.AfterFunc(n.ctx, func() { c.Close() })()
			n.packets.read(c)
		})
	}
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
