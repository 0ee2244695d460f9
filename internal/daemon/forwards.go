package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/internal/node"
)

// The forwards that stand: which kind of path those to one machine share, and how they
// are ended. How one begins is connect.go, its local ends are locals.go.

// pathKind is what the forwards to p ask for with --path: they share a link,
// so the one that is particular decides.
func (d *Daemon) pathKind(p peer.ID) node.PathKind {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pathKindLocked(p)
}

func (d *Daemon) pathKindLocked(p peer.ID) node.PathKind {
	kind := node.Auto
	for f := range d.forwards {
		if f.peer() == p {
			kind = max(kind, f.kind) // both ways only after a hand-over; then the relay, for it can always be had
		}
	}
	return kind
}

// addForward notes f, if its path is not at odds with that of another.
func (d *Daemon) addForward(f *forwarding) error {
	p := f.peer()
	d.mu.Lock()
	err := d.atOdds(f, f.kind, nil)
	was := d.pathKindLocked(p)
	if err == nil {
		d.forwards[f] = true
	}
	changed := was != d.pathKindLocked(p)
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if changed {
		d.renew(p)
	}
	d.follow(f) // what came between its look-up and this
	return nil
}

func (d *Daemon) removeForward(f *forwarding) {
	p := f.peer()
	d.mu.Lock()
	was := d.pathKindLocked(p)
	delete(d.forwards, f)
	changed := was != d.pathKindLocked(p)
	close(f.ended)
	d.mu.Unlock()
	if changed { // the others' connections are free of its --path
		d.renew(p)
	}
}

// atOdds refuses f a kind of path where another forward to its machine asks for the opposite, which it would get or be
// given silently: they share a link. Wishes count by their words, if any are given. Under Daemon.mu.
func (d *Daemon) atOdds(f *forwarding, kind node.PathKind, words map[string]node.PathKind) error {
	if kind == node.Auto {
		return nil
	}
	var other *forwarding
	var theirs node.PathKind
	for have := range d.forwards {
		wants := have.kind
		if w, ok := words[have.wish]; ok && have.from != fromCommand {
			wants = w
		}
		if have == f || have.peer() != f.peer() || wants == node.Auto || wants == kind {
			continue
		}
		if other == nil || have.told() < other.told() { // always the same one, or a wish's failure is news at each try
			other, theirs = have, wants
		}
	}
	if other == nil {
		return nil
	}
	end := other.word
	if local := other.localEnds()[0].local; local != "" {
		end = local
	}
	return usage(fmt.Sprintf("all connections to a machine share its path: end the other one (fwd disconnect %s) or say the same --path", end),
		"%s by --path %s: %s goes to %s by --path %s", f.word, kind, other.told(), d.nameOf(f.peer()), theirs)
}

// told is f in a few words: its service, and its address once it has one. Under Daemon.mu.
func (f *forwarding) told() string {
	if local := cmp.Or(f.localEnds()[0].local, f.asked); local != "" {
		return f.word + " at " + local
	}
	return f.word
}

// renew has what is open to p go by the path that its forwards ask for now.
func (d *Daemon) renew(p peer.ID) {
	d.sessions.Renew(p)
	d.datagrams.Renew(p)
}

// changeForward has a wish's forward go by another kind of path. Its connections move
// to it.
func (d *Daemon) changeForward(w wish) error {
	kind, err := node.ParsePathKind(w.connect.Path)
	if err != nil {
		return usage("auto, direct or relay", "%v", err)
	}
	var f *forwarding
	d.mu.Lock()
	for have := range d.forwards {
		if have.wish == w.key && have.from != fromCommand {
			f = have
		}
	}
	d.mu.Unlock()
	if f == nil {
		return nil // it takes the new words when it comes back
	}
	words := map[string]node.PathKind{} // the others' may be about to change, too
	for _, other := range d.up.wanted() {
		if other.connect != nil {
			words[other.key], _ = node.ParsePathKind(other.connect.Path)
		}
	}
	release := d.node.Hold(f.peer(), kind)
	d.mu.Lock()
	err = d.atOdds(f, kind, words)
	if err == nil {
		f.kind, f.release, release = kind, release, f.release
	}
	d.mu.Unlock()
	release()
	if err == nil {
		d.renew(f.peer())
	}
	return err
}

// disconnect ends a forward from any terminal, by its local address or port, or
// one connection by its session's ID. Then its port is free for others.
func (d *Daemon) disconnect(ctx context.Context, req DisconnectRequest, emit func(Event)) error {
	if req.Session != "" {
		return d.endSession(req.Session)
	}
	stood, inConfig, err := d.forget(req)
	if err != nil {
		return err
	}
	ended := d.endForwards(req.Local)
	if len(ended) == 0 && !stood {
		return fail(ExitUnknownName, "unknown-name", "see what is: fwd status", "nothing is connected at %q", req.Local)
	}
	for _, e := range ended {
		select {
		case <-e:
		case <-ctx.Done():
		}
	}
	emit(Event{Event: "result", Message: req.Local + " is no longer connected" + comesBack(inConfig)})
	return nil
}

// means: does the word that disconnect was given mean f? Under Daemon.mu.
func (f *forwarding) means(word string) bool {
	return f.asked != "" && meansLocal(word, f.asked, f.word) ||
		slices.ContainsFunc(f.localEnds(), func(e localEnd) bool { return meansLocal(word, e.local, f.word) })
}

// keptAt are the keys of the kept wishes among the forwards and SOCKS entries that word means.
func (d *Daemon) keptAt(word string) (keys []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.forwards {
		if f.from == fromKept && f.means(word) {
			keys = append(keys, f.wish)
		}
	}
	for s := range d.socks {
		if s.from == fromKept && meansLocal(word, s.local, socksNames) {
			keys = append(keys, s.wish)
		}
	}
	return keys
}

// endForwards ends the forwards and SOCKS entries that word means: a service's name means each of its forwards.
func (d *Daemon) endForwards(word string) (ended []<-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for f := range d.forwards {
		if f.means(word) {
			f.end(errWishEnded)
			ended = append(ended, f.ended)
		}
	}
	for s := range d.socks {
		if meansLocal(word, s.local, socksNames) {
			s.end(errWishEnded)
			ended = append(ended, s.ended)
		}
	}
	return ended
}
