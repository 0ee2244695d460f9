package forward

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"fwd/forward/session"
)

// An Entry accepts local connections and carries each to a peer's service.
type Entry struct {
	// Listener gives the local connections, TCP or unix (they need CloseWrite).
	// Serve closes it.
	Listener net.Listener

	// Dial opens a session to the service. It should wait for a path until ctx
	// ends, which is Wait after the local connection came.
	Dial func(ctx context.Context) (Conn, error)

	// Wait replaces [DialWait] if it is not zero.
	Wait time.Duration

	// Room, if not nil, bounds the connections of all entries that have it.
	Room *Room

	// OnSession, if not nil, is called with each session once it is open. What it
	// returns, if not nil, is called when the session has ended.
	OnSession func(local net.Conn, session Conn) (ended func(sent, received int64, err error))

	// Log gets a line for connections that failed, of each kind at most one a second;
	// nil for none. Give it the attributes "service" and "peer".
	Log *slog.Logger

	failures pace
}

// Serve accepts connections until ctx ends, then resets those that are open, and
// returns when all have ended: nil if ctx ended it, else why the listener gave up.
func (e *Entry) Serve(ctx context.Context) error {
	log := logger(e.Log).With("local", e.Listener.Addr().String())
	return accept(ctx, log, e.Listener, e.Room, func(ctx context.Context, c net.Conn) { e.serveConn(ctx, log, c) })
}

// accept serves each of a listener's connections for which there is room, until ctx ends
// or the listener gives up, and returns when all have ended.
func accept(ctx context.Context, log *slog.Logger, l net.Listener, room *Room, serve func(context.Context, net.Conn)) error {
	var sessions sync.WaitGroup
	defer sessions.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer l.Close()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()

	var pause backoff
	for {
		c, err := l.Accept()
		if err == nil {
			pause.reset()
			leave, ok := room.enter(ctx, log, c)
			if !ok {
				Reset(c)
				continue
			}
			sessions.Go(func() {
				defer leave()
				serve(ctx, c)
			})
			continue
		}
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return err
		}
		// No descriptors or memory left (EMFILE, ENOBUFS), or a client that went
		// before it was accepted: the next one may fare better.
		if pause.first() {
			log.Warn("cannot accept connections now", "err", err)
		}
		if !pause.wait(ctx) {
			return nil
		}
	}
}

// serveConn takes one local connection to the service and stays until it has ended.
func (e *Entry) serveConn(ctx context.Context, log *slog.Logger, c net.Conn) {
	local := fit(log, c)
	if local == nil {
		return
	}
	far, err := within(ctx, e.Wait, e.Dial)
	if err != nil {
		Reset(local)
		if ctx.Err() == nil {
			e.failures.warn(log.With("client", addrOf(c), "err", err), "none", "no session for a local connection")
		}
		return
	}
	carry(ctx, log, &e.failures, local, far, e.OnSession)
}

// fit makes a local connection ready to be carried; nil: it cannot be, and is reset.
func fit(log *slog.Logger, c net.Conn) Conn {
	local, ok := c.(Conn)
	if !ok {
		log.Error("listener gives connections without half-close", "client", addrOf(c))
		Reset(c)
		return nil
	}
	if tc, ok := c.(*net.TCPConn); ok {
		tc.SetKeepAliveConfig(keepAlive)
	}
	return local
}

// within dials a session in the time that a local program is let wait.
func within(ctx context.Context, wait time.Duration, dial func(context.Context) (Conn, error)) (Conn, error) {
	if wait == 0 {
		wait = DialWait
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	return dial(ctx)
}

// carry is the life of an open session, told and logged.
func carry(ctx context.Context, log *slog.Logger, failures *pace, local, far Conn, onSession func(net.Conn, Conn) func(int64, int64, error)) {
	ended := func(sent, received int64, err error) {}
	if onSession != nil {
		if f := onSession(local, far); f != nil {
			ended = f
		}
	}
	sent, received, err := copyUntil(ctx, local, far)
	ended(sent, received, err)
	if err != nil {
		log = log.With("client", addrOf(local), "sent", sent, "received", received, "err", err)
		if refused := new(session.RefusedError); errors.As(err, &refused) {
			failures.warn(log, "refused", "session failed")
		} else {
			log.Debug("session failed") // programs abort connections every day
		}
	}
}

// copyUntil is Copy, ended by reset when ctx ends.
func copyUntil(ctx context.Context, a, b Conn) (aToB, bToA int64, err error) {
	stop := context.AfterFunc(ctx, func() {
		Reset(a)
		Reset(b)
	})
	defer stop()
	return Copy(a, b)
}

// A backoff paces an accept loop that fails: 5 ms, doubling up to 1 s, as net/http
// does it.
type backoff struct{ d time.Duration }

func (b *backoff) first() bool { return b.d == 0 }
func (b *backoff) reset()      { b.d = 0 }

// wait pauses, and reports false when ctx ended it.
func (b *backoff) wait(ctx context.Context) bool {
	b.d = min(max(2*b.d, 5*time.Millisecond), time.Second)
	select {
	case <-ctx.Done():
		return false
	case <-time.After(b.d):
		return true
	}
}

// addrOf is the far address of an accepted connection; a unix socket's client has none.
func addrOf(c net.Conn) string {
	if a := c.RemoteAddr(); a != nil {
		return a.String()
	}
	return ""
}

func logger(l *slog.Logger) *slog.Logger {
	if l == nil {
		return slog.New(slog.DiscardHandler)
	}
	return l
}
