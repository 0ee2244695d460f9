package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	idleLink = time.Minute // without sessions; then its lanes close

	// A session is bulk once it has moved bulkBytes, and no longer when it moves less than calmBytes in calmTime.
	// 1 MiB: more than a shell's screenfuls, less than a second of a transfer that would be felt.
	bulkBytes = 1 << 20
	calmBytes = 64 << 10
	calmTime  = 10 * time.Second

	openPatienceExit = 10 * time.Second // an OPEN must be complete, and taken by Accept

	entryShare = maxSessions / 2 // sessions an entry puts on a lane: the far yamux must never have to refuse one
)

// role is an end of a link.
type role byte

const (
	entry role = iota // dials services, attaches
	exit              // offers them, accepts attaches
)

func (r role) String() string {
	if r == entry {
		return "entry"
	}
	return "exit"
}

// link joins us with one peer in one direction of use: up to four lanes that begin as needed and end together.
type link struct {
	e      *Endpoint
	peer   peer.ID
	role   role
	id     linkID
	ctx    context.Context // ends with the link
	cancel context.CancelFunc

	moved signal // a lane attached, was lost, turned suspect, has room for sessions again; the link failed
	calm  chan struct{}
	held  int64 // memory of its rings, under the endpoint's memory's lock

	mu      sync.Mutex
	lanes   [maxLanes]*lane
	rtts    [maxLanes]atomic.Int64 // shortest round trip of each one's attachment, ns; zero: none was measured yet
	conns   map[*Conn]struct{}
	bulk    map[*Conn]int64 // bulk sessions, with what they had moved when last looked at
	busy    int             // dials that wait, opens under way, closed sessions whose last bytes are not read
	idle    time.Time       // neither sessions nor busy since
	boot    bootID          // the peer's
	greeted bool            // boot is known
	why     error           // why it has ended
}

func newLink(e *Endpoint, p peer.ID, r role, id linkID) *link {
	k := &link{e: e, peer: p, role: r, id: id, conns: map[*Conn]struct{}{}, bulk: map[*Conn]int64{},
		calm: make(chan struct{}, 1), idle: e.now()}
	k.ctx, k.cancel = context.WithCancel(e.ctx)
	e.spawn(k.tend)
	return k
}

// lane gives lane i, beginning it if it must; nil if the link has ended.
func (k *link) lane(i uint8) *lane {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.laneLocked(i)
}

func (k *link) laneLocked(i uint8) *lane {
	if k.why != nil {
		return nil
	}
	if k.lanes[i] == nil {
		l := newLane(k, i)
		k.lanes[i] = l
		k.e.spawn(l.watch)
		k.e.spawn(l.receive)
	}
	return k.lanes[i]
}

// rtt is the shortest round trip to the peer; zero: none was measured yet. A lane that moves much measures how long its
// own bytes wait; the others, which go to the same machine, how far it is.
func (k *link) rtt() (least time.Duration) {
	for i := range k.rtts {
		if rtt := time.Duration(k.rtts[i].Load()); rtt != 0 && (least == 0 || rtt < least) {
			least = rtt
		}
	}
	return least
}

// all lists the lanes there are.
func (k *link) all() []*lane {
	k.mu.Lock()
	defer k.mu.Unlock()
	var ls []*lane
	for _, l := range k.lanes {
		if l != nil {
			ls = append(ls, l)
		}
	}
	return ls
}

func (k *link) changed() { k.moved.all() }

func (k *link) farBoot() (bootID, bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.boot, k.greeted
}

// sameBoot records the peer's boot ID at the first answer and compares later ones.
func (k *link) sameBoot(b bootID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.greeted {
		k.boot, k.greeted = b, true
	}
	return k.boot == b
}

// wanted says whether anybody needs the link.
func (k *link) wanted() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.conns)+k.busy > 0
}

// hold counts something that needs the link; the result ends that.
func (k *link) hold() (release func()) {
	k.mu.Lock()
	first := len(k.conns)+k.busy == 0
	k.busy++
	lanes := k.lanes
	k.mu.Unlock()
	if first {
		for _, l := range lanes {
			if l != nil {
				l.watching.nudge()
			}
		}
	}
	return sync.OnceFunc(func() {
		k.mu.Lock()
		k.busy--
		k.restLocked()
		k.mu.Unlock()
	})
}

// restLocked notes that nothing needs the link any more.
func (k *link) restLocked() {
	if len(k.conns)+k.busy == 0 {
		k.idle = k.e.now()
		select {
		case k.calm <- struct{}{}:
		default:
		}
	}
}

// open begins a session as soon as a lane is attached.
func (k *link) open(ctx context.Context, service string) (*Conn, error) {
	defer k.hold()()
	if k.lane(0) == nil {
		return nil, k.reason()
	}
	for {
		next := k.moved.wait()
		if l := k.choose(); l != nil {
			return k.openOn(ctx, l, service)
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-k.ctx.Done():
			return nil, k.reason()
		}
	}
}

