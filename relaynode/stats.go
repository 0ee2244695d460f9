package relaynode

import (
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/pb"
)

// counters is the circuit service's tracer, as numbers.
type counters struct {
	reservations, circuits, bytes atomic.Int64
}

func (c *counters) RelayStatus(bool)                    {}
func (c *counters) ConnectionOpened()                   { c.circuits.Add(1) }
func (c *counters) ConnectionClosed(time.Duration)      { c.circuits.Add(-1) }
func (c *counters) ConnectionRequestHandled(pb.Status)  {}
func (c *counters) ReservationRequestHandled(pb.Status) {}
func (c *counters) ReservationClosed(n int)             { c.reservations.Add(int64(-n)) }
func (c *counters) BytesTransferred(n int)              { c.bytes.Add(int64(n)) }
func (c *counters) ReservationAllowed(renewal bool) {
	if !renewal {
		c.reservations.Add(1)
	}
}
