package session

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p"
	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
)

// Session against bare stream in one run:
//
//	go test -run xxx -bench . ./forward/session

// carrier makes streams between a dialling and an accepting end.
type carrierNet struct {
	open   func(ctx context.Context, proto string) (Stream, error)
	handle func(proto string, f func(Stream))
}

// tcpStream is a loopback TCP connection as a lane stream.
type tcpStream struct{ *net.TCPConn }

func (s tcpStream) Reset() error { s.SetLinger(0); return s.Close() }

func newTCP(b testing.TB) carrierNet {
	handlers := map[string]func(Stream){}
	ports := map[string]string{}
	return carrierNet{
		handle: func(proto string, f func(Stream)) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(func() { ln.Close() })
			handlers[proto], ports[proto] = f, ln.Addr().String()
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					go f(tcpStream{c.(*net.TCPConn)})
				}
			}()
		},
		open: func(ctx context.Context, proto string) (Stream, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "tcp", ports[proto])
			if err != nil {
				return nil, err
			}
			return tcpStream{c.(*net.TCPConn)}, nil
		},
	}
}

// newHosts is two libp2p hosts on loopback.
func newHosts(b testing.TB, listen string) carrierNet {
	mk := func() host.Host {
		key, _, err := crypto.GenerateEd25519Key(rand.Reader)
		if err != nil {
			b.Fatal(err)
		}
		h, err := libp2p.New(libp2p.Identity(key), libp2p.ListenAddrStrings(listen), libp2p.ResourceManager(&network.NullResourceManager{}), libp2p.DisableRelay())
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { h.Close() })
		return h
	}
	c, e := mk(), mk()
	if err := c.Connect(context.Background(), peer.AddrInfo{ID: e.ID(), Addrs: e.Addrs()}); err != nil {
		b.Fatal(err)
	}
	return carrierNet{
		handle: func(proto string, f func(Stream)) {
			e.SetStreamHandler(protocol.ID(proto), func(s network.Stream) { f(s) })
		},
		open: func(ctx context.Context, proto string) (Stream, error) {
			return c.NewStream(ctx, e.ID(), protocol.ID(proto))
		},
	}
}

var carriers = []struct {
	name string
	make func(testing.TB) carrierNet
}{
	{"tcp", newTCP},
	{"libp2p-tcp", func(b testing.TB) carrierNet { return newHosts(b, "/ip4/127.0.0.1/tcp/0") }},
	{"libp2p-quic", func(b testing.TB) carrierNet { return newHosts(b, "/ip4/127.0.0.1/udp/0/quic-v1") }},
}

// newBenchPair is two endpoints over n.
func newBenchPair(b testing.TB, n carrierNet) (c, e *Endpoint) {
	c = New(Config{Self: peerC, Open: func(ctx context.Context, _ peer.ID, _ Want) (Stream, error) { return n.open(ctx, "/lane") },
		Authorize: func(peer.ID) error { return errors.New("no") }})
	e = New(Config{Self: peerE, Authorize: func(peer.ID) error { return nil }})
	n.handle("/lane", func(s Stream) { e.Handle(peerC, s) })
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { c.Serve(ctx) })
	wg.Go(func() { e.Serve(ctx) })
	b.Cleanup(func() { cancel(); wg.Wait() })
	return c, e
}

// serveEcho and serveSink accept all sessions.
func serve(e *Endpoint, f func(*Conn)) {
	for {
		in, err := e.Accept(context.Background())
		if err != nil {
			return
		}
		go func() {
			if c, err := in.Accept(); err == nil {
				f(c)
			}
		}()
	}
}

func echo(s io.ReadWriter) {
	buf := make([]byte, 2048)
	for {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		if _, err := s.Write(buf[:n]); err != nil {
			return
		}
	}
}

// sink reads all and answers one byte for each mark.
func sink(s io.ReadWriter, total int64) {
	buf := make([]byte, 128<<10)
	for got := int64(0); got < total; {
		n, err := s.Read(buf)
		if err != nil {
			return
		}
		got += int64(n)
	}
	s.Write([]byte{1})
}

const blob = 64 << 20

