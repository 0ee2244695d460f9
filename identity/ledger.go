package identity

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// MaxInvites are known at a time.
	MaxInvites = 1024

	maxUses   = 1024     // of one invite
	maxLedger = 16 << 20 // 16 MiB, bounds the file

	// maxAccess is 100 years: longer durations would overflow a time sooner or later.
	maxAccess = 100 * 365 * 24 * time.Hour

	// inviteMemory is 7 days: for so long after its end does the owner tell the
	// holder of an invite "used" or "expired" rather than nothing.
	inviteMemory = 7 * 24 * time.Hour
)

// ledger is what the owner remembers beside the roster: its invites, who came by
// them, and the roster on which the present term was built. Like a book's page it is
// replaced, never altered.
type ledger struct {
	invites []invitation
	base    []byte // envelope; nil in a network's first term
}

// invitation is an invite as the owner keeps it: without the secret.
type invitation struct {
	id      [inviteIDSize]byte
	key     []byte // Invite.key
	owner   peer.ID
	uses    int
	expires time.Time // of the invite
	used    []usage

	caps     Capability
	only     []Grant
	tags     []string
	duration time.Duration // of the access; 0: for ever
	replace  peer.ID

	at   []ma.Multiaddr // where a new relay waits to be dialled; none: it dials
	door peer.ID        // and under which key
}

// usage is one peer that came by an invite. Once revoked it cannot come again.
type usage struct {
	peer    peer.ID
	revoked bool
}

func (l ledger) find(id [inviteIDSize]byte) (invitation, bool) {
	i := slices.IndexFunc(l.invites, func(v invitation) bool { return v.id == id })
	if i < 0 {
		return invitation{}, false
	}
	return l.invites[i], true
}

// with returns the ledger with v in the place of the invitation of that ID.
func (l ledger) with(v invitation) ledger {
	l.invites = slices.Clone(l.invites)
	if i := slices.IndexFunc(l.invites, func(w invitation) bool { return w.id == v.id }); i >= 0 {
		l.invites[i] = v
	} else {
		l.invites = append(l.invites, v)
	}
	return l
}

// forget drops what ended long ago.
func (l ledger) forget(now time.Time) ledger {
	l.invites = slices.DeleteFunc(slices.Clone(l.invites), func(v invitation) bool {
		return now.After(v.expires.Add(inviteMemory))
	})
	return l
}

// revoke marks each peer that came by an invite and is gone; changed tells whether any did.
func (l ledger) revoke(gone map[peer.ID]bool) (next ledger, changed bool) {
	l.invites = slices.Clone(l.invites)
	for i := range l.invites {
		v := &l.invites[i]
		v.used = slices.Clone(v.used)
		for k := range v.used {
			if u := &v.used[k]; gone[u.peer] && !u.revoked {
				u.revoked, changed = true, true
			}
		}
	}
	return l, changed
}

// end ends all invites, as of roster r: what an old copy counts as unused may have been used since.
func (l ledger) end(r *Roster) ledger {
	l.invites = slices.Clone(l.invites)
	for i, v := range l.invites {
		l.invites[i] = v.end(r)
	}
	return l
}

// good tells whether v lets a machine in that did not come by it before.
func (v invitation) good(now time.Time) bool {
	return len(v.used) < v.uses && now.Before(v.expires)
}

// end returns v without further uses: who came by it stays, but comes again only while on r.
func (v invitation) end(r *Roster) invitation {
	v.uses, v.used = len(v.used), slices.Clone(v.used)
	for i := range v.used {
		if u := &v.used[i]; r.index(u.peer) < 0 {
			u.revoked = true
		}
	}
	return v
}

func (v invitation) usage(p peer.ID) (usage, bool) {
	i := slices.IndexFunc(v.used, func(u usage) bool { return u.peer == p })
	if i < 0 {
		return usage{}, false
	}
	return v.used[i], true
}

// spend returns v with one more use, p's.
func (v invitation) spend(p peer.ID) invitation {
	v.used = append(slices.Clone(v.used), usage{peer: p})
	return v
}

// entry is the place on the roster that v gives to p.
func (v invitation) entry(p peer.ID, name string, now time.Time) Entry {
	e := Entry{Peer: p, Name: name, Caps: v.caps, Tags: v.tags, Only: v.only}
	if v.duration > 0 {
		e.Expires = now.Add(v.duration)
	}
	return e.clone()
}

type ledgerText struct {
	V       int              `json:"v"`
	Base    []byte           `json:"base,omitempty"`
	Invites []invitationText `json:"invites"`
}

