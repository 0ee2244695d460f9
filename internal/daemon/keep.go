package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/gofrs/flock"
)

// Wishes that outlive their terminal: those of expose, connect and socks with --keep are
// written to the daemon's state, and `fwd up` runs them beside fwd.toml's,
// which is never written to.

// kept is the part of the state file that holds them.
type kept struct {
	Exposes  []ExposeRequest  `json:"exposes,omitempty"`
	Connects []ConnectRequest `json:"connects,omitempty"`
	Socks    []SocksRequest   `json:"socks,omitempty"`
	Relay    *RelayRequest    `json:"relay,omitempty"`
}

func (k kept) clone() kept {
	return kept{Exposes: slices.Clone(k.Exposes), Connects: slices.Clone(k.Connects), Socks: slices.Clone(k.Socks), Relay: k.Relay}
}

// wishes are the kept ones as standing wishes.
func (k kept) wishes() []wish {
	var list []wish
	for _, r := range k.Exposes {
		list = append(list, exposeWish(r, fromKept))
	}
	for _, r := range k.Connects {
		list = append(list, connectWish(r, fromKept))
	}
	for _, r := range k.Socks {
		list = append(list, socksWish(r, fromKept))
	}
	return list
}

// put adds w, in the place of an older one with its key.
func (k *kept) put(w wish) {
	k.remove(w.key)
	switch {
	case w.expose != nil:
		k.Exposes = append(k.Exposes, *w.expose)
	case w.connect != nil:
		k.Connects = append(k.Connects, *w.connect)
	default:
		k.Socks = append(k.Socks, *w.socks)
	}
}

func (k *kept) remove(keys ...string) (found bool) {
	before := len(k.Exposes) + len(k.Connects) + len(k.Socks)
	k.Exposes = slices.DeleteFunc(slices.Clone(k.Exposes), func(r ExposeRequest) bool { return slices.Contains(keys, exposeWish(r, "").key) })
	k.Connects = slices.DeleteFunc(slices.Clone(k.Connects), func(r ConnectRequest) bool { return slices.Contains(keys, connectWish(r, "").key) })
	k.Socks = slices.DeleteFunc(slices.Clone(k.Socks), func(r SocksRequest) bool { return slices.Contains(keys, socksWish(r, "").key) })
	return before > len(k.Exposes)+len(k.Connects)+len(k.Socks)
}

// matching are the keys of the kept wishes that unexpose or disconnect means.
func (k kept) matching(request any) (keys []string) {
	for _, w := range k.wishes() {
		if w.means(request) {
			keys = append(keys, w.key)
		}
	}
	return keys
}

// keep carries out a request with --keep. Under `fwd up` the daemon takes the
// wish over, and the command ends once it is fulfilled; else the command holds
// it as ever, and the next `fwd up` runs it too.
func (d *Daemon) keep(ctx context.Context, w wish, emit func(Event)) error {
	if d.up != nil {
		return d.up.keep(ctx, w, emit)
	}
	var failed error
	done := false
	tell := func(e Event) {
		emit(e)
		if !e.fulfils() || done {
			return
		}
		done = true
		if failed = d.state.change(func(s *stateFile) { s.Kept.put(w) }); failed != nil {
			emit(Event{Event: "progress", Message: fmt.Sprintf("not kept: %v", failed)})
			return
		}
		emit(Event{Event: "progress", Message: "kept; to have it without this terminal: fwd service install, or fwd up"})
	}
	return w.fulfil(ctx, d, tell)
}

// forget takes what unexpose or disconnect means off the kept wishes, and ends
// it where the daemon runs it. fromConfig: fwd.toml has it still.
func (d *Daemon) forget(request any) (found, fromConfig bool, err error) {
	keys := d.meant(request)
	err = d.state.change(func(s *stateFile) { found = s.Kept.remove(keys...) })
	if d.up != nil {
		standing, config := d.up.drop(keys)
		return found || standing, config, err
	}
	return found, false, err
}

// meant are the keys of the wishes, kept or standing, that unexpose or disconnect means: by their words, or by where
// they listen, which their words need not say.
func (d *Daemon) meant(request any) (keys []string) {
	d.state.get(func(s stateFile) { keys = s.Kept.matching(request) })
	r, isLocal := request.(DisconnectRequest)
	switch {
	case d.up != nil:
		keys = append(keys, d.up.matching(request)...)
	case isLocal:
		keys = append(keys, d.keptAt(r.Local)...)
	}
	return keys
}

// Forget is unexpose or disconnect where no daemon runs: what was kept is so
// no longer. found is false where nothing like it was.
func Forget(home Home, request any) (found bool, err error) {
	return changeState(home, func(s *stateFile) bool {
		return s.Kept.remove(s.Kept.matching(request)...)
	})
}

// keepRelay has `fwd up` run this machine as a relay from now on.
func (d *Daemon) keepRelay(r RelayRequest) error {
	r.Invite, r.Uses, r.Keep = "", 0, false // of the first start alone
	return d.state.change(func(s *stateFile) { s.Kept.Relay = &r })
}

// ForgetRelay takes that back, in a home whose daemon does not run.
func ForgetRelay(home Home) error {
	_, err := changeState(home, func(s *stateFile) bool {
		s.Kept.Relay = nil
		return true
	})
	if home.System && errors.Is(err, fs.ErrPermission) {
		return fail(ExitFailed, "failed", "sudo fwd relay --forget", "what the machine's service keeps is root's to change: %v", err)
	}
	return err
}

// changeState changes the state file of a home whose daemon does not run.
func changeState(home Home, f func(*stateFile) bool) (changed bool, err error) {
	lock := flock.New(home.file("fwd.lock"))
	ok, err := lock.TryLock()
	stop := "fwd stop"
	if home.System {
		stop = "sudo systemctl stop fwd" // which begins anew what merely ended
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil // there is no folder, so nothing was ever kept in it
	case err != nil:
		return false, fmt.Errorf("lock %s: %w", home.State, err)
	case !ok:
		return false, fail(ExitFailed, "already-running", "end it first: "+stop, "a fwd daemon runs in %s", home.State)
	}
	defer lock.Unlock()
	s, err := openState(home.file("daemon"))
	if err != nil {
		return false, err
	}
	next := s.clone()
	if !f(&next) {
		return false, nil
	}
	if err := s.change(func(file *stateFile) { *file = next }); err != nil {
		return false, err
	}
	return true, giveToFoldersOwner(home.file("daemon"))
}
