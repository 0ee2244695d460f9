package identity

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
	"github.com/libp2p/go-libp2p/core/record"
	ma "github.com/multiformats/go-multiaddr"
)

const (
	// MaxRoster is 1 MiB: some thousand peers at about 200 bytes each.
	MaxRoster = 1 << 20

	MaxAddrs = 16 // of one relay or invite

	maxEntries   = 4096 // peers in a network
	maxTags      = 32   // of one peer
	maxOnly      = 64   // grants of one guest
	maxRelays    = 64   // of a network
	maxAddrBytes = 255  // of one address in binary: a length byte in the invite
	maxServices  = 8192 // short names in a network

	discoveryKeySize    = 32
	maxOldDiscoveryKeys = 8 // a peer that was away is found under the last 8

	rosterDomain = "fwd/roster/1"
)

var (
	// ErrSeal says that a signed message is not what its signer wrote, or that
	// somebody else signed it.
	ErrSeal = errors.New("bad seal")
	// ErrOtherNetwork says that a signed message belongs to another network.
	ErrOtherNetwork = errors.New("belongs to another network")
	// ErrNewer says that a message was made by a newer fwd than this one.
	ErrNewer = errors.New("made by a newer fwd; update this machine")
)

// Sealed is a roster as its owner signed it. Neither half changes once made; the
// envelope is handed on byte for byte.
type Sealed struct {
	*Roster
	Envelope []byte

	payload []byte          // what was signed: two seals of one text are one roster
	places  map[peer.ID]int // in Entries
}

// Entry is Roster.Entry without the search: it is asked for every session.
func (s *Sealed) Entry(p peer.ID) (Entry, bool) {
	if s.places == nil {
		return s.Roster.Entry(p)
	}
	i, ok := s.places[p]
	if !ok {
		return Entry{}, false
	}
	return s.Entries[i], true
}

// Seal signs a roster with the network key. A roster that breaks a rule or limit
// is refused, so that whatever is sealed can be opened.
func Seal(r *Roster, network crypto.PrivKey) (*Sealed, error) {
	payload, err := formatRoster(r)
	if err != nil {
		return nil, fmt.Errorf("seal roster: %w", err)
	}
	envelope, err := sealBytes(rosterDomain, payload, network)
	if err != nil {
		return nil, fmt.Errorf("seal roster: %w", err)
	}
	return Open(envelope, r.Network)
}

// Open checks an envelope and reads the roster in it. An envelope proves only that
// some key signed; it must be the key of the wanted network, or with want empty
// (for whoever joins) of the network that the roster itself names. The errors are
// ErrTooLarge, ErrSeal, ErrOtherNetwork, ErrNewer, or say which rule is broken.
func Open(envelope []byte, want NetworkID) (*Sealed, error) {
	payload, signer, err := openBytes(rosterDomain, envelope, MaxRoster, want)
	if err != nil {
		return nil, fmt.Errorf("open roster: %w", err)
	}
	r, err := parseRoster(payload)
	if err != nil {
		return nil, fmt.Errorf("open roster: %w", err)
	}
	if r.Network != signer {
		return nil, fmt.Errorf("open roster: it names network %s: %w", r.Network, ErrSeal)
	}
	places := make(map[peer.ID]int, len(r.Entries))
	for i, e := range r.Entries {
		places[e.Peer] = i
	}
	return &Sealed{Roster: r, Envelope: bytes.Clone(envelope), payload: payload, places: places}, nil
}

// sealed is the libp2p record that every signed text of a network is: the domain
// keeps one kind from being taken for another.
type sealed struct {
	domain  string
	payload []byte
}

func (s *sealed) Domain() string                 { return s.domain }
func (s *sealed) Codec() []byte                  { return []byte("/" + s.domain) }
func (s *sealed) MarshalRecord() ([]byte, error) { return s.payload, nil }
func (s *sealed) UnmarshalRecord(b []byte) error { s.payload = b; return nil }

func sealBytes(domain string, payload []byte, key crypto.PrivKey) ([]byte, error) {
	env, err := record.Seal(&sealed{domain, payload}, key)
	if err != nil {
		return nil, err
	}
	return env.Marshal()
}

// openBytes returns what was signed and by which network's key. The order matters:
// size, then the key, and only then is anything verified or parsed.
func openBytes(domain string, envelope []byte, max int, want NetworkID) ([]byte, NetworkID, error) {
	if len(envelope) > max {
		return nil, "", fmt.Errorf("%d bytes, at most %d are taken: %w", len(envelope), max, ErrTooLarge)
	}
	outer, err := record.UnmarshalEnvelope(envelope)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrSeal, err)
	}
	raw, err := outer.PublicKey.Raw()
	if _, ok := outer.PublicKey.(*crypto.Ed25519PublicKey); err != nil || !ok || len(raw) != ed25519.PublicKeySize {
		return nil, "", fmt.Errorf("%w: not an Ed25519 key", ErrSeal)
	}
	id, err := peer.IDFromPublicKey(outer.PublicKey)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrSeal, err)
	}
	signer := NetworkID(id.String())
	if want != "" && signer != want {
		return nil, "", fmt.Errorf("signed by %s, not %s: %w", signer, want, ErrOtherNetwork)
	}
	rec := &sealed{domain: domain}
	env, err := record.ConsumeTypedEnvelope(envelope, rec)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrSeal, err)
	}
	if !bytes.Equal(env.PayloadType, rec.Codec()) {
		return nil, "", fmt.Errorf("%w: payload type %.40q", ErrSeal, env.PayloadType)
	}
	// Nothing may ride along unsigned: the one encoding, or none.
	if again, err := env.Marshal(); err != nil || !bytes.Equal(again, envelope) {
		return nil, "", fmt.Errorf("%w: not in canonical form", ErrSeal)
	}
	return rec.payload, signer, nil
}

