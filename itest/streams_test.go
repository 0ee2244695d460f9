//go:build linux

package itest

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"go.uber.org/goleak"

	"fwd/forward"
	"fwd/forward/session"
	"fwd/itest/fwdtest"
	"fwd/itest/lab"
	"fwd/itest/leaks"
)

// No fault of the lab's resets single streams, so here the forward is put together in this process, on two plain
// libp2p hosts: every stream is reset at random times, and now and then the whole connection goes.
func TestConnectionsSurviveResetsOfEveryStream(t *testing.T) {
	box := lab.New(t).Public("box", "7.0.0.10")
	data := fwdtest.ServePattern(t, box, "127.0.0.1:9000")
	before := goleak.IgnoreCurrent() // what belongs to the lab and the pattern's server
	rounds := 0
	func() {
		e, c := newHost(t), newHost(t)
		defer e.Close()
		defer c.Close()
		const lane protocol.ID = "/test/lane"
		there := peer.AddrInfo{ID: e.ID(), Addrs: e.Addrs()}
		exit := session.New(session.Config{Self: e.ID(), Authorize: func(peer.ID) error { return nil }})
		e.SetStreamHandler(lane, func(s network.Stream) { exit.Handle(s.Conn().RemotePeer(), s) })
		entry := session.New(session.Config{Self: c.ID(), Open: func(ctx context.Context, p peer.ID, _ session.Want) (session.Stream, error) {
			if err := c.Connect(ctx, there); err != nil {
				return nil, err
			}
			return c.NewStream(ctx, p, lane)
		}})
		listener, err := box.Listen("tcp", "127.0.0.1:2222")
		if err != nil {
			t.Fatal(err)
		}
		in := &forward.Entry{Listener: listener, Dial: func(ctx context.Context) (forward.Conn, error) { return entry.Dial(ctx, e.ID(), "data") }}
		target, err := forward.ParseTarget("127.0.0.1:9000")
		if err != nil {
			t.Fatal(err)
		}
		out := &forward.Exit{
			Accept: exit.Accept,
			Lookup: func(peer.ID, string) (forward.Target, error) { return target, nil },
			Dial: func(ctx context.Context, _ forward.Target) (forward.Conn, error) {
				conn, err := box.Dial(ctx, "tcp", data.Addr())
				if err != nil {
					return nil, err
				}
				return conn.(*net.TCPConn), nil
			},
		}
		ctx, cancel := context.WithCancel(context.Background())
		var all sync.WaitGroup
		defer all.Wait()
		defer cancel()
		for _, serve := range []func(context.Context) error{exit.Serve, entry.Serve, in.Serve, out.Serve} {
			all.Go(func() { serve(ctx) })
		}

		var resets atomic.Int64
		all.Go(func() { // ends with ctx
			rng := rand.New(rand.NewPCG(1, 2))
			for {
				select {
				case <-ctx.Done():
					return
				case <-time.After(time.Duration(20+rng.IntN(180)) * time.Millisecond):
				}
				for _, conn := range c.Network().Conns() {
					if rng.IntN(8) == 0 {
						conn.Close()
						resets.Add(1)
						continue
					}
					for _, s := range conn.GetStreams() {
						if s.Protocol() == lane && rng.IntN(2) == 0 {
							s.Reset()
							resets.Add(1)
						}
					}
				}
			}
		})
		for end := time.Now().Add(resetsFor); time.Now().Before(end); rounds++ {
			var wg sync.WaitGroup
			for _, load := range []fwdtest.Load{
				{Up: 8 * mib, Down: 1}, {Up: 1, Down: 8 * mib, UpLast: true}, {Up: 8 * mib, Down: 8 * mib}, {Up: 1, Down: 8 * mib},
				{Up: 300, Down: 300, Rate: 100}, // nearly idle
			} {
				wg.Go(func() {
					r, err := data.TransferFrom(box, "127.0.0.1:2222", load)
					if err != nil {
						t.Errorf("%d up, %d down: %v", load.Up, load.Down, err)
					}
					if stall := max(r.Stall, r.StallUp); load.Rate == 0 && stall > stallLimit {
						t.Errorf("%d up, %d down: stalled for %v", load.Up, load.Down, stall)
					}
				})
			}
			wg.Wait()
		}
		var sent, resent int64
		for _, l := range append(entry.Lanes(), exit.Lanes()...) {
			sent += l.Sent
			resent += l.Resent
		}
		t.Logf("%d rounds, %d resets, %d MiB carried, %d KiB sent again, %d KiB a reset", rounds, resets.Load(), sent>>20, resent>>10, resent>>10/max(1, resets.Load()))
		if resets.Load() < 10 {
			t.Errorf("only %d resets", resets.Load())
		}
	}()
	leaks.None(t, before)
}

func newHost(t *testing.T) host.Host {
	t.Helper()
	h, err := libp2p.New(libp2p.ListenAddrStrings("/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"), libp2p.DisableRelay())
	if err != nil {
		t.Fatal(err)
	}
	return h
}
