package forward

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/things-go/go-socks5"
	"github.com/things-go/go-socks5/statute"
)

// What happens to one connection of a SOCKSEntry:
//
//  1. The local program says by SOCKS 5 (RFC 1928) where it wants to go. The library
//     reads that and looks nothing up.
//  2. Dial opens a session to what that name means here, or says why not.
//  3. The program is answered, and from there on it is as with an Entry: its bytes are
//     read from where the library stopped and carried by Copy. The library's own
//     copying knows no reset.

// A SOCKSEntry accepts local connections that say themselves where they go.
type SOCKSEntry struct {
	// Listener gives the local connections. Serve closes it.
	Listener net.Listener

	// Dial opens a session to what the program named: a host name or the text of an IP
	// address, and a port. [ErrNotAllowed] and [ErrNothingThere] are told to the program
	// as such, any other error as a host that is not reached.
	Dial func(ctx context.Context, host string, port int) (Conn, error)

	// Wait, Room and OnSession are as with an [Entry].
	Wait      time.Duration
	Room      *Room
	OnSession func(local net.Conn, session Conn) (ended func(sent, received int64, err error))

	// Log gets a line for connections that failed, of each kind at most one a second;
	// nil for none.
	Log *slog.Logger

	failures pace
}

var (
	// ErrNotAllowed: where the program wants to go nobody is taken by this entry.
	ErrNotAllowed = errors.New("not carried here")
	// ErrNothingThere: the host is known, and has nothing at that port.
	ErrNothingThere = errors.New("nothing at that port")
)

// socksTalk is how long a program may take to say where it wants to go, 10 s: it does
// so at once, and what keeps silent for longer speaks another protocol.
const socksTalk = 10 * time.Second

// Serve accepts connections until ctx ends, then resets those that are open, and
// returns when all have ended: nil if ctx ended it, else why the listener gave up.
func (e *SOCKSEntry) Serve(ctx context.Context) error {
	log := logger(e.Log).With("local", e.Listener.Addr().String())
	server := socks5.NewServer(
		socks5.WithResolver(namesStay{}),
		socks5.WithConnectHandle(func(_ context.Context, w io.Writer, r *socks5.Request) error {
			return w.(*asking).connect(r)
		}),
		// BIND the library refuses itself.
		socks5.WithAssociateHandle(func(_ context.Context, w io.Writer, r *socks5.Request) error {
			return socks5.SendReply(w, statute.RepCommandNotSupported, nil)
		}),
	)
	return accept(ctx, log, e.Listener, e.Room, func(ctx context.Context, c net.Conn) {
		local := fit(log, c)
		if local == nil {
			return
		}
		stop := context.AfterFunc(ctx, func() { Reset(c) })
		defer stop()
		c.SetDeadline(time.Now().Add(socksTalk))
		if err := server.ServeConn(&asking{Conn: local, ctx: ctx, entry: e, log: log}); err != nil && ctx.Err() == nil {
			log.Debug("socks", "client", addrOf(c), "err", err)
		}
	})
}

// namesStay: a name is the network's and nobody else is asked what it means.
type namesStay struct{}

func (namesStay) Resolve(ctx context.Context, _ string) (context.Context, net.IP, error) {
	return ctx, nil, nil
}

// An asking is a local connection on its way through the library.
type asking struct {
	Conn
	ctx   context.Context
	entry *SOCKSEntry
	log   *slog.Logger
}

// connect carries the connection to where the request wants it. It returns when it has ended.
func (a *asking) connect(r *socks5.Request) error {
	a.SetDeadline(time.Time{}) // it has asked, and may wait for us
	host := r.RawDestAddr.FQDN
	if host == "" {
		host = r.RawDestAddr.IP.String()
	}
	far, err := within(a.ctx, a.entry.Wait, func(ctx context.Context) (Conn, error) {
		return a.entry.Dial(ctx, host, r.RawDestAddr.Port)
	})
	if err != nil {
		if a.ctx.Err() == nil {
			log := a.log.With("client", addrOf(a), "to", host, "port", r.RawDestAddr.Port, "err", err)
			a.entry.failures.warn(log, "none", "no session for a local connection")
		}
		return socks5.SendReply(a, replyTo(err), nil)
	}
	// The address of a reply is of no use to a program; libraries want one that is whole.
	if err := socks5.SendReply(a, statute.RepSuccess, &net.TCPAddr{IP: net.IPv4zero}); err != nil {
		Reset(far)
		return err
	}
	carry(a.ctx, a.log, &a.entry.failures, &asked{a.Conn, r.Reader}, far, a.entry.OnSession)
	return nil
}

func replyTo(err error) uint8 {
	switch {
	case errors.Is(err, ErrNotAllowed):
		return statute.RepRuleFailure
	case errors.Is(err, ErrNothingThere):
		return statute.RepConnectionRefused
	case errors.Is(err, context.DeadlineExceeded):
		return statute.RepTTLExpired
	}
	return statute.RepHostUnreachable
}

// An asked is the connection after the request, some of whose bytes the library may
// have read with it.
type asked struct {
	Conn
	rest io.Reader
}

func (a *asked) Read(b []byte) (int, error) { return a.rest.Read(b) }
func (a *asked) Reset() error               { return Reset(a.Conn) }
