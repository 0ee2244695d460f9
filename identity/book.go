package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxBook is 256 MiB in theory (a roster and 1024 slices in base64), a few hundred
// KiB in life.
const maxBook = 256 << 20

// maxSlicesOffered is 1 MiB of slices in one message, see MaxRosterMsg.
const maxSlicesOffered = 1 << 20

var (
	// ErrNoNetwork says that this machine belongs to no network yet.
	ErrNoNetwork = errors.New("this machine has joined no network")
	// ErrJoined says that this machine belongs to a network already.
	ErrJoined = errors.New("this machine belongs to a network already")
	// ErrOlder says that what was offered is older than what is held.
	ErrOlder = errors.New("older than what is known")
	// ErrConflict says that the network key signed two rosters with one number.
	// The one held is kept until the owner, told of it, signs the next.
	ErrConflict = errors.New("another roster with the same term and epoch")
)

// A Book is the roster as this machine holds it: the highest (term, epoch) it has
// ever seen, on disk before it counts, and never back. With it go the owner's
// newest heartbeat and the guests' slices of the current epoch, to hand on.
//
// On a guest's machine the book holds that guest's slice in the roster's place.
type Book struct {
	path  string
	write func(path string, data []byte, mode os.FileMode) error

	now atomic.Pointer[page] // read without a lock: a slow disk delays no authorisation

	mu       sync.Mutex // one change at a time, from reading the page to its being on disk
	watchers map[chan struct{}]bool
}

// page is all that a book says at a moment. It is replaced, never altered.
type page struct {
	roster *Sealed
	beat   *heartbeat // of the roster's network
	slices map[peer.ID]*Sealed
}

// OpenBook reads the book at path. No file means an empty book; a damaged one is
// named in the error and kept.
func OpenBook(path string) (*Book, error) {
	b := &Book{path: path, write: WriteFile, watchers: map[chan struct{}]bool{}}
	b.now.Store(&page{})
	data, err := readPrivate(path, maxBook)
	if errors.Is(err, fs.ErrNotExist) {
		return b, nil
	}
	if err != nil {
		return nil, err
	}
	g, err := parsePage(data)
	if err != nil {
		return nil, &DamagedError{path, err}
	}
	b.now.Store(&g)
	return b, nil
}

// Current is the roster in force, or nil where no network is joined.
func (b *Book) Current() *Sealed { return b.now.Load().roster }

// For is the roster by which p is to be judged: the current one, or p's own slice
// if that is newer, for a guest may arrive before the news of it does.
func (b *Book) For(p peer.ID) *Sealed { return b.now.Load().judge(p) }

func (g *page) judge(p peer.ID) *Sealed {
	if s := g.slices[p]; s != nil && g.roster != nil && s.compare(g.roster.Roster) > 0 {
		return s
	}
	return g.roster
}

// Member tells whether p is on the roster and not expired at now, a clock's time.
func (b *Book) Member(p peer.ID, now time.Time) bool {
	g := b.now.Load()
	s := g.judge(p)
	if s == nil {
		return false
	}
	e, ok := s.Entry(p)
	return ok && !e.expired(g.time(now))
}

// Now is the time by which expiry is judged: the later of the clock and the newest
// time that the owner has vouched for. A clock set back revives nothing; a wrong
// time signed by the owner ends with the owner's next epoch.
func (b *Book) Now(clock time.Time) time.Time { return b.now.Load().time(clock) }

func (g *page) time(clock time.Time) time.Time {
	if g.roster != nil {
		clock = later(clock, g.roster.Issued)
	}
	if g.beat != nil {
		clock = later(clock, g.beat.at)
	}
	return clock
}

// NextExpiry is the first moment after now, a clock's time, at which an entry stops
// counting; the zero time if none does. What was decided before must be asked again then.
func (b *Book) NextExpiry(now time.Time) (next time.Time) {
	g := b.now.Load()
	now = g.time(now)
	look := func(s *Sealed) {
		for _, e := range s.Entries {
			if !e.Expires.IsZero() && !e.expired(now) && (next.IsZero() || e.Expires.Before(next)) {
				next = e.Expires
			}
		}
	}
	if g.roster != nil {
		look(g.roster)
	}
	for _, s := range g.slices {
		look(s)
	}
	return next
}

