package node

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
)

const (
	// pingStreamLife and pingStreamIdle are when a ping stream is replaced: libp2p's handler ends each
	// after 30 s, and after 10 s without a ping.
	pingStreamLife = 25 * time.Second
	pingStreamIdle = 8 * time.Second
)

// pinger measures the round trip of one connection, on that very connection. Its 32 bytes also are
// enough for a restarted peer's QUIC to answer "unknown connection" (keepalives are too small for
// that), so that its death shows in one round trip and not in 30 s. Not for concurrent use.
type pinger struct {
	conn   network.Conn
	stream network.Stream
	opened time.Time
	used   time.Time
}

// ping returns the round trip, or an error after timeout of silence.
func (p *pinger) ping(ctx context.Context, timeout time.Duration) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	now := time.Now()
	if p.stream != nil && (now.Sub(p.opened) > pingStreamLife || now.Sub(p.used) > pingStreamIdle) {
		p.close()
	}
	reused := p.stream != nil
	rtt, err := p.once(ctx)
	if err != nil && reused && ctx.Err() == nil {
		rtt, err = p.once(ctx) // the stream had ended, which says nothing about the connection
	}
	return rtt, err
}

func (p *pinger) once(ctx context.Context) (time.Duration, error) {
	if p.stream == nil {
		s, err := openOn(ctx, p.conn, ping.ID)
		if err != nil {
			return 0, err
		}
		p.stream, p.opened = s, time.Now()
	}
	p.used = time.Now()
	s := p.stream
	stop := context.AfterFunc(ctx, func() { s.Reset() })
	rtt, err := pingOnce(s)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		p.close()
	}
	return rtt, err
}

func pingOnce(s io.ReadWriter) (time.Duration, error) {
	var sent, got [ping.PingSize]byte
	rand.Read(sent[:])
	start := time.Now()
	if _, err := s.Write(sent[:]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(s, got[:]); err != nil {
		return 0, err
	}
	if got != sent {
		return 0, errors.New("ping came back changed")
	}
	return time.Since(start), nil
}

func (p *pinger) close() {
	if p.stream != nil {
		p.stream.Reset()
		p.stream = nil
	}
}

func isClosed(err error) bool { return errors.Is(err, net.ErrClosed) }