type invitationText struct {
	ID      string      `json:"id"`
	Key     []byte      `json:"key"`
	Owner   string      `json:"owner"`
	Uses    int         `json:"uses"`
	Expires int64       `json:"expires"` // ms of the Unix epoch
	Used    []usageText `json:"used,omitempty"`
	Caps    string      `json:"caps"`
	Only    []grantText `json:"only,omitempty"`
	Tags    []string    `json:"tags,omitempty"`
	For     int64       `json:"for,omitempty"` // ms
	Replace string      `json:"replace,omitempty"`
	At      []string    `json:"at,omitempty"`
	Door    string      `json:"door,omitempty"`
}

type usageText struct {
	Peer    string `json:"peer"`
	Revoked bool   `json:"revoked,omitempty"`
}

func (l ledger) format() ([]byte, error) {
	data, err := json.MarshalIndent(l.text(), "", "  ")
	return append(data, '\n'), err
}

func (l ledger) text() ledgerText {
	t := ledgerText{V: 1, Base: l.base, Invites: []invitationText{}}
	for _, v := range l.invites {
		t.Invites = append(t.Invites, v.text())
	}
	return t
}

func (v invitation) text() invitationText {
	t := invitationText{
		ID: hex.EncodeToString(v.id[:]), Key: v.key, Owner: v.owner.String(), Uses: v.uses, Expires: unixMilli(v.expires),
		Caps: v.caps.String(), Tags: v.tags, For: v.duration.Milliseconds(),
	}
	for _, u := range v.used {
		t.Used = append(t.Used, usageText{u.peer.String(), u.revoked})
	}
	for _, g := range v.only {
		t.Only = append(t.Only, grantText{g.Service, g.Peer.String()})
	}
	if v.replace != "" {
		t.Replace = v.replace.String()
	}
	for _, a := range v.at {
		t.At = append(t.At, a.String())
	}
	if v.door != "" {
		t.Door = v.door.String()
	}
	return t
}

func parseLedger(data []byte) (l ledger, err error) {
	var t ledgerText
	if err := parseStrict(data, &t); err != nil {
		return l, err
	}
	return t.ledger()
}

func (t ledgerText) ledger() (l ledger, err error) {
	if t.V != 1 {
		return l, fmt.Errorf("version %d: %w", t.V, ErrNewer)
	}
	l.base = t.Base
	for _, vt := range t.Invites {
		v, err := vt.invitation()
		if err != nil {
			return l, fmt.Errorf("invite %.40q: %w", vt.ID, err)
		}
		l.invites = append(l.invites, v)
	}
	return l, nil
}

func (t invitationText) invitation() (v invitation, err error) {
	id, err := hex.DecodeString(t.ID)
	if err != nil || len(id) != inviteIDSize || len(t.Key) != 32 || t.Uses < 0 || t.Expires < 0 || t.For < 0 || t.For > int64(maxAccess/time.Millisecond) {
		return v, errors.New("malformed")
	}
	v = invitation{key: t.Key, uses: t.Uses, expires: fromUnixMilli(t.Expires), duration: time.Duration(t.For) * time.Millisecond}
	copy(v.id[:], id)
	if v.owner, err = parsePeer(t.Owner); err != nil {
		return v, err
	}
	for _, ut := range t.Used {
		p, err := parsePeer(ut.Peer)
		if err != nil {
			return v, err
		}
		v.used = append(v.used, usage{p, ut.Revoked})
	}
	e, err := entryText{Peer: t.Owner, Caps: t.Caps, Only: t.Only, Tags: t.Tags}.entry() // the same words as in a roster
	if err != nil {
		return v, err
	}
	v.caps, v.only, v.tags = e.Caps, e.Only, e.Tags
	if t.Replace != "" {
		if v.replace, err = parsePeer(t.Replace); err != nil {
			return v, err
		}
	}
	for _, word := range t.At {
		a, err := ma.NewMultiaddr(word)
		if err != nil {
			return v, err
		}
		v.at = append(v.at, a)
	}
	if t.Door != "" {
		if v.door, err = parsePeer(t.Door); err != nil {
			return v, err
		}
	}
	if len(v.at) > MaxAddrs || (len(v.at) > 0) != (v.door != "") {
		return v, errors.New("malformed")
	}
	return v, nil
}

func loadLedger(path string) (ledger, error) {
	data, err := readPrivate(path, maxLedger)
	if errors.Is(err, fs.ErrNotExist) {
		return ledger{}, nil
	}
	if err != nil {
		return ledger{}, err
	}
	l, err := parseLedger(data)
	if err != nil {
		return ledger{}, &DamagedError{path, err}
	}
	return l, nil
}
