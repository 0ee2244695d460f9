package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

var errCut = errors.New("pipe: cut")

// pipe is one direction of a stream in memory. After limit bytes it is cut: both ends of the stream break.
type pipe struct {
	mu     sync.Mutex
	cond   sync.Cond
	buf    []byte
	size   int // bytes it holds
	passed int64
	limit  int64 // bytes until the cut, -1 for none
	silent bool  // takes bytes and delivers none
	held   bool  // keeps what it has
	eof    bool
	rerr   error // what the reading end gets
	werr   error // what the writing end gets
	rd, wd time.Time
	rt, wt *time.Timer
	onCut  func()
}

func newPipe(size int) *pipe {
	p := &pipe{size: size, limit: -1}
	p.cond.L = &p.mu
	return p
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		switch {
		case p.rerr != nil:
			return 0, p.rerr
		case late(p.rd):
			return 0, os.ErrDeadlineExceeded
		case len(p.buf) > 0 && !p.held:
			n := copy(b, p.buf)
			p.buf = p.buf[n:]
			p.cond.Broadcast()
			return n, nil
		case p.eof && len(p.buf) == 0:
			return 0, io.EOF
		}
		p.cond.Wait()
	}
}

func late(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (p *pipe) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	done := 0
	for done < len(b) {
		switch {
		case p.werr != nil:
			return done, p.werr
		case p.eof:
			return done, io.ErrClosedPipe
		case late(p.wd):
			return done, os.ErrDeadlineExceeded
		}
		n := min(len(b)-done, p.size-len(p.buf))
		if p.silent {
			n = min(len(b)-done, p.size)
			p.size -= n
		}
		if p.limit >= 0 {
			n = min(n, int(p.limit-p.passed))
		}
		if n > 0 {
			if !p.silent {
				p.buf = append(p.buf, b[done:done+n]...)
			}
			p.passed += int64(n)
			done += n
			p.cond.Broadcast()
		}
		if p.limit >= 0 && p.passed >= p.limit {
			p.limit = -1
			if p.onCut != nil {
				go p.onCut()
			}
			if done == len(b) {
				return done, nil
			}
			return done, errCut
		}
		if n == 0 {
			p.cond.Wait()
		}
	}
	return done, nil
}

// fail breaks the pipe at the ends given. What happens at one end of a silent pipe is not seen at the other.
func (p *pipe) fail(err error, reader, writer bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if reader && p.rerr == nil {
		p.rerr = err
	}
	if writer && p.werr == nil {
		p.werr = err
	}
	p.cond.Broadcast()
}

// hold keeps what is in the pipe from its reader, or lets it go.
func (p *pipe) hold(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = yes
	p.cond.Broadcast()
}

func (p *pipe) quiet() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.silent
}

func (p *pipe) wakeAt(t time.Time, timer **time.Timer) {
	if *timer != nil {
		(*timer).Stop()
	}
	if d := time.Until(t); !t.IsZero() && d > 0 {
		*timer = time.AfterFunc(d, func() { p.mu.Lock(); p.cond.Broadcast(); p.mu.Unlock() })
	}
	p.cond.Broadcast()
}

// end is one end of a stream in memory.
type end struct{ in, out *pipe }

func (e *end) Read(b []byte) (int, error)  { return e.in.read(b) }
func (e *end) Write(b []byte) (int, error) { return e.out.write(b) }
func (e *end) Reset() error {
	e.in.fail(errCut, true, !e.in.quiet())
	e.out.fail(errCut, !e.out.quiet(), true)
	return nil
}

// Close lets what was written be read, and stops reading.
func (e *end) Close() error {
	e.out.mu.Lock()
	e.out.eof = !e.out.silent
	e.out.cond.Broadcast()
	e.out.mu.Unlock()
	e.in.fail(io.ErrClosedPipe, true, !e.in.quiet())
	return nil
}

func (e *end) SetDeadline(t time.Time) error {
	e.in.mu.Lock()
	e.in.rd = t
	e.in.wakeAt(t, &e.in.rt)
	e.in.mu.Unlock()
	e.out.mu.Lock()
	e.out.wd = t
	e.out.wakeAt(t, &e.out.wt)
	e.out.mu.Unlock()
	return nil
}

// streamPair gives the two ends of a stream in memory.
func streamPair(size int) (a, b *end) {
	x, y := newPipe(size), newPipe(size)
	a, b = &end{in: y, out: x}, &end{in: x, out: y}
	x.onCut = func() { a.Reset() }
	y.onCut = x.onCut
	return a, b
}

// silence makes a stream's path go quiet: nothing arrives any more, nothing fails.
func silence(e *end) {
	for _, p := range []*pipe{e.in, e.out} {
		p.mu.Lock()
		p.silent = true
		p.mu.Unlock()
	}
}

// lab is two endpoints, C and E, and every stream ever opened between them.
type lab struct {
	t    testing.TB
	c, e *Endpoint
	stop context.CancelFunc
	done sync.WaitGroup
	dog  *time.Timer // barks after a week of virtual time: the test hangs

	mu      sync.Mutex
	streams []*end                                                    // C's ends
	open    func(ctx context.Context, n int, want Want) (*end, error) // nil: a fresh pair
	deny    error
	lost    peer.ID // no path to this one
	size    int
}

