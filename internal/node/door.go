package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/transport"
	"github.com/libp2p/go-libp2p/p2p/net/swarm"
	circuit "github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/client"
	ma "github.com/multiformats/go-multiaddr"
)

// doorAddr is where the swarm "listens" for what we dialled ourselves: an in-process address, which
// nobody can dial and which is never announced.
var doorAddr = ma.StringCast("/memory/1")

// admitWithin is how long the swarm may take to accept; it needs microseconds.
const admitWithin = 5 * time.Second

// door is the way to a second connection to a peer. The swarm answers a dial with a connection that
// is there already, and its circuit client dials a peer through one relay at a time. So we dial by
// the transport itself and hand the result to the swarm through a listener of our own, where it is
// gated, identified and counted like any other.
//
// A connection from the door counts as inbound on both sides.
type door struct {
	swarm    *swarm.Swarm
	host     *parts
	paths    *paths
	incoming chan transport.CapableConn
	closed   chan struct{}
	once     sync.Once

	mu       sync.Mutex
	circuits map[peer.ID]*circuit.Client // one a relay, by relay
}

func newDoor(p *parts, ps *paths) *door {
	return &door{
		swarm: p.swarm, host: p, paths: ps,
		incoming: make(chan transport.CapableConn),
		closed:   make(chan struct{}),
		circuits: make(map[peer.ID]*circuit.Client),
	}
}

// open adds the door to the swarm.
func (d *door) open() error {
	if err := d.swarm.AddTransport(doorTransport{d}); err != nil {
		return err
	}
	return d.swarm.Listen(doorAddr)
}

// dial opens one more connection to p, at addr: an IP address with transport, or a circuit
// (/p2p/RELAY/p2p-circuit). With network.WithSimultaneousConnect in ctx it punches.
func (d *door) dial(ctx context.Context, p peer.ID, addr ma.Multiaddr) (network.Conn, error) {
	t, err := d.transport(addr)
	if err != nil {
		return nil, err
	}
	c, err := t.Dial(ctx, addr, p)
	if err != nil {
		return nil, &swarm.TransportError{Address: addr, Cause: err}
	}
	if c.RemotePeer() != p { // the transports have checked; never hand on a wrong one
		c.Close()
		return nil, fmt.Errorf("dial %s: %s answered", addr, c.RemotePeer())
	}
	return d.admit(ctx, c)
}

func (d *door) transport(addr ma.Multiaddr) (transport.Transport, error) {
	relay := relayOf(addr)
	if relay == "" {
		if t := d.swarm.TransportForDialing(addr); t != nil {
			return t, nil
		}
		return nil, fmt.Errorf("dial %s: no transport for it", addr)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.circuits[relay]; c != nil {
		return c, nil
	}
	// Never started nor closed: it only dials, incoming circuits are the swarm's own client's.
	c, err := circuit.New(hops{d.host.host, d.paths}, d.host.circuits())
	if err != nil {
		return nil, err
	}
	d.circuits[relay] = c
	return c, nil
}

// admit hands c to the swarm and waits until it is there. A dial that was given up just when it had
// succeeded still counts: the other side has the connection already, and may have given up others for it.
func (d *door) admit(ctx context.Context, c transport.CapableConn) (network.Conn, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), admitWithin)
	defer cancel()
	g := &guest{CapableConn: c, admitted: make(chan network.Conn, 1), gone: make(chan struct{})}
	select {
	case d.incoming <- g:
	case <-d.closed:
		c.Close()
		return nil, transport.ErrListenerClosed
	case <-ctx.Done():
		c.Close()
		return nil, ctx.Err()
	}
	select {
	case conn := <-g.admitted:
		return conn, nil
	case <-g.gone:
		return nil, errors.New("connection refused or closed at once")
	case <-ctx.Done():
		c.Close()
		return nil, ctx.Err()
	}
}

// connected tells whoever waits in admit that the swarm has taken its connection.
func (d *door) connected(c network.Conn) {
	var g *guest
	if c.As(&g) {
		g.admitted <- c
	}
}

// guest is a connection on its way through the door.
type guest struct {
	transport.CapableConn
	admitted chan network.Conn
	gone     chan struct{}
	once     sync.Once
}

func (g *guest) As(target any) bool {
	if t, ok := target.(**guest); ok {
		*t = g
		return true
	}
	return g.CapableConn.As(target)
}

// Stat keeps a circuit's limits visible to the swarm, which asks for them by this method.
func (g *guest) Stat() network.ConnStats {
	if s, ok := g.CapableConn.(network.ConnStat); ok {
		return s.Stat()
	}
	return network.ConnStats{}
}

func (g *guest) Close() error {
	g.once.Do(func() { close(g.gone) })
	return g.CapableConn.Close()
}

func (g *guest) CloseWithError(code network.ConnErrorCode) error {
	g.once.Do(func() { close(g.gone) })
	return g.CapableConn.CloseWithError(code)
}

// doorTransport is the door as the swarm knows it: a transport that only listens.
type doorTransport struct{ *door }

func (d doorTransport) Dial(context.Context, ma.Multiaddr, peer.ID) (transport.CapableConn, error) {
	return nil, errors.New("nothing is dialled through the door")
}
func (d doorTransport) CanDial(ma.Multiaddr) bool { return false }
func (d doorTransport) Protocols() []int          { return []int{ma.P_MEMORY} }
func (d doorTransport) Proxy() bool               { return false }
func (d doorTransport) Listen(ma.Multiaddr) (transport.Listener, error) {
	return doorListener(d), nil
}

type doorListener struct{ *door }

func (d doorListener) Accept() (transport.CapableConn, error) {
	select {
	case c := <-d.incoming:
		return c, nil
	case <-d.closed:
		return nil, transport.ErrListenerClosed
	}
}

func (d doorListener) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

func (d doorListener) Addr() net.Addr          { return doorNetAddr{} }
func (d doorListener) Multiaddr() ma.Multiaddr { return doorAddr }

type doorNetAddr struct{}

func (doorNetAddr) Network() string { return "door" }
func (doorNetAddr) String() string  { return "door" }

// relayOf names the relay of a circuit address, or nothing for a direct one.
func relayOf(addr ma.Multiaddr) peer.ID {
	before, circuit := ma.SplitFunc(addr, func(c ma.Component) bool { return c.Protocol().Code == ma.P_CIRCUIT })
	if len(circuit) == 0 || len(before) == 0 {
		return ""
	}
	id, err := peer.IDFromP2PAddr(before)
	if err != nil {
		return ""
	}
	return id
}
