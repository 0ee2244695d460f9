package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"
)

// The wishes that stand: each is tried, kept up, changed and ended here. What is wanted at all is up.go.

// A standing is one wish and how it fares.
type standing struct {
	stop    context.CancelFunc
	stopped chan struct{} // closed when nothing of it is left
	first   chan error    // its first outcome: nil is fulfilled; room for one

	// Under up.mu.
	wish
	state   string // trying, up, failing, ended
	failure *Failure
	since   time.Time
	news    *Event        // what fulfilled it last
	changed chan struct{} // closed when it is to be tried anew at once
	asked   bool          // a command waits for its first outcome, and tells it
}

const (
	stateTrying  = "trying"
	stateUp      = "up"
	stateFailing = "failing"
	stateEnded   = "ended" // by unexpose or disconnect; until the file is read again
)

const (
	// firstPause and lastPause bound the pause before a wish is tried again: what
	// fails at boot works a second later, what fails for good costs a try a minute.
	firstPause = time.Second
	lastPause  = time.Minute
)

// start begins to keep up a wish.
func (u *up) start(w wish, asked bool) *standing {
	ctx, stop := context.WithCancel(u.ctx)
	s := &standing{wish: w, stop: stop, stopped: make(chan struct{}), first: make(chan error, 1),
		changed: make(chan struct{}), state: stateTrying, since: time.Now(), asked: asked}
	u.mu.Lock()
	u.standing[w.key] = s
	u.mu.Unlock()
	u.tasks.Go(func() { // ends with ctx
		defer close(s.stopped)
		defer stop()
		u.keepUp(ctx, s)
	})
	return s
}

// keepUp tries until ctx ends or another command ends the wish.
func (u *up) keepUp(ctx context.Context, s *standing) {
	changes, unwatch := u.d.book.Watch()
	defer unwatch()
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		began := time.Now()
		u.mu.Lock()
		w, again := s.wish, s.changed
		u.mu.Unlock()
		err := u.try(ctx, s, w)
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, errWishEnded) && u.d.book.Current() != nil {
			u.mu.Lock()
			s.state, s.since = stateEnded, time.Now()
			u.mu.Unlock()
			return
		}
		if time.Since(began) > lastPause {
			pause = firstPause
		}
		u.failed(s, err)
		select {
		case <-ctx.Done():
			return
		case <-again:
			pause = firstPause
		case <-changes:
		case <-time.After(pause):
		}
	}
}

// try fulfils s by w's words.
func (u *up) try(ctx context.Context, s *standing, w wish) error {
	if u.d.book.Current() == nil {
		return errNoNetwork
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	return w.fulfil(ctx, u.d, func(e Event) {
		if e.fulfils() {
			again, err := u.fulfilled(s, w, e)
			if err != nil {
				end(err)
				return
			}
			s.outcome(nil)
			if again {
				return
			}
		}
		if e.fulfils() || e.Event == "progress" && !strings.HasPrefix(e.Message, "looking up") {
			u.tell(e)
		}
	})
}

// fulfilled notes what e tells of a wish that was tried by w's words; again: that was known. It is up by those that
// it has now, for it may have been given others meanwhile.
func (u *up) fulfilled(s *standing, w wish, e Event) (again bool, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for s.state != stateUp && !s.same(w) {
		w = s.wish
		u.mu.Unlock()
		err := w.alter(u.d)
		u.mu.Lock()
		if err != nil {
			return false, err
		}
	}
	switch s.state {
	case stateUp: // the other of a service's two kinds
		return s.news.Local == e.Local, nil
	case stateEnded:
		return true, nil
	}
	s.state, s.failure, s.since, s.news = stateUp, nil, time.Now(), &e
	return false, nil
}

// outcome notes the first one.
func (s *standing) outcome(err error) {
	select {
	case s.first <- err:
	default:
	}
}

// failed notes why and tells it once.
func (u *up) failed(s *standing, err error) {
	if err == nil {
		err = errors.New("it ended")
	}
	f := failureOf(err)
	u.mu.Lock()
	told := s.failure != nil && s.failure.What == f.What
	s.state, s.failure = stateFailing, f
	if !told {
		s.since = time.Now()
	}
	key, asked := s.key, s.asked
	u.mu.Unlock()
	s.outcome(f)
	if !told && !asked && f != errNoNetwork {
		u.d.log.Warn("a wish fails; it is tried again", "wish", key, "err", f.What)
		u.tell(Event{Event: "wish-failed", Wish: key, Failure: f})
	}
}

// change gives a standing wish other words: at once where it is up, else for the try that is under way or comes next.
func (u *up) change(s *standing, w wish) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if s.state != stateUp {
		s.wish = w
		s.pokeLocked()
		return nil
	}
	u.mu.Unlock()
	err := w.alter(u.d)
	u.mu.Lock()
	if err == nil {
		s.wish = w
	}
	return err
}

