package identity

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	networkKeyFile = "network.key"
	stagedKeyFile  = "network.key.new" // until the first roster is on disk
	ledgerFile     = "invites"

	// pruneAfter is 30 days: an entry that expired so long ago is dropped with the
	// next change. Until then the owner may find that its clock was wrong.
	pruneAfter = 30 * 24 * time.Hour

	// maxNamesPerPeer is 64: a member cannot take all the good names.
	maxNamesPerPeer = 64
)

var (
	// ErrNameTaken says that somebody else has the name.
	ErrNameTaken = errors.New("name taken")
	// ErrMoved says that the network key at hand no longer counts: by the newest
	// roster another machine is the owner.
	ErrMoved = errors.New("this machine is not the network's owner any more")
	// ErrMoving says that the network is on its way to another owner: nothing is signed here.
	ErrMoving = errors.New("the network is moving to another owner")
	// ErrNotAllowed says that the roster does not let the peer do it.
	ErrNotAllowed = errors.New("not allowed")
)

// An Owner holds the network key, and so decides who belongs. Whatever it answers
// is on disk before. It changes the roster only through the book, and a change
// that cannot be written did not happen.
type Owner struct {
	dir   string
	book  *Book
	self  peer.ID
	key   crypto.PrivKey
	id    peer.ID // of the network
	write func(path string, data []byte, mode os.FileMode) error

	mu      sync.Mutex // one change at a time
	ledger  ledger
	guesses map[[inviteIDSize]byte]guesses
	moving  bool // the key is with another machine, which goes on from our newest roster
}

// CreateNetwork makes a network key in dir and the first roster in the book: this
// machine, as owner. The book must be empty (ErrJoined); a network key that is
// already there is never overwritten (fs.ErrExist).
func CreateNetwork(dir string, book *Book, name string, self peer.ID, selfName string, selfCaps Capability, now time.Time) (*Owner, error) {
	if cur := book.Current(); cur != nil {
		return nil, fmt.Errorf("create network %s: %w: %s", name, ErrJoined, cur.Name)
	}
	if _, err := os.Lstat(filepath.Join(dir, networkKeyFile)); err == nil {
		return nil, fmt.Errorf("create network %s: the key of another is in %s: %w", name, filepath.Join(dir, networkKeyFile), fs.ErrExist)
	}
	key, _, err := crypto.GenerateEd25519Key(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create network %s: %w", name, err)
	}
	id, err := networkID(key)
	if err != nil {
		return nil, fmt.Errorf("create network %s: %w", name, err)
	}
	first := &Roster{
		Network: id, Name: name, Owner: self, Term: 1, Epoch: 1, Issued: now, DiscoveryKey: newDiscoveryKey(),
		Entries: []Entry{{Peer: self, Name: CleanName(selfName), Caps: selfCaps}},
	}
	s, err := Seal(first, key)
	if err != nil {
		return nil, fmt.Errorf("create network %s: %w", name, err)
	}
	o, err := found(dir, book, self, key, ledger{}, s)
	if err != nil {
		return nil, fmt.Errorf("create network %s: %w", name, err)
	}
	return o, nil
}

// found puts key, ledger and roster on disk, so that a crash in between leaves
// either no network or a whole one: the key gets its real name last, and OpenOwner
// finishes that step.
func found(dir string, book *Book, self peer.ID, key crypto.PrivKey, l ledger, s *Sealed) (*Owner, error) {
	text, err := formatKey(key)
	if err != nil {
		return nil, err
	}
	o, err := newOwner(dir, book, self, key, l)
	if err != nil {
		return nil, err
	}
	if err := WriteFile(filepath.Join(dir, stagedKeyFile), text, 0o600); err != nil {
		return nil, err
	}
	if err := o.saveLocked(l); err != nil {
		return nil, err
	}
	slices, err := sealSlices(s.Roster, key)
	if err != nil {
		return nil, err
	}
	if err := book.turnTo(s, slices); err != nil {
		return nil, err
	}
	return o, finishKey(dir, text)
}

