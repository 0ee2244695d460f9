package daemon

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// Reading fwd.toml again: asked for by `fwd reload`, or because the watch (configwatch.go) saw another file.

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

// unchanged: is the file as it was when it was read last?
func (u *up) unchanged() bool {
	data, err := os.ReadFile(u.path)
	u.mu.Lock()
	defer u.mu.Unlock()
	return err == nil && bytes.Equal(data, u.data) || errors.Is(err, os.ErrNotExist)
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

// restartFor names what was changed and is only read at the start.
func restartFor(old, next *config) []string {
	list := []string{}
	for _, s := range []struct {
		name     string
		old, new any
	}{{"relay", old.Relay, next.Relay}, {"port", old.Port, next.Port}, {"announce", old.Announce, next.Announce}, {"limits", old.Limits, next.Limits}, {"log.format", old.Log.Format, next.Log.Format}, {"metrics", old.Metrics, next.Metrics}} {
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