// choose picks the lane for a new session: one without bulk, with least on its way; nil if none is usable now.
func (k *link) choose() *lane {
	var best *lane
	var bestLoad [3]int64
	for _, l := range k.all() {
		load, ok := l.load()
		if !ok {
			continue
		}
		if best == nil || less(load, bestLoad) {
			best, bestLoad = l, load
		}
	}
	return best
}

func less(a, b [3]int64) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

// load is what a new session would have to share, in the order of its weight: bulk and its path, bytes on their way, sessions.
func (l *lane) load() ([3]int64, bool) {
	n := int64(l.conns.Load())
	if n >= entryShare || l.watching.suspected() {
		return [3]int64{}, false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.cur == nil || l.err != nil {
		return [3]int64{}, false
	}
	bulk := int64(l.bulk.Load())
	if l.heavy.Load() {
		bulk++ // its path is not the fastest
	}
	return [3]int64{bulk, int64(l.ring.end - l.ring.acked), n}, true
}

func (k *link) openOn(ctx context.Context, l *lane, service string) (*Conn, error) {
	o := &open{service: service}
	k.e.fill(o.id[:])
	c := newConn(l)
	c.begin(o)
	if err := l.enlist(ctx, c, o.append(nil)); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, k.reasonOr(err)
	}
	if !k.add(c) {
		c.Reset()
		return nil, k.reason()
	}
	if n := l.conns.Load(); n >= entryShare*3/4 {
		k.spare()
	}
	return c, nil
}

// greet reads one OPEN and offers the session to Accept.
func (k *link) greet(c *Conn) {
	defer k.hold()()
	c.SetReadDeadline(time.Now().Add(openPatienceExit))
	o, err := readOpen(unanswered{c})
	if err != nil {
		c.partReset(net.ErrClosed, 0)
		return
	}
	c.SetReadDeadline(time.Time{})
	c.begin(o)
	in := &Incoming{conn: c}
	if !k.add(c) {
		c.partReset(net.ErrClosed, 0)
		return
	}
	late := time.NewTimer(openPatienceExit)
	defer late.Stop()
	select {
	case k.e.incoming <- in:
		c.taken()
	case <-c.parted:
		c.partReset(net.ErrClosed, 0) // what came in order before it was reset, nobody will read
	case <-late.C:
		in.Refuse(Overload)
	case <-k.ctx.Done():
		in.conn.Reset()
	}
}

// add registers a session, unless it was reset already; false if the link has ended.
func (k *link) add(c *Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.why != nil {
		return false
	}
	c.lane.mu.Lock()
	gone := c.over
	c.lane.mu.Unlock()
	if !gone {
		k.conns[c] = struct{}{}
		c.lane.conns.Add(1)
	}
	return true
}

func (k *link) remove(c *Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.conns[c]; !ok {
		return
	}
	delete(k.conns, c)
	if c.lane.conns.Add(-1) == entryShare-1 {
		k.moved.all()
	}
	if _, ok := k.bulk[c]; ok {
		delete(k.bulk, c)
		c.lane.bulk.Add(-1)
	}
	k.restLocked()
}

// becameBulk notes a session that moves much. The next ones go elsewhere: a lane for them is begun now, so that
// dialling stays without a round trip.
func (k *link) becameBulk(c *Conn) {
	k.mu.Lock()
	_, known := k.bulk[c]
	_, live := k.conns[c]
	if known || !live {
		k.mu.Unlock()
		return
	}
	k.bulk[c] = c.total()
	c.lane.bulk.Add(1)
	first := !c.lane.heavy.Swap(true)
	k.mu.Unlock()
	if first {
		c.lane.reconsider()
	}
	select {
	case k.calm <- struct{}{}:
	default:
	}
	k.spare()
}

// reconsider has an entry's lane ask for another path, for it wants something else of it than before: bulk goes where
// much gets through, the rest where it is fast.
func (l *lane) reconsider() {
	if l.link.role == entry {
		l.watching.askRenew(l.link.e.now(), true)
	}
}

// lightenLocked has a lane that has carried no bulk for calmTime go by the faster path again: not sooner, for one transfer
// often follows another.
func (l *lane) lightenLocked(now time.Time) {
	switch {
	case l.bulk.Load() > 0:
		l.lightSince = time.Time{}
	case l.lightSince.IsZero():
		l.lightSince = now
	case now.Sub(l.lightSince) >= calmTime:
		l.lightSince = time.Time{}
		l.heavy.Store(false)
		l.reconsider()
	}
}

