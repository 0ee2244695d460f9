package session

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// The path watch, docs/session.md "Time". One goroutine a lane looks at what has been heard and decides: ask, look for
// another path, give up. The entry side also attaches.

const (
	minSilence  = time.Second            // before a path is suspect; with 4 RTT, what TCP allows before it resends twice
	probeIdle   = 15 * time.Second       // NAT mappings live 30 s
	probeActive = 3 * time.Second        // as Tailscale's heartbeat
	probeFlow   = 500 * time.Millisecond // after bytes that were flowing have stopped; with 2 RTT
	activeFor   = time.Minute            // after the last application byte
	flowFor     = 5 * time.Second        // after it the exit asks, too
	asleepFor   = 2 * time.Second        // more than any pause between looks while bytes flow
	lookEvery   = 250 * time.Millisecond // while bytes are unacknowledged
	giveUpBusy  = 10 * time.Second       // exit: silence with unacknowledged bytes
	giveUpIdle  = 45 * time.Second       // three idle probes of the entry's

	backoffFirst = 200 * time.Millisecond // a relay restarts in 2 s
	backoffMax   = 5 * time.Second
	backoffGrow  = 1.6

	openPatience   = 10 * time.Second // one Open
	attachPatience = 5 * time.Second  // attach and answer, at both sides
	renewEvery     = time.Second      // between RENEWs that are heeded
	freshAttempt   = 250 * time.Millisecond
	violations     = 5 // broken streams within a minute that end the link
)

// watcher is the state of a lane's watch.
type watcher struct {
	kick   chan struct{} // look now
	asleep atomic.Bool   // for asleepFor and longer: it would miss that bytes begin to flow

	mu      sync.Mutex
	idle    bool      // asleep until a probe is due
	renewAt time.Time // when to attach anew; zero: no need to
	renewed time.Time // when that was last begun
	probe   bool      // ask for a sign of life now
	attempt func()    // calls off the attempt under way
	began   time.Time // of that attempt
	broken  []time.Time

	// of the watching goroutine
	of      *attachment
	heard   uint64
	last    time.Time // bytes came
	pending time.Time // bytes became unacknowledged after last
	moved   int64
	active  time.Time   // application bytes moved
	pinged  bool        // for this silence
	told    *attachment // of whose silence Config.Silent knows
	retry   time.Time
	pause   time.Duration // before it

	renewPause time.Duration // before an attempt to attach anew is repeated

	suspect bool // under mu
}

// nudge has the lane looked at now.
func (w *watcher) nudge() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// nudgeIdle does so if the watch sleeps for long.
func (w *watcher) nudgeIdle() {
	w.mu.Lock()
	idle := w.idle
	w.idle = false
	w.mu.Unlock()
	if idle {
		w.nudge()
	}
}

// stir wakes the watch when application bytes move.
func (w *watcher) stir() {
	if w.asleep.Load() && w.asleep.CompareAndSwap(true, false) {
		w.nudge()
	}
}

// askProbe has the lane's stream asked for a sign of life.
func (w *watcher) askProbe() {
	w.mu.Lock()
	w.probe = true
	w.mu.Unlock()
	w.nudge()
}

// probeAsked says whether a sign of life is asked for, and takes that as done.
func (w *watcher) probeAsked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	asked := w.probe
	w.probe = false
	return asked
}

// askRenew has the lane attach anew, by the far side's wish once a second at most.
func (w *watcher) askRenew(now time.Time, ours bool) {
	w.mu.Lock()
	at := now
	if next := w.renewed.Add(renewEvery); !ours && next.After(now) {
		at = next
	}
	if w.renewAt.IsZero() || at.Before(w.renewAt) { // one more wish puts none off
		w.renewAt = at
	}
	// An attempt that already hangs was begun on what is no longer the best path.
	if w.attempt != nil && !w.renewAt.After(now) && now.Sub(w.began) >= freshAttempt {
		w.attempt()
	}
	w.mu.Unlock()
	w.nudge()
}

// renewIn is how long it is until the lane is to attach anew.
func (w *watcher) renewIn(now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.renewAt.IsZero() {
		return time.Hour
	}
	return max(0, w.renewAt.Sub(now))
}

// renewDue says whether the lane is to attach anew now, and takes that as done.
func (w *watcher) renewDue(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.renewAt.IsZero() || w.renewAt.After(now) {
		return false
	}
	w.renewAt, w.renewed = time.Time{}, now
	return true
}

