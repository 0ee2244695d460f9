package session

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// DefaultHold is how long sessions outlive their path: a night with the lid closed.
	DefaultHold = 24 * time.Hour
	// DefaultBudget bounds all replay rings together, in bytes: eight full lanes.
	DefaultBudget = 256 << 20

	// evictAfter: how long a link must have been detached before it may be dropped for want of memory.
	evictAfter = time.Minute
	// dialTries: links that a Dial sees end before it reports why.
	dialTries = 3
)

// Endpoint is this machine's end of all links, in both directions of use.
type Endpoint struct {
	cfg      Config
	log      *slog.Logger
	boot     bootID
	mem      memory
	ctx      context.Context // ends when Serve does
	cancel   context.CancelFunc
	incoming chan *Incoming
	tight    chan struct{} // memory is short
	full     chan struct{} // too much has come that nobody reads
	all      sync.WaitGroup

	totals totals

	mu      sync.Mutex
	closed  bool
	serial  uint64             // of the last link begun here
	entries map[peer.ID]*link  // peers we dial
	exits   map[peer.ID]*known // peers that dial us
}

// known is what an exit remembers of an entry: one link at most, and how far its serial numbers have come.
type known struct {
	boot   bootID
	serial uint64
	link   *link // nil when it has ended
}

// New makes an endpoint. It attaches and dials from now on; Serve must run to end it.
func New(c Config) *Endpoint {
	if c.Hold <= 0 {
		c.Hold = DefaultHold
	}
	if c.Budget <= 0 {
		c.Budget = DefaultBudget
	}
	if c.Now == nil {
		c.Now = bootClock
	}
	if c.Rand == nil {
		c.Rand = rand.Reader
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	e := &Endpoint{
		cfg: c, log: c.Log,
		mem:      memory{budget: c.Budget},
		incoming: make(chan *Incoming),
		tight:    make(chan struct{}, 1),
		full:     make(chan struct{}, 1),
		entries:  map[peer.ID]*link{},
		exits:    map[peer.ID]*known{},
	}
	e.fill(e.boot[:])
	e.ctx, e.cancel = context.WithCancel(context.Background())
	return e
}

func (e *Endpoint) now() time.Time { return e.cfg.Now() }

// wall is a time of our clock as people read it.
func (e *Endpoint) wall(t time.Time) time.Time { return time.Now().Add(-e.now().Sub(t)) }

// fill gives random bytes.
func (e *Endpoint) fill(b []byte) {
	if _, err := io.ReadFull(e.cfg.Rand, b); err != nil {
		panic("session: no randomness: " + err.Error())
	}
}

// random is a number in [0, 1).
func (e *Endpoint) random() float64 {
	var b [4]byte
	e.fill(b[:])
	return float64(binary.BigEndian.Uint32(b[:])) / (1 << 32)
}

// spawn runs a goroutine that Serve waits for.
func (e *Endpoint) spawn(f func()) { e.all.Go(f) }

// Serve runs the endpoint until ctx ends, then resets all sessions, tells the peers, and returns
// nil when everything has ended.
func (e *Endpoint) Serve(ctx context.Context) error {
	for {
		select {
		case <-e.tight:
			e.evict()
			continue
		case <-e.full:
			e.shed()
			continue
		case <-ctx.Done():
		}
		break
	}
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	var wg sync.WaitGroup
	for _, k := range e.links() {
		wg.Go(func() { k.fail(ErrClosed, endShutdown) })
	}
	wg.Wait()
	e.cancel()
	e.all.Wait()
	return nil
}

// links lists all links.
func (e *Endpoint) links() []*link {
	e.mu.Lock()
	defer e.mu.Unlock()
	var ks []*link
	for _, k := range e.entries {
		ks = append(ks, k)
	}
	for _, x := range e.exits {
		if x.link != nil {
			ks = append(ks, x.link)
		}
	}
	return ks
}

// forget drops a link that has ended.
func (e *Endpoint) forget(k *link) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.entries[k.peer] == k {
		delete(e.entries, k.peer)
	}
	if x := e.exits[k.peer]; x != nil && x.link == k {
		x.link = nil
	}
}

// entryLink gives the link to p, beginning it if there is none.
func (e *Endpoint) entryLink(p peer.ID) (*link, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, ErrClosed
	}
	if k := e.entries[p]; k != nil && k.reason() == nil { // one that is ending is there still
		return k, nil
	}
	var id linkID
	e.serial++
	binary.BigEndian.PutUint64(id[:8], e.serial)
	e.fill(id[8:])
	k := newLink(e, p, entry, id)
	e.entries[p] = k
	return k, nil
}

