package daemon

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// An up is what makes a daemon in the foreground the declarative one: it keeps
// up the wishes of fwd.toml and those that were kept by --keep.
//
// What happens to one wish: it is fulfilled as a terminal's would be, by expose
// or connect; when that fails it is tried again, at growing intervals and at
// each change of the roster, until it is taken off. Reading the file again
// compares wishes by their keys: what is new starts, what is gone ends, what
// changed is changed where it stands, and the rest notices nothing.
type up struct {
	d     *Daemon
	ctx   context.Context // ends all wishes
	path  string          // of fwd.toml
	must  bool            // the path was given: the file has to be there
	tell  func(Event)
	tasks sync.WaitGroup

	applying sync.Mutex // one change of the set at a time

	reading sync.Mutex // the file is read again by one at a time
	untold  Reloaded   // what the watch has changed and nobody was told; under reading
	noticed time.Time  // when; under reading

	mu       sync.Mutex
	config   *config
	data     []byte // the file as it was read last
	standing map[string]*standing
}

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

// Up is `fwd up`: the daemon in the foreground with the wishes of fwd.toml and
// those kept. It returns when ctx ends, or where the configuration or the
// invite cannot be right.
func Up(ctx context.Context, home Home, request UpRequest, on func(Event)) error {
	u := &up{path: request.Config, must: request.Config != "", tell: on, standing: map[string]*standing{}}
	if u.path == "" {
		u.path = home.Config
	}
	var err error
	if u.config, u.data, err = u.read(); err != nil {
		return err
	}
	plan, err := u.planRelay(home)
	if err != nil {
		return err
	}
	return foreground(ctx, home, options{
		relay:   plan,
		metrics: cmp.Or(request.Metrics, u.config.Metrics.text, plan.metrics()),
		stderr:  request.Stderr,
		up:      u,
		first:   func(ctx context.Context, d *Daemon) error { return u.serve(ctx, request.Invite, plan) },
	})
}

// read reads the file; there need be none where it was not asked for.
func (u *up) read() (*config, []byte, error) {
	if _, err := os.Stat(u.path); errors.Is(err, os.ErrNotExist) && !u.must {
		return new(config), nil, nil
	}
	return readConfig(u.path)
}

// planRelay is fwd.toml's [relay], else the one that was kept, else nil.
func (u *up) planRelay(home Home) (*relayPlan, error) {
	if r := u.config.Relay; r != nil {
		plan, err := planRelay(r.request(u.config.Name))
		if err != nil {
			return nil, usage(`under [relay]: announce = ["HOST"]`, "%s: %v", u.path, err)
		}
		plan.limits = r.limits()
		return plan, nil
	}
	s, err := openState(home.file("daemon"))
	if err != nil || s.Kept.Relay == nil {
		return nil, err
	}
	return planRelay(*s.Kept.Relay)
}

// serve is the foreground's wish: a network first, then what stands in the
// file, followed as it changes, until ctx ends.
func (u *up) serve(ctx context.Context, invite string, plan *relayPlan) error {
	defer u.tasks.Wait()
	if err := u.join(ctx, invite); err != nil {
		return err
	}
	if plan != nil {
		plan.req.Invite = "" // joined already, if there was one
		u.tasks.Go(func() {
			if err := u.d.runRelay(ctx, plan, u.tell); err != nil && ctx.Err() == nil {
				u.d.log.Error("relay", "err", err)
				u.tell(Event{Event: "error", Failure: failureOf(err)})
			}
		})
	} else if u.d.book.Current() == nil {
		u.tell(Event{Event: "progress", Message: "in no network yet; waiting for: fwd join"})
	}
	u.apply()
	return u.watch(ctx)
}