// Fresh is the last time at which the owner is known to have held this roster for
// the current one; the zero time without a network. See StaleWarn.
func (b *Book) Fresh() time.Time {
	g := b.now.Load()
	switch {
	case g.roster == nil:
		return time.Time{}
	case g.beat != nil && g.beat.compare(g.roster.Roster) <= 0:
		return later(g.roster.Issued, g.beat.at)
	}
	return g.roster.Issued
}

// Adopt takes a roster from anyone, if the network's owner signed it and it is
// newer; on disk first. Somebody's slice is kept as proof of that guest and
// replaces nothing. changed tells whether anything did.
//
// The errors are those of Open, ErrNoNetwork, ErrOlder and ErrConflict.
func (b *Book) Adopt(envelope []byte) (changed bool, err error) {
	return b.change(func(g page) (page, bool, error) { return g.adopt(envelope) })
}

// AdoptHeartbeat takes the owner's word on what is current, if it is a later one
// than is held and not about a past epoch. changed tells whether it was.
func (b *Book) AdoptHeartbeat(envelope []byte) (changed bool, err error) {
	return b.change(func(g page) (page, bool, error) { return g.adoptHeartbeat(envelope) })
}

// Take adopts all that a peer offered, in one write, and tells whether anything was
// new. What is older than ours is no error here: two peers compare whenever they meet.
func (b *Book) Take(msg RosterMsg) (changed bool, err error) {
	var refused []error
	changed, err = b.change(func(g page) (page, bool, error) {
		changed := false
		note := func(next page, c bool, err error) {
			switch {
			case err == nil:
				g, changed = next, changed || c
			case !errors.Is(err, ErrOlder):
				refused = append(refused, err)
			}
		}
		if len(msg.Roster) > 0 {
			note(g.adopt(msg.Roster))
		}
		for _, envelope := range msg.Slices {
			note(g.adopt(envelope))
		}
		if len(msg.Heartbeat) > 0 {
			note(g.adoptHeartbeat(msg.Heartbeat))
		}
		return g, changed, nil
	})
	return changed, errors.Join(append(refused, err)...)
}

func (g page) adopt(envelope []byte) (next page, changed bool, err error) {
	cur := g.roster
	switch {
	case cur == nil:
		return g, false, fmt.Errorf("adopt roster: %w", ErrNoNetwork)
	case bytes.Equal(envelope, cur.Envelope) || g.holdsSlice(envelope):
		return g, false, nil
	}
	s, err := Open(envelope, cur.Network)
	if err != nil {
		return g, false, fmt.Errorf("adopt roster: %w", err)
	}
	if s.For != "" && s.For != cur.For {
		return g.adoptSlice(s)
	}
	wholeOfSlice := cur.For != "" && s.For == ""
	switch order := s.compare(cur.Roster); {
	case order < 0:
		return g, false, fmt.Errorf("adopt roster %s, holding %s: %w", s.number(), cur.number(), ErrOlder)
	case order > 0 || wholeOfSlice:
		return g.turn(s, nil), true, nil
	case bytes.Equal(s.payload, cur.payload):
		return g, false, nil
	}
	return g, false, fmt.Errorf("adopt roster %s: %w", s.number(), ErrConflict)
}

func (g page) adoptSlice(s *Sealed) (next page, changed bool, err error) {
	old := g.slices[s.For]
	switch {
	case len(s.Envelope) > maxSlice:
		return g, false, fmt.Errorf("adopt slice of %d bytes: %w", len(s.Envelope), ErrTooLarge)
	case s.compare(g.roster.Roster) < 0 || old != nil && s.compare(old.Roster) < 0:
		return g, false, fmt.Errorf("adopt slice %s: %w", s.number(), ErrOlder)
	case old != nil && s.compare(old.Roster) == 0:
		return g, false, nil
	case old == nil && len(g.slices) >= maxSlices:
		return g, false, fmt.Errorf("adopt slice, %d are held: %w", maxSlices, ErrTooLarge)
	}
	kept := map[peer.ID]*Sealed{}
	maps.Copy(kept, g.slices)
	kept[s.For] = s
	g.slices = kept
	return g, true, nil
}