func pour(b *testing.B, s io.ReadWriter) time.Duration {
	start := time.Now()
	buf := make([]byte, 64<<10)
	for sent := 0; sent < blob; sent += len(buf) {
		if _, err := s.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	var one [1]byte
	if _, err := io.ReadFull(s, one[:]); err != nil {
		b.Fatal(err)
	}
	return time.Since(start)
}

// BenchmarkBulk: one operation is 64 MiB over a bare stream and 64 MiB over a session, in turn, so that a busy machine
// is as busy for both. percent compares the medians.
func BenchmarkBulk(b *testing.B) {
	for _, k := range carriers {
		b.Run(k.name, func(b *testing.B) {
			n := k.make(b)
			n.handle("/bare", func(s Stream) { sink(s, blob); io.Copy(io.Discard, s); s.Close() })
			c, e := newBenchPair(b, n)
			go serve(e, func(c *Conn) { sink(c, blob); io.Copy(io.Discard, c); c.Close() })
			var bare, session []time.Duration
			for b.Loop() {
				s, err := n.open(context.Background(), "/bare")
				if err != nil {
					b.Fatal(err)
				}
				bare = append(bare, pour(b, s))
				s.Close()
				d, err := c.Dial(context.Background(), peerE, "sink")
				if err != nil {
					b.Fatal(err)
				}
				session = append(session, pour(b, d))
				d.Close()
			}
			slices.Sort(bare)
			slices.Sort(session)
			x, y := bare[len(bare)/2].Seconds(), session[len(session)/2].Seconds()
			b.ReportMetric(blob/x/1e6, "bare-MB/s")
			b.ReportMetric(blob/y/1e6, "session-MB/s")
			b.ReportMetric(100*x/y, "percent")
		})
	}
}

func BenchmarkEcho(b *testing.B) {
	ping := func(b *testing.B, s io.ReadWriter) {
		buf := make([]byte, 64)
		for b.Loop() {
			if _, err := s.Write(buf); err != nil {
				b.Fatal(err)
			}
			if _, err := io.ReadFull(s, buf); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, k := range carriers {
		b.Run(k.name+"/bare", func(b *testing.B) {
			n := k.make(b)
			n.handle("/bare", func(s Stream) { echo(s); s.Close() })
			s, err := n.open(context.Background(), "/bare")
			if err != nil {
				b.Fatal(err)
			}
			ping(b, s)
			s.Close()
		})
		b.Run(k.name+"/session", func(b *testing.B) {
			c, e := newBenchPair(b, k.make(b))
			go serve(e, func(c *Conn) { echo(c); c.Close() })
			s, err := c.Dial(context.Background(), peerE, "echo")
			if err != nil {
				b.Fatal(err)
			}
			ping(b, s)
			s.Close()
		})
	}
}

// BenchmarkOpen: one operation is dial, 64 bytes there and back, close.
func BenchmarkOpen(b *testing.B) {
	for _, k := range carriers[1:] {
		b.Run(k.name, func(b *testing.B) {
			c, e := newBenchPair(b, k.make(b))
			go serve(e, func(c *Conn) { echo(c); c.Close() })
			b.SetParallelism(16)
			b.RunParallel(func(pb *testing.PB) {
				buf := make([]byte, 64)
				for pb.Next() {
					s, err := c.Dial(context.Background(), peerE, "echo")
					if err != nil {
						b.Error(err)
						return
					}
					s.Write(buf)
					if _, err := io.ReadFull(s, buf); err != nil {
						b.Error(err)
						return
					}
					s.CloseWrite()
					s.Read(buf)
					s.Close()
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "opens/s")
		})
	}
}

// BenchmarkSessionMemory: bytes of heap and stacks an end of a session costs, without goroutines of users: after one echo,
// idle; with 64 KiB each way a second; and after its path went with some bytes on the way.
func BenchmarkSessionMemory(b *testing.B) {
	const count = 5000
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse + m.StackInuse)
	}
	for b.Loop() {
		n := newTCP(b)
		var mu sync.Mutex
		var streams []Stream
		cut := false
		open := n.open
		n.open = func(ctx context.Context, proto string) (Stream, error) {
			mu.Lock()
			defer mu.Unlock()
			if cut {
				return nil, errors.New("no path")
			}
			s, err := open(ctx, proto)
			streams = append(streams, s)
			return s, err
		}
		c, e := newBenchPair(b, n)
		kept := make(chan *Conn, count)
		go serve(e, func(c *Conn) {
			var buf [64]byte
			io.ReadFull(c, buf[:])
			c.Write(buf[:])
			kept <- c
		})
		before := heap()
		var near, far []*Conn
		for range count {
			s, err := c.Dial(context.Background(), peerE, "idle")
			if err != nil {
				b.Fatal(err)
			}
			var buf [64]byte
			s.Write(buf[:])
			if _, err := io.ReadFull(s, buf[:]); err != nil {
				b.Fatal(err)
			}
			near, far = append(near, s), append(far, <-kept)
		}
		b.ReportMetric(float64(heap()-before)/count/2, "B/idle")

		block := make([]byte, 64<<10)
		for i := range near {
			for _, way := range [][2]*Conn{{near[i], far[i]}, {far[i], near[i]}} {
				way[0].Write(block)
				io.ReadFull(way[1], block)
			}
		}
		b.ReportMetric(float64(heap()-before)/count/2, "B/used")

		mu.Lock()
		cut = true
		for _, s := range streams {
			s.Reset()
		}
		mu.Unlock()
		for _, s := range near {
			s.Write(block[:16]) // more would wait for the path
		}
		b.ReportMetric(float64(heap()-before)/count/2, "B/detached")
		for _, s := range near {
			s.Reset()
		}
	}
}
