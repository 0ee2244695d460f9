package identity

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// DefaultInviteExpiry is 24 h, see `fwd invite --expires`.
	DefaultInviteExpiry = 24 * time.Hour

	// maxGuesses is 10 a minute for each invite: requests that name an invite
	// but were not made with its secret. More are not even tried.
	maxGuesses  = 10
	guessWindow = time.Minute
)

// InviteOptions says whom an invite lets in. The zero value: one member, within 24 h.
type InviteOptions struct {
	Uses    int           // 0: one
	Expires time.Duration // of the code; 0: DefaultInviteExpiry
	Caps    Capability    // 0: Member, or Guest with Only
	Only    []Grant
	For     time.Duration // of the access; 0: for ever
	Tags    []string
	Replace peer.ID        // the joiner takes this peer's place: name, grants, tags, service names
	Via     peer.ID        // the relay that carries the request; empty: the owner is dialled
	Addrs   []ma.Multiaddr // of the owner, or of Via

	// At is where a new relay waits for the owner to dial it: the owner itself can be dialled by nobody.
	// Via and Addrs mean nothing then.
	At []ma.Multiaddr
}

// InviteInfo is an invite as its owner sees it afterwards.
type InviteInfo struct {
	ID      string
	Caps    Capability
	Tags    []string
	Replace peer.ID // empty: nobody
	Uses    int
	Used    []peer.ID
	Expires time.Time
}

// guesses counts requests not made with an invite's secret, in one window.
type guesses struct {
	since time.Time
	n     int
}

func (g guesses) past(now time.Time) bool {
	return now.Sub(g.since) >= guessWindow || now.Before(g.since)
}

// Invite makes an invite. Its key is on disk when the code is returned, its secret
// nowhere.
func (o *Owner) Invite(opts InviteOptions, now time.Time) (Invite, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	cur, err := o.currentLocked()
	if err != nil {
		return Invite{}, err
	}
	if opts.Via == "" {
		opts.Via = o.self
	}
	i := newInvite(o.id, o.self, opts.Via, slices.Clone(opts.Addrs))
	if len(opts.At) > 0 {
		i.contact, i.addrs = "", slices.Clone(opts.At)
	}
	v, err := o.invitation(opts, cur.Roster, now)
	if err != nil {
		return Invite{}, fmt.Errorf("invite: %w", err)
	}
	v.id = i.id
	if v.key, err = i.key(); err != nil {
		return Invite{}, fmt.Errorf("invite: %w", err)
	}
	if len(v.at) > 0 {
		if v.door, err = i.door(); err != nil {
			return Invite{}, fmt.Errorf("invite: %w", err)
		}
	}
	l := o.ledger.forget(o.book.Now(now))
	if len(l.invites) >= MaxInvites {
		return Invite{}, fmt.Errorf("invite: %d are known: %w", len(l.invites), ErrTooLarge)
	}
	if err := o.saveLocked(l.with(v)); err != nil {
		return Invite{}, fmt.Errorf("invite: %w", err)
	}
	return i, nil
}

// invitation checks options against the roster and fills in their defaults.
func (o *Owner) invitation(opts InviteOptions, cur *Roster, now time.Time) (v invitation, err error) {
	if opts.Uses == 0 {
		opts.Uses = 1
	}
	if opts.Expires == 0 {
		opts.Expires = DefaultInviteExpiry
	}
	if opts.Caps == 0 {
		opts.Caps = Member
		if len(opts.Only) > 0 {
			opts.Caps = Guest
		}
	}
	v = invitation{
		owner: o.self, uses: opts.Uses, expires: o.book.Now(now).Add(opts.Expires), caps: opts.Caps,
		only: slices.Clone(opts.Only), tags: slices.Clone(opts.Tags), duration: opts.For, replace: opts.Replace,
		at: slices.Clone(opts.At),
	}
	switch {
	case opts.Uses < 0 || opts.Uses > maxUses:
		return v, fmt.Errorf("%d uses: 1 to %d are possible", opts.Uses, maxUses)
	case opts.Expires < 0 || opts.For < 0:
		return v, errors.New("a duration is negative")
	case opts.Expires > maxAccess || opts.For > maxAccess:
		return v, errors.New("a duration is longer than 100 years; leave it out for ever")
	case opts.For > 0 && opts.For < time.Millisecond:
		return v, errors.New("access for less than a millisecond")
	case opts.Caps == Guest && len(opts.Only) == 0:
		return v, errors.New("a guest needs at least one service")
	case opts.Replace == o.self:
		return v, fmt.Errorf("replace the owner: %w: restore it from its backup", ErrNotAllowed)
	case opts.Replace != "" && opts.Uses > 1:
		return v, errors.New("one machine can be replaced by one only")
	case len(opts.At) > 0 && (opts.Caps&Relay == 0 || opts.Uses > 1 || opts.Replace != ""):
		return v, errors.New("only one new relay can wait at an address")
	case max(len(opts.Addrs), len(opts.At)) > MaxAddrs || len(opts.Tags) > maxTags || len(opts.Only) > maxOnly:
		return v, ErrTooLarge
	}
	for _, a := range append(slices.Clone(opts.Addrs), opts.At...) {
		if n := len(a.Bytes()); n == 0 || n > maxAddrBytes {
			return v, fmt.Errorf("address %s: %w", a, ErrTooLarge)
		}
	}
	if _, _, err := ed25519Public(opts.Via); err != nil {
		return v, fmt.Errorf("contact: %w", err)
	}
	if old, ok := cur.Entry(opts.Replace); opts.Replace != "" {
		switch {
		case !ok:
			return v, fmt.Errorf("replace %s: %w", opts.Replace, ErrUnknownName)
		case opts.For == 0 && old.expired(o.book.Now(now)):
			return v, fmt.Errorf("replace %s: its access has expired; say for how long it is renewed", old.Name)
		}
	}
	for _, g := range opts.Only {
		if _, ok := cur.Entry(g.Peer); !ok {
			return v, fmt.Errorf("service %s at %s: %w", g.Service, g.Peer, ErrUnknownName)
		}
	}
	return v, v.entry(o.self, "x", now).check()
}

