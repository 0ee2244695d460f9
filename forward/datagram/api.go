package datagram

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// A Stream carries frames; a libp2p stream is one.
type Stream interface {
	io.Reader
	io.Writer
	Close() error
	Reset() error
	SetDeadline(time.Time) error
}

// Packets are the QUIC datagrams of one connection; a *quic.Conn is one. SendDatagram fails at once for what does not
// fit. The value must be comparable, the same for each stream of a connection, and fail when that has ended.
type Packets interface {
	SendDatagram(b []byte) error
	ReceiveDatagram(ctx context.Context) ([]byte, error)
}

// Config is what an endpoint is made of. Open and Authorize are needed.
type Config struct {
	// Open opens a stream to p by the best path now, waiting for one until ctx ends. avoid, if not nil, is a
	// stream whose path has gone silent.
	Open func(ctx context.Context, p peer.ID, avoid Stream) (Stream, error)

	// Packets gives the QUIC datagrams of a stream's connection, nil where there are none. It may be nil itself.
	Packets func(Stream) Packets

	// Authorize may forbid p to use a service, or with "" any.
	Authorize func(p peer.ID, service string) error

	Log *slog.Logger // nil: none
}

const (
	// maxFlows is how many flows a peer may have in one direction, and maxExits how many lead to targets here in
	// all: each is a socket there.
	maxFlows = 1024
	maxExits = 4096

	// idleLong is when a flow is over, 5 min after its last datagram: RFC 4787, REQ-5, recommends that to NATs, so
	// applications keep their flows alive for it. idleShort counts before two datagrams have come back, 30 s: a question and
	// its answer are over then (Linux's nf_conntrack_udp_timeout is the same).
	idleLong  = 5 * time.Minute
	idleShort = 30 * time.Second
	sweep     = 5 * time.Second // how often idle ones are looked for

	// maxPending is how many datagrams a flow keeps that is not accepted yet, maxOffers how many flows may wait for that.
	maxPending = 16
	maxOffers  = 256
)

// Code says why a flow is over.
type Code byte

const (
	Ended    Code = 0 // by its application or for want of traffic
	Denied   Code = 1 // not allowed, or no such service: one code for both
	Refused  Code = 2 // nothing listens at the target
	Timeout  Code = 3 // the target's name could not be looked up in time
	Overload Code = 4 // the exit has too much to do
	Unknown  Code = 5 // the exit does not know the flow (any more)
)

func (c Code) String() string {
	words := [...]string{"ended", "denied", "refused", "timeout", "overload", "unknown"}
	if int(c) < len(words) {
		return words[c]
	}
	return fmt.Sprintf("code %d", byte(c))
}

// RefusedError is what a flow ended with that the peer did not want or could not serve.
type RefusedError struct {
	Service string
	Code    Code
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("datagrams to service %q refused by peer: %s", e.Service, e.Code)
}

// ErrClosed is what flows end with when the endpoint does; errEnded when the other side closed one.
var (
	ErrClosed  = errors.New("datagram: closed")
	errEnded   = errors.New("datagram: ended by the peer")
	errIdle    = errors.New("datagram: idle")
	errCrowded = errors.New("datagram: made room for another flow")
)

// A Sink takes what comes back on a flow.
type Sink interface {
	// Deliver takes one datagram, valid until it returns. It may be called by several goroutines at once and must not wait.
	Deliver(b []byte)
	// Ended is called once, when nothing more will come; not after the sink's own Close.
	Ended(err error)
}

// Info is one flow as `fwd status` shows it.
type Info struct {
	ID       string
	Service  string
	Peer     peer.ID
	Role     string // "entry" or "exit"
	Attached bool   // there is a carrier
	Sent     int64  // bytes in datagrams
	Received int64
	Dropped  int64 // datagrams that waited too long, or found no room
	Opened   time.Time
}
