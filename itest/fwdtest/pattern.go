//go:build linux

package fwdtest

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"fwd/itest/lab"
)

// A transfer, as both ends see it:
//
//	client ▶ header: ID, bytes up, bytes down (8 bytes each, big-endian)
//	client ▶ the stream of ID "up", then end of file      server ▶ the stream of ID "down", then end of file
//
// Both directions run at once. The streams are pseudo-random, so that a byte that is lost, doubled or out of place
// shows, and where. What the server received it tells in the test process, not over the wire under test.

// Pattern is the endless stream of a seed.
func Pattern(seed uint64) io.Reader {
	var key [32]byte
	binary.BigEndian.PutUint64(key[:], seed)
	return rand.NewChaCha8(key)
}

// The seeds of the two directions of a transfer.
func upSeed(id uint64) uint64   { return 2 * id }
func downSeed(id uint64) uint64 { return 2*id + 1 }

// check is a writer that compares what comes with a pattern.
type check struct {
	want     io.Reader
	offset   int64
	last     time.Time
	stall    time.Duration
	progress func(int64)
	buf      []byte
}

func (c *check) Write(b []byte) (int, error) {
	now := time.Now()
	c.stall = max(c.stall, now.Sub(c.last))
	c.last = now
	if len(c.buf) < len(b) {
		c.buf = make([]byte, len(b))
	}
	want := c.buf[:len(b)]
	_, _ = io.ReadFull(c.want, want) // endless, without errors
	for i := range b {
		if b[i] != want[i] {
			return i, fmt.Errorf("byte %d is wrong: %#02x instead of %#02x", c.offset+int64(i), b[i], want[i])
		}
	}
	c.offset += int64(len(b))
	if c.progress != nil {
		c.progress(c.offset)
	}
	return len(b), nil
}

// Sum is a SHA-256.
type Sum [sha256.Size]byte

// sendPattern sends n bytes of a pattern, or what it has until the load is to end, then half-closes.
func sendPattern(conn net.Conn, seed uint64, n int64, load Load) (Sum, error) {
	hash := sha256.New()
	from := io.TeeReader(&ending{io.LimitReader(Pattern(seed), n), load}, hash)
	if load.Rate > 0 {
		from = &paced{from: from, rate: load.Rate, began: time.Now()}
	}
	sent, err := io.Copy(conn, from)
	if err == nil {
		err = conn.(interface{ CloseWrite() error }).CloseWrite()
	}
	if err != nil {
		err = fmt.Errorf("send, after %d of %d bytes: %w", sent, n, err)
	}
	return Sum(hash.Sum(nil)), err
}

// ending gives what from does until its load is to end.
type ending struct {
	from io.Reader
	load Load
}

func (e *ending) Read(b []byte) (int, error) {
	if e.load.ended() {
		return 0, io.EOF
	}
	return e.from.Read(b)
}

// paced gives no more than rate bytes a second, in small pieces. What a stall has held up is not made up for at
// once: it goes on from where it was.
type paced struct {
	from  io.Reader
	rate  int64
	began time.Time
	given int64
}

func (p *paced) Read(b []byte) (int, error) {
	due := p.began.Add(time.Duration(float64(p.given) / float64(p.rate) * float64(time.Second)))
	if late := time.Since(due); late > 100*time.Millisecond {
		p.began = p.began.Add(late)
	} else {
		time.Sleep(-late)
	}
	n, err := p.from.Read(b[:min(len(b), 16<<10)])
	p.given += int64(n)
	return n, err
}

// receivePattern receives until end of file, which must come after exactly n right bytes. Of a load that was ended before
// the sums of the two ends tell whether that was all.
func receivePattern(conn io.Reader, seed uint64, n int64, load Load, progress func(int64)) (sum Sum, stall time.Duration, err error) {
	hash := sha256.New()
	c := &check{want: Pattern(seed), last: time.Now(), progress: progress}
	_, err = io.Copy(io.MultiWriter(hash, c), conn)
	if err == nil && c.offset != n && !load.ended() {
		err = fmt.Errorf("end of file")
	}
	if err != nil {
		err = fmt.Errorf("receive, after %d of %d bytes: %w", c.offset, n, err)
	}
	return Sum(hash.Sum(nil)), c.stall, err
}

// PatternServer answers transfers on a host.
type PatternServer struct {
	ln net.Listener

	mu      sync.Mutex
	next    uint64
	reports map[uint64]expected
}

type served struct {
	sent, received Sum
	stall          time.Duration
	err            error
}

// expected is what the server knows of a transfer before it is asked for.
type expected struct {
	load   Load
	report chan served
}

// ServePattern serves transfers on a host's address until the test ends.
func ServePattern(t testing.TB, host *lab.Host, addr string) *PatternServer {
	t.Helper()
	s := &PatternServer{ln: listen(t, host, addr), reports: map[uint64]expected{}}
	serve(t, s.ln, s.handle)
	return s
}

// Addr is where it listens.
func (s *PatternServer) Addr() string { return s.ln.Addr().String() }

