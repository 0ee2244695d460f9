package datagram

import (
	"context"
	"time"
)

// A receiver reads the QUIC datagrams of one connection, for all carriers on it: there may be one in each direction of use.
type receiver struct {
	cancel   context.CancelFunc
	carriers []*carrier // under Endpoint.mu; the newest last
}

// listen has the QUIC datagrams of c's connection read until stop is called.
func (e *Endpoint) listen(c *carrier) (stop func()) {
	if c.packets == nil {
		return func() {}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.receivers[c.packets]
	if r == nil {
		ctx, cancel := context.WithCancel(e.ctx)
		r = &receiver{cancel: cancel}
		e.receivers[c.packets] = r
		e.tasks.start(func() { e.receive(ctx, r, c.packets) }) // ends with cancel, or the connection
	}
	r.carriers = append(r.carriers, c)
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		for i, k := range r.carriers {
			if k == c {
				r.carriers = append(r.carriers[:i:i], r.carriers[i+1:]...)
			}
		}
		if len(r.carriers) == 0 {
			r.cancel()
			delete(e.receivers, c.packets)
		}
	}
}

func (e *Endpoint) receive(ctx context.Context, r *receiver, packets Packets) {
	for {
		b, err := packets.ReceiveDatagram(ctx)
		if err != nil {
			return // the streams will tell
		}
		direction, number, data, ok := parsePacket(b)
		if !ok {
			continue
		}
		role := roleExit
		if direction == toEntry {
			role = roleEntry
		}
		if c := e.carrierOf(r, role); c != nil {
			c.hear(time.Now())
			c.half.received(c, number, data)
		}
	}
}

// carrierOf is the newest carrier of a role on the receiver's connection.
func (e *Endpoint) carrierOf(r *receiver, role string) *carrier {
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := len(r.carriers) - 1; i >= 0; i-- {
		if r.carriers[i].half.role == role {
			return r.carriers[i]
		}
	}
	return nil
}
