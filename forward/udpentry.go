package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"fwd/forward/datagram"
)

// What happens to one datagram of a UDP service:
//
//  1. UDPEntry reads it from the local socket and finds the flow of its source address, or dials one.
//  2. The flow carries it, or drops it if the path does not take it in time (package datagram).
//  3. The peer's UDPExit has a socket for each flow, connected to the target, and writes it there. What the target sends back goes
//     the same way to the source address.

// A UDPFlow carries one local program's datagrams; a *datagram.Flow is one.
type UDPFlow interface {
	Send(b []byte)
	Close(datagram.Code)
}

// A UDPEntry takes datagrams at a local socket and carries those of each source address to a peer's service by a flow of their
// own. Flows end when they have been idle: that is the endpoint's, as is their number.
type UDPEntry struct {
	// Conn is the local socket. Serve closes it.
	Conn *net.UDPConn

	// Dial opens a flow to the service, at once.
	Dial func(back datagram.Sink) (UDPFlow, error)

	// Refused, if not nil, is told why the peer did not want a flow.
	Refused func(err error)

	// Log gets a line for flows that were refused, of each kind at most one a second; nil for none. Give it the attributes
	// "service" and "peer".
	Log *slog.Logger

	log    *slog.Logger
	socket *udpSocket
	large  sync.Once

	failures pace

	mu    sync.Mutex
	flows map[udpClient]*entryFlow
}

// refusedFor is how long datagrams of a source are dropped after the peer has refused it: 1 s, for programs do not learn of a refusal and
// go on sending.
const refusedFor = time.Second

// Serve takes datagrams until ctx ends, or until the socket fails, which it returns; then it ends the flows.
func (e *UDPEntry) Serve(ctx context.Context) error {
	e.log = logger(e.Log).With("local", e.Conn.LocalAddr().String()+"/udp")
	e.socket = newUDPSocket(e.Conn)
	e.flows = make(map[udpClient]*entryFlow)
	defer e.endAll()
	defer e.Conn.Close()
	defer context.AfterFunc(ctx, func() { e.Conn.Close() })()

	buf := make([]byte, maxUDP)
	var pause backoff
	for {
		n, from, err := e.socket.read(buf)
		switch {
		case err == nil:
			pause.reset()
			e.take(from, buf[:n])
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default: // an ICMP message for what we sent before, on some systems
			if pause.first() {
				e.log.Debug("cannot read datagrams now", "err", err)
			}
			if !pause.wait(ctx) {
				return nil
			}
		}
	}
}

// maxUDP has room for any datagram, and shows one that is larger than what is carried.
const maxUDP = 64 << 10

func (e *UDPEntry) take(from udpClient, b []byte) {
	if len(b) > datagram.MaxSize {
		e.large.Do(func() {
			e.log.Warn("a datagram is too large and was dropped, as others like it will be", "bytes", len(b), "limit", datagram.MaxSize)
		})
		return
	}
	if flow := e.flow(from); flow != nil {
		flow.Send(b)
	}
}

// flow is that of a source address; nil if the peer does not want one now. Only Serve's goroutine asks.
func (e *UDPEntry) flow(from udpClient) UDPFlow {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.flows[from]
	if f == nil {
		f = &entryFlow{entry: e, client: from}
		e.flows[from] = f
		e.mu.Unlock() // the new flow may end another one
		flow, err := e.Dial(f)
		e.mu.Lock()
		if err != nil {
			e.failures.warn(e.log.With("client", from.addr.String(), "err", err), "none", "no flow for a local program")
			delete(e.flows, from)
			return nil
		}
		f.flow = flow
	}
	if f.refused {
		return nil
	}
	return f.flow
}

func (e *UDPEntry) forget(f *entryFlow) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.flows[f.client] == f {
		delete(e.flows, f.client)
	}
}

func (e *UDPEntry) endAll() {
	e.mu.Lock()
	flows := e.flows
	e.flows = nil
	e.mu.Unlock()
	for _, f := range flows {
		f.flow.Close(datagram.Ended)
	}
}

// An entryFlow is what one source address sends. It is the flow's sink.
type entryFlow struct {
	entry   *UDPEntry
	client  udpClient
	flow    UDPFlow // of Serve's goroutine; set once it is dialled
	refused bool    // under entry.mu: by the peer, and what comes is dropped
}

func (f *entryFlow) Deliver(b []byte) {
	f.entry.socket.write(b, f.client) // a program that is gone misses nothing
}

func (f *entryFlow) Ended(err error) {
	e := f.entry
	var refused *datagram.RefusedError
	if !errors.As(err, &refused) {
		e.forget(f)
		return
	}
	e.mu.Lock()
	f.refused = true
	e.mu.Unlock()
	time.AfterFunc(refusedFor, func() { e.forget(f) })
	e.failures.warn(e.log.With("client", f.client.addr.String(), "err", err), "refused", "datagrams refused")
	if e.Refused != nil {
		e.Refused(err)
	}
}