// Invites lists what was handed out and not yet forgotten.
func (o *Owner) Invites() []InviteInfo {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []InviteInfo
	for _, v := range o.ledger.invites {
		list = append(list, v.info())
	}
	return list
}

func (v invitation) info() InviteInfo {
	info := InviteInfo{ID: Invite{id: v.id}.ID(), Caps: v.caps, Tags: v.tags, Replace: v.replace, Uses: v.uses, Expires: v.expires}
	for _, u := range v.used {
		info.Used = append(info.Used, u.peer)
	}
	return info
}

// A Waiting is an invite whose joiner waits for the owner to dial it.
type Waiting struct {
	Invite  string
	Joiner  peer.AddrInfo // under the key of Invite.DoorKey
	Expires time.Time
}

// Waiting lists whom the owner has to dial.
func (o *Owner) Waiting(now time.Time) []Waiting {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []Waiting
	for _, v := range o.ledger.invites {
		if v.door != "" && v.good(o.book.Now(now)) {
			list = append(list, Waiting{Invite{id: v.id}.ID(), peer.AddrInfo{ID: v.door, Addrs: slices.Clone(v.at)}, v.expires})
		}
	}
	return list
}

// Cancel ends an invite: its holders are told that it was used.
func (o *Owner) Cancel(inviteID string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	id, err := parseInviteID(inviteID)
	if err != nil {
		return err
	}
	v, ok := o.ledger.find(id)
	if !ok {
		return fmt.Errorf("invite %s: %w", inviteID, ErrUnknownName)
	}
	cur, err := o.currentLocked()
	if err != nil {
		return err
	}
	return o.saveLocked(o.ledger.with(v.end(cur.Roster)))
}

// Join answers a join request. from is the peer that sent it, as its connection
// proves, or empty when a relay carried it. The use and the roster are on disk before
// the reply exists. Where nobody proved to hold the invite the reply is nil: say
// nothing. err is for the log alone, and may come with a reply.
func (o *Owner) Join(request []byte, from peer.ID, now time.Time) (reply []byte, err error) {
	id, err := requestID(request)
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	v, ok := o.ledger.find(id)
	if !ok {
		return nil, errors.New("join request: names no invite of ours")
	}
	if o.guessedTooOftenLocked(id, now) {
		return nil, fmt.Errorf("join request: too many guesses at invite %x", id)
	}
	j, err := openRequest(v.key, o.id, request)
	if err != nil {
		o.countGuessLocked(id, now)
		return nil, err
	}
	if j.owner != v.owner || from != "" && from != j.joiner {
		return nil, fmt.Errorf("join request of %s: misdirected", j.joiner)
	}
	err = o.admitLocked(v, j, now)
	answer := joinReply{code: joinCodeOf(err)}
	if err == nil {
		answer = o.welcome(j.joiner)
	} else {
		err = fmt.Errorf("join request of %s by invite %x: %w", j.joiner, id, err)
	}
	reply, sealErr := sealReply(v.key, request, answer)
	return reply, errors.Join(err, sealErr)
}

func (o *Owner) guessedTooOftenLocked(id [inviteIDSize]byte, now time.Time) bool {
	g := o.guesses[id]
	return g.n >= maxGuesses && !g.past(now)
}

// countGuessLocked drops the counts of past windows: their invites may be forgotten.
func (o *Owner) countGuessLocked(id [inviteIDSize]byte, now time.Time) {
	maps.DeleteFunc(o.guesses, func(_ [inviteIDSize]byte, g guesses) bool { return g.past(now) })
	g, ok := o.guesses[id]
	if !ok {
		g.since = now
	}
	g.n++
	o.guesses[id] = g
}