const (
	peerC = peer.ID("entry peer")
	peerE = peer.ID("exit peer")
)

func newLab(t testing.TB, change ...func(c, e *Config)) *lab {
	l := &lab{t: t, size: 64 << 10}
	log := slog.New(slog.DiscardHandler)
	if os.Getenv("SESSION_LOG") != "" {
		log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	c := Config{Self: peerC, Open: l.Open, Authorize: func(peer.ID) error { return errors.New("nobody dials C") }, Now: time.Now, Log: log.With("at", "C")}
	e := Config{Self: peerE, Authorize: l.authorize, Now: time.Now, Log: log.With("at", "E")}
	for _, f := range change {
		f(&c, &e)
	}
	l.c, l.e = New(c), New(e)
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	l.dog = time.AfterFunc(7*24*time.Hour, func() { panic("the test hangs") })
	l.done.Go(func() { l.c.Serve(ctx) })
	l.done.Go(func() { l.e.Serve(ctx) })
	return l
}

// close ends both endpoints and waits for all of theirs.
func (l *lab) close() {
	l.stop()
	l.done.Wait()
	l.dog.Stop()
	for _, e := range []*Endpoint{l.c, l.e} {
		if n := e.mem.unread.Load(); n != 0 {
			l.t.Errorf("in the end %d bytes seem to be unread", n)
		}
	}
}

func (l *lab) authorize(peer.ID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.deny
}

// lose takes the path to p away; "" gives it back.
func (l *lab) lose(p peer.ID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost = p
}

// Open is C's: it hands the far end to E.
func (l *lab) Open(ctx context.Context, p peer.ID, want Want) (Stream, error) {
	l.mu.Lock()
	n, open := len(l.streams), l.open
	if p == l.lost {
		l.mu.Unlock()
		return nil, errors.New("no path")
	}
	l.streams = append(l.streams, nil)
	l.mu.Unlock()
	var a *end
	if open != nil {
		var err error
		if a, err = open(ctx, n, want); err != nil {
			return nil, err
		}
	} else {
		a = l.pair()
	}
	l.mu.Lock()
	l.streams[n] = a
	l.mu.Unlock()
	return a, nil
}

// pair makes a stream whose far end E handles.
func (l *lab) pair() *end {
	a, b := streamPair(l.size)
	l.done.Go(func() { l.e.Handle(peerC, b) })
	return a
}

// last is C's end of the newest stream.
func (l *lab) last() *end {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := len(l.streams) - 1; i >= 0; i-- {
		if l.streams[i] != nil {
			return l.streams[i]
		}
	}
	return nil
}

// opened is how many streams there were.
func (l *lab) opened() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.streams)
}

// session opens one and gives both ends.
func (l *lab) session() (c, e *Conn) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := l.c.Dial(ctx, peerE, "svc")
	if err != nil {
		l.t.Fatal(err)
	}
	in, err := l.e.Accept(ctx)
	if err != nil {
		l.t.Fatal(err)
	}
	if in.Service() != "svc" || in.Peer() != peerC {
		l.t.Fatalf("got %q from %q", in.Service(), in.Peer())
	}
	if e, err = in.Accept(); err != nil {
		l.t.Fatal(err)
	}
	return c, e
}

// numbers is a stream of bytes whose every position is checkable.
type numbers struct{ at int64 }

func pattern(i int64) byte { return byte(i*7 + i>>8*13 + i>>16*31) }

func (s *numbers) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = pattern(s.at)
		s.at++
	}
	return len(p), nil
}

func (s *numbers) Write(p []byte) (int, error) {
	for _, b := range p {
		if b != pattern(s.at) {
			return 0, fmt.Errorf("byte %d is %d, want %d", s.at, b, pattern(s.at))
		}
		s.at++
	}
	return len(p), nil
}

// send writes n checkable bytes and FIN.
func send(c *Conn, n int64) error {
	if _, err := io.CopyN(onlyWriter{c}, &numbers{}, n); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return c.CloseWrite()
}

// receive reads n checkable bytes and FIN.
func receive(c *Conn, n int64) error {
	w := &numbers{}
	if _, err := io.Copy(w, onlyReader{c}); err != nil {
		return fmt.Errorf("receive at %d: %w", w.at, err)
	}
	if w.at != n {
		return fmt.Errorf("received %d bytes, want %d", w.at, n)
	}
	return nil
}

type onlyWriter struct{ io.Writer }
type onlyReader struct{ io.Reader }

// both runs sends and receives both ways at once.
func both(c, e *Conn, ce, ec int64) error {
	errs := make(chan error, 4)
	go func() { errs <- send(c, ce) }()
	go func() { errs <- send(e, ec) }()
	go func() { errs <- receive(e, ce) }()
	go func() { errs <- receive(c, ec) }()
	var all error
	for range 4 {
		if err := <-errs; err != nil && all == nil {
			all = err
			c.Reset() // or the others wait for ever
			e.Reset()
		}
	}
	c.Close()
	e.Close()
	return all
}
