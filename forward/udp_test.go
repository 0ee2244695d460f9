package forward

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/forward/datagram"
)

// udpPatience is how long what takes microseconds may take.
const udpPatience = 20 * time.Second

type pipeStream struct{ net.Conn }

func (p pipeStream) Reset() error { return p.Close() }

// udpWorld is an entry at a local socket, and an exit to the target of the service "svc".
type udpWorld struct {
	t       *testing.T
	local   netip.AddrPort
	refused chan error
	ends    [2]*datagram.Endpoint

	mu     sync.Mutex
	target string
	denied bool
}

// newUDPEnds are two endpoints, of which entry can dial exit.
func newUDPEnds(t *testing.T, allow func(peer.ID, string) error) (entry, exit *datagram.Endpoint) {
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	t.Cleanup(func() { cancel(); serving.Wait() })
	exit = datagram.New(datagram.Config{Authorize: allow})
	entry = datagram.New(datagram.Config{Authorize: allow, Open: func(context.Context, peer.ID, datagram.Stream) (datagram.Stream, error) {
		near, far := net.Pipe()
		serving.Go(func() { exit.Handle("entry", pipeStream{far}) })
		return pipeStream{near}, nil
	}})
	serving.Go(func() { entry.Serve(ctx) })
	serving.Go(func() { exit.Serve(ctx) })
	return entry, exit
}

func newUDPWorld(t *testing.T, listen string) *udpWorld {
	w := &udpWorld{t: t, refused: make(chan error, 100)}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	t.Cleanup(func() { cancel(); serving.Wait() })
	entry, exit := newUDPEnds(t, func(_ peer.ID, service string) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.denied && service != "" {
			return errors.New("not you")
		}
		return nil
	})
	w.ends = [2]*datagram.Endpoint{entry, exit}
	out := &UDPExit{Accept: exit.Accept, Lookup: func(peer.ID, string) (Target, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return ParseTarget(w.target + "/udp")
	}}
	serving.Go(func() { out.Serve(ctx) })
	local, err := ParseLocal(listen)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := local.ListenUDP()
	if err != nil {
		t.Fatal(err)
	}
	w.local = conn.LocalAddr().(*net.UDPAddr).AddrPort()
	in := &UDPEntry{
		Conn:    conn,
		Refused: func(err error) { w.refused <- err },
		Dial: func(back datagram.Sink) (UDPFlow, error) {
			return entry.Dial("exit", "svc", back)
		},
	}
	serving.Go(func() { in.Serve(ctx) })
	return w
}

func (w *udpWorld) point(target string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.target = target
}

// serveUDP answers each datagram with itself.
func serveUDP(t *testing.T, addr string) string {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() { c.Close(); serving.Wait() })
	serving.Go(func() {
		b := make([]byte, maxUDP)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(b[:n], from)
		}
	})
	return c.LocalAddr().String()
}

// ask sends b and waits for an answer, again each second as programs do.
func ask(t *testing.T, c net.Conn, b []byte) []byte {
	t.Helper()
	got := make([]byte, maxUDP)
	for end := time.Now().Add(udpPatience); time.Now().Before(end); {
		if _, err := c.Write(b); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := c.Read(got); err == nil {
			return got[:n]
		}
	}
	t.Fatalf("no answer to %d bytes in %v", len(b), udpPatience)
	return nil
}

func dialUDP(t *testing.T, to string) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestUDPCarriesDatagramsWholeFromEmptyToTheLimit(t *testing.T) {
	w := newUDPWorld(t, "0")
	w.point(serveUDP(t, "127.0.0.1:0"))
	c := dialUDP(t, w.local.String())
	for _, n := range []int{0, 1, 512, 1400, 1500, 9000, 65000, datagram.MaxSize} {
		b := bytes.Repeat([]byte{byte(n)}, n)
		if got := ask(t, c, b); !bytes.Equal(got, b) {
			t.Errorf("%d bytes came back for %d", len(got), n)
		}
	}
}

func TestUDPSourcesHaveFlowsOfTheirOwn(t *testing.T) {
	w := newUDPWorld(t, "0")
	w.point(serveUDP(t, "127.0.0.1:0"))
	var clients []net.Conn
	for range 20 {
		clients = append(clients, dialUDP(t, w.local.String()))
	}
	for i, c := range clients {
		if got := ask(t, c, fmt.Append(nil, i)); string(got) != fmt.Sprint(i) {
			t.Errorf("client %d got %q", i, got)
		}
	}
	if n := len(w.ends[1].Flows()); n != len(clients) {
		t.Errorf("%d flows at the exit for %d clients", n, len(clients))
	}
}

func TestUDPAnswersComeFromTheAddressThatWasAsked(t *testing.T) {
	for listen, hosts := range map[string][]string{"0.0.0.0:0": {"127.0.0.1", "127.0.0.2"}, "[::]:0": {"127.0.0.3", "::1"}} {
		local, err := ParseLocal(listen)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := local.ListenUDP(); err != nil {
			t.Logf("%s: %v", listen, err) // no IPv6 here
			continue
		} else {
			c.Close()
		}
		w := newUDPWorld(t, listen)
		w.point(serveUDP(t, "127.0.0.1:0"))
		for _, host := range hosts {
			// A connected socket takes answers only from the address it sent to.
			c, err := net.Dial("udp", net.JoinHostPort(host, fmt.Sprint(w.local.Port())))
			if err != nil {
				t.Logf("%s: %v", host, err)
				continue
			}
			if got := ask(t, c, []byte(host)); string(got) != host {
				t.Errorf("%s got %q", host, got)
			}
			c.Close()
		}
	}
}