// The payload, as text. Times are milliseconds of the Unix epoch, 0 for never.
type rosterText struct {
	V        int               `json:"v"`
	Network  NetworkID         `json:"network"`
	Name     string            `json:"name"`
	Owner    string            `json:"owner"`
	Term     uint64            `json:"term"`
	Epoch    uint64            `json:"epoch"`
	Issued   int64             `json:"issued"`
	Key      []byte            `json:"key"`
	OldKeys  [][]byte          `json:"old_keys,omitempty"`
	Peers    []entryText       `json:"peers"`
	Relays   []relayText       `json:"relays,omitempty"`
	Services map[string]string `json:"services,omitempty"`
	For      string            `json:"for,omitempty"`

	HandOvers [][]byte `json:"hand_overs,omitempty"`
}

type entryText struct {
	Peer    string      `json:"peer"`
	Name    string      `json:"name"`
	Caps    string      `json:"caps"`
	Tags    []string    `json:"tags,omitempty"`
	Only    []grantText `json:"only,omitempty"`
	Expires int64       `json:"expires,omitempty"`
}

type grantText struct {
	Service string `json:"service"`
	Peer    string `json:"peer"`
}

type relayText struct {
	Peer  string   `json:"peer"`
	Addrs []string `json:"addrs,omitempty"`
}

func formatRoster(r *Roster) ([]byte, error) {
	t := rosterText{
		V: 1, Network: r.Network, Name: r.Name, Owner: r.Owner.String(),
		Term: r.Term, Epoch: r.Epoch, Issued: unixMilli(r.Issued),
		Key: r.DiscoveryKey, OldKeys: r.OldDiscoveryKeys, Peers: []entryText{}, HandOvers: r.HandOvers.envelopes(),
	}
	if r.For != "" {
		t.For = r.For.String()
	}
	for _, e := range r.Entries {
		t.Peers = append(t.Peers, e.text())
	}
	for _, relay := range r.Relays {
		t.Relays = append(t.Relays, relay.text())
	}
	if len(r.Services) > 0 {
		t.Services = make(map[string]string, len(r.Services))
	}
	for name, p := range r.Services {
		t.Services[name] = p.String()
	}
	payload, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	_, err = parseRoster(payload) // one place knows the rules
	return payload, err
}

func parseRoster(payload []byte) (*Roster, error) {
	var t rosterText
	if err := json.Unmarshal(payload, &t); err != nil {
		return nil, err
	}
	if t.V != 1 {
		return nil, fmt.Errorf("roster version %d: %w", t.V, ErrNewer)
	}
	r, err := t.roster()
	if err != nil {
		return nil, err
	}
	return r, r.check()
}

func (t *rosterText) roster() (*Roster, error) {
	if len(t.Peers) > maxEntries || len(t.Relays) > maxRelays || len(t.Services) > maxServices {
		return nil, fmt.Errorf("%d peers, %d relays, %d service names: %w", len(t.Peers), len(t.Relays), len(t.Services), ErrTooLarge)
	}
	if t.Issued < 0 {
		return nil, fmt.Errorf("issued at %d", t.Issued)
	}
	r := &Roster{
		Network: t.Network, Name: t.Name, Term: t.Term, Epoch: t.Epoch, Issued: fromUnixMilli(t.Issued),
		DiscoveryKey: t.Key, OldDiscoveryKeys: t.OldKeys, Services: make(map[string]peer.ID, len(t.Services)),
	}
	var err error
	if r.Owner, err = parsePeer(t.Owner); err != nil {
		return nil, fmt.Errorf("owner: %w", err)
	}
	if t.For != "" {
		if r.For, err = parsePeer(t.For); err != nil {
			return nil, fmt.Errorf("slice: %w", err)
		}
	}
	for _, pt := range t.Peers {
		e, err := pt.entry()
		if err != nil {
			return nil, fmt.Errorf("entry %.80q: %w", pt.Name, err)
		}
		r.Entries = append(r.Entries, e)
	}
	for _, rt := range t.Relays {
		relay, err := rt.relay()
		if err != nil {
			return nil, fmt.Errorf("relay %.80q: %w", rt.Peer, err)
		}
		r.Relays = append(r.Relays, relay)
	}
	for name, p := range t.Services {
		if r.Services[name], err = parsePeer(p); err != nil {
			return nil, fmt.Errorf("service %.80q: %w", name, err)
		}
	}
	r.HandOvers, err = openHandOvers(t.HandOvers, t.Network)
	return r, err
}