// renew attaches anew, by the path that is best now; an exit asks the entry to. What failed, or was called off, is done
// again: the better path may still be there.
func (l *lane) renew(a *attachment) {
	w, k := &l.watching, l.link
	if k.role == exit {
		l.mu.Lock()
		a.renewDue = true
		a.wakeLocked()
		l.mu.Unlock()
		return
	}
	err := l.renewBeside(a)
	l.mu.Lock()
	attached := l.cur != a
	l.mu.Unlock()
	if attached || err == ErrStay {
		w.renewPause = 0
		return
	}
	k.e.log.Debug("no better path", "peer", k.peer, "lane", l.index, "err", err)
	again := k.e.now().Add(k.e.backoff(&w.renewPause))
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.renewAt.IsZero() {
		w.renewAt = again
	}
}

// renewBeside attaches anew while a is in use and listened to: one that falls silent or ends meanwhile needs another at
// once, and not the better one that does not come. A silent one does already.
func (l *lane) renewBeside(a *attachment) error {
	w, k := &l.watching, l.link
	if w.suspected() {
		return l.attach(k.ctx, a, true)
	}
	ctx, callOff := context.WithCancel(k.ctx)
	defer callOff()
	done := make(chan error, 1)
	k.e.spawn(func() { done <- l.attach(ctx, a, false) })
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			return err
		case <-a.done:
			callOff()
			return <-done
		case <-tick.C:
			if _, suspect, _ := l.listen(a, k.e.now()); suspect {
				callOff()
			}
		}
	}
}

func (w *watcher) suspected() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.suspect
}

func (w *watcher) setSuspect(l *lane, v bool) {
	w.mu.Lock()
	was := w.suspect
	w.suspect = v
	w.mu.Unlock()
	if was != v {
		l.link.changed()
	}
}

// violation counts a stream ended for a breach of the wire.
func (w *watcher) violation(l *lane) {
	now := l.link.e.now()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.broken = append(w.broken, now)
	if len(w.broken) < violations {
		return
	}
	if now.Sub(w.broken[0]) < time.Minute {
		l.link.failSoon(errViolations)
	}
	w.broken = w.broken[1:]
}

// watch looks after the lane until its link ends.
func (l *lane) watch() {
	w := &l.watching
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-l.link.ctx.Done():
			return
		case <-timer.C:
		case <-w.kick:
		}
		wait := min(l.look(), w.renewIn(l.link.e.now()))
		w.mu.Lock()
		w.idle = wait > lookEvery
		w.mu.Unlock()
		w.asleep.Store(wait >= asleepFor)
		timer.Reset(wait)
	}
}

// look judges the lane and acts; it says when to look again at the latest.
func (l *lane) look() time.Duration {
	w, k := &l.watching, l.link
	now := k.e.now()
	l.mu.Lock()
	a, unacked, since := l.cur, l.ring.end > l.ring.acked, l.since
	l.mu.Unlock()

	renew := w.renewDue(now)
	if renew {
		w.pause, w.retry = 0, time.Time{}
	}
	if a == nil {
		w.probeAsked() // the next stream gives a sign of life by itself
		return l.lookDetached(now, since, unacked)
	}
	silence, suspect, next := l.listen(a, now)
	if renew {
		l.renew(a)
		return 0
	}
	if !suspect {
		return next
	}
	w.setSuspect(l, true)
	if k.role == exit {
		if w.told != a {
			w.told = a
			k.silent(a.s)
		}
		if silence >= max(giveUpBusy, 2*a.patience()) {
			l.lose(a, errSilent)
		}
		return lookEvery
	}
	if wait := w.retry.Sub(now); wait > 0 {
		return min(wait, lookEvery)
	}
	if err := l.attach(k.ctx, a, true); err != nil {
		w.fail(k)
	} else {
		w.retry, w.pause = time.Time{}, 0
	}
	return 0
}

// listen takes note of what has come on a, and asks for a sign of life when one is due. It says for how long a has been
// silent though an answer is owed, whether for too long, and when to listen again.
func (l *lane) listen(a *attachment, now time.Time) (silence time.Duration, suspect bool, next time.Duration) {
	w := &l.watching
	owed := l.owedSince(a, now)
	if w.probeAsked() && a.asked.Load() == 0 {
		w.pinged = true
		l.ping(a, now)
		owed = earlier(owed, now)
	}
	if owed.IsZero() {
		return 0, false, l.listenIdle(a, now)
	}
	limit := a.patience()
	silence = now.Sub(later(owed, w.last))
	if silence >= limit/2 && !w.pinged {
		w.pinged = true
		l.ping(a, now)
	}
	if silence < limit {
		return silence, false, min(lookEvery, limit-silence)
	}
	return silence, true, 0
}

