package identity

import (
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	// maxSlice is 128 KiB: 64 relays with addresses and 64 peers, with room to spare.
	maxSlice = 128 << 10
	// maxSlices is 1024: as many guests get a slice of each epoch.
	maxSlices = 1024
)

// slice is what one guest may see of the roster: itself, the relays, the owner, the
// peers it may use, the short names of the services it may use, and whose place those
// peers took. Tags and other peers' grants are none of its business.
func (r *Roster) slice(guest Entry) *Roster {
	s := *r
	s.For, s.Entries, s.Services = guest.Peer, nil, map[string]peer.ID{}
	shown := func(p peer.ID) bool {
		return p == r.Owner ||
			slices.ContainsFunc(r.Relays, func(i RelayInfo) bool { return i.Peer == p }) ||
			slices.ContainsFunc(guest.Only, func(g Grant) bool { return g.Peer == p })
	}
	for _, e := range r.Entries {
		switch {
		case e.Peer == guest.Peer:
			s.Entries = append(s.Entries, e)
		case shown(e.Peer):
			seen := Entry{Peer: e.Peer, Name: e.Name, Caps: e.Caps, Expires: e.Expires}
			if e.guest() { // without its grants it must not look like a member
				seen.Caps &^= Use
			}
			s.Entries = append(s.Entries, seen)
		}
	}
	for name, p := range r.Services {
		if slices.Contains(guest.Only, Grant{name, p}) {
			s.Services[name] = p
		}
	}
	seen := map[peer.ID]bool{}
	for _, e := range s.Entries {
		seen[e.Peer] = true
	}
	s.HandOvers = r.HandOvers.concerning(seen).latest(maxSliceHandOvers)
	return &s
}

// sealSlices signs a slice for each guest on the roster.
func sealSlices(r *Roster, network crypto.PrivKey) (map[peer.ID]*Sealed, error) {
	made := map[peer.ID]*Sealed{}
	for _, e := range r.Entries {
		if !r.confined(e) {
			continue
		}
		if len(made) == maxSlices {
			return nil, fmt.Errorf("more than %d guests: %w", maxSlices, ErrTooLarge)
		}
		s, err := Seal(r.slice(e), network)
		if err != nil {
			return nil, fmt.Errorf("slice for %s: %w", e.Name, err)
		}
		if len(s.Envelope) > maxSlice {
			return nil, fmt.Errorf("slice for %s: %w", e.Name, ErrTooLarge)
		}
		made[e.Peer] = s
	}
	return made, nil
}

// confined tells whether a peer is shown its slice only: a guest that neither
// exposes, relays nor administers, for those need to know everybody.
func (r *Roster) confined(e Entry) bool {
	return e.guest() && e.Caps == Use && e.Peer != r.Owner
}