func (e Entry) text() entryText {
	t := entryText{Peer: e.Peer.String(), Name: e.Name, Caps: e.Caps.String(), Tags: e.Tags, Expires: unixMilli(e.Expires)}
	for _, g := range e.Only {
		t.Only = append(t.Only, grantText{g.Service, g.Peer.String()})
	}
	return t
}

func (t entryText) entry() (e Entry, err error) {
	if len(t.Tags) > maxTags || len(t.Only) > maxOnly {
		return e, fmt.Errorf("%d tags, %d grants: %w", len(t.Tags), len(t.Only), ErrTooLarge)
	}
	if t.Expires < 0 {
		return e, fmt.Errorf("expires at %d", t.Expires)
	}
	e = Entry{Name: t.Name, Tags: t.Tags, Expires: fromUnixMilli(t.Expires)}
	if e.Peer, err = parsePeer(t.Peer); err != nil {
		return e, err
	}
	if e.Caps, err = ParseCapability(t.Caps); err != nil {
		return e, err
	}
	for _, gt := range t.Only {
		p, err := parsePeer(gt.Peer)
		if err != nil {
			return e, err
		}
		e.Only = append(e.Only, Grant{gt.Service, p})
	}
	return e, nil
}

func (i RelayInfo) text() relayText {
	t := relayText{Peer: i.Peer.String()}
	for _, a := range i.Addrs {
		t.Addrs = append(t.Addrs, a.String())
	}
	return t
}

func (t relayText) relay() (i RelayInfo, err error) {
	if len(t.Addrs) > MaxAddrs {
		return i, fmt.Errorf("%d addresses: %w", len(t.Addrs), ErrTooLarge)
	}
	if i.Peer, err = parsePeer(t.Peer); err != nil {
		return i, err
	}
	for _, s := range t.Addrs {
		a, err := parseAddr(s)
		if err != nil {
			return i, err
		}
		i.Addrs = append(i.Addrs, a)
	}
	return i, nil
}

func parseAddr(s string) (ma.Multiaddr, error) {
	if len(s) > 2*maxAddrBytes {
		return nil, fmt.Errorf("address %.40q…: %w", s, ErrTooLarge)
	}
	a, err := ma.NewMultiaddr(s)
	if err != nil {
		return nil, err
	}
	if len(a.Bytes()) > maxAddrBytes {
		return nil, fmt.Errorf("address %.40q…: %w", s, ErrTooLarge)
	}
	return a, nil
}

// check holds a roster to the rules that make it mean one thing.
func (r *Roster) check() error {
	if _, err := parsePeer(string(r.Network)); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if err := CheckName(r.Name); err != nil {
		return fmt.Errorf("network: %w", err)
	}
	if r.Term == 0 || r.Epoch == 0 {
		return errors.New("term and epoch start at 1")
	}
	if len(r.DiscoveryKey) != discoveryKeySize || len(r.OldDiscoveryKeys) > maxOldDiscoveryKeys ||
		slices.ContainsFunc(r.OldDiscoveryKeys, func(k []byte) bool { return len(k) != discoveryKeySize }) {
		return fmt.Errorf("a discovery key has %d bytes, and at most %d old ones are kept", discoveryKeySize, maxOldDiscoveryKeys)
	}
	peers, names := map[peer.ID]bool{}, map[string]bool{}
	for _, e := range r.Entries {
		if err := e.check(); err != nil {
			return err
		}
		if peers[e.Peer] || names[e.Name] {
			return fmt.Errorf("%s, peer %s: listed twice", e.Name, e.Peer)
		}
		peers[e.Peer], names[e.Name] = true, true
	}
	if r.For == "" && !peers[r.Owner] {
		return fmt.Errorf("the owner %s is not among the peers", r.Owner)
	}
	if r.For != "" && !peers[r.For] {
		return fmt.Errorf("the slice for %s does not contain it", r.For)
	}
	relays := map[peer.ID]bool{}
	for _, i := range r.Relays {
		if !peers[i.Peer] || relays[i.Peer] {
			return fmt.Errorf("relay %s: listed twice, or not among the peers", i.Peer)
		}
		relays[i.Peer] = true
	}
	for name, p := range r.Services {
		if err := CheckName(name); err != nil {
			return fmt.Errorf("service: %w", err)
		}
		if !peers[p] {
			return fmt.Errorf("service %s: its owner %s is not among the peers", name, p)
		}
	}
	return nil
}

func (e Entry) check() error {
	if err := checkMachine(e.Name); err != nil {
		return fmt.Errorf("machine: %w", err)
	}
	for _, tag := range e.Tags {
		if err := CheckName(tag); err != nil {
			return fmt.Errorf("%s: tag: %w", e.Name, err)
		}
	}
	for _, g := range e.Only {
		if err := CheckName(g.Service); err != nil {
			return fmt.Errorf("%s: grant: %w", e.Name, err)
		}
	}
	return nil
}

func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromUnixMilli(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

// parseStrict reads a state file's JSON: one value, no field that fwd does not know.
func parseStrict(data []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the end")
	}
	return nil
}
