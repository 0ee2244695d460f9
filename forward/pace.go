package forward

import (
	"log/slog"
	"sync"
	"time"
	"unicode/utf8"
)

// A pace keeps what others can cause a thousandfold from washing the log away: of each key it writes one line a second.
// The zero value is ready.
type pace struct {
	mu    sync.Mutex
	since map[string]*unwritten // the keys that had a line within the last second
}

// unwritten is what a key has had to say since its last line.
type unwritten struct {
	lines int
	log   *slog.Logger // of the last of them
	msg   string
}

// warn writes a line now. If there was one of that key within the last second it waits until that is over, and only the
// last one that waits is written, with the number of the others.
func (p *pace) warn(log *slog.Logger, key, msg string) {
	if !p.turn(log, key, msg) {
		return
	}
	log.Warn(msg)
	time.AfterFunc(time.Second, func() { p.catchUp(key) })
}

// turn tells whether the line may be written now, and keeps it if not.
func (p *pace) turn(log *slog.Logger, key, msg string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	u := p.since[key]
	if u != nil {
		u.lines, u.log, u.msg = u.lines+1, log, msg
		return false
	}
	if p.since == nil {
		p.since = make(map[string]*unwritten)
	}
	p.since[key] = new(unwritten)
	return true
}

func (p *pace) catchUp(key string) {
	p.mu.Lock()
	u := p.since[key]
	delete(p.since, key)
	p.mu.Unlock()
	if u.lines > 1 {
		u.log = u.log.With("left_out", u.lines-1)
	}
	if u.lines > 0 {
		p.warn(u.log, key, u.msg)
	}
}

// maxLogged is how much is logged of a service's name, which the peer chose: 80 bytes hold any true one and its port.
const maxLogged = 80

func logged(service string) string {
	if len(service) <= maxLogged {
		return service
	}
	cut := maxLogged
	for cut > 0 && !utf8.RuneStart(service[cut]) {
		cut--
	}
	return service[:cut] + "…"
}
