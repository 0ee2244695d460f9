package identity

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

// ErrUnknownName says that the roster has no such machine, service or peer.
var ErrUnknownName = errors.New("unknown name")

// A NetworkID names a network: the public half of its key, in the text form of a
// libp2p peer ID.
type NetworkID string

func networkID(key crypto.PrivKey) (NetworkID, error) {
	id, err := peer.IDFromPrivateKey(key)
	return NetworkID(id.String()), err
}

// A Capability is a set of things that a peer may do in the network.
type Capability uint8

const (
	Use    Capability = 1 << iota // open services of others
	Expose                        // offer services to others
	Relay                         // lend its reachability
	Admin                         // ask the owner to invite, revoke, allow, rename

	Member = Use | Expose
	Device = Expose
	Guest  = Use // and nothing but what Entry.Only names
)

var capabilityWords = []string{"use", "expose", "relay", "admin"} // in the order of the bits

// String lists the capabilities, "use,expose"; the empty set is "none".
func (c Capability) String() string {
	var words []string
	for i, w := range capabilityWords {
		if c&(1<<i) != 0 {
			words = append(words, w)
		}
	}
	if rest := c >> len(capabilityWords); rest != 0 {
		words = append(words, fmt.Sprintf("unknown(%d)", rest))
	}
	if words == nil {
		return "none"
	}
	return strings.Join(words, ",")
}

// ParseCapability reads what Capability.String prints.
func ParseCapability(s string) (Capability, error) {
	if s == "none" {
		return 0, nil
	}
	var c Capability
	for w := range strings.SplitSeq(s, ",") {
		i := slices.Index(capabilityWords, w)
		if i < 0 {
			return 0, fmt.Errorf("capability %.40q: want some of %s", w, strings.Join(capabilityWords, ","))
		}
		c |= 1 << i
	}
	return c, nil
}

// A Grant is one service at one peer.
type Grant struct {
	Service string
	Peer    peer.ID
}

// An Entry is one peer on the roster.
type Entry struct {
	Peer    peer.ID
	Name    string // of the machine, unique in the network
	Caps    Capability
	Tags    []string
	Only    []Grant   // if any, Use extends to these alone
	Expires time.Time // the zero time: never
}

// Role sums up the capabilities in a word: admin, relay, member, guest, device or
// none. ([Roster.Role] knows the owner too.)
func (e Entry) Role() string {
	switch {
	case e.Caps&Admin != 0:
		return "admin"
	case e.Caps&Relay != 0:
		return "relay"
	case e.guest():
		return "guest"
	case e.Caps&Use != 0:
		return "member"
	case e.Caps&Expose != 0:
		return "device"
	}
	return "none"
}

// guest tells whether e may use nothing but what Only names. Use alone makes a
// guest even if Only is empty: losing its last grant must not open everything.
func (e Entry) guest() bool {
	return e.Caps&Use != 0 && (len(e.Only) > 0 || e.Caps == Use)
}

// expired tells whether the entry counts no longer at a moment.
func (e Entry) expired(now time.Time) bool {
	return !e.Expires.IsZero() && !now.Before(e.Expires)
}

func (e Entry) clone() Entry {
	e.Tags, e.Only = slices.Clone(e.Tags), slices.Clone(e.Only)
	return e
}

// RelayInfo is a relay and where it is.
type RelayInfo struct {
	Peer  peer.ID
	Addrs []ma.Multiaddr
}

// A Roster is the network's list of peers at one (term, epoch), or, with For set,
// the slice of it that one guest gets to see.
type Roster struct {
	Network          NetworkID
	Name             string
	Owner            peer.ID
	Term, Epoch      uint64 // both start at 1
	Issued           time.Time
	DiscoveryKey     []byte   // 32 bytes; peers are found under namespaces made with it
	OldDiscoveryKeys [][]byte // the last 8, newest first
	Entries          []Entry
	Relays           []RelayInfo
	Services         map[string]peer.ID // short names and who owns them
	HandOvers        HandOvers          // who took whose place, said by the old key
	For              peer.ID            // empty: the whole roster
}

// Entry returns p's entry, expired or not.
func (r *Roster) Entry(p peer.ID) (Entry, bool) {
	if i := r.index(p); i >= 0 {
		return r.Entries[i], true
	}
	return Entry{}, false
}

