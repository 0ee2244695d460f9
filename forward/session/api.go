package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Stream is what a lane runs on for a while: a libp2p network.Stream fits.
// Reset must make blocked reads and writes return.
type Stream interface {
	io.Reader
	io.Writer
	Close() error
	Reset() error
	SetDeadline(time.Time) error
}

// Config is what an Endpoint is told from outside.
type Config struct {
	// Self is this machine's peer ID.
	Self peer.ID
	// Open opens a lane stream to p by the best path there is now, making one if it must.
	// avoid, if not nil, is a stream whose path has gone silent: another path is wanted.
	Open func(ctx context.Context, p peer.ID, avoid Stream) (Stream, error)
	// Authorize says whether p may attach at all. It is asked at each attach, first of all.
	// Nil admits nobody.
	Authorize func(p peer.ID) error
	// Log gets a line for each attach, loss and end. Nil is silent.
	Log *slog.Logger
	// Hold is how long sessions outlive their path. Zero: DefaultHold.
	Hold time.Duration
	// Budget bounds the replay rings of all lanes together, in bytes. Zero: DefaultBudget.
	Budget int64
	// Now is the clock that measures outages. Nil: one that also counts sleep, where the system has it.
	Now func() time.Time
}

// New makes an endpoint. It carries nothing before Serve runs.
func New(c Config) *Endpoint { panic("session: not built yet") }

// Endpoint is this machine's end of all links, in both directions of use.
type Endpoint struct{}

// Serve runs the endpoint until ctx ends, then resets all sessions and returns when everything has ended.
func (e *Endpoint) Serve(ctx context.Context) error { panic("session: not built yet") }

// Handle takes a lane stream that the authenticated peer p opened to us; it returns when that attachment has ended.
func (e *Endpoint) Handle(p peer.ID, s Stream) { panic("session: not built yet") }

// Dial opens a session with p's service. On an attached link it costs no round trip; else it waits for a path until ctx ends.
// Whether p accepts shows at the first Read: a refusal is a *RefusedError.
func (e *Endpoint) Dial(ctx context.Context, p peer.ID, service string) (*Conn, error) {
	panic("session: not built yet")
}

// Accept returns the next session that a peer wants to open here.
func (e *Endpoint) Accept(ctx context.Context) (*Incoming, error) { panic("session: not built yet") }

// Renew says that a better path to p exists, or that the address changed: each lane to p attaches anew at once,
// the old stream in use until the new one is attached. Lanes that p dials are asked to do the same.
func (e *Endpoint) Renew(p peer.ID) { panic("session: not built yet") }

// Cut resets the sessions that match. match is also asked with service "" about each peer as a whole:
// if it says yes, the peer's links fail.
func (e *Endpoint) Cut(match func(p peer.ID, service string) bool, why error) {
	panic("session: not built yet")
}

// Sessions lists the sessions of this moment, oldest first.
func (e *Endpoint) Sessions() []Info { panic("session: not built yet") }

// Lanes lists the lanes of this moment, by peer.
func (e *Endpoint) Lanes() []LaneInfo { panic("session: not built yet") }

// Info is one session as `fwd status` shows it.
type Info struct {
	ID         string // hex, the same at both ends
	Service    string
	Peer       peer.ID
	Role       string // "entry" or "exit"
	State      string // "open" or "detached"
	Sent       int64  // bytes written here
	Received   int64  // bytes read here
	Migrations int    // times the session changed its stream
	Opened     time.Time
	Since      time.Time // detached since; zero if open
}

// LaneInfo is one lane as `fwd status` shows it.
type LaneInfo struct {
	Peer       peer.ID
	Role       string // "entry": we attach; "exit": the peer does
	Lane       int
	State      string // "open", "suspect" or "detached"
	RTT        time.Duration
	Sessions   int
	Unacked    int64 // bytes written that the peer has not acknowledged
	Memory     int64 // bytes of replay ring held
	Sent       int64
	Received   int64
	Migrations int
	Since      time.Time // in this state since
}

// Code is an exit's answer to an open.
type Code byte

const (
	OK       Code = 0
	Denied   Code = 1 // not allowed, or no such service: one code for both
	Refused  Code = 2 // the target refused the connection
	Timeout  Code = 3 // the target did not answer in time
	Overload Code = 4 // the exit has too much to do
)

// String gives the word for the log.
func (c Code) String() string {
	switch c {
	case OK:
		return "ok"
	case Denied:
		return "denied"
	case Refused:
		return "refused"
	case Timeout:
		return "timeout"
	case Overload:
		return "overload"
	}
	return fmt.Sprintf("code %d", byte(c))
}

// RefusedError is what Read and Write return after the exit has said no.
type RefusedError struct {
	Service string
	Code    Code
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("session: service %q refused by peer: %s", e.Service, e.Code)
}

// ErrReset is what a session returns that ended other than by both sides' closing: the far application
// or the link failed. It is wrapped with the reason where there is one.
var ErrReset = errors.New("session: reset")

// ErrClosed is returned by an endpoint whose Serve has ended.
var ErrClosed = errors.New("session: endpoint closed")

// Incoming is a session a peer wants to open; exactly one of Accept and Refuse answers it.
type Incoming struct{}

// Peer is who asks, as authenticated.
func (i *Incoming) Peer() peer.ID { panic("session: not built yet") }

// Service is what is asked for.
func (i *Incoming) Service() string { panic("session: not built yet") }

// Accept says yes.
func (i *Incoming) Accept() (*Conn, error) { panic("session: not built yet") }

// Refuse says no; the dialling side reads a *RefusedError.
func (i *Incoming) Refuse(Code) error { panic("session: not built yet") }

// Conn is one end of a session.
type Conn struct{ net.Conn }

// CloseWrite ends our direction: the far side reads io.EOF after the last byte.
func (c *Conn) CloseWrite() error { panic("session: not built yet") }

// Reset ends both directions at once: the far side gets ErrReset, never io.EOF.
func (c *Conn) Reset() error { panic("session: not built yet") }

// Info is the session's state now.
func (c *Conn) Info() Info { panic("session: not built yet") }
