package identity

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// maxAllow is 1024: peers or tags on one side of a list.
const maxAllow = 1024

// An Allow is one service's list of who may use it. The zero Allow lets nobody in.
// Peers are kept by ID: a name means whoever has it when the list is written, and a
// later bearer of the name gets nothing by it. A tag means whoever bears it at the time of
// asking.
type Allow struct {
	Members bool      // everyone with Use, and guests whose entry names the service; no relays
	Peers   []peer.ID // these too, relays included
	Tags    []string  // whoever bears one of these
	Deny    []peer.ID // but never these
}

// ParseAllow reads a list as people write it: "members", machine names, peer IDs and
// "tag:ops", with "!" before who is denied. Names are looked up in the roster, which
// may be nil where none are used. A word that cannot be read spoils the whole list:
// half of what somebody meant is not what they meant.
func ParseAllow(words []string, r *Roster) (Allow, error) {
	var a Allow
	for _, word := range words {
		if err := a.add(strings.TrimSpace(word), r); err != nil {
			return Allow{}, fmt.Errorf("allow %.80q: %w", word, err)
		}
	}
	if len(a.Peers) > maxAllow || len(a.Tags) > maxAllow || len(a.Deny) > maxAllow {
		return Allow{}, fmt.Errorf("allow list of %d words: %w", len(words), ErrTooLarge)
	}
	return a, nil
}

func (a *Allow) add(word string, r *Roster) error {
	if word == "members" {
		a.Members = true
		return nil
	}
	if tag, ok := strings.CutPrefix(word, "tag:"); ok {
		a.Tags = union(a.Tags, []string{tag})
		return CheckName(tag)
	}
	name, denied := strings.CutPrefix(word, "!")
	p, err := parseWho(name, r)
	if err != nil {
		return err
	}
	if denied {
		a.Deny = union(a.Deny, []peer.ID{p})
	} else {
		a.Peers = union(a.Peers, []peer.ID{p})
	}
	return nil
}

// parseWho reads a peer ID, on the roster or not, or a machine's name. A service's
// name means no machine here: it could be read both ways.
func parseWho(s string, r *Roster) (peer.ID, error) {
	if p, err := parsePeer(s); err == nil {
		return p, nil
	}
	if err := CheckName(s); err != nil {
		return "", err
	}
	if r == nil {
		return "", fmt.Errorf("%w: no network to look the name up in", ErrUnknownName)
	}
	e, ok := r.ByName(s)
	if !ok {
		return "", fmt.Errorf("%w: no machine of that name in network %s", ErrUnknownName, r.Name)
	}
	return e.Peer, nil
}

// Words is the list as ParseAllow reads it, with peer IDs for names.
func (a Allow) Words() []string {
	words := []string{}
	if a.Members {
		words = append(words, "members")
	}
	for _, t := range a.Tags {
		words = append(words, "tag:"+t)
	}
	for _, p := range a.Peers {
		words = append(words, p.String())
	}
	for _, p := range a.Deny {
		words = append(words, "!"+p.String())
	}
	return words
}

// String is Words with commas.
func (a Allow) String() string { return strings.Join(a.Words(), ",") }

// A DeniedError says why a peer may not use a service. The reason is for the log of
// the machine that refuses; the one refused is told no more than that.
type DeniedError struct {
	Peer    peer.ID
	Service string
	Reason  string
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("peer %s may not use %q: %s", e.Peer, e.Service, e.Reason)
}

// Authorize is the one authorisation function: may p use service at self? It is asked
// for every attach and every open, and again for all live sessions whenever roster
// or lists change. s is Book.For(p), now is Book.Now(clock). It answers nil, or a
// *DeniedError; in doubt it denies.
func Authorize(s *Sealed, now time.Time, p, self peer.ID, service string, allow Allow) error {
	if reason := denial(s, now, p, self, service, allow); reason != "" {
		return &DeniedError{Peer: p, Service: service, Reason: reason}
	}
	return nil
}

func denial(s *Sealed, now time.Time, p, self peer.ID, service string, allow Allow) string {
	if s == nil || s.Roster == nil {
		return "this machine has no roster"
	}
	if CheckName(service) != nil {
		return "that is no service name"
	}
	e, ok := s.Entry(p)
	switch {
	case !ok:
		return "it is not on the roster"
	case e.expired(later(now, s.Issued)):
		return "its access has expired"
	case e.Caps&Use == 0:
		return "its role is " + e.Role() + ", which uses no services"
	case e.guest() && !slices.Contains(e.Only, Grant{service, self}):
		return "it is a guest for other services"
	case slices.Contains(allow.Deny, p):
		return "the service denies it"
	case slices.Contains(allow.Peers, p), allow.tagged(e), allow.Members && e.Caps&Relay == 0:
		return ""
	}
	return "the service does not allow it"
}

func (a Allow) tagged(e Entry) bool {
	return slices.ContainsFunc(e.Tags, func(t string) bool { return slices.Contains(a.Tags, t) })
}

// AuthorizeAdmin tells whether p may ask the owner to change the roster: nil or a
// *DeniedError. now is Book.Now(clock).
func AuthorizeAdmin(s *Sealed, now time.Time, p peer.ID) error {
	denied := func(reason string) error { return &DeniedError{Peer: p, Service: "admin", Reason: reason} }
	if s == nil || s.Roster == nil {
		return denied("this machine has no roster")
	}
	e, ok := s.Entry(p)
	switch {
	case !ok:
		return denied("it is not on the roster")
	case e.expired(later(now, s.Issued)):
		return denied("its access has expired")
	case p != s.Owner && e.Caps&Admin == 0:
		return denied("it is no admin")
	}
	return nil
}
