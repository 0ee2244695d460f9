package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// Moving the network to another owner: the present one hands the key over, the next
// one signs the roster anew for the next term, and as soon as the former sees that
// (Owner.Adopt: ErrMoved) it is none any more. If the answer is lost, both find out
// when they meet; until then the higher term counts.

// Transfer is the network key for the machine that is to be the owner: to be sent to
// it over a connection that proves who it is, and kept nowhere else. Until stay is
// called nothing is signed here (ErrMoving): who joined now would not be on the roster
// that the other one goes on from.
func (o *Owner) Transfer(to peer.ID, now time.Time) (key []byte, stay func(), err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if err := o.mayMoveLocked(to); err != nil {
		return nil, nil, err
	}
	if key, err = crypto.MarshalPrivateKey(o.key); err != nil {
		return nil, nil, fmt.Errorf("move to %s: %w", to, err)
	}
	o.moving = true
	return key, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.moving = false
	}, nil
}

// MayMove says whether a machine can be the owner.
func (o *Owner) MayMove(to peer.ID) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.mayMoveLocked(to)
}

func (o *Owner) mayMoveLocked(to peer.ID) error {
	cur, err := o.currentLocked()
	if err != nil {
		return err
	}
	e, ok := cur.Entry(to)
	switch {
	case !ok:
		return fmt.Errorf("move to %s: %w", to, ErrUnknownName)
	case o.moving:
		return fmt.Errorf("move to %s: %w", e.Name, ErrMoving)
	case to == o.self, !e.Expires.IsZero(), e.guest():
		return fmt.Errorf("move to %s: %w: the owner is another machine, that belongs for good", e.Name, ErrNotAllowed)
	}
	return nil
}

// Succeed makes this machine the owner by the key that the present one, from, handed
// over. Invites still open end with the move: who holds them was told of another owner.
func Succeed(dir string, book *Book, key []byte, from, self peer.ID, now time.Time) (*Owner, error) {
	o, err := succeed(dir, book, key, from, self, now)
	if err != nil {
		return nil, fmt.Errorf("take over the network: %w", err)
	}
	return o, nil
}

func succeed(dir string, book *Book, raw []byte, from, self peer.ID, now time.Time) (*Owner, error) {
	key, err := crypto.UnmarshalPrivateKey(raw)
	if err != nil {
		return nil, err
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	id, err := networkID(key)
	if err != nil {
		return nil, err
	}
	cur := book.Current()
	switch {
	case cur == nil:
		return nil, ErrNoNetwork
	case cur.Network != id:
		return nil, ErrOtherNetwork
	case cur.Owner != from || from == self:
		return nil, fmt.Errorf("%w: %s is not the owner", ErrNotAllowed, from)
	case cur.For != "" || cur.index(self) < 0:
		return nil, fmt.Errorf("%w: this machine has no whole roster", ErrNotAllowed)
	}
	return nextTerm(dir, book, key, cur, ledger{}, self, now)
}

// nextTerm makes self the owner on top of base, which no epoch of the former owner's
// can outdo.
func nextTerm(dir string, book *Book, key crypto.PrivKey, base *Sealed, l ledger, self peer.ID, now time.Time) (*Owner, error) {
	switch there, err := LoadKey(filepath.Join(dir, networkKeyFile)); {
	case err == nil && !there.Equals(key):
		return nil, fmt.Errorf("%s belongs to another network: %w", filepath.Join(dir, networkKeyFile), fs.ErrExist)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	next := base.clone()
	next.Term, next.Epoch, next.Owner, next.Issued = base.Term+1, base.Epoch+1, self, now
	next.ensure(self, base.Roster)
	s, err := Seal(next, key)
	if err != nil {
		return nil, err
	}
	l = l.end(next) // who is not on the roster was revoked since the backup
	l.base = base.Envelope
	return found(dir, book, self, key, l, s)
}