func (g page) adoptHeartbeat(envelope []byte) (next page, changed bool, err error) {
	cur, held := g.roster, g.beat
	if cur == nil {
		return g, false, fmt.Errorf("adopt heartbeat: %w", ErrNoNetwork)
	}
	if held != nil && bytes.Equal(envelope, held.envelope) {
		return g, false, nil
	}
	h, err := openHeartbeat(envelope, cur.Network)
	if err != nil {
		return g, false, fmt.Errorf("adopt heartbeat: %w", err)
	}
	if h.compare(cur.Roster) < 0 {
		return g, false, fmt.Errorf("adopt heartbeat of %d.%d, holding roster %s: %w", h.term, h.epoch, cur.number(), ErrOlder)
	}
	if held != nil {
		order := compareVersion(h.term, h.epoch, held.term, held.epoch)
		if order < 0 || order == 0 && !h.at.After(held.at) {
			return g, false, nil
		}
	}
	g.beat = h
	return g, true, nil
}

// holdsSlice spares verifying what is held already.
func (g page) holdsSlice(envelope []byte) bool {
	for _, s := range g.slices {
		if bytes.Equal(s.Envelope, envelope) {
			return true
		}
	}
	return false
}

// turn is the page after g with s for its roster. Slices and a heartbeat that s
// overtakes are left behind.
func (g page) turn(s *Sealed, fresh map[peer.ID]*Sealed) page {
	next := page{roster: s, slices: map[peer.ID]*Sealed{}}
	for p, old := range g.slices {
		if old.Network == s.Network && old.compare(s.Roster) >= 0 {
			next.slices[p] = old
		}
	}
	maps.Copy(next.slices, fresh)
	if g.beat != nil && g.beat.network == s.Network && g.beat.compare(s.Roster) >= 0 {
		next.beat = g.beat
	}
	return next
}

// Join takes the first roster of a network, from an invite's reply. It refuses to
// replace another network (ErrJoined): leave that one first. Of the same network
// it takes anything that is not older, such as a guest's slice.
func (b *Book) Join(s *Sealed) error {
	_, err := b.change(func(g page) (page, bool, error) {
		if cur := g.roster; cur != nil {
			if cur.Network != s.Network {
				return g, false, fmt.Errorf("join network %s: %w: %s", s.Name, ErrJoined, cur.Name)
			}
			if order := s.compare(cur.Roster); order < 0 || order == 0 && s.For != "" && cur.For == "" {
				return g, false, nil
			}
		}
		return g.turn(s, nil), true, nil
	})
	return err
}

// Leave forgets the network. Keys are not the book's, and stay.
func (b *Book) Leave() error {
	_, err := b.change(func(page) (page, bool, error) { return page{}, true, nil })
	return err
}

// turnTo is the owner's way to the next page: the roster and its slices in one write.
func (b *Book) turnTo(s *Sealed, slices map[peer.ID]*Sealed) error {
	_, err := b.change(func(g page) (page, bool, error) {
		if cur := g.roster; cur != nil && (cur.Network != s.Network || s.compare(cur.Roster) <= 0) {
			return g, false, fmt.Errorf("turn to roster %s, holding %s: %w", s.number(), cur.number(), ErrOlder)
		}
		return g.turn(s, slices), true, nil
	})
	return err
}

// change asks for the next page, writes it to disk, and only then lets it count.
func (b *Book) change(f func(page) (next page, changed bool, err error)) (bool, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	next, changed, err := f(*b.now.Load())
	if err != nil || !changed {
		return false, err
	}
	data, err := next.format()
	if err != nil {
		return false, fmt.Errorf("book %s: %w", b.path, err)
	}
	if err := b.write(b.path, data, 0o600); err != nil {
		return false, fmt.Errorf("book: %w", err)
	}
	b.now.Store(&next)
	for c := range b.watchers {
		select {
		case c <- struct{}{}:
		default: // a word is waiting already
		}
	}
	return true, nil
}