// finishKey gives the staged key its name. The key may be there already if the
// network is being restored where it never was lost.
func finishKey(dir string, text []byte) error {
	if err := createFile(filepath.Join(dir, networkKeyFile), text, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Remove(filepath.Join(dir, stagedKeyFile))
}

func newOwner(dir string, book *Book, self peer.ID, key crypto.PrivKey, l ledger) (*Owner, error) {
	id, err := peer.IDFromPrivateKey(key)
	if err != nil {
		return nil, err
	}
	if _, _, err := ed25519Public(self); err != nil {
		return nil, err
	}
	return &Owner{
		dir: dir, book: book, self: self, key: key, id: id, write: WriteFile,
		ledger: l, guesses: map[[inviteIDSize]byte]guesses{},
	}, nil
}

// OpenOwner opens the owner's files in dir. Where there is no network key the owner
// is nil, without an error; so it is where this machine gave the network to another and a
// crash kept it from putting the key aside. Where it is not even on the roster, as without
// its own key, the error is ErrMoved and the network key stays.
func OpenOwner(dir string, book *Book, self peer.ID) (*Owner, error) {
	cur := book.Current()
	key, err := LoadKey(filepath.Join(dir, networkKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		if key, err = finishFounding(dir, cur, self); key == nil {
			return nil, err
		}
	}
	if err != nil {
		return nil, err
	}
	os.Remove(filepath.Join(dir, stagedKeyFile)) // left by a crash after it got its name
	l, err := loadLedger(filepath.Join(dir, ledgerFile))
	if err != nil {
		return nil, err
	}
	o, err := newOwner(dir, book, self, key, l)
	if err != nil {
		return nil, fmt.Errorf("open network key: %w", err)
	}
	switch {
	case cur == nil:
		return nil, fmt.Errorf("open network key: %w: there is %s but no roster; import a backup, or move the key away", ErrNoNetwork, filepath.Join(dir, networkKeyFile))
	case cur.Network != NetworkID(o.id.String()):
		return nil, fmt.Errorf("open network key: %s: %w", filepath.Join(dir, networkKeyFile), ErrOtherNetwork)
	case cur.Owner != self && cur.index(self) < 0:
		return nil, fmt.Errorf("open network key: %w: it is %s", ErrMoved, cur.Owner)
	case cur.Owner != self:
		return nil, o.Retire()
	}
	return o, nil
}

// finishFounding completes what a crash interrupted: a roster, and its key still staged.
func finishFounding(dir string, cur *Sealed, self peer.ID) (crypto.PrivKey, error) {
	staged, err := LoadKey(filepath.Join(dir, stagedKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	id, err := networkID(staged)
	switch {
	case err != nil || cur == nil || cur.Network != id || cur.Owner != self && cur.index(self) < 0:
		return nil, err // never came to be: the next founding overwrites it
	case cur.Owner != self: // nor did the move or import, and a copy of the owner's key is not left about
		return nil, os.Remove(filepath.Join(dir, stagedKeyFile))
	}
	text, err := formatKey(staged)
	if err != nil {
		return nil, err
	}
	return staged, finishKey(dir, text)
}

// Retire puts the network key aside under the network's name, when the network is
// left or was moved to another owner. Nothing is deleted.
func (o *Owner) Retire() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	aside := filepath.Join(o.dir, "network-"+o.id.String()+".key")
	if err := os.Rename(filepath.Join(o.dir, networkKeyFile), aside); err != nil {
		return fmt.Errorf("put network key aside: %w", err)
	}
	if err := os.Remove(filepath.Join(o.dir, ledgerFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("put network key aside: %w", err)
	}
	return syncDir(o.dir)
}

// Network names the network that the key belongs to.
func (o *Owner) Network() NetworkID { return NetworkID(o.id.String()) }

// Update signs the next epoch: change gets a copy of the roster to alter. A peer that
// it drops loses its service names and relay, comes by no invite again, and the discovery
// key changes. An error of change is handed back, and nothing happened.
func (o *Owner) Update(now time.Time, change func(*Roster) error) (*Sealed, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.updateLocked(now, change)
}

func (o *Owner) updateLocked(now time.Time, change func(*Roster) error) (*Sealed, error) {
	cur, err := o.currentLocked()
	if err != nil {
		return nil, err
	}
	next := cur.clone()
	if err := change(next); err != nil {
		return nil, err
	}
	next.Term, next.Epoch = cur.Term, cur.Epoch+1
	return o.signLocked(now, cur.Roster, next)
}

// currentLocked is the roster to build on, as long as it is ours to build on.
func (o *Owner) currentLocked() (*Sealed, error) {
	cur := o.book.Current()
	switch {
	case cur == nil || cur.Network != o.Network():
		return nil, fmt.Errorf("change roster: %w", ErrNoNetwork)
	case cur.Owner != o.self:
		return nil, fmt.Errorf("change roster: %w: it is %s", ErrMoved, cur.Owner)
	}
	return cur, nil
}

// signLocked seals next, which follows cur, and turns the book to it.
func (o *Owner) signLocked(now time.Time, cur, next *Roster) (*Sealed, error) {
	if o.moving {
		return nil, fmt.Errorf("change roster: %w", ErrMoving)
	}
	next.Network, next.Owner, next.Issued, next.For = o.Network(), o.self, now, ""
	next.Entries = slices.DeleteFunc(next.Entries, func(e Entry) bool {
		return e.Peer != o.self && !e.Expires.IsZero() && now.After(e.Expires.Add(pruneAfter))
	})
	left := map[peer.ID]bool{}
	for _, e := range cur.Entries {
		if next.index(e.Peer) < 0 {
			left[e.Peer] = true
		}
	}
	if len(left) > 0 {
		next.drop(left)
		next.rotate()
		if l, changed := o.ledger.revoke(left); changed {
			if err := o.saveLocked(l); err != nil { // first, or they could come back by their invite
				return nil, fmt.Errorf("sign roster: %w", err)
			}
		}
	}
	s, err := Seal(next, o.key)
	if err != nil {
		return nil, err
	}
	slices, err := sealSlices(s.Roster, o.key)
	if err != nil {
		return nil, err
	}
	if err := o.book.turnTo(s, slices); err != nil {
		return nil, fmt.Errorf("sign roster: %w", err)
	}
	return s, nil
}

// drop takes from the roster what belongs to peers that left. Grants for services at
// such a peer stay: without any grant left, a guest's entry could be misread.
func (r *Roster) drop(left map[peer.ID]bool) {
	r.Relays = slices.DeleteFunc(r.Relays, func(i RelayInfo) bool { return left[i.Peer] })
	for name, p := range r.Services {
		if left[p] {
			delete(r.Services, name)
		}
	}
}

// rotate gives the network a new discovery key, so that whoever left cannot find
// it, and keeps the old ones, so that whoever was away is found.
func (r *Roster) rotate() {
	r.OldDiscoveryKeys = append([][]byte{r.DiscoveryKey}, r.OldDiscoveryKeys...)
	r.OldDiscoveryKeys = r.OldDiscoveryKeys[:min(len(r.OldDiscoveryKeys), maxOldDiscoveryKeys)]
	r.DiscoveryKey = newDiscoveryKey()
}

func newDiscoveryKey() []byte {
	k := make([]byte, discoveryKeySize)
	rand.Read(k)
	return k
}

// saveLocked writes the ledger to disk and only then lets it count.
func (o *Owner) saveLocked(l ledger) error {
	data, err := l.format()
	if err != nil {
		return fmt.Errorf("invites: %w", err)
	}
	if err := o.write(filepath.Join(o.dir, ledgerFile), data, 0o600); err != nil {
		return fmt.Errorf("invites: %w", err)
	}
	o.ledger = l
	return nil
}

// Revoke puts p off the network: the next epoch is without it, and without its
// hand-over, for its key may be in wrong hands, and has a new discovery key. So may be the
// invite by which it came, and whoever has that needs only another key: it ends, too. Those
// that were still good are returned as they were. The owner itself cannot be revoked
// (ErrNotAllowed).
func (o *Owner) Revoke(p peer.ID, now time.Time) (ended []InviteInfo, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, err = o.updateLocked(now, func(r *Roster) error {
		r.HandOvers = r.HandOvers.without(p)
		if err := r.remove(p); err != nil {
			return err
		}
		l := o.ledger
		for _, v := range l.invites {
			if _, came := v.usage(p); !came {
				continue
			}
			if v.good(o.book.Now(now)) {
				ended = append(ended, v.info())
			}
			l = l.with(v.end(r))
		}
		return o.saveLocked(l) // before the roster, or it could come back by them
	})
	if err != nil {
		return nil, err
	}
	return ended, nil
}

// Leave is Revoke by p's own wish: its hand-over and its invites stay.
func (o *Owner) Leave(p peer.ID, now time.Time) error {
	_, err := o.Update(now, func(r *Roster) error { return r.remove(p) })
	return err
}

func (r *Roster) remove(p peer.ID) error {
	i := r.index(p)
	switch {
	case p == r.Owner:
		return fmt.Errorf("revoke %s: %w: it is the network's owner", p, ErrNotAllowed)
	case i < 0:
		return fmt.Errorf("revoke %s: %w", p, ErrUnknownName)
	}
	r.Entries = slices.Delete(r.Entries, i, i+1)
	return nil
}

// HandOver puts p's word that another peer takes its place on the roster, for all to
// know. from is who brought it, as its connection proves: nobody brings another's, so
// that none is kept back and used later. The other peer need not be on the roster yet.
func (o *Owner) HandOver(from peer.ID, envelope []byte, now time.Time) error {
	h, err := openHandOver(envelope, o.Network())
	if err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	cur, err := o.currentLocked()
	if err != nil {
		return err
	}
	e, ok := cur.Entry(h.From)
	held := func(w HandOver) bool { return bytes.Equal(w.Envelope, envelope) }
	later := func(w HandOver) bool { return w.From == h.From && !h.at.after(w.at) }
	switch {
	case h.From != from, !ok, e.Caps&Expose == 0, e.expired(o.book.Now(now)):
		return fmt.Errorf("hand-over by %s: %w", h.From, ErrNotAllowed)
	case h.at.after(cur.edition()):
		return fmt.Errorf("hand-over of roster %s, holding %s: %w", h.at, cur.edition(), ErrNotAllowed)
	case slices.ContainsFunc(cur.HandOvers, held):
		return nil
	case !h.at.after(cur.HandOvers.naming(h.From)), slices.ContainsFunc(cur.HandOvers, later):
		return fmt.Errorf("hand-over of roster %s: %w", h.at, ErrOlder)
	}
	_, err = o.updateLocked(now, func(r *Roster) error {
		r.HandOvers = r.HandOvers.with(h).latest(maxHandOvers)
		return nil
	})
	return err
}

// Rename gives p another machine name: ErrNameTaken if somebody has it.
func (o *Owner) Rename(p peer.ID, name string, now time.Time) error {
	_, err := o.Update(now, func(r *Roster) error {
		if err := checkMachine(name); err != nil {
			return fmt.Errorf("rename: %w", err)
		}
		if e, ok := r.ByName(name); ok && e.Peer != p {
			return fmt.Errorf("rename: %w: %s is peer %s", ErrNameTaken, name, e.Peer)
		}
		i := r.index(p)
		if i < 0 {
			return fmt.Errorf("rename %s: %w", p, ErrUnknownName)
		}
		r.Entries[i].Name = name
		return nil
	})
	return err
}

// SetRelay records where a relay is. Its entry must allow it to relay (ErrNotAllowed), but for the owner's own, who allows
// itself.
// What is recorded already needs no new epoch.
func (o *Owner) SetRelay(relay RelayInfo, now time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	cur, err := o.currentLocked()
	if err != nil {
		return err
	}
	if slices.ContainsFunc(cur.Relays, func(i RelayInfo) bool { return i.equal(relay) }) {
		return nil
	}
	_, err = o.updateLocked(now, func(r *Roster) error {
		e := r.index(relay.Peer)
		if e >= 0 && relay.Peer == r.Owner {
			r.Entries[e].Caps |= Relay
		}
		if e < 0 || r.Entries[e].Caps&Relay == 0 {
			return fmt.Errorf("set relay %s: %w", relay.Peer, ErrNotAllowed)
		}
		i := slices.IndexFunc(r.Relays, func(i RelayInfo) bool { return i.Peer == relay.Peer })
		if i < 0 {
			r.Relays = append(r.Relays, relay)
		} else {
			r.Relays[i] = relay
		}
		return nil
	})
	return err
}

func (i RelayInfo) equal(o RelayInfo) bool {
	if i.Peer != o.Peer || len(i.Addrs) != len(o.Addrs) {
		return false
	}
	for k := range i.Addrs {
		if !i.Addrs[k].Equal(o.Addrs[k]) {
			return false
		}
	}
	return true
}

// ClaimService gives a short name to the first peer that asks: to others it is
// ErrNameTaken from then on, but for the one to which its holder handed over. Whether a
// default name such as ssh should have a short form is decided by who asks.
func (o *Owner) ClaimService(p peer.ID, service string, now time.Time) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	cur, err := o.currentLocked()
	if err != nil {
		return err
	}
	if cur.Services[service] == p {
		return nil
	}
	_, err = o.updateLocked(now, func(r *Roster) error {
		if err := CheckName(service); err != nil {
			return fmt.Errorf("claim service: %w", err)
		}
		if holder, ok := r.Services[service]; ok && !r.TookOver(holder, p) {
			return fmt.Errorf("claim service: %w: %s belongs to %s", ErrNameTaken, service, r.nameOf(holder))
		}
		// A machine's name is no service's but its own: `ssh nas-box.fwd` must not lead
		// to whoever claims "nas-box".
		if m, ok := r.ByName(service); ok && m.Peer != p {
			return fmt.Errorf("claim service: %w: %s is a machine, peer %s", ErrNameTaken, service, m.Peer)
		}
		e, ok := r.Entry(p)
		if !ok || e.Caps&Expose == 0 || e.expired(o.book.Now(now)) {
			return fmt.Errorf("claim service %s for %s: %w", service, p, ErrNotAllowed)
		}
		held := 0
		for _, q := range r.Services {
			if q == p {
				held++
			}
		}
		if held >= maxNamesPerPeer || len(r.Services) >= maxServices {
			return fmt.Errorf("claim service %s: %s has %d names: %w", service, e.Name, held, ErrTooLarge)
		}
		r.Services[service] = p
		return nil
	})
	return err
}

// ReleaseService frees a short name: p's own, or with p empty (an admin's wish)
// anybody's.
func (o *Owner) ReleaseService(p peer.ID, service string, now time.Time) error {
	_, err := o.Update(now, func(r *Roster) error {
		holder, ok := r.Services[service]
		if !ok {
			return fmt.Errorf("release service %.80q: %w", service, ErrUnknownName)
		}
		if p != "" && p != holder {
			return fmt.Errorf("release service %s of %s: %w", service, r.nameOf(holder), ErrNotAllowed)
		}
		delete(r.Services, service)
		return nil
	})
	return err
}

// nameOf is what people call p.
func (r *Roster) nameOf(p peer.ID) string {
	if e, ok := r.Entry(p); ok {
		return e.Name
	}
	return p.String()
}

// Heartbeat signs "this epoch is current at now", keeps it in the book, and returns
// it to be handed on. Due every HeartbeatEvery.
func (o *Owner) Heartbeat(now time.Time) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	cur, err := o.currentLocked()
	if err != nil {
		return nil, err
	}
	h, err := sealHeartbeat(cur.Roster, now, o.key)
	if err != nil {
		return nil, fmt.Errorf("heartbeat: %w", err)
	}
	if _, err := o.book.AdoptHeartbeat(h.envelope); err != nil {
		return nil, err
	}
	return h.envelope, nil
}

// Adopt is Book.Adopt for the owner, who may meet its own signature on something it
// does not remember: this machine was set back, or restored from a backup. It takes
// that over and signs the next epoch; its invites end, for they may have been used since.
// If another machine became the owner, it takes that roster too, and the error is
// ErrMoved: this owner is done.
func (o *Owner) Adopt(envelope []byte, now time.Time) (changed bool, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	cur, err := o.currentLocked()
	if err != nil {
		return false, err
	}
	s, err := Open(envelope, o.Network())
	if err != nil {
		return false, fmt.Errorf("adopt roster: %w", err)
	}
	if s.For != "" || bytes.Equal(s.payload, cur.payload) {
		return false, nil
	}
	var next *Roster
	order := s.compare(cur.Roster)
	switch {
	case order == 0 && s.Owner > o.self:
		// Restored on two machines at once: one must give way, or they take turns for ever.
		return false, fmt.Errorf("adopt roster %s of owner %s: %w", s.number(), s.Owner, ErrConflict)
	case order > 0 && s.Owner != o.self:
		if _, err := o.book.Adopt(envelope); err != nil {
			return false, err
		}
		return true, fmt.Errorf("adopt roster %s: %w: it is %s", s.number(), ErrMoved, s.Owner)
	case order >= 0:
		next = s.clone()
	case s.Term < cur.Term && o.ledger.base != nil:
		base, err := Open(o.ledger.base, o.Network())
		if err != nil {
			return false, fmt.Errorf("adopt roster: base of term %d: %w", cur.Term, err)
		}
		if s.compare(base.Roster) <= 0 {
			return false, fmt.Errorf("adopt roster %s, built on %s: %w", s.number(), base.number(), ErrOlder)
		}
		next = merge(base.Roster, cur.Roster, s.Roster)
	default:
		return false, fmt.Errorf("adopt roster %s, holding %s: %w", s.number(), cur.number(), ErrOlder)
	}
	next.Term, next.Epoch = max(s.Term, cur.Term), max(s.Epoch, cur.Epoch)+1
	next.ensure(o.self, cur.Roster)
	if order >= 0 { // the invites were set back with the roster
		if err := o.saveLocked(o.ledger.end(next)); err != nil {
			return false, err
		}
	}
	if _, err := o.signLocked(now, cur.Roster, next); err != nil {
		return false, err
	}
	if s.Term < cur.Term { // last: without it the same merge is done again
		l := o.ledger
		l.base = bytes.Clone(envelope)
		return true, o.saveLocked(l)
	}
	return true, nil
}

// merge brings a restored network up to date: late is the roster of the term before,
// newer than the base on which the restored term was built; what was done since then, from
// base to cur, is done to it again.
func merge(base, cur, late *Roster) *Roster {
	next := late.clone()
	next.Entries = slices.DeleteFunc(next.Entries, func(e Entry) bool {
		return base.index(e.Peer) >= 0 && cur.index(e.Peer) < 0
	})
	for _, e := range cur.Entries {
		if base.index(e.Peer) < 0 && next.index(e.Peer) < 0 {
			e = e.clone()
			e.Name = freeName(e.Name, next.named)
			next.Entries = append(next.Entries, e)
		}
	}
	for name, p := range cur.Services {
		if _, taken := next.Services[name]; !taken && base.Services[name] != p && next.index(p) >= 0 {
			next.Services[name] = p
		}
	}
	left := map[peer.ID]bool{}
	for _, e := range late.Entries {
		left[e.Peer] = next.index(e.Peer) < 0
	}
	next.drop(left)
	for _, relay := range cur.Relays {
		known := slices.ContainsFunc(next.Relays, func(i RelayInfo) bool { return i.Peer == relay.Peer })
		if !known && next.index(relay.Peer) >= 0 {
			next.Relays = append(next.Relays, relay)
		}
	}
	next.HandOvers = nil
	for _, h := range slices.Concat(late.HandOvers, cur.HandOvers) {
		if !cur.revoked(h.From, base) && !late.revoked(h.From, base) {
			next.HandOvers = next.HandOvers.with(h)
		}
	}
	next.HandOvers = next.HandOvers.latest(maxHandOvers)
	if !bytes.Equal(cur.DiscoveryKey, base.DiscoveryKey) && !bytes.Equal(cur.DiscoveryKey, late.DiscoveryKey) {
		next.rotate()
		next.DiscoveryKey = bytes.Clone(cur.DiscoveryKey)
	}
	return next
}

// revoked tells whether p left since base without a hand-over that stays.
func (r *Roster) revoked(p peer.ID, base *Roster) bool {
	return base.index(p) >= 0 && r.index(p) < 0 && !r.HandOvers.by(p)
}

// TookOver tells whether p has the place that old had, by the word of old or of who came
// between them.
func (r *Roster) TookOver(old, p peer.ID) bool {
	_, ok := r.HandOvers.lead(old, r.HandOvers.naming(old), p)
	return ok
}

// ensure puts the owner on the roster, as it was in old or else as an admin.
func (r *Roster) ensure(owner peer.ID, old *Roster) {
	if i := r.index(owner); i >= 0 {
		r.Entries[i].Expires = time.Time{}
		return
	}
	e, ok := old.Entry(owner)
	if !ok {
		e = Entry{Peer: owner, Name: "owner", Caps: Member | Admin}
	}
	e = e.clone()
	e.Name, e.Expires = freeName(e.Name, r.named), time.Time{}
	r.Entries = append(r.Entries, e)
}

func (r *Roster) named(name string) bool {
	_, ok := r.ByName(name)
	return ok
}

func parseInviteID(s string) (id [inviteIDSize]byte, err error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != inviteIDSize {
		return id, fmt.Errorf("invite %.40q: %w", s, ErrUnknownName)
	}
	return [inviteIDSize]byte(b), nil
}