// join puts a machine without a network on one, if it has an invite: the first
// boot of one among many. Who cannot be reached is asked again.
func (u *up) join(ctx context.Context, invite string) error {
	if u.d.book.Current() != nil {
		return nil
	}
	if file := u.config.InviteFile; invite == "" && file != "" {
		f, err := os.Open(file)
		if err != nil {
			return usage("", "read invite_file: %v", err)
		}
		text, err := io.ReadAll(io.LimitReader(f, 64<<10)) // an invite has some 200 bytes
		f.Close()
		if err != nil {
			return usage("", "read invite_file: %v", err)
		}
		invite = strings.TrimSpace(string(text))
	}
	if invite == "" {
		return nil
	}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		err := u.d.join(ctx, JoinRequest{Invite: invite, As: u.config.Name.text}, u.tell)
		if err == nil || ctx.Err() != nil {
			return err
		}
		switch failureOf(err).Code {
		case "unreachable", "invite-refused", "failed": // its owner may be away, or somebody's disk full
		default:
			return err
		}
		u.d.log.Warn("join", "err", err, "again_in", pause)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

const (
	// firstPause and lastPause bound the pause before a wish is tried again: what
	// fails at boot works a second later, what fails for good costs a try a minute.
	firstPause = time.Second
	lastPause  = time.Minute
)

// wanted is the file's wishes and the kept ones; the file's come first.
func (u *up) wanted() []wish {
	u.mu.Lock()
	c := u.config
	u.mu.Unlock()
	var list []wish
	for _, e := range c.Expose {
		list = append(list, exposeWish(e.request(), fromConfig))
	}
	for _, f := range c.Connect {
		list = append(list, connectWish(f.request(), fromConfig))
	}
	for _, s := range c.Socks {
		list = append(list, socksWish(s.request(), fromConfig))
	}
	u.d.state.get(func(s stateFile) {
		for _, w := range s.Kept.wishes() {
			if !slices.ContainsFunc(list, func(have wish) bool { return have.key == w.key }) {
				list = append(list, w)
			}
		}
	})
	return list
}

// Reloaded is what reading the file again changed.
type Reloaded struct {
	Added   []string `json:"added"`
	Removed []string `json:"removed"`
	Changed []string `json:"changed"`
	Restart []string `json:"restart"` // settings that only a restart brings
	Failed  []string `json:"failed,omitempty"`
}

func (r Reloaded) String() string {
	var parts []string
	for _, p := range []struct {
		word string
		list []string
	}{{"new", r.Added}, {"gone", r.Removed}, {"changed", r.Changed}, {"not changed", r.Failed}, {"wants a restart", r.Restart}} {
		if len(p.list) > 0 {
			parts = append(parts, p.word+": "+strings.Join(p.list, ", "))
		}
	}
	if len(parts) == 0 {
		return "nothing has changed"
	}
	return strings.Join(parts, "; ")
}

// reload carries out `fwd reload`: it reads the file again and tells what that
// changed. Where the watch has just read it, it tells what that changed: a person saves
// the file, types the command, and wants to know.
func (u *up) reload() (Reloaded, error) {
	u.reading.Lock()
	defer u.reading.Unlock()
	report, err := u.readAgain()
	if err != nil {
		return Reloaded{}, err
	}
	if time.Since(u.noticed) < toldWithin {
		report = u.untold.and(report)
	}
	u.untold, u.noticed = Reloaded{}, time.Time{}
	return report, nil
}

// toldWithin is how long what the watch has changed is news to who says reload.
const toldWithin = time.Minute

// notice reads the file again if it is another one than was read last.
func (u *up) notice() error {
	u.reading.Lock()
	defer u.reading.Unlock()
	if u.unchanged() {
		return nil
	}
	report, err := u.readAgain()
	if err != nil {
		return err
	}
	if time.Since(u.noticed) < toldWithin {
		report = u.untold.and(report)
	}
	u.untold, u.noticed = report, time.Now()
	return nil
}

// readAgain reads the file and changes the difference. A file with a mistake changes
// nothing. Under up.reading.
func (u *up) readAgain() (Reloaded, error) {
	next, data, err := u.read()
	u.mu.Lock()
	same := bytes.Equal(data, u.data)
	u.data = data // a mistake is told once
	if err != nil {
		u.mu.Unlock()
		return Reloaded{}, err
	}
	old := u.config
	u.config = next
	u.mu.Unlock()
	u.d.level.Set(levelOf(next))
	u.d.strict.Store(next.Strict)
	report := u.apply()
	report.Restart = restartFor(old, next)
	if !same || !report.empty() {
		u.d.log.Info("configuration read again", "path", u.path, "result", report.String())
	}
	return report, nil
}

func (r Reloaded) empty() bool {
	return len(r.Added)+len(r.Removed)+len(r.Changed)+len(r.Restart)+len(r.Failed) == 0
}

// and is what two readings, one after the other, have changed.
func (r Reloaded) and(next Reloaded) Reloaded {
	join := func(a, b []string) []string {
		list := append(slices.Clone(a), b...)
		slices.Sort(list)
		return slices.Compact(list)
	}
	return Reloaded{Added: join(r.Added, next.Added), Removed: join(r.Removed, next.Removed), Changed: join(r.Changed, next.Changed),
		Restart: join(r.Restart, next.Restart), Failed: join(r.Failed, next.Failed)}
}

// restartFor names what was changed and is only read at the start.
func restartFor(old, next *config) []string {
	list := []string{}
	for _, s := range []struct {
		name     string
		old, new any
	}{{"relay", old.Relay, next.Relay}, {"limits", old.Limits, next.Limits}, {"log.format", old.Log.Format, next.Log.Format}, {"metrics", old.Metrics, next.Metrics}} {
		if fmt.Sprintf("%+v", deref(s.old)) != fmt.Sprintf("%+v", deref(s.new)) {
			list = append(list, s.name)
		}
	}
	return list
}

func deref(v any) any {
	if r, ok := v.(*relayConfig); ok {
		if r == nil {
			return nil
		}
		return *r
	}
	return v
}

// apply makes the standing wishes those that are wanted now, those that an
// unexpose or disconnect ended included.
func (u *up) apply() Reloaded {
	u.applying.Lock()
	defer u.applying.Unlock()
	wanted := u.wanted()
	report := Reloaded{Added: []string{}, Removed: []string{}, Changed: []string{}, Restart: []string{}}
	byKey := map[string]wish{}
	for _, w := range wanted {
		byKey[w.key] = w
	}
	// First what goes: its port or name may be wanted.
	var leaving []*standing
	u.mu.Lock()
	for key, s := range u.standing {
		_, stays := byKey[key]
		if stays && s.state != stateEnded {
			continue
		}
		if !stays {
			report.Removed = append(report.Removed, key)
		}
		delete(u.standing, key)
		leaving = append(leaving, s)
	}
	u.mu.Unlock()
	for _, s := range leaving {
		s.stop()
		<-s.stopped
	}
	for _, w := range wanted {
		u.mu.Lock()
		s := u.standing[w.key]
		u.mu.Unlock()
		switch {
		case s == nil:
			u.start(w, false)
			report.Added = append(report.Added, w.key)
		case s.same(w):
			u.mu.Lock()
			s.from = w.from
			u.mu.Unlock()
		default:
			if err := u.change(s, w); err != nil {
				report.Failed = append(report.Failed, fmt.Sprintf("%s (%v)", w.key, err))
				continue
			}
			report.Changed = append(report.Changed, w.key)
		}
	}
	slices.Sort(report.Removed)
	return report
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
		u.tell(Event{Event: "error", Message: key, Failure: f})
	}
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

// reloadConfig carries out `fwd reload`.
func (d *Daemon) reloadConfig(emit func(Event)) error {
	if d.up == nil {
		return fail(ExitFailed, "not-up", "start it so: fwd up, or fwd service install", "the daemon that runs here has no configuration to read")
	}
	report, err := d.up.reload()
	if err != nil {
		return err
	}
	data, err := json.Marshal(report)
	if err != nil {
		return fmt.Errorf("encode the answer: %w", err)
	}
	emit(Event{Event: "result", Message: report.String(), Result: data})
	return nil
}

// unchanged: is the file as it was when it was read last?
func (u *up) unchanged() bool {
	data, err := os.ReadFile(u.path)
	u.mu.Lock()
	defer u.mu.Unlock()
	return err == nil && bytes.Equal(data, u.data) || errors.Is(err, os.ErrNotExist)
}
