package forward

import (
	"context"
	"io"
	"net"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/forward/session"
)

// BenchmarkForward sends 64 MiB a round from a local program to a target, by
//
//	tcp      one loopback connection, nothing between
//	proxy    a TCP proxy that uses io.Copy: two loopback connections
//	forward  an Entry and an Exit over a loopback connection: three of them
//	session  an Entry and an Exit over a session on one loopback connection
//
// Compare them within one run; the machine's other work is in all of them.
func BenchmarkForward(b *testing.B) {
	b.Run("tcp", func(b *testing.B) { benchThroughput(b, newSink(b)) })
	b.Run("proxy", func(b *testing.B) { benchThroughput(b, newPlainProxy(b, newSink(b))) })
	b.Run("forward", func(b *testing.B) {
		sink := newSink(b)
		carrier := newLocalListener(b)
		serve(b, func(ctx context.Context) error { return serveCarrier(ctx, carrier, sink) })
		benchThroughput(b, newEntry(b, func(ctx context.Context) (Conn, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", carrier.Addr().String())
			if err != nil {
				return nil, err
			}
			return c.(Conn), nil
		}))
	})
	b.Run("session", func(b *testing.B) {
		benchThroughput(b, newEntry(b, newSessionDial(b, newSink(b))))
	})
}

// newSessionDial gives a dial to a sink by way of an Exit, over a session layer whose
// lanes are loopback TCP connections.
func newSessionDial(b *testing.B, sink net.Addr) func(context.Context) (Conn, error) {
	lanes := newLocalListener(b)
	admit := func(peer.ID) error { return nil }
	here := session.New(session.Config{Self: "here", Authorize: admit,
		Open: func(ctx context.Context, _ peer.ID, _ session.Want) (session.Stream, error) {
			var d net.Dialer
			c, err := d.DialContext(ctx, "tcp", lanes.Addr().String())
			if err != nil {
				return nil, err
			}
			return tcpLane{c.(*net.TCPConn)}, nil
		}})
	there := session.New(session.Config{Self: "there", Authorize: admit,
		Open: func(context.Context, peer.ID, session.Want) (session.Stream, error) { return nil, net.ErrClosed }})
	exit := &Exit{Accept: there.Accept, Lookup: func(peer.ID, string) (Target, error) { return Target{Network: "tcp", Address: sink.String()}, nil }}
	serve(b, there.Serve)
	serve(b, here.Serve)
	serve(b, exit.Serve)
	go func() { // ends with the listener
		for {
			c, err := lanes.Accept()
			if err != nil {
				return
			}
			go there.Handle("here", tcpLane{c.(*net.TCPConn)}) // ends with its Serve
		}
	}()
	return func(ctx context.Context) (Conn, error) {
		c, err := here.Dial(ctx, "there", "sink")
		if err != nil {
			return nil, err
		}
		return c, nil
	}
}

// tcpLane is a TCP connection as a lane's stream.
type tcpLane struct{ *net.TCPConn }

func (l tcpLane) Reset() error { return Reset(l.TCPConn) }

const benchBytes = 64 << 20

func benchThroughput(b *testing.B, addr net.Addr) {
	chunk := make([]byte, 128<<10)
	b.SetBytes(benchBytes)
	b.ReportAllocs()
	for b.Loop() {
		c := dialTCP(b, addr)
		for n := 0; n < benchBytes; n += len(chunk) {
			if _, err := c.Write(chunk); err != nil {
				b.Fatal(err)
			}
		}
		c.CloseWrite()
		if got, err := io.ReadAll(c); err != nil || string(got) != "." {
			b.Fatalf("sink answered %q, %v", got, err)
		}
		c.Close()
	}
}

// newSink reads what it is sent and answers a full stop to its end.
func newSink(b *testing.B) net.Addr {
	ln := newLocalListener(b)
	go func() { // ends with the listener
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the client
				defer c.Close()
				buf := make([]byte, 128<<10)
				for {
					if _, err := c.Read(buf); err != nil {
						break
					}
				}
				c.Write([]byte("."))
			}()
		}
	}()
	return ln.Addr()
}

func newPlainProxy(b *testing.B, target net.Addr) net.Addr {
	ln := newLocalListener(b)
	go func() { // ends with the listener
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", target.String())
			if err != nil {
				near.Close()
				continue
			}
			pass := func(dst, src net.Conn) {
				// Without splice, which a forwarder over an encrypted path cannot use.
				io.Copy(struct{ io.Writer }{dst}, struct{ io.Reader }{src})
				dst.(*net.TCPConn).CloseWrite()
			}
			go pass(far, near)
			go pass(near, far)
		}
	}()
	return ln.Addr()
}

func newEntry(b *testing.B, dial func(context.Context) (Conn, error)) net.Addr {
	ln := newLocalListener(b)
	serve(b, (&Entry{Listener: ln, Dial: dial}).Serve)
	return ln.Addr()
}

// serveCarrier is an Exit whose sessions are the connections of a listener.
func serveCarrier(ctx context.Context, carrier net.Listener, target net.Addr) error {
	stop := context.AfterFunc(ctx, func() { carrier.Close() })
	defer stop()
	exit := &Exit{Lookup: func(peer.ID, string) (Target, error) { return Target{Network: "tcp", Address: target.String()}, nil }}
	return exit.serve(ctx, func(context.Context) (offer, error) {
		c, err := carrier.Accept()
		if err != nil {
			return nil, err
		}
		return carriedOffer{c.(Conn)}, nil
	})
}

type carriedOffer struct{ Conn }

func (carriedOffer) Peer() peer.ID               { return alice }
func (carriedOffer) Service() string             { return "sink" }
func (o carriedOffer) Accept() (Conn, error)     { return o.Conn, nil }
func (o carriedOffer) Refuse(session.Code) error { return Reset(o.Conn) }
