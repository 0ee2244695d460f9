package forward

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
)

// A Room bounds the connections of all entries, or all exits, that share it: each costs a descriptor and memory for as long as
// somebody likes. Behind a port that others reach that is anybody, and at an exit any peer that may use a service.
type Room struct {
	places chan struct{} // one for each connection
	each   int
	log    pace

	mu sync.Mutex
	by map[string]int // connections of each address, or peer
}

// NewRoom makes room for so many connections. Beyond all of them entries wait with accepting, and exits refuse; beyond each, if
// it is not 0, those of one address are reset and those of one peer refused, so that it leaves room for others. An IPv6 address
// stands for its network of 64 bits.
func NewRoom(all, each int) *Room {
	return &Room{places: make(chan struct{}, all), each: each, by: make(map[string]int)}
}

// enter takes a place for c, waiting for one; false: its address has all it may have, or ctx has ended. A nil Room has
// no bounds.
func (r *Room) enter(ctx context.Context, log *slog.Logger, c net.Conn) (leave func(), ok bool) {
	if r == nil {
		return func() {}, true
	}
	from := sourceOf(c)
	if !r.count(from) {
		r.log.warn(log.With("client", addrOf(c), "limit", r.each), from, "too many connections of one address: more are reset")
		return nil, false
	}
	select {
	case r.places <- struct{}{}:
		return r.leave(from), true
	default:
	}
	r.log.warn(log.With("limit", cap(r.places)), "full", "too many connections: more wait until others end")
	select {
	case r.places <- struct{}{}:
		return r.leave(from), true
	case <-ctx.Done():
		r.uncount(from)
		return nil, false
	}
}

// take takes a place for a peer, if there is one now; the error says what is full. A nil Room has no bounds.
func (r *Room) take(peer string) (leave func(), err error) {
	if r == nil {
		return func() {}, nil
	}
	if !r.count(peer) {
		return nil, fmt.Errorf("%d connections of this peer are open, and it may have no more", r.each)
	}
	select {
	case r.places <- struct{}{}:
		return r.leave(peer), nil
	default:
		r.uncount(peer)
		return nil, fmt.Errorf("%d connections of peers are open, and there may be no more", cap(r.places))
	}
}

func (r *Room) leave(who string) func() { return func() { r.uncount(who); <-r.places } }

func (r *Room) count(who string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.each > 0 && r.by[who] >= r.each {
		return false
	}
	r.by[who]++
	return true
}

func (r *Room) uncount(who string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.by[who]--; r.by[who] == 0 {
		delete(r.by, who)
	}
}

// sourceOf is what c's client is counted by; the same for all of a unix socket.
func sourceOf(c net.Conn) string {
	tcp, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return ""
	}
	a := tcp.AddrPort().Addr().Unmap().WithZone("")
	if a.Is6() {
		network, _ := a.Prefix(64)
		a = network.Addr()
	}
	return a.String()
}