func (s *PatternServer) handle(conn net.Conn) {
	var header [24]byte
	if _, err := io.ReadFull(conn, header[:]); err != nil {
		return // not one of ours
	}
	id := binary.BigEndian.Uint64(header[0:])
	up, down := int64(binary.BigEndian.Uint64(header[8:])), int64(binary.BigEndian.Uint64(header[16:]))
	s.mu.Lock()
	want, known := s.reports[id]
	s.mu.Unlock()
	if !known {
		return
	}
	var r served
	var sendErr error
	var wg sync.WaitGroup
	wg.Go(func() { r.sent, sendErr = sendPattern(conn, downSeed(id), down, want.load) })
	r.received, r.stall, r.err = receivePattern(conn, upSeed(id), up, want.load, want.load.Received)
	wg.Wait()
	if r.err = errors.Join(r.err, sendErr); r.err != nil {
		conn.(*net.TCPConn).SetLinger(0)
	}
	want.report <- r
}

// Load is what a transfer moves.
type Load struct {
	Up, Down int64                // bytes
	Limit    time.Duration        // for all of it; 0: Limit
	Progress func(received int64) // called as the client receives
	Received func(received int64) // called as the server receives
	Rate     int64                // bytes a second each way; 0: as fast as it goes
	Until    <-chan struct{}      // both ends stop sending when it is closed, if they have not sent all; nil: they send all
	UpLast   bool                 // the client sends nothing and ends nothing before it has received all
}

// ended says whether the load is to end before all is sent.
func (l Load) ended() bool {
	select {
	case <-l.Until:
		return true
	default:
		return false
	}
}

// Report is how a transfer went.
type Report struct {
	Up, Down Sum // of what arrived; equal to what was sent, else there is an error
	Took     time.Duration
	Stall    time.Duration // longest time in which the client received nothing
	StallUp  time.Duration // longest time in which the server received nothing
}

// Transfer moves a load over a connection that leads to the server, both ways at once, each direction ended by a
// half-close, every byte compared. It closes the connection. Any difference between what one end sent and the
// other received is an error.
func (s *PatternServer) Transfer(conn net.Conn, load Load) (Report, error) {
	defer conn.Close()
	began := time.Now()
	limit := load.Limit
	if limit == 0 {
		limit = Limit
	}
	conn.SetDeadline(began.Add(limit))

	s.mu.Lock()
	s.next++
	id := s.next
	report := make(chan served, 1)
	s.reports[id] = expected{load, report}
	s.mu.Unlock()

	header := binary.BigEndian.AppendUint64(nil, id)
	header = binary.BigEndian.AppendUint64(header, uint64(load.Up))
	header = binary.BigEndian.AppendUint64(header, uint64(load.Down))
	if _, err := conn.Write(header); err != nil {
		return Report{}, fmt.Errorf("client: send the header: %w", err)
	}
	var r Report
	var sent Sum
	var sendErr, err error
	var wg sync.WaitGroup
	received := make(chan struct{})
	wg.Go(func() {
		if load.UpLast {
			<-received
		}
		sent, sendErr = sendPattern(conn, upSeed(id), load.Up, load)
	})
	r.Down, r.Stall, err = receivePattern(conn, downSeed(id), load.Down, load, load.Progress)
	close(received)
	wg.Wait()
	r.Took = time.Since(began)
	if err := errors.Join(err, sendErr); err != nil {
		return r, fmt.Errorf("client: %w", err)
	}
	select {
	case there := <-report:
		r.Up, r.StallUp = there.received, there.stall
		switch {
		case there.err != nil:
			return r, fmt.Errorf("server: %w", there.err)
		case there.received != sent || there.sent != r.Down:
			return r, errors.New("the SHA-256 of the two ends differ")
		}
		return r, nil
	case <-time.After(limit):
		return r, errors.New("server: no end of file from the client")
	}
}

// TransferFrom dials an address from a host and moves a load.
func (s *PatternServer) TransferFrom(host *lab.Host, addr string, load Load) (Report, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Limit)
	defer cancel()
	conn, err := host.Dial(ctx, "tcp", addr)
	if err != nil {
		return Report{}, fmt.Errorf("client: %w", err)
	}
	return s.Transfer(conn, load)
}

// ServeEcho sends back what it gets, and half-closes when the client has.
func ServeEcho(t testing.TB, host *lab.Host, addr string) net.Addr {
	t.Helper()
	ln := listen(t, host, addr)
	serve(t, ln, func(conn net.Conn) {
		_, _ = io.Copy(conn, conn)
		_ = conn.(*net.TCPConn).CloseWrite()
	})
	return ln.Addr()
}

// ServeHTTP serves a handler on a host until the test ends.
func ServeHTTP(t testing.TB, host *lab.Host, addr string, handler http.Handler) net.Addr {
	t.Helper()
	ln := listen(t, host, addr)
	server := &http.Server{Handler: handler}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ln) }) // ends with Close
	t.Cleanup(func() { server.Close(); wg.Wait() })
	return ln.Addr()
}

// HTTPClient makes its connections on a host; literal addresses only.
func HTTPClient(host *lab.Host) *http.Client {
	return &http.Client{Timeout: Limit, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       host.Dial,
	}}
}

func listen(t testing.TB, host *lab.Host, addr string) net.Listener {
	t.Helper()
	ln, err := host.Listen("tcp", addr)
	if err != nil {
		t.Fatalf("%s: %v", host.Name(), err)
	}
	return ln
}

// serve handles each connection until the test ends, then closes them.
func serve(t testing.TB, ln net.Listener, handle func(net.Conn)) {
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	var wg sync.WaitGroup
	wg.Go(func() { // ends with the listener
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[conn] = true
			mu.Unlock()
			wg.Go(func() {
				handle(conn)
				conn.Close()
				mu.Lock()
				delete(open, conn)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for conn := range open {
			conn.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
}