// Offer is what this machine has to hand to p: the roster with heartbeat and slices
// to a member, its own slice to a guest, and to anyone else nothing, not even the
// epoch. Fresh entries count at now, a clock's time.
func (b *Book) Offer(p peer.ID, now time.Time) RosterMsg {
	g := b.now.Load()
	s := g.judge(p)
	if s == nil {
		return RosterMsg{}
	}
	e, ok := s.Entry(p)
	if !ok || e.expired(g.time(now)) {
		return RosterMsg{}
	}
	msg := RosterMsg{Term: s.Term, Epoch: s.Epoch, Roster: g.show(s, e)}
	if g.beat != nil {
		msg.Heartbeat = g.beat.envelope
	}
	if s.For == "" && !s.confined(e) {
		msg.Slices = g.sliceEnvelopes(maxSlicesOffered)
	}
	return msg
}

// Lacks is how many guests on the roster we have no slice for: who joins is given the
// roster alone, and hands on what it has.
func (b *Book) Lacks() (n int) {
	g := b.now.Load()
	if g.roster == nil || g.roster.For != "" {
		return 0 // a guest hands on nothing
	}
	for _, e := range g.roster.Entries {
		if g.roster.confined(e) && g.slices[e.Peer] == nil {
			n++
		}
	}
	return n
}

// show is what of s, by which a peer is judged, that peer may have: the whole, or for a guest
// its slice (nil while we have none). Where s is a slice itself, ours or the peer's, there
// is nothing to keep back.
func (g *page) show(s *Sealed, e Entry) []byte {
	if s.For != "" || !s.confined(e) {
		return s.Envelope
	}
	if own := g.slices[e.Peer]; own != nil {
		return own.Envelope
	}
	return nil
}

// sliceEnvelopes lists slices, as many as fit in max bytes, in no order: where not all
// fit, others do the next time.
func (g page) sliceEnvelopes(max int) (envelopes [][]byte) {
	for _, s := range g.slices {
		if max -= len(s.Envelope); max < 0 {
			break
		}
		envelopes = append(envelopes, s.Envelope)
	}
	return envelopes
}

// Watch returns a channel that gets a word after changes, several of them in one;
// look at Current then. stop ends it.
func (b *Book) Watch() (changes <-chan struct{}, stop func()) {
	c := make(chan struct{}, 1)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watchers[c] = true
	return c, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.watchers, c)
	}
}

// pageText is the book's file. Everything in it is signed, so it is checked again
// whenever it is read.
type pageText struct {
	V         int      `json:"v"`
	Roster    []byte   `json:"roster,omitempty"`
	Heartbeat []byte   `json:"heartbeat,omitempty"`
	Slices    [][]byte `json:"slices,omitempty"`
}

func (g page) format() ([]byte, error) {
	t := pageText{V: 1, Slices: g.sliceEnvelopes(maxBook / 2)}
	if g.roster != nil {
		t.Roster = g.roster.Envelope
	}
	if g.beat != nil {
		t.Heartbeat = g.beat.envelope
	}
	data, err := json.Marshal(t)
	return append(data, '\n'), err
}

func parsePage(data []byte) (g page, err error) {
	var t pageText
	if err := parseStrict(data, &t); err != nil {
		return g, err
	}
	if t.V != 1 {
		return g, fmt.Errorf("version %d: %w", t.V, ErrNewer)
	}
	if t.Roster == nil {
		if t.Heartbeat != nil || t.Slices != nil {
			return g, errors.New("no roster, but a heartbeat or slices")
		}
		return g, nil
	}
	if g.roster, err = Open(t.Roster, ""); err != nil {
		return g, err
	}
	if t.Heartbeat != nil {
		if g.beat, err = openHeartbeat(t.Heartbeat, g.roster.Network); err != nil {
			return g, err
		}
	}
	g.slices = make(map[peer.ID]*Sealed, len(t.Slices))
	for _, envelope := range t.Slices {
		s, err := Open(envelope, g.roster.Network)
		if err != nil {
			return g, err
		}
		if s.For == "" {
			return g, errors.New("a roster among the slices")
		}
		g.slices[s.For] = s
	}
	return g, nil
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