// Dial opens a session with p's service. On an attached link it costs no round trip; else it waits for a path until ctx ends.
// Whether the service is there shows at the first Read: a refusal is a *RefusedError, also from Dial if p refuses us altogether.
func (e *Endpoint) Dial(ctx context.Context, p peer.ID, service string) (*Conn, error) {
	if !validService(service) {
		return nil, fmt.Errorf("session: %q cannot be a service's name", service)
	}
	var err error
	for range dialTries {
		var k *link
		if k, err = e.entryLink(p); err != nil {
			return nil, err
		}
		var c *Conn
		if c, err = k.open(ctx, service); err == nil {
			return c, nil
		}
		var st *statusError
		if errors.As(err, &st) && st.status == statusDenied {
			return nil, &RefusedError{Service: service, Code: Denied}
		}
		if ctx.Err() != nil || errors.Is(err, ErrClosed) {
			break
		}
	}
	return nil, fmt.Errorf("session: dial %q at %s: %w", service, p, err)
}

// Accept returns the next session that a peer wants to open here.
func (e *Endpoint) Accept(ctx context.Context) (*Incoming, error) {
	select {
	case in := <-e.incoming:
		return in, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-e.ctx.Done():
		return nil, ErrClosed
	}
}

// Handle takes a lane stream that the authenticated peer p opened to us; it returns when that attachment has ended.
func (e *Endpoint) Handle(p peer.ID, s Stream) {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		s.Reset()
		return
	}
	e.all.Add(1)
	e.mu.Unlock()
	defer e.all.Done()

	stop := context.AfterFunc(e.ctx, func() { retire(s) })
	l, a, err := e.admit(p, s)
	stop()
	if err != nil {
		e.log.Debug("attach refused", "peer", p, "err", err)
		// Close, not Reset: the answer is on its way.
		s.Close()
		return
	}
	l.carry(a)
	<-a.done
}

// admit reads attaches from s, a check or two and then the real one, and answers them.
func (e *Endpoint) admit(p peer.ID, s Stream) (*lane, *attachment, error) {
	for range 3 {
		s.SetDeadline(time.Now().Add(attachPatience))
		m, err := readAttach(s)
		r := &reply{boot: e.boot, window: maxRing}
		switch {
		case errors.Is(err, errMagic):
			r.status = statusVersion
		case err != nil:
			return nil, nil, err
		}
		var l *lane
		var a *attachment
		if r.status == statusOK {
			l, a, r.status = e.judge(p, s, m, r)
		}
		if _, err := s.Write(r.append(nil)); err != nil {
			if a != nil {
				l.lose(a, err)
			}
			return nil, nil, err
		}
		if r.status != statusOK {
			return nil, nil, &statusError{r.status}
		}
		if a != nil {
			s.SetDeadline(time.Time{})
			l.link.changed()
			l.watching.nudge()
			l.tellMove(a)
			return l, a, nil
		}
	}
	return nil, nil, protocolError("checks without an attach")
}

// judge takes docs/session.md's steps in their order: nothing of an attachment is touched before all is right.
func (e *Endpoint) judge(p peer.ID, s Stream, m *attach, r *reply) (*lane, *attachment, status) {
	if e.cfg.Authorize == nil {
		return nil, nil, statusDenied
	}
	if err := e.cfg.Authorize(p); err != nil {
		e.log.Info("attach denied", "peer", p, "why", err)
		return nil, nil, statusDenied
	}
	check := m.flags&flagCheck != 0
	k, st := e.exitLink(p, m, check)
	if st != statusOK || k == nil {
		return nil, nil, st
	}
	k.mu.Lock()
	if k.lanes[m.lane] == nil && m.flags&flagNew == 0 {
		k.mu.Unlock()
		return nil, nil, statusUnknownLink
	}
	if k.lanes[m.lane] == nil && (m.offset != 0 || m.crc != 0) {
		k.mu.Unlock()
		return nil, nil, statusDesync
	}
	if k.lanes[m.lane] == nil && check {
		k.mu.Unlock()
		return nil, nil, statusOK
	}
	l := k.laneLocked(m.lane)
	k.mu.Unlock()
	if l == nil {
		return nil, nil, statusUnknownLink
	}

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return nil, nil, statusUnknownLink
	}
	if m.epoch <= l.epoch {
		return nil, nil, statusStaleEpoch
	}
	if check {
		// C has gone on reading since, and acknowledging: its offset means nothing yet.
		return nil, nil, statusOK
	}
	if m.offset < l.ring.acked {
		// C wrote it, gave it up, and has acknowledged more since on the stream it had: it is of the past like an old epoch.
		// A C that lies here harms itself alone.
		return nil, nil, statusStaleEpoch
	}
	if st := l.judgeLocked(m.offset, m.crc); st != statusOK {
		k.failSoon(&statusError{st})
		return nil, nil, st
	}
	l.epoch = m.epoch
	a := l.switchLocked(s, m.offset, 0)
	r.offset, r.crc = l.rxOff, l.rxCRC
	return l, a, statusOK
}

