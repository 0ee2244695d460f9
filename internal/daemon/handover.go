package daemon

import (
	"context"
	"errors"
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/identity"
)

// A machine's key is handed over in four steps. The old machine says so, by its key
// (handOver); the owner puts the word on the roster (grantHandOver), which brings it to
// everybody; the new machine gets the names of what it exposes (awaitName), unless it has
// them by `fwd invite --replace`; and whoever uses them follows (followHandOvers).

// HandOnRequest brings the owner the word of the peer that asks. No command of its
// own: `fwd id hand-over` makes it.
type HandOnRequest struct {
	Word []byte `json:"word"`
}

// handOver carries out `fwd id hand-over`.
func (d *Daemon) handOver(ctx context.Context, req HandOverRequest, emit func(Event)) error {
	s, err := d.belongs()
	if errors.Is(err, errExpelled) {
		return fail(ExitRefused, CodeRevoked, "where its services are used: fwd trust NAME",
			"this machine is off the roster, and nobody takes its word any more")
	} else if err != nil {
		return err
	}
	if e, _ := s.Entry(d.self); e.Caps&identity.Expose == 0 {
		return fail(ExitRefused, "refused", "", "this machine (%s) exposes nothing in %q, so nobody remembers its key by a name", d.nameOf(d.self), s.Name)
	}
	to, err := peer.Decode(req.Peer) // it may still have to join
	if err != nil {
		if to, err = d.resolvePeer(ctx, req.Peer, "fwd id hand-over PEER"); err != nil {
			return err
		}
	}
	if to == d.self {
		return usage("run it on the old machine, and name the new one", "%s is this very machine", req.Peer)
	}
	if err := d.sayHandOver(ctx, to); err != nil {
		return err
	}
	d.log.Info("handed over", "to", to)
	name := d.nameOf(to)
	next := fmt.Sprintf("there, run: fwd expose TARGET --name NAME, for each name it takes over from %s", d.nameOf(d.self))
	if !d.member(to) {
		next = "let it in by: fwd invite --replace " + d.nameOf(d.self)
	}
	emit(Event{Event: "result", Message: name + " may take this machine's place; " + next, Peer: to.String(), Machine: name})
	return nil
}

// sayHandOver signs the word, by the newest roster, and has the owner publish it.
func (d *Daemon) sayHandOver(ctx context.Context, to peer.ID) error {
	s, err := d.roster()
	if err != nil {
		return err
	}
	owner := d.currentOwner()
	if owner == nil {
		if err := d.node.Connect(ctx, s.Owner); err != nil {
			return d.unreachable(d.nameOf(s.Owner), err)
		}
		if err := d.exchange(ctx, s.Owner); err != nil {
			return d.unreachable(d.nameOf(s.Owner), err)
		}
		if s, err = d.roster(); err != nil {
			return err
		}
	}
	word, err := identity.NewHandOver(d.key, to, s.Roster)
	if err != nil {
		return err
	}
	if owner != nil {
		return owner.HandOver(d.self, word.Envelope, d.now())
	}
	return d.ask(ctx, s.Owner, "hand-on", HandOnRequest{Word: word.Envelope}, func(Event) {})
}

// grantHandOver puts p's word on the roster.
func (d *Daemon) grantHandOver(owner *identity.Owner, p peer.ID, word []byte) error {
	err := owner.HandOver(p, word, d.now())
	if errors.Is(err, identity.ErrNotAllowed) {
		return fail(ExitRefused, "refused", "", "%v", err)
	}
	return err
}

// awaitName waits until the short name of a service here is this machine's: its
// holder, which was replaced by this one or handed over to it, has it no more. It is
// false if ctx ends before.
func (d *Daemon) awaitName(ctx context.Context, changes <-chan struct{}, name string) bool {
	for {
		if s := d.book.Current(); s != nil {
			holder, held := s.Services[name]
			if holder == d.self {
				return true
			}
			if held && s.TookOver(holder, d.self) {
				if claimed, _ := d.claim(ctx, name); claimed {
					return true
				}
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-changes:
		}
	}
}

// followHandOvers takes over what the roster says of keys that were handed over, for
// the pins and for the forwards that are open.
func (d *Daemon) followHandOvers() {
	s := d.book.Current()
	if s == nil {
		return
	}
	if err := d.known.Follow(s.Roster); err != nil {
		d.log.Warn("follow a hand-over", "err", err)
	}
	d.mu.Lock()
	forwards := make([]*forwarding, 0, len(d.forwards))
	for f := range d.forwards {
		forwards = append(forwards, f)
	}
	d.mu.Unlock()
	for _, f := range forwards {
		d.follow(f)
	}
}

// nowElsewhere tells, after the machine to refused f, whether f leads to another by the
// newest roster: this machine may have been away when the place was handed over.
func (d *Daemon) nowElsewhere(ctx context.Context, f *forwarding, to peer.ID) bool {
	if s := d.book.Current(); s != nil && !d.heardOfRoster(s) {
		d.freshen(ctx, s)
	}
	d.followHandOvers()
	return f.peer() != to
}

// heardOfRoster: the owner or a relay has told since the start which roster is current.
func (d *Daemon) heardOfRoster(s *identity.Sealed) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, heard := d.seen[s.Owner]
	for _, r := range s.Relays {
		if _, ok := d.seen[r.Peer]; ok {
			heard = true
		}
	}
	return heard || s.Owner == d.self
}

// follow has new connections of f go to the machine that its name means now, if the
// pin has followed. Those that are open stay where they are.
func (d *Daemon) follow(f *forwarding) {
	s := d.book.Current()
	if s == nil {
		return
	}
	_, p, err := s.Resolve(f.word)
	if pinned, _ := d.known.Pinned(f.word); err != nil || p != pinned || p == d.self {
		return
	}
	if p == f.peer() {
		return
	}
	release := d.node.Hold(p, d.kindWanted(f))
	d.mu.Lock()
	was := f.peer()
	follows := d.forwards[f] && p != was
	if follows {
		f.far.Store(&p)
		held, before := release, f.release
		f.release, release = func() { held(); before() }, func() {}
		if !d.member(was) { // nothing is open there any more
			f.release, release = held, before
		}
	}
	d.mu.Unlock()
	release()
	if follows {
		d.log.Info("a forward follows a hand-over", "service", f.word, "from", was, "to", p)
	}
}
