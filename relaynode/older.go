package relaynode

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/ping"
	"github.com/multiformats/go-multistream"
)

const (
	// silence is how long an older connection may keep quiet when its peer has
	// opened another one. Left alone, a dead one lives 30 to 45 s (measured, by QUIC
	// and TCP) and circuits are sent into it.
	silence = time.Second
	// connectedQueue is how many new connections may wait to be looked at; what
	// does not fit is left to libp2p's own timeouts.
	connectedQueue = 256
)

// older closes the dead connections of peers that came back. A peer connects
// again after a change of network or a restart; its former connection may be
// dead without anybody knowing.
type older struct {
	member func(peer.ID) bool
	heard  func(network.Conn) time.Time // last relayed byte from that connection
	log    *slog.Logger

	silence time.Duration
}

func newOlder(member func(peer.ID) bool, heard func(network.Conn) time.Time, log *slog.Logger) *older {
	return &older{member: member, heard: heard, log: log, silence: silence}
}

// serve looks at each peer that opens a further connection until ctx ends. One
// peer is looked at by one goroutine at a time.
func (o *older) serve(ctx context.Context, n network.Network) {
	again := make(chan peer.ID, connectedQueue)
	bundle := &network.NotifyBundle{ConnectedF: func(n network.Network, c network.Conn) {
		if p := c.RemotePeer(); len(n.ConnsToPeer(p)) > 1 && o.member(p) {
			select {
			case again <- p:
			default:
			}
		}
	}}
	n.Notify(bundle)
	defer n.StopNotify(bundle)

	var wg sync.WaitGroup // looks: each ends within silence, or with ctx
	defer wg.Wait()
	done := make(chan peer.ID)
	waiting := make(map[peer.ID]bool) // being looked at; true: look once more
	look := func(p peer.ID) {
		waiting[p] = false
		wg.Go(func() {
			o.look(ctx, n.ConnsToPeer(p))
			select {
			case done <- p:
			case <-ctx.Done():
			}
		})
	}
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-again:
			if _, busy := waiting[p]; busy {
				waiting[p] = true
			} else {
				look(p)
			}
		case p := <-done:
			if waiting[p] {
				look(p)
			} else {
				delete(waiting, p)
			}
		}
	}
}

// look asks all connections but the newest for a sign of life.
func (o *older) look(ctx context.Context, conns []network.Conn) {
	var newest network.Conn
	for _, c := range conns {
		if newest == nil || c.Stat().Opened.After(newest.Stat().Opened) {
			newest = c
		}
	}
	var wg sync.WaitGroup
	for _, c := range conns {
		if c == newest {
			continue
		}
		wg.Go(func() {
			asked := time.Now()
			if !o.silent(ctx, c) || o.heard(c).After(asked) {
				return
			}
			o.log.Info("closing a silent connection of a peer that has come back",
				"peer", c.RemotePeer(), "path", c.RemoteMultiaddr().String())
			c.Close()
		})
	}
	wg.Wait()
}

// silent says whether c gave no sign of life within the time for it. Any answer
// is one, be it a refusal of the protocol or a reset; that we ourselves could
// not ask says nothing.
func (o *older) silent(ctx context.Context, c network.Conn) bool {
	ctx, cancel := context.WithTimeout(ctx, o.silence)
	defer cancel()
	s, err := c.NewStream(ctx)
	if err != nil {
		return false
	}
	defer s.Reset()
	if s.SetProtocol(protocol.ID(ping.ID)) != nil {
		return false
	}
	s.SetDeadline(time.Now().Add(o.silence))
	defer context.AfterFunc(ctx, func() { s.SetDeadline(time.Unix(1, 0)) })() // Serve ends
	err = multistream.SelectProtoOrFail(protocol.ID(ping.ID), s)
	var timeout net.Error
	timedOut := errors.Is(err, os.ErrDeadlineExceeded) || (errors.As(err, &timeout) && timeout.Timeout())
	return timedOut && !errors.Is(context.Cause(ctx), context.Canceled)
}
