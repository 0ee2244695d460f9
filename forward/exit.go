package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/forward/session"
)

// An Exit takes offered sessions to the targets of this machine's services.
type Exit struct {
	// Accept gives the next offer, and fails only when there will be no more.
	Accept func(ctx context.Context) (*session.Incoming, error)

	// Lookup says where a service points if p may use it. Its error is the reason
	// for the log; the peer is told "denied", for an unknown service too.
	Lookup func(p peer.ID, service string) (Target, error)

	// Dial replaces Target.Dial if it is not nil. ctx ends after [TargetTimeout].
	Dial func(ctx context.Context, t Target) (Conn, error)

	// Room, if not nil, bounds the connections to targets of all exits that have it, by peer.
	Room *Room

	// OnSession, if not nil, is called with each session to a service once it is
	// accepted. What it returns, if not nil, is called when the session has ended.
	OnSession func(service string, session Conn) (ended func())

	// Log gets a line for offers refused, at most one a second of a peer; nil for none.
	Log *slog.Logger

	refusals pace
}

// Serve answers offers until ctx ends or Accept fails, then resets the sessions that
// are open, and returns when all have ended: nil if ctx ended it, else Accept's error.
func (e *Exit) Serve(ctx context.Context) error {
	return e.serve(ctx, func(ctx context.Context) (offer, error) {
		in, err := e.Accept(ctx)
		if err != nil {
			return nil, err
		}
		return sessionOffer{in}, nil
	})
}

// An offer is a session.Incoming as Exit needs it.
type offer interface {
	Peer() peer.ID
	Service() string
	Accept() (Conn, error)
	Refuse(session.Code) error
}

type sessionOffer struct{ *session.Incoming }

func (o sessionOffer) Accept() (Conn, error) {
	c, err := o.Incoming.Accept()
	if err != nil {
		return nil, err // not c: a nil *session.Conn would make a Conn that is not nil
	}
	return c, nil
}

func (e *Exit) serve(ctx context.Context, accept func(context.Context) (offer, error)) error {
	log := logger(e.Log)
	var sessions sync.WaitGroup
	defer sessions.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		in, err := accept(ctx)
		if ctx.Err() != nil {
			if err == nil {
				in.Refuse(session.Overload)
			}
			return nil
		}
		if err != nil {
			return err
		}
		sessions.Go(func() {
			e.serveOffer(ctx, log.With("peer", in.Peer().String(), "service", logged(in.Service())), in)
		})
	}
}

// serveOffer answers one offer and carries its session until it has ended.
func (e *Exit) serveOffer(ctx context.Context, log *slog.Logger, in offer) {
	target, err := e.Lookup(in.Peer(), in.Service())
	if err != nil {
		in.Refuse(session.Denied)
		e.refusals.warn(log.With("reason", err), string(in.Peer()), "denied")
		return
	}
	leave, err := e.Room.take(string(in.Peer()))
	if err != nil {
		in.Refuse(session.Overload)
		e.refusals.warn(log.With("reason", err), string(in.Peer()), "too many connections")
		return
	}
	defer leave()
	local, err := e.dial(ctx, target)
	if err != nil {
		code := refusal(err)
		in.Refuse(code)
		if ctx.Err() == nil {
			log = log.With("target", target.String(), "answer", code.String(), "err", err)
			e.refusals.warn(log, string(in.Peer()), "cannot reach the target")
		}
		return
	}
	far, err := in.Accept()
	if err != nil {
		Reset(local)
		log.Debug("session gone before it was accepted", "err", err)
		return
	}
	if e.OnSession != nil {
		if ended := e.OnSession(in.Service(), far); ended != nil {
			defer ended()
		}
	}
	received, sent, err := copyUntil(ctx, far, local)
	if err != nil {
		log.Debug("session failed", "sent", sent, "received", received, "err", err)
	}
}

func (e *Exit) dial(ctx context.Context, t Target) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, TargetTimeout)
	defer cancel()
	if e.Dial != nil {
		return e.Dial(ctx, t)
	}
	return t.Dial(ctx)
}

// refusal is the code that tells the peer why its target was not reached.
func refusal(err error) session.Code {
	var ne net.Error
	switch {
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOBUFS),
		errors.Is(err, syscall.ENOMEM), errors.Is(err, syscall.EADDRNOTAVAIL): // the last: no local ports left
		return session.Overload
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded),
		errors.As(err, &ne) && ne.Timeout():
		return session.Timeout
	}
	return session.Refused
}