// owedSince takes note of what has come and what is owed; zero: nothing is.
func (l *lane) owedSince(a *attachment, now time.Time) (owed time.Time) {
	w := &l.watching
	if m := l.moved.Load(); m != w.moved {
		w.moved, w.active = m, now
	}
	l.mu.Lock()
	unacked, deaf := l.ring.end > l.ring.acked, l.frozen
	l.mu.Unlock()
	if h := a.heard.Load(); w.of != a || h != w.heard || deaf {
		w.of, w.heard, w.last, w.pinged, w.pending = a, h, now, false, time.Time{}
		w.setSuspect(l, false)
	}
	switch {
	case !unacked:
		w.pending = time.Time{}
	case w.pending.IsZero():
		w.pending = now
	}
	if asked := a.asked.Load(); asked != 0 {
		owed = time.Unix(0, asked)
	}
	return earlier(owed, w.pending)
}

// listenIdle is listen where nothing is owed: the entry asks now and then, the exit in the end gives a up.
func (l *lane) listenIdle(a *attachment, now time.Time) (next time.Duration) {
	w := &l.watching
	quiet := now.Sub(w.last)
	if l.link.role == exit && now.Sub(w.active) >= flowFor {
		if left := giveUpIdle - quiet; left > 0 {
			return left
		}
		l.lose(a, errSilent)
		return 0
	}
	if left := l.probeAfter(a, now) - quiet; left > 0 {
		return left
	}
	w.pinged = true
	l.ping(a, now)
	return lookEvery
}

// patience is how long a may be silent while an answer is owed.
func (a *attachment) patience() time.Duration { return max(minSilence, 4*time.Duration(a.rtt.Load())) }

// probeAfter is how long a may be silent, nothing owed, before it is asked. Bytes that were flowing until just now mean
// that somebody waits; the question is asked less and less often the longer they have ended.
func (l *lane) probeAfter(a *attachment, now time.Time) time.Duration {
	rest := now.Sub(l.watching.active)
	if rest >= activeFor {
		return probeIdle
	}
	return min(max(probeFlow, min(2*time.Duration(a.rtt.Load()), time.Second), rest/2), probeActive)
}

// lookDetached keeps trying to attach, at the entry, until the hold time is over.
func (l *lane) lookDetached(now, since time.Time, unacked bool) time.Duration {
	w, k := &l.watching, l.link
	w.setSuspect(l, false)
	left := k.e.cfg.Hold - now.Sub(since)
	if left <= 0 {
		k.failSoon(fmt.Errorf("no path for %v", k.e.cfg.Hold))
		return time.Hour
	}
	if k.role == exit {
		return min(left, l.release(now, since))
	}
	if !k.wanted() && !unacked {
		return left
	}
	if wait := w.retry.Sub(now); wait > 0 {
		return min(wait, left)
	}
	if err := l.attach(k.ctx, nil, false); err != nil {
		k.e.log.Debug("no path", "peer", k.peer, "lane", l.index, "err", err)
		w.fail(k)
		return 0
	}
	w.retry, w.pause = time.Time{}, 0
	return 0
}

// release resets the sessions whose service does not hold them as long as this; it says when the next one will be due.
func (l *lane) release(now, since time.Time) time.Duration {
	next := l.link.e.cfg.Hold
	for _, c := range l.link.sessions() {
		hold := l.link.holdFor(c.name)
		if c.lane != l || hold == l.link.e.cfg.Hold || c.endedInOrder() {
			continue
		}
		if left := hold - now.Sub(since); left > 0 {
			next = min(next, left)
		} else {
			c.cut(fmt.Errorf("no path for %v", hold))
		}
	}
	return next
}

// fail sets when to try again.
func (w *watcher) fail(k *link) { w.retry = k.e.now().Add(k.e.backoff(&w.pause)) }

// backoff lengthens pause, and gives it ±30 %.
func (e *Endpoint) backoff(pause *time.Duration) time.Duration {
	*pause = min(max(backoffFirst, time.Duration(float64(*pause)*backoffGrow)), backoffMax)
	return time.Duration(float64(*pause) * (0.7 + 0.6*e.random()))
}

