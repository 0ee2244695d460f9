package relaynode

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/host"
	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/protocol"
	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
	"golang.org/x/time/rate"
)

// How a relayed byte is paced. The circuit service works on a host whose
// streams are metered; it reads from one peer's stream and writes to the
// other's, so that each byte passes
//
//  1. metered.Read on the sender's stream: counted for the month, taken from
//     the total's bucket and from the sender's;
//  2. metered.Write on the receiver's: taken from the receiver's bucket.
//
// A bucket that is empty makes the copy wait, the stream's window fills, and
// the sender is slowed down end to end. Nothing is dropped.

// Limits are what the owner of the relay grants the network. Zero: unlimited.
type Limits struct {
	// PerPeer is the rate in bytes a second to and from one peer together.
	PerPeer int64
	// Total is the rate in bytes a second of all that is relayed.
	Total int64
	// Monthly is how many bytes are relayed in a calendar month (UTC). When
	// they are used up, circuits are cut and refused until the next.
	Monthly int64
}

// minRate is the least rate that is taken for meant, in bytes a second: below
// it one copy buffer takes longer than a lane waits before it looks elsewhere.
const minRate = 16 << 10

// Check refuses limits that no relay could keep.
func (l Limits) Check() error {
	for name, v := range map[string]int64{"per peer": l.PerPeer, "in total": l.Total} {
		if v < 0 || (v > 0 && v < minRate) {
			return fmt.Errorf("relay limit of %d bytes a second %s: want 0 for none, or at least %d", v, name, minRate)
		}
	}
	if l.Monthly < 0 {
		return fmt.Errorf("relay limit of %d bytes a month: want 0 for none, or more", l.Monthly)
	}
	return nil
}

// Usage is how much was relayed in a month.
type Usage struct {
	Month string // "2026-11", UTC
	Bytes int64
}

// errQuota ends a circuit when the month's quota is used up.
var errQuota = errors.New("the relay's quota for this month is used up")

// meter counts and paces.
type meter struct {
	limits Limits
	now    func() time.Time
	total  *rate.Limiter // nil: unlimited

	mu    sync.Mutex
	used  Usage
	left  Usage // of the month before the last turn, to which a clock that was wrong for a while comes back
	peers map[peer.ID]*bucket

	conns sync.Map // network.Conn → *atomic.Int64: Unix ns of the last byte relayed from it
}

// bucket paces one peer while it has circuits.
type bucket struct {
	*rate.Limiter
	streams int
}

func newMeter(l Limits, used Usage, now func() time.Time) *meter {
	return &meter{limits: l, now: now, total: limiter(l.Total), used: used, peers: make(map[peer.ID]*bucket)}
}

// limiter allows bursts of a tenth of a second, and of one copy buffer at least.
func limiter(bytesPerSecond int64) *rate.Limiter {
	if bytesPerSecond == 0 {
		return nil
	}
	return rate.NewLimiter(rate.Limit(bytesPerSecond), int(max(bytesPerSecond/10, copyBuffer)))
}

// count adds n to the month's bytes and says whether the quota has room.
func (m *meter) count(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turnLocked()
	m.used.Bytes += int64(n)
	return m.limits.Monthly == 0 || m.used.Bytes <= m.limits.Monthly
}

func (m *meter) spent() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turnLocked()
	return m.limits.Monthly > 0 && m.used.Bytes >= m.limits.Monthly
}

func (m *meter) usage() Usage {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.turnLocked()
	return m.used
}

// turnLocked begins another month where the clock says so. A month that is noted may be the next one, for a clock set
// back a little buys no new quota; one further ahead was noted by a wrong clock, and nothing would end it.
func (m *meter) turnLocked() {
	now := m.now().UTC()
	month, next := monthOf(now), monthOf(time.Date(now.Year(), now.Month()+1, 1, 0, 0, 0, 0, time.UTC))
	if month <= m.used.Month && m.used.Month <= next {
		return
	}
	turned := Usage{Month: month}
	if m.left.Month == month {
		turned = m.left
	}
	m.used, m.left = turned, m.used
}

func monthOf(t time.Time) string { return t.Format("2006-01") }

// bucketOf returns p's bucket, nil if peers are not limited, and what gives it back.
func (m *meter) bucketOf(p peer.ID) (b *rate.Limiter, release func()) {
	if m.limits.PerPeer == 0 {
		return nil, func() {}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	mine := m.peers[p]
	if mine == nil {
		mine = &bucket{Limiter: limiter(m.limits.PerPeer)}
		m.peers[p] = mine
	}
	mine.streams++
	return mine.Limiter, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		// A bucket that is not yet full again outlives its last stream, else
		// opening a new one would buy a new burst.
		if mine.streams--; mine.streams == 0 && mine.Tokens() >= float64(mine.Burst()) {
			delete(m.peers, p)
		}
	}
}

// sweep drops the buckets of peers that have no streams and are full again.
func (m *meter) sweep() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p, b := range m.peers {
		if b.streams == 0 && b.Tokens() >= float64(b.Burst()) {
			delete(m.peers, p)
		}
	}
}

