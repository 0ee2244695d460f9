package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// MessageSize is how many bytes a session sends at once, at most.
const MessageSize = muxPayload

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
	// Open opens a lane stream to p by the best path there is now for what the lane wants, making one if it must.
	// ErrStay says that the stream in use goes that way already.
	Open func(ctx context.Context, p peer.ID, want Want) (Stream, error)
	// Silent is told of a stream whose path has gone silent: one that p attached to us while something was owed (p
	// alone can attach anew, but may not have noticed), or one on which our attach was not answered. It is told once a
	// stream, must not wait, and may be nil.
	Silent func(p peer.ID, s Stream)
	// Authorize says whether p may attach at all. It is asked at each attach, first of all.
	// Nil admits nobody.
	Authorize func(p peer.ID) error
	// Log gets a line for each attach, loss and end. Nil is silent.
	Log *slog.Logger
	// Hold is how long sessions outlive their path. Zero: DefaultHold.
	Hold time.Duration
	// HoldFor is the same for the sessions of one service that is offered here, if less than Hold. Zero: Hold. May be nil.
	HoldFor func(service string) time.Duration
	// Budget bounds the replay rings of all lanes together, in bytes, and four times that what sessions hold that nobody has
	// read yet. Zero: DefaultBudget.
	Budget int64
	// Now is the clock that measures outages. Nil: one that also counts sleep, where the system has it.
	Now func() time.Time
	// Rand gives the random bytes of IDs and the jitter of retries. Nil: crypto/rand.
	Rand io.Reader
}

// Want is what a lane wants of the stream that Open gives it.
type Want struct {
	Now    Stream // what it runs on; nil: nothing
	Silent bool   // Now's path has gone silent: another one is wanted
	Bulk   bool   // the lane carries a session that moves much: throughput counts, else latency does
}

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
	Until      time.Time // when a detached one is given up; zero if open
}

// LaneInfo is one lane at this moment. `fwd status` shows sessions; tests look at lanes.
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
	Resent     int64 // of Sent, what changes of stream made us send again
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

// ErrStay is Open's answer where the lane cannot do better than with the stream it has.
var ErrStay = errors.New("session: already on the best path")

// ErrReset is what a session returns that ended other than by both sides' closing: the far application
// or the link failed. It is wrapped with the reason where there is one.
var ErrReset = errors.New("session: reset")

// ErrClosed is returned by an endpoint whose Serve has ended.
var ErrClosed = errors.New("session: endpoint closed")