func (r *Roster) index(p peer.ID) int {
	return slices.IndexFunc(r.Entries, func(e Entry) bool { return e.Peer == p })
}

// ByName returns the entry of the machine called so.
func (r *Roster) ByName(machine string) (Entry, bool) {
	i := slices.IndexFunc(r.Entries, func(e Entry) bool { return e.Name == machine })
	if i < 0 {
		return Entry{}, false
	}
	return r.Entries[i], true
}

// Role is "owner", the role of p's entry, or "" for a stranger.
func (r *Roster) Role(p peer.ID) string {
	e, ok := r.Entry(p)
	switch {
	case !ok:
		return ""
	case p == r.Owner:
		return "owner"
	}
	return e.Role()
}

// Resolve finds the service that a user means by "nas", "nas.nas-box" or
// "nas.nas-box.fwd". Whether the machine exposes it now is not the roster's to
// know. The error is ErrUnknownName.
func (r *Roster) Resolve(name string) (service string, p peer.ID, err error) {
	long := strings.TrimSuffix(strings.ToLower(strings.TrimSpace(name)), ".fwd")
	service, machine, dotted := strings.Cut(long, ".")
	if err := CheckName(service); err != nil {
		return "", "", fmt.Errorf("%w: %w", ErrUnknownName, err)
	}
	if !dotted {
		if p, ok := r.Services[service]; ok {
			return service, p, nil
		}
		return "", "", fmt.Errorf("%w: nobody owns the service name %q in network %s (the long form is SERVICE.MACHINE)", ErrUnknownName, service, r.Name)
	}
	e, ok := r.ByName(machine)
	if !ok {
		return "", "", fmt.Errorf("%w: no machine %.80q in network %s", ErrUnknownName, machine, r.Name)
	}
	return service, e.Peer, nil
}

// ResolvePeer finds the machine that a user means by its name, or by a peer ID on the
// roster. The error is ErrUnknownName.
func (r *Roster) ResolvePeer(nameOrID string) (peer.ID, error) {
	s := strings.TrimSpace(nameOrID)
	if p, err := parsePeer(s); err == nil {
		if _, ok := r.Entry(p); !ok {
			return "", fmt.Errorf("%w: peer %s is not in network %s", ErrUnknownName, p, r.Name)
		}
		return p, nil
	}
	if e, ok := r.ByName(strings.TrimSuffix(strings.ToLower(s), ".fwd")); ok {
		return e.Peer, nil
	}
	return "", fmt.Errorf("%w: no machine %.80q in network %s", ErrUnknownName, s, r.Name)
}

// ResolveAny is ResolvePeer for what does nothing to the machine: there the name of a
// service that it owns means it, too.
func (r *Roster) ResolveAny(word string) (peer.ID, error) {
	p, err := r.ResolvePeer(word)
	if err == nil {
		return p, nil
	}
	if _, holder, e := r.Resolve(word); e == nil {
		return holder, nil
	}
	return "", err
}

// clone copies everything that a change could touch.
func (r *Roster) clone() *Roster {
	c := *r
	c.DiscoveryKey = bytes.Clone(r.DiscoveryKey)
	c.OldDiscoveryKeys = slices.Clone(r.OldDiscoveryKeys)
	c.Entries = slices.Clone(r.Entries)
	for i := range c.Entries {
		c.Entries[i] = c.Entries[i].clone()
	}
	c.Relays = slices.Clone(r.Relays)
	c.HandOvers = slices.Clone(r.HandOvers)
	c.Services = maps.Clone(r.Services)
	if c.Services == nil {
		c.Services = map[string]peer.ID{}
	}
	return &c
}

// compare orders rosters by (term, epoch).
func (r *Roster) compare(o *Roster) int {
	return compareVersion(r.Term, r.Epoch, o.Term, o.Epoch)
}

// number is how a roster is called in messages: term.epoch.
func (r *Roster) number() string { return fmt.Sprintf("%d.%d", r.Term, r.Epoch) }

func compareVersion(term1, epoch1, term2, epoch2 uint64) int {
	switch {
	case term1 < term2, term1 == term2 && epoch1 < epoch2:
		return -1
	case term1 == term2 && epoch1 == epoch2:
		return 0
	}
	return 1
}