// exitLink finds the link an attach means, or begins it. Nil with OK: a check that would begin one.
func (e *Endpoint) exitLink(p peer.ID, m *attach, check bool) (*link, status) {
	var old *link
	defer func() {
		if old != nil {
			old.failSoon(errOlder)
		}
	}()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, statusBusy
	}
	if m.known != [8]byte{} && m.known != [8]byte(e.boot[:8]) {
		return nil, statusBootChanged
	}
	x := e.exits[p]
	if x != nil && x.boot == m.boot && x.link != nil && x.link.id == m.link {
		return x.link, statusOK
	}
	if m.flags&flagNew == 0 || x != nil && x.boot == m.boot && m.link.serial() <= x.serial {
		return nil, statusUnknownLink
	}
	if m.offset != 0 || m.crc != 0 {
		return nil, statusDesync
	}
	if check {
		return nil, statusOK
	}
	if x != nil {
		old = x.link
	}
	k := newLink(e, p, exit, m.link)
	k.boot, k.greeted = m.boot, true
	e.exits[p] = &known{boot: m.boot, serial: m.link.serial(), link: k}
	return k, statusOK
}

// Renew says that a better path to p exists, or that the address changed: each lane to p attaches anew at once,
// the old stream in use until the new one is attached. Lanes that p dials are asked to do the same.
func (e *Endpoint) Renew(p peer.ID) {
	for _, k := range e.links() {
		if k.peer != p {
			continue
		}
		for _, l := range k.all() {
			l.watching.askRenew(e.now(), true)
		}
	}
}

// Probe asks each stream to p for a sign of life now: somebody who knows says that p waits in vain.
func (e *Endpoint) Probe(p peer.ID) {
	for _, k := range e.links() {
		if k.peer != p {
			continue
		}
		for _, l := range k.all() {
			l.watching.askProbe()
		}
	}
}

// End resets the session of that ID, and says whether there was one.
func (e *Endpoint) End(id string, why error) bool {
	for _, k := range e.links() {
		for _, c := range k.sessions() {
			if c.id.String() == id {
				c.cut(why)
				return true
			}
		}
	}
	return false
}

// Cut resets the sessions that match; role is ours, "entry" or "exit". match is also asked with service ""
// about each link as a whole: if it says yes, the link fails.
func (e *Endpoint) Cut(match func(p peer.ID, service, role string) bool, why error) {
	for _, k := range e.links() {
		if match(k.peer, "", k.role.String()) {
			e.spawn(func() { k.fail(why, endCut) })
			continue
		}
		for _, c := range k.sessions() {
			if match(k.peer, c.name, k.role.String()) {
				c.cut(why)
			}
		}
	}
}

func (k *link) sessions() []*Conn {
	k.mu.Lock()
	defer k.mu.Unlock()
	cs := make([]*Conn, 0, len(k.conns))
	for c := range k.conns {
		cs = append(cs, c)
	}
	return cs
}

// Sessions lists the sessions of this moment, oldest first.
func (e *Endpoint) Sessions() []Info {
	var is []Info
	for _, k := range e.links() {
		for _, c := range k.sessions() {
			is = append(is, c.Info())
		}
	}
	slices.SortFunc(is, func(a, b Info) int {
		return cmp.Or(a.Opened.Compare(b.Opened), cmp.Compare(a.ID, b.ID))
	})
	return is
}

// Lanes lists the lanes of this moment, by peer.
func (e *Endpoint) Lanes() []LaneInfo {
	var is []LaneInfo
	for _, k := range e.links() {
		for _, l := range k.all() {
			is = append(is, l.info())
		}
	}
	slices.SortFunc(is, func(a, b LaneInfo) int {
		return cmp.Or(cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Role, b.Role), a.Lane-b.Lane)
	})
	return is
}

func (l *lane) info() LaneInfo {
	i := LaneInfo{Peer: l.link.peer, Role: l.link.role.String(), Lane: int(l.index), Sessions: int(l.conns.Load()), State: "open"}
	if l.watching.suspected() {
		i.State = "suspect"
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	i.Unacked, i.Memory = int64(l.ring.end-l.ring.acked), l.ring.held
	i.Sent, i.Received, i.Resent = int64(l.ring.end), int64(l.rxOff), int64(l.resent)
	i.Migrations, i.Since = max(0, l.attached-1), l.link.e.wall(l.since)
	if l.cur == nil {
		i.State = "detached"
	} else {
		i.RTT = time.Duration(l.cur.rtt.Load())
	}
	return i
}

// short says that a ring found no memory.
func (e *Endpoint) short() {
	select {
	case e.tight <- struct{}{}:
	default:
	}
}

// evict drops the link that has been detached longest, if memory is still short. Attached ones are never dropped: they wait.
func (e *Endpoint) evict() {
	if !e.mem.over() {
		return
	}
	var oldest *link
	var since time.Time
	for _, k := range e.links() {
		at, yes := k.detached()
		if yes && e.now().Sub(at) >= evictAfter && (oldest == nil || at.Before(since)) {
			oldest, since = k, at
		}
	}
	if oldest != nil {
		oldest.fail(errSpace, endFailed)
	}
}
