package daemon

import (
	"cmp"
	"context"
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
				u.tell(Event{Event: "wish-failed", Wish: "relay", Failure: failureOf(err)})
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