func (l *lane) ping(a *attachment, now time.Time) {
	l.mu.Lock()
	a.pingLocked(now)
	l.mu.Unlock()
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// earlier is the earlier of two times, of which zero is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// attach opens a stream and makes it the lane's. live, if not nil, is the attachment in use, which stays so until the new
// one is confirmed; silent says that nothing comes on it, and if it speaks again meanwhile the attempt is called off.
// So it is when ctx ends, as long as nothing is frozen. ErrStay: there is no better one.
func (l *lane) attach(ctx context.Context, live *attachment, silent bool) error {
	k, w := l.link, &l.watching
	ctx, cancel := context.WithTimeout(ctx, openPatience+attachPatience)
	defer cancel()
	w.mu.Lock()
	w.attempt, w.began = cancel, k.e.now()
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		w.attempt = nil
		w.mu.Unlock()
	}()
	want := Want{Silent: silent, Bulk: l.heavy.Load()}
	if live != nil {
		want.Now = live.s
	}
	if silent {
		stop := func() { cancel() }
		live.search.Store(&stop)
		defer live.search.Store(nil)
		if live.heard.Load() != w.heard {
			return nil
		}
	}
	opening, opened := context.WithTimeout(ctx, openPatience)
	s, err := k.e.cfg.Open(opening, k.peer, want)
	opened()
	if err != nil {
		return err
	}
	asked := k.e.now()
	err = l.takeOver(ctx, s, live != nil)
	if err == nil {
		return nil
	}
	retire(s)
	if ctx.Err() != nil && silent && live.heard.Load() != w.heard {
		return nil // it spoke again
	}
	if late := net.Error(nil); errors.As(err, &late) && late.Timeout() && k.e.now().Sub(asked) >= minSilence {
		k.silent(s) // or the next attempt would go by the same path; one that was called off soon may be a good one
	}
	return err
}

// takeOver asks the peer to go on by s, and does so itself. Where another stream is in use it first checks that s carries
// both ways; ctx can call it off until then.
func (l *lane) takeOver(ctx context.Context, s Stream, inUse bool) error {
	k := l.link
	kill := context.AfterFunc(ctx, func() { retire(s) })
	defer func() { kill() }()
	s.SetDeadline(time.Now().Add(attachPatience))
	if inUse {
		if _, err := l.exchange(s, flagCheck); err != nil {
			return err
		}
		// From here to the answer the lane is frozen: too late to call it off.
		if !kill() {
			return ctx.Err()
		}
		kill = context.AfterFunc(k.ctx, func() { retire(s) })
		s.SetDeadline(time.Now().Add(attachPatience))
	}
	asked := k.e.now()
	r, err := l.exchange(s, 0)
	if err != nil {
		return err
	}
	if !kill() {
		return errEnded
	}
	s.SetDeadline(time.Time{})
	return l.goOn(s, r, k.e.now().Sub(asked))
}

// goOn makes s the lane's stream after the peer's OK, if what it says is right.
func (l *lane) goOn(s Stream, r *reply, rtt time.Duration) error {
	k := l.link
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return l.err
	}
	if st := l.judgeLocked(r.offset, r.crc); st != statusOK {
		l.mu.Unlock()
		k.failSoon(&statusError{st})
		return &statusError{st}
	}
	a := l.switchLocked(s, r.offset, rtt)
	k.e.spawn(func() { l.carry(a) })
	l.mu.Unlock()
	k.changed()
	l.tellMove(a)
	return nil
}

// statusError is a refused attach.
type statusError struct{ status }

func (e *statusError) Error() string { return "attach: peer says: " + e.status.String() }

// exchange sends one attach and reads its answer. Unless it is a check, the lane is frozen meanwhile; with an OK it
// stays so, for the caller to switch.
func (l *lane) exchange(s Stream, flags byte) (r *reply, err error) {
	k := l.link
	m := &attach{flags: flags, lane: l.index, link: k.id, boot: k.e.boot, window: maxRing}
	boot, known := k.farBoot()
	if known {
		copy(m.known[:], boot[:8])
	}
	l.mu.Lock()
	if l.err != nil {
		l.mu.Unlock()
		return nil, l.err
	}
	if l.attached == 0 {
		m.flags |= flagNew
	}
	m.epoch = l.epoch + 1
	if flags&flagCheck == 0 {
		l.epoch++
		l.frozen = true
		defer func() {
			if err != nil {
				l.mu.Lock()
				l.frozen = false
				l.canRead.Broadcast()
				l.mu.Unlock()
			}
		}()
	}
	m.offset, m.crc = l.rxOff, l.rxCRC
	l.mu.Unlock()

	if _, err := s.Write(m.append(nil)); err != nil {
		return nil, err
	}
	r, err = readReply(s)
	if err != nil {
		return nil, err
	}
	if r.status == statusOK && !k.sameBoot(r.boot) {
		r.status = statusBootChanged
	}
	switch r.status {
	case statusOK:
		return r, nil
	case statusUnknownLink, statusBootChanged, statusDesync, statusDenied:
		k.failSoon(&statusError{r.status})
	}
	return nil, &statusError{r.status}
}

var (
	errSilent     = errors.New("path silent")
	errEnded      = errors.New("link ended")
	errViolations = errors.New("the peer does not keep to the protocol")
	errMux        = errors.New("the multiplexer failed")
	errSpace      = errors.New("dropped for want of memory")
	errIdle       = errors.New("idle")
	errOlder      = errors.New("the peer has begun a new link")
	errFar        = errors.New("ended by the peer")
)
