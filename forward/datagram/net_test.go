package datagram

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

var errCut = errors.New("wire: cut")

// A wire is one direction of a stream: a delay, a rate, and a buffer as kernels and muxers have them.
type wire struct {
	mu     sync.Mutex
	cond   sync.Cond
	chunks []chunk
	held   int
	free   time.Time // when the wire has sent what it has
	err    error
	eof    bool // after what is in it
	rd     time.Time
	path   *path
}

type chunk struct {
	at   time.Time
	data []byte
}

// A path is what streams between two peers go by.
type path struct {
	mu     sync.Mutex
	delay  time.Duration
	rate   int // bytes a second; 0: no limit
	buffer int
	packet time.Duration // what one packet takes; the next waits for it
	silent bool
	cut    []func()
}

func (p *path) figures() (delay time.Duration, rate, buffer int, silent bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.delay, p.rate, p.buffer, p.silent
}

func (p *path) fallSilent() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = true
}

func (p *path) breakUp() {
	p.mu.Lock()
	cut := p.cut
	p.cut = nil
	p.mu.Unlock()
	for _, f := range cut {
		f()
	}
}

func newWire(p *path) *wire {
	w := &wire{path: p}
	w.cond.L = &w.mu
	return w
}

func (w *wire) write(b []byte) (int, error) {
	delay, rate, buffer, silent := w.path.figures()
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.err == nil && w.held >= buffer {
		w.cond.Wait()
	}
	if w.err != nil || w.eof {
		return 0, errors.Join(w.err, errCut)
	}
	if silent {
		return len(b), nil
	}
	now := time.Now()
	if w.free.Before(now) {
		w.free = now
	}
	if rate > 0 {
		w.free = w.free.Add(time.Duration(len(b)) * time.Second / time.Duration(rate))
	}
	at := w.free.Add(delay)
	w.chunks = append(w.chunks, chunk{at, append([]byte(nil), b...)})
	w.held += len(b)
	time.AfterFunc(at.Sub(now), w.wake)
	return len(b), nil
}

func (w *wire) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cond.Broadcast()
}

func (w *wire) read(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		switch {
		case w.err != nil:
			return 0, w.err
		case len(w.chunks) > 0 && !time.Now().Before(w.chunks[0].at):
			n := copy(b, w.chunks[0].data)
			if w.chunks[0].data = w.chunks[0].data[n:]; len(w.chunks[0].data) == 0 {
				w.chunks = w.chunks[1:]
			}
			w.held -= n
			w.cond.Broadcast()
			return n, nil
		case len(w.chunks) == 0 && w.eof:
			return 0, io.EOF
		case !w.rd.IsZero() && !time.Now().Before(w.rd):
			return 0, os.ErrDeadlineExceeded
		}
		w.cond.Wait()
	}
}

func (w *wire) fail(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	w.cond.Broadcast()
}

func (w *wire) finish() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.eof = true
	w.cond.Broadcast()
}

// An end is one end of a stream in memory.
type end struct {
	in, out *wire
	conn    *conn
}

func (e *end) Read(b []byte) (int, error)  { return e.in.read(b) }
func (e *end) Write(b []byte) (int, error) { return e.out.write(b) }
func (e *end) Close() error                { e.out.finish(); return nil }
func (e *end) Reset() error                { e.in.fail(errCut); e.out.fail(errCut); return nil }
func (e *end) SetDeadline(t time.Time) error {
	e.in.mu.Lock()
	defer e.in.mu.Unlock()
	e.in.rd = t
	if d := time.Until(t); !t.IsZero() && d > 0 {
		time.AfterFunc(d, e.in.wake)
	}
	return nil
}

// A conn is one end of a connection that carries packets.
type conn struct {
	path  *path
	other *conn
	got   chan []byte
	turn  chan struct{} // capacity 1: full while a packet is being sent
}

// packetRoom is what fits into a packet here.
const packetRoom = 1200

func (c *conn) SendDatagram(b []byte) error {
	if len(b) > packetRoom {
		return errors.New("too large")
	}
	if c.path.packet > 0 {
		c.turn <- struct{}{}
		time.Sleep(c.path.packet)
		<-c.turn
	}
	delay, _, _, silent := c.path.figures()
	b = append([]byte(nil), b...)
	if silent {
		return nil
	}
	time.AfterFunc(delay, func() {
		select {
		case c.other.got <- b:
		default:
		}
	})
	return nil
}

