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

	DenyMembers bool      // takes Members back: only who is named or tagged
	Deny        []peer.ID // never these, whatever else allows them
	DenyTags    []string  // nor whoever bears one of these
}

// ParseAllow reads a list as people write it: "members", machine names, peer IDs and
// "tag:ops", any of them with "!" before it to deny. Names are looked up in the roster, which
// may be nil where none are used. A word that cannot be read spoils the whole list:
// half of what somebody meant is not what they meant.
func ParseAllow(words []string, r *Roster) (Allow, error) {
	var a Allow
	for _, word := range words {
		if err := a.add(strings.TrimSpace(word), r); err != nil {
			return Allow{}, fmt.Errorf("allow %.80q: %w", word, err)
		}
	}
	if max(len(a.Peers), len(a.Tags), len(a.Deny), len(a.DenyTags)) > maxAllow {
		return Allow{}, fmt.Errorf("allow list of %d words: %w", len(words), ErrTooLarge)
	}
	return a, nil
}

func (a *Allow) add(word string, r *Roster) error {
	who, denied := strings.CutPrefix(word, "!")
	members, tags, peers := &a.Members, &a.Tags, &a.Peers
	if denied {
		members, tags, peers = &a.DenyMembers, &a.DenyTags, &a.Deny
	}
	if who == "members" {
		*members = true
		return nil
	}
	if tag, ok := strings.CutPrefix(who, "tag:"); ok {
		*tags = union(*tags, []string{tag})
		return CheckName(tag)
	}
	p, err := parseWho(who, r)
	if err != nil {
		return err
	}
	*peers = union(*peers, []peer.ID{p})
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
		return "", fmt.Errorf("%w: network %s has no such machine", ErrUnknownName, r.Name)
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
	if a.DenyMembers {
		words = append(words, "!members")
	}
	for _, t := range a.DenyTags {
		words = append(words, "!tag:"+t)
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
	case slices.Contains(allow.Deny, p), e.bears(allow.DenyTags):
		return "the service denies it"
	case slices.Contains(allow.Peers, p), e.bears(allow.Tags), allow.Members && !allow.DenyMembers && e.Caps&Relay == 0:
		return ""
	}
	return "the service does not allow it"
}

// bears tells whether the entry has one of the tags.
func (e Entry) bears(tags []string) bool {
	return slices.ContainsFunc(e.Tags, func(t string) bool { return slices.Contains(tags, t) })
}

// AuthorizeLane is the coarse question before Authorize: may p use anything at self,
// so that a lane of its is worth having? What it opens on the lane is asked each time.
func AuthorizeLane(s *Sealed, now time.Time, p, self peer.ID) error {
	denied := func(reason string) error { return &DeniedError{Peer: p, Service: "*", Reason: reason} }
	if s == nil || s.Roster == nil {
		return denied("this machine has no roster")
	}
	e, ok := s.Entry(p)
	switch {
	case !ok:
		return denied("it is not on the roster")
	case e.expired(later(now, s.Issued)):
		return denied("its access has expired")
	case e.Caps&Use == 0:
		return denied("its role is " + e.Role() + ", which uses no services")
	case e.guest() && !slices.ContainsFunc(e.Only, func(g Grant) bool { return g.Peer == self }):
		return denied("it is a guest of other machines")
	}
	return nil
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