func (s *standing) pokeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// keep is --keep under `fwd up`: once fulfilled it is the daemon's own.
func (u *up) keep(ctx context.Context, w wish, emit func(Event)) error {
	u.applying.Lock()
	defer u.applying.Unlock()
	u.mu.Lock()
	s := u.standing[w.key]
	if s != nil && s.state == stateEnded {
		delete(u.standing, w.key)
		s = nil
	}
	u.mu.Unlock()
	save := func() error { return u.d.state.change(func(f *stateFile) { f.Kept.put(w) }) }
	switch {
	case s != nil && s.from == fromConfig:
		return usage("change it there; fwd up notices", "%s is in %s", w.key, u.path)
	case s != nil && !s.same(w):
		if err := u.change(s, w); err != nil {
			return err
		}
	case s == nil:
		s = u.start(w, true)
		var err error
		select {
		case <-ctx.Done():
			err = context.Cause(ctx)
		case err = <-s.first:
		}
		if err != nil {
			s.stop()
			<-s.stopped
			u.mu.Lock()
			delete(u.standing, w.key)
			u.mu.Unlock()
			return err
		}
	}
	if err := save(); err != nil {
		return err
	}
	u.mu.Lock()
	s.asked = false
	news := s.news
	u.mu.Unlock()
	if news != nil {
		emit(*news)
	}
	emit(Event{Event: "progress", Message: "kept: it stays when this command ends"})
	return nil
}

// matching are the keys of the standing wishes that unexpose or disconnect means.
func (u *up) matching(request any) (keys []string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for key, s := range u.standing {
		if s.means(request) || s.listensAt(request) {
			keys = append(keys, key)
		}
	}
	return keys
}

// listensAt: is it a forward or SOCKS entry at the address that disconnect names? Under up.mu.
func (s *standing) listensAt(request any) bool {
	r, ok := request.(DisconnectRequest)
	return ok && s.expose == nil && s.news != nil && meansLocal(r.Local, s.news.Local, s.word())
}

// drop ends the standing wishes of these keys.
func (u *up) drop(keys []string) (found, config bool) {
	var ending []*standing
	u.mu.Lock()
	for _, key := range keys {
		s := u.standing[key]
		if s == nil || s.state == stateEnded {
			continue
		}
		found = true
		ending = append(ending, s)
		s.stop()
		if s.from == fromConfig {
			config = true
			s.state, s.since = stateEnded, time.Now()
		} else {
			delete(u.standing, key)
		}
	}
	u.mu.Unlock()
	for _, s := range ending {
		<-s.stopped
	}
	return found, config
}

// WishStatus is one wish that the daemon keeps up by itself.
type WishStatus struct {
	Wish  string    `json:"wish"`  // "expose nas", "connect web at 127.0.0.1:8080"
	From  string    `json:"from"`  // config, kept
	State string    `json:"state"` // trying, up, failing, ended
	Error string    `json:"error,omitempty"`
	Since time.Time `json:"since"`
}

func (u *up) status() []WishStatus {
	list := []WishStatus{}
	if u == nil {
		return list
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.standing {
		w := WishStatus{Wish: s.key, From: s.from, State: s.state, Since: s.since}
		if s.failure != nil {
			w.Error = s.failure.What
		}
		list = append(list, w)
	}
	slices.SortFunc(list, func(a, b WishStatus) int { return strings.Compare(a.Wish, b.Wish) })
	return list
}