// spare begins a lane if none is free of bulk.
func (k *link) spare() {
	if k.role == exit {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i, l := range k.lanes {
		if l == nil {
			k.laneLocked(uint8(i))
			return
		}
		if !l.heavy.Load() && l.conns.Load() < entryShare*3/4 {
			return
		}
	}
}

// tend ends the link when nothing has needed it for a minute, and forgets that sessions were bulk.
func (k *link) tend() {
	timer := time.NewTimer(idleLink)
	defer timer.Stop()
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-k.calm:
		case <-timer.C:
		}
		k.mu.Lock()
		wait := time.Hour
		if len(k.bulk) > 0 {
			wait = calmTime
			for c, was := range k.bulk {
				now := c.total()
				if was >= 0 && now-was < calmBytes && k.e.now().Sub(c.bulkSince()) >= calmTime {
					delete(k.bulk, c)
					c.lane.bulk.Add(-1)
					c.calmed(now)
					continue
				}
				k.bulk[c] = now
			}
		}
		for _, l := range k.lanes {
			if l != nil && l.heavy.Load() {
				wait = calmTime
				l.lightenLocked(k.e.now())
			}
		}
		if k.role == entry && len(k.conns)+k.busy == 0 {
			left := idleLink - k.e.now().Sub(k.idle)
			if left <= 0 && k.quietLocked() {
				k.failLocked(errIdle, endIdle) // in one step: nobody dials in between
				return
			}
			wait = min(wait, max(left, time.Second))
		}
		k.mu.Unlock()
		timer.Reset(wait)
	}
}

// quietLocked says whether the peer has everything that was sent, or nobody ever attached.
func (k *link) quietLocked() bool {
	for _, l := range k.lanes {
		if l == nil {
			continue
		}
		l.mu.Lock()
		quiet := l.attached == 0 || l.ring.end == l.ring.acked
		l.mu.Unlock()
		if !quiet {
			return false
		}
	}
	return true
}

// holdFor is how long this side holds a service's sessions without a path.
func (k *link) holdFor(service string) time.Duration {
	hold := k.e.cfg.Hold
	if f := k.e.cfg.HoldFor; f != nil && k.role == exit {
		if h := f(service); h > 0 {
			hold = min(hold, h)
		}
	}
	return hold
}

// silent tells of a stream of the peer's that has gone silent.
func (k *link) silent(s Stream) {
	if f := k.e.cfg.Silent; f != nil {
		f(k.peer, s)
	}
}

// farEnd takes the peer's END.
func (k *link) farEnd(reason byte) {
	err := errFar
	switch reason {
	case endIdle:
		err = errIdle
	case endCut:
		err = errors.New("cut by the peer")
	case endShutdown:
		err = errors.New("the peer shuts down")
	}
	k.failSoon(err)
}

// failSoon fails the link from a goroutine that must not wait for it, or holds a lane's lock.
func (k *link) failSoon(err error) {
	if k.ctx.Err() == nil {
		k.e.spawn(func() { k.fail(err, reasonFor(err)) })
	}
}

func reasonFor(err error) byte {
	var st *statusError
	if errors.As(err, &st) && st.status == statusDesync {
		return endDesync
	}
	return endFailed
}

// fail ends the link: the peer is told if it can be, and every session is reset that has not ended.
func (k *link) fail(err error, reason byte) {
	k.mu.Lock()
	if k.why != nil {
		k.mu.Unlock()
		return
	}
	k.failLocked(err, reason)
}

// failLocked lets the lock go.
func (k *link) failLocked(err error, reason byte) {
	k.why = err
	lanes, n := k.lanes, len(k.conns)
	k.mu.Unlock()
	level := k.e.log.Info
	if n == 0 {
		level = k.e.log.Debug
	}
	level("link ended", "peer", k.peer, "role", k.role.String(), "sessions", n, "why", err)
	k.e.forget(k)
	k.cancel()
	k.changed()
	var wg sync.WaitGroup
	for _, l := range lanes {
		if l != nil {
			wg.Go(func() { l.end(err, reason) })
		}
	}
	wg.Wait()
	k.mu.Lock()
	conns := k.conns
	k.conns, k.bulk = map[*Conn]struct{}{}, map[*Conn]int64{}
	k.mu.Unlock()
	for c := range conns {
		if reason != endCut && c.endedInOrder() {
			continue // its application may still read what has all come
		}
		c.lose(fmt.Errorf("%w: %w", ErrReset, err))
	}
}

// reason is why the link has ended; nil while it has not.
func (k *link) reason() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.why
}

func (k *link) reasonOr(err error) error {
	if why := k.reason(); why != nil {
		return why
	}
	return fmt.Errorf("lane: %w", err)
}

// detached is since when no lane has a stream, and whether that is so.
func (k *link) detached() (since time.Time, yes bool) {
	for _, l := range k.all() {
		l.mu.Lock()
		at, attached := l.since, l.cur != nil
		l.mu.Unlock()
		if attached {
			return time.Time{}, false
		}
		since = later(since, at)
	}
	return since, true
}

// signal wakes all who wait for the next change.
type signal struct {
	mu sync.Mutex
	ch chan struct{}
}

func (s *signal) wait() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch == nil {
		s.ch = make(chan struct{})
	}
	return s.ch
}

func (s *signal) all() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ch != nil {
		close(s.ch)
		s.ch = nil
	}
}