func (c *conn) ReceiveDatagram(ctx context.Context) ([]byte, error) {
	select {
	case b := <-c.got:
		return b, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A pair is an entry "c" and an exit "e" with paths between them; the last one is used.
type pair struct {
	t       *testing.T
	c, e    *Endpoint
	packets bool

	mu       sync.Mutex
	paths    []*path
	conns    map[*path][2]*conn
	allowed  func(service string) bool
	expelled bool
	offered  int // flows that the exit was offered
	waiting  []*Incoming
	opened   int // streams
	stop     func()
	handles  sync.WaitGroup
}

func newPair(t *testing.T, packets bool, p *path) *pair {
	pr := &pair{t: t, packets: packets, conns: map[*path][2]*conn{}, allowed: func(string) bool { return true }}
	pr.add(p)
	quicOf := func(s Stream) Packets {
		if c := s.(*end).conn; c != nil {
			return c
		}
		return nil
	}
	authorize := func(_ peer.ID, service string) error {
		pr.mu.Lock()
		allowed, expelled := pr.allowed, pr.expelled
		pr.mu.Unlock()
		if expelled || service != "" && !allowed(service) { // not under the mutex: allowed may wait
			return errors.New("not allowed")
		}
		return nil
	}
	pr.c = New(Config{Open: pr.open, Packets: quicOf, Authorize: authorize})
	pr.e = New(Config{Open: pr.open, Packets: quicOf, Authorize: authorize})
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { pr.c.Serve(ctx) })
	serving.Go(func() { pr.e.Serve(ctx) })
	serving.Go(func() { pr.echo(ctx) })
	pr.stop = func() { cancel(); serving.Wait(); pr.handles.Wait() }
	return pr
}

func (pr *pair) add(p *path) {
	if p.buffer == 0 {
		p.buffer = 4 << 20
	}
	a := &conn{path: p, got: make(chan []byte, 1<<16), turn: make(chan struct{}, 1)}
	b := &conn{path: p, got: make(chan []byte, 1<<16), turn: make(chan struct{}, 1), other: a}
	a.other = b
	pr.mu.Lock()
	defer pr.mu.Unlock()
	pr.paths = append(pr.paths, p)
	pr.conns[p] = [2]*conn{a, b}
}

// open opens a stream on the newest path but the one to avoid.
func (pr *pair) open(ctx context.Context, _ peer.ID, avoid Stream) (Stream, error) {
	pr.mu.Lock()
	pr.opened++
	var p *path
	for _, k := range pr.paths {
		if avoid == nil || avoid.(*end).in.path != k {
			p = k
		}
	}
	pr.mu.Unlock()
	if p == nil {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	up, down := newWire(p), newWire(p)
	near, far := &end{in: down, out: up}, &end{in: up, out: down}
	if pr.packets {
		near.conn, far.conn = pr.conns[p][0], pr.conns[p][1]
	}
	p.mu.Lock()
	p.cut = append(p.cut, func() { near.Reset() })
	p.mu.Unlock()
	pr.handles.Go(func() { pr.e.Handle("c", far) })
	return near, nil
}

// lose takes a path away for good.
func (pr *pair) lose(p *path) {
	pr.mu.Lock()
	for i, k := range pr.paths {
		if k == p {
			pr.paths = append(pr.paths[:i:i], pr.paths[i+1:]...)
		}
	}
	pr.mu.Unlock()
	p.breakUp()
}

// echo accepts each flow and sends back what comes; service "refused" is refused, "silent" answers nothing, and
// "waits" is answered by the test.
func (pr *pair) echo(ctx context.Context) {
	for {
		in, err := pr.e.Accept(ctx)
		if err != nil {
			return
		}
		pr.mu.Lock()
		pr.offered++
		pr.mu.Unlock()
		switch in.Service() {
		case "refused":
			in.Refuse(Refused)
			continue
		case "waits":
			pr.mu.Lock()
			pr.waiting = append(pr.waiting, in)
			pr.mu.Unlock()
			continue
		case "silent":
			in.Accept(&box{})
			continue
		}
		s := &echoSink{}
		s.flow.Store(in.flow)
		in.Accept(s)
	}
}

func (pr *pair) offers() int {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	return pr.offered
}