// heard is when the last byte was relayed from c; zero if none ever was or no
// circuit is open on it.
func (m *meter) heard(c network.Conn) time.Time {
	if at, ok := m.conns.Load(c); ok {
		return time.Unix(0, at.(*atomic.Int64).Load())
	}
	return time.Time{}
}

// host is h as the circuit service sees it: hop streams come in metered, stop
// streams go out metered.
func (m *meter) host(ctx context.Context, h host.Host) *meteredHost {
	return &meteredHost{Host: h, meter: m, ctx: ctx, live: make(map[*meteredStream]struct{})}
}

type meteredHost struct {
	host.Host
	meter *meter
	legs  legs
	ctx   context.Context // of Serve
	work  sync.WaitGroup  // handlers and live streams

	mu     sync.Mutex
	closed bool
	live   map[*meteredStream]struct{}
}

func (h *meteredHost) SetStreamHandler(id protocol.ID, handle network.StreamHandler) {
	h.Host.SetStreamHandler(id, func(s network.Stream) {
		if id == proto.ProtoIDv2Hop {
			metered, ok := h.wrap(s)
			if !ok {
				return
			}
			s = metered
		}
		handle(s)
	})
}

func (h *meteredHost) NewStream(ctx context.Context, p peer.ID, ids ...protocol.ID) (network.Stream, error) {
	s := h.legs.open(ctx, h.Network(), p, ids[0])
	if s == nil {
		var err error
		if s, err = h.Host.NewStream(ctx, p, ids...); err != nil {
			return nil, err
		}
	}
	metered, ok := h.wrap(s)
	if !ok {
		return nil, context.Canceled
	}
	return metered, nil
}

// wrap meters s; ok is false, and s reset, once the relay has been closed.
func (h *meteredHost) wrap(s network.Stream) (_ *meteredStream, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		s.Reset()
		return nil, false
	}
	h.work.Add(1)
	out := &meteredStream{Stream: s, host: h, heard: h.meter.listen(s.Conn())}
	out.ctx, out.cancel = context.WithCancel(h.ctx)
	out.bucket, out.giveBack = h.meter.bucketOf(s.Conn().RemotePeer())
	h.live[out] = struct{}{}
	return out, true
}

// close resets all live streams, which ends their circuits.
func (h *meteredHost) close() {
	h.mu.Lock()
	h.closed = true
	live := make([]*meteredStream, 0, len(h.live))
	for s := range h.live {
		live = append(live, s)
	}
	h.mu.Unlock()
	for _, s := range live {
		s.Reset()
	}
	h.work.Wait()
}

// listen returns where the time of the last byte from c is noted. It is
// dropped with the connection, see forget.
func (m *meter) listen(c network.Conn) *atomic.Int64 {
	at, _ := m.conns.LoadOrStore(c, new(atomic.Int64))
	if c.IsClosed() { // forget may have been before us
		m.conns.Delete(c)
	}
	return at.(*atomic.Int64)
}

func (m *meter) forget(c network.Conn) { m.conns.Delete(c) }

// meteredStream is one side of a circuit.
type meteredStream struct {
	network.Stream
	host     *meteredHost
	heard    *atomic.Int64
	bucket   *rate.Limiter // nil: unlimited
	giveBack func()
	answered atomic.Bool // something was written to it

	ctx    context.Context // ends the waiting
	cancel context.CancelFunc
	ended  sync.Once
}

func (s *meteredStream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b[:min(len(b), copyBuffer)])
	if n == 0 {
		return n, err
	}
	s.heard.Store(time.Now().UnixNano())
	if !s.host.meter.count(n) && s.answered.Load() { // a request is heard in any case, and refused by a word
		s.Reset()
		return 0, errQuota
	}
	if werr := s.wait(s.host.meter.total, n); werr != nil {
		return 0, werr
	}
	if werr := s.wait(s.bucket, n); werr != nil {
		return 0, werr
	}
	return n, err
}

func (s *meteredStream) Write(b []byte) (int, error) {
	s.answered.Store(true)
	var done int
	for done < len(b) {
		n := min(len(b)-done, copyBuffer)
		if err := s.wait(s.bucket, n); err != nil {
			return done, err
		}
		n, err := s.Stream.Write(b[done : done+n])
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

func (s *meteredStream) wait(l *rate.Limiter, n int) error {
	if l == nil {
		return nil
	}
	return l.WaitN(s.ctx, n)
}

func (s *meteredStream) Close() error { defer s.end(); return s.Stream.Close() }

func (s *meteredStream) Reset() error { defer s.end(); return s.Stream.Reset() }

func (s *meteredStream) ResetWithError(code network.StreamErrorCode) error {
	defer s.end()
	return s.Stream.ResetWithError(code)
}

// end gives back what the stream holds.
func (s *meteredStream) end() {
	s.ended.Do(func() {
		s.cancel()
		s.giveBack()
		s.host.mu.Lock()
		delete(s.host.live, s)
		s.host.mu.Unlock()
		s.host.work.Done()
	})
}
