package forward

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
)

// A Room bounds the local connections of all entries that share it: each costs a descriptor and memory for as long as its
// program likes, and behind a port that others reach anybody may be that program.
type Room struct {
	places chan struct{} // one for each connection
	each   int
	log    pace

	mu sync.Mutex
	by map[netip.Addr]int // connections of each address
}

// NewRoom makes room for so many connections. Beyond all of them entries wait with accepting; beyond each, if it is not 0,
// those of one address are reset, so that it leaves room for others. An IPv6 address stands for its network of 64 bits.
func NewRoom(all, each int) *Room {
	return &Room{places: make(chan struct{}, all), each: each, by: make(map[netip.Addr]int)}
}

// enter takes a place for c, waiting for one; false: its address has all it may have, or ctx has ended. A nil Room has
// no bounds.
func (r *Room) enter(ctx context.Context, log *slog.Logger, c net.Conn) (leave func(), ok bool) {
	if r == nil {
		return func() {}, true
	}
	from := sourceOf(c)
	if !r.count(from) {
		r.log.warn(log.With("client", addrOf(c), "limit", r.each), from.String(), "too many connections of one address: more are reset")
		return nil, false
	}
	leave = func() { r.uncount(from); <-r.places }
	select {
	case r.places <- struct{}{}:
		return leave, true
	default:
	}
	r.log.warn(log.With("limit", cap(r.places)), "full", "too many connections: more wait until others end")
	select {
	case r.places <- struct{}{}:
		return leave, true
	case <-ctx.Done():
		r.uncount(from)
		return nil, false
	}
}

func (r *Room) count(from netip.Addr) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.each > 0 && r.by[from] >= r.each {
		return false
	}
	r.by[from]++
	return true
}

func (r *Room) uncount(from netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by[from]--; r.by[from] == 0 {
		delete(r.by, from)
	}
}

// sourceOf is what c's client is counted by; the zero address for a unix socket's.
func sourceOf(c net.Conn) netip.Addr {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	a := tcp.AddrPort().Addr().Unmap().WithZone("")
	if a.Is6() {
		network, _ := a.Prefix(64)
		a = network.Addr()
	}
	return a
}