func TestUDPWithNobodyAtTheTargetIsToldAndMendsItself(t *testing.T) {
	w := newUDPWorld(t, "0")
	gone, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := gone.LocalAddr().String()
	gone.Close()
	w.point(addr)
	c := dialUDP(t, w.local.String())
	c.Write([]byte("anyone?"))
	select {
	case err := <-w.refused:
		var refused *datagram.RefusedError
		if !errors.As(err, &refused) || refused.Code != datagram.Refused {
			t.Errorf("refused with %v", err)
		}
	case <-time.After(udpPatience):
		t.Fatal("nobody was told")
	}
	serveUDP(t, addr)
	if got := ask(t, c, []byte("now?")); string(got) != "now?" {
		t.Errorf("got %q", got)
	}
}

func TestUDPDeniedIsToldOnceASecond(t *testing.T) {
	w := newUDPWorld(t, "0")
	w.mu.Lock()
	w.denied = true
	w.mu.Unlock()
	c := dialUDP(t, w.local.String())
	for range 50 {
		c.Write([]byte("x"))
		time.Sleep(10 * time.Millisecond)
	}
	select {
	case err := <-w.refused:
		var refused *datagram.RefusedError
		if !errors.As(err, &refused) || refused.Code != datagram.Denied {
			t.Errorf("refused with %v", err)
		}
	case <-time.After(udpPatience):
		t.Fatal("nobody was told")
	}
	if n := len(w.refused); n > 2 {
		t.Errorf("told %d times more for one source", n)
	}
}

// refusedFlow is one that its peer refuses as its entry ends the first.
type refusedFlow struct {
	back   datagram.Sink
	sent   chan struct{}
	ending func()
}

func (f *refusedFlow) Send([]byte)         { f.sent <- struct{}{} }
func (f *refusedFlow) Close(datagram.Code) { f.ending() }

func TestUDPFlowRefusedWhileItIsDialledIsSentNothing(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	first, second := &refusedFlow{sent: make(chan struct{}, 10)}, &refusedFlow{sent: make(chan struct{}, 10)}
	flows := []*refusedFlow{first, second}
	e := &UDPEntry{Conn: conn, Dial: func(back datagram.Sink) (UDPFlow, error) {
		f := flows[0]
		if flows = flows[1:]; f == first {
			back.Ended(&datagram.RefusedError{Code: datagram.Denied})
		}
		f.ending = func() {}
		return f, nil
	}}
	serve(t, e.Serve)
	dialUDP(t, conn.LocalAddr().String()).Write([]byte("x"))
	dialUDP(t, conn.LocalAddr().String()).Write([]byte("y"))
	select {
	case <-second.sent: // what came before has been dealt with
	case <-time.After(udpPatience):
		t.Fatal("the other program's datagram was not sent")
	}
	if len(first.sent) != 0 {
		t.Error("a datagram was sent by the flow that was refused")
	}
}

func TestUDPEntryEndsWhileItsFlowsAreRefused(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	const sources = 100
	var flows []*refusedFlow
	var refusing sync.WaitGroup
	sent, first := make(chan struct{}), sync.OnceFunc(func() {
		refusing.Go(func() {
			for _, f := range flows {
				f.back.Ended(&datagram.RefusedError{Code: datagram.Denied})
			}
		})
	})
	e := &UDPEntry{Conn: conn, Dial: func(back datagram.Sink) (UDPFlow, error) {
		f := &refusedFlow{back: back, sent: sent, ending: first}
		flows = append(flows, f)
		return f, nil
	}}
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { e.Serve(ctx) })
	for range sources {
		dialUDP(t, conn.LocalAddr().String()).Write([]byte("x"))
		<-sent
	}
	cancel()
	serving.Wait()
	refusing.Wait()
	if len(flows) != sources {
		t.Errorf("%d flows for %d sources", len(flows), sources)
	}
}

// TestACrowdOfDatagramsWashesNoLogAway: each of them may be one that cannot be carried.
func TestACrowdOfDatagramsWashesNoLogAway(t *testing.T) {
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	dialled := make(chan struct{})
	entry := &UDPEntry{Conn: conn, Log: slog.New(slog.NewTextHandler(&log, nil)), Dial: func(datagram.Sink) (UDPFlow, error) {
		dialled <- struct{}{}
		return nil, errors.New("away")
	}}
	serve(t, entry.Serve)
	start := time.Now()
	c := dialUDP(t, conn.LocalAddr().String())
	for range 200 {
		c.Write([]byte("x"))
		<-dialled // else the kernel may drop the next
	}
	most := 1 + int(time.Since(start)/time.Second)
	if n := strings.Count(log.String(), "no flow"); n < 1 || n > most {
		t.Errorf("%d lines in the log for 200 datagrams", n)
	}
}

// endings is a sink that hears how its flow ends.
type endings chan error

func (endings) Deliver([]byte)    {}
func (e endings) Ended(err error) { e <- err }

func TestAUDPExitThatEndsRefusesWhatItHasTaken(t *testing.T) {
	entry, exit := newUDPEnds(t, func(peer.ID, string) error { return nil })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(endings, 1)
	flow, err := entry.Dial("exit", "svc", ended)
	if err != nil {
		t.Fatal(err)
	}
	flow.Send([]byte("x"))
	out := &UDPExit{Accept: func(ctx context.Context) (*datagram.Incoming, error) {
		in, err := exit.Accept(ctx)
		cancel()
		return in, err
	}}
	if err := out.Serve(ctx); err != nil {
		t.Error(err)
	}
	select {
	case err := <-ended:
		var refused *datagram.RefusedError
		if !errors.As(err, &refused) || refused.Code != datagram.Overload {
			t.Error("it ended with", err)
		}
	case <-time.After(udpPatience):
		t.Error("nobody answered")
	}
}
