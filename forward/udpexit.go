package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/forward/datagram"
)

// A UDPExit takes offered flows to the targets of this machine's UDP services.
type UDPExit struct {
	// Accept gives the next offer, and fails only when there will be no more.
	Accept func(ctx context.Context) (*datagram.Incoming, error)

	// Lookup says where a service points if p may use it. Its error is the reason for the log; the peer is told
	// "denied", for an unknown service too.
	Lookup func(p peer.ID, service string) (Target, error)

	// Room, if not nil, bounds the sockets to targets of all exits that have it, by peer.
	Room *Room

	// Log gets a line for offers refused, at most one a second of a peer; nil for none.
	Log *slog.Logger

	refusals pace
}

// Serve answers offers until ctx ends or Accept fails, then ends the flows, and returns when all have ended: nil if ctx ended it,
// else Accept's error.
func (e *UDPExit) Serve(ctx context.Context) error {
	log := logger(e.Log)
	var flows sync.WaitGroup
	defer flows.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		in, err := e.Accept(ctx)
		if ctx.Err() != nil {
			if err == nil {
				in.Refuse(datagram.Overload)
			}
			return nil
		}
		if err != nil {
			return err
		}
		flows.Go(func() {
			e.serveFlow(ctx, log.With("peer", in.Peer().String(), "service", logged(in.Service())), in)
		})
	}
}

// serveFlow takes one flow to its target and stays until it has ended.
func (e *UDPExit) serveFlow(ctx context.Context, log *slog.Logger, in *datagram.Incoming) {
	target, err := e.Lookup(in.Peer(), in.Service())
	if err != nil {
		in.Refuse(datagram.Denied)
		e.refusals.warn(log.With("reason", err), string(in.Peer()), "denied")
		return
	}
	leave, err := e.Room.take(string(in.Peer()))
	if err != nil {
		in.Refuse(datagram.Overload)
		e.refusals.warn(log.With("reason", err), string(in.Peer()), "too many connections")
		return
	}
	defer leave()
	conn, err := target.dialUDP(ctx)
	if err != nil {
		code := datagram.Code(refusal(err)) // the same codes as a session's
		in.Refuse(code)
		if ctx.Err() == nil {
			log = log.With("target", target.String(), "answer", code.String(), "err", err)
			e.refusals.warn(log, string(in.Peer()), "cannot reach the target")
		}
		return
	}
	s := &exitSocket{conn: conn, log: log}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	flow, err := in.Accept(s)
	if err != nil {
		return
	}
	s.read(ctx, flow)
	if s.refused.Load() {
		log.Debug("nothing listens at the target", "target", target.String())
		flow.Close(datagram.Refused)
		return
	}
	flow.Close(datagram.Ended)
}

// dialUDP opens a socket that exchanges datagrams with the target alone.
func (t Target) dialUDP(ctx context.Context) (net.Conn, error) {
	return (&net.Dialer{Timeout: TargetTimeout}).DialContext(ctx, t.Network, t.Address)
}

// An exitSocket is a flow's socket at the exit, and the flow's sink.
type exitSocket struct {
	conn    net.Conn
	log     *slog.Logger
	refused atomic.Bool // nothing listens at the target: a port unreachable has come back
	large   sync.Once
}

// Deliver sends a datagram to the target. The kernel tells a refusal of the last one here or at the next read.
func (s *exitSocket) Deliver(b []byte) {
	_, err := s.conn.Write(b)
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		s.refused.Store(true)
		s.conn.Close()
	case errors.Is(err, syscall.EMSGSIZE):
		s.large.Do(func() { s.log.Warn("a datagram is too large for the way to the target", "bytes", len(b)) })
	}
}

func (s *exitSocket) Ended(error) { s.conn.Close() }

// udpBuffers are those of exits' flows: 64 KiB each, of which small datagrams touch one page.
var udpBuffers = sync.Pool{New: func() any { return new([maxUDP]byte) }}

// read hands what the target sends to the flow until the socket is closed, or the target refuses.
func (s *exitSocket) read(ctx context.Context, flow UDPFlow) {
	buf := udpBuffers.Get().(*[maxUDP]byte)
	defer udpBuffers.Put(buf)
	var pause backoff
	for {
		n, err := s.conn.Read(buf[:])
		switch {
		case err == nil:
			pause.reset()
			flow.Send(buf[:n])
		case errors.Is(err, syscall.ECONNREFUSED):
			s.refused.Store(true)
			return
		case errors.Is(err, net.ErrClosed), !pause.wait(ctx), pause.d >= time.Second:
			return
		}
	}
}