// admitLocked puts on the roster who proved to hold an invite, unless it came by it before.
// What the holder is to be told is the error: ErrInviteUsed and its kin.
func (o *Owner) admitLocked(v invitation, j joinRequest, now time.Time) error {
	cur, err := o.currentLocked()
	if err != nil {
		return err
	}
	trusted := o.book.Now(now)
	before, again := v.usage(j.joiner)
	e, listed := cur.Entry(j.joiner)
	switch {
	case again && listed && e.expired(trusted):
		return ErrInviteExpired
	case again && listed: // the reply was lost
		return nil
	case again && before.revoked:
		return ErrInviteRevoked
	case j.joiner == o.self:
		return fmt.Errorf("the owner joins its own network: %w", ErrInviteUsed)
	case !trusted.Before(v.expires):
		return ErrInviteExpired
	case again: // we fell before the roster was written
	case len(v.used) >= v.uses:
		return ErrInviteUsed
	}
	_, err = o.updateLocked(now, func(r *Roster) error {
		if err := r.admit(v, j, trusted); err != nil || again {
			return err
		}
		return o.saveLocked(o.ledger.with(v.spend(j.joiner))) // before the roster, or one use could be two
	})
	if errors.Is(err, ErrTooLarge) {
		err = fmt.Errorf("%w: %w", ErrNetworkFull, err)
	}
	return err
}

// welcome is the reply to one who is on the roster.
func (o *Owner) welcome(p peer.ID) joinReply {
	g := o.book.now.Load()
	e, _ := g.roster.Entry(p)
	return joinReply{code: joinOK, name: e.Name, envelope: g.show(g.roster, e)}
}

// errReplacedGone: an invite to take a machine's place says nothing about what the
// joiner may do once that machine is off the roster.
var errReplacedGone = fmt.Errorf("the machine to be replaced is not on the roster any more: %w", ErrInviteUsed)

// admit puts the joiner on the roster, as the invitation says. A machine that is on it
// already loses nothing by another invite.
func (r *Roster) admit(v invitation, j joinRequest, now time.Time) error {
	if v.replace != "" {
		return r.replace(v, j.joiner, now)
	}
	if len(v.at) > 0 { // where the owner has just reached it
		r.Relays = slices.DeleteFunc(r.Relays, func(i RelayInfo) bool { return i.Peer == j.joiner })
		r.Relays = append(r.Relays, RelayInfo{Peer: j.joiner, Addrs: slices.Clone(v.at)})
	}
	i := r.index(j.joiner)
	if i < 0 {
		r.Entries = append(r.Entries, v.entry(j.joiner, freeName(CleanName(j.name), r.named), now))
		return nil
	}
	e := v.entry(j.joiner, r.Entries[i].Name, now)
	if old := r.Entries[i]; !old.expired(now) {
		e = unite(old, e)
	}
	r.Entries[i] = e
	return nil
}

// unite is an entry that may what either may. The name is a's.
func unite(a, b Entry) Entry {
	e := a.clone()
	e.Caps |= b.Caps
	e.Only = nil
	if free := a.Caps&Use != 0 && !a.guest() || b.Caps&Use != 0 && !b.guest(); !free {
		e.Only = union(a.Only, b.Only)
		if len(e.Only) == 0 { // a use without grants must not become a use of everything
			e.Caps &^= Use
		}
	}
	e.Tags = union(a.Tags, b.Tags)
	if a.Expires.IsZero() || b.Expires.IsZero() {
		e.Expires = time.Time{}
	} else {
		e.Expires = later(a.Expires, b.Expires)
	}
	return e
}

func union[T comparable](a, b []T) []T {
	u := slices.Clone(a)
	for _, x := range b {
		if !slices.Contains(u, x) {
			u = append(u, x)
		}
	}
	return u
}

// replace gives p a machine's place as it is. That machine itself may come, too: then only
// the time that is left to it can change.
func (r *Roster) replace(v invitation, p peer.ID, now time.Time) error {
	old, ok := r.Entry(v.replace)
	switch {
	case !ok:
		return errReplacedGone
	case v.duration == 0 && old.expired(now): // since the invite was made
		return fmt.Errorf("the access of %s: %w", old.Name, ErrInviteExpired)
	case p != v.replace:
		r.rekey(v.replace, p)
	}
	if v.duration > 0 {
		r.Entries[r.index(p)].Expires = now.Add(v.duration)
	}
	return nil
}

// rekey hands a machine's entry, with all that refers to it, to the key it has after
// being reinstalled. If that key had an entry of its own, this one supersedes it.
func (r *Roster) rekey(old, p peer.ID) {
	r.Entries = slices.DeleteFunc(r.Entries, func(e Entry) bool { return e.Peer == p })
	r.Entries[r.index(old)].Peer = p
	if !r.TookOver(old, p) { // it was lost, and its word may be a thief's
		r.HandOvers = r.HandOvers.without(old)
	}
	for _, e := range r.Entries {
		for k := range e.Only {
			if e.Only[k].Peer == old {
				e.Only[k].Peer = p
			}
		}
	}
	for name, q := range r.Services {
		if q == old {
			r.Services[name] = p
		}
	}
	r.Relays = slices.DeleteFunc(r.Relays, func(i RelayInfo) bool { return i.Peer == p })
	for k := range r.Relays {
		if r.Relays[k].Peer == old {
			r.Relays[k].Peer = p
		}
	}
}
