package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

// say is m's word, by the roster it holds.
func (m *machine) say(t testing.TB, to peer.ID) []byte {
	t.Helper()
	h, err := NewHandOver(m.key, to, m.book.Current().Roster)
	must(t, err)
	return h.Envelope
}

// handOver has m say it and the owner publish it.
func (n *network) handOver(t testing.TB, m *machine, to peer.ID) {
	t.Helper()
	n.tell(t, m)
	must(t, n.owner.HandOver(m.id, m.say(t, to), t0))
	n.tell(t, m)
}

// tell brings a machine the newest roster.
func (n *network) tell(t testing.TB, m *machine) {
	t.Helper()
	_, err := m.book.Take(n.book.Offer(m.id, t0))
	must(t, err)
}

func (n *network) roster() *Roster { return n.book.Current().Roster }

// give has the roster say that nas is p's.
func (n *network) give(t testing.TB, p peer.ID) *Roster {
	t.Helper()
	_, err := n.owner.Update(t0, func(r *Roster) error { r.Services["nas"] = p; return nil })
	must(t, err)
	return n.roster()
}

func newKnown(t testing.TB) *Known {
	t.Helper()
	k, err := OpenKnown(filepath.Join(t.TempDir(), "known"))
	must(t, err)
	return k
}

func wantPin(t testing.TB, k *Known, name string, want peer.ID) {
	t.Helper()
	if got, _ := k.Pinned(name); got != want {
		t.Fatalf("%s is pinned to %s, want %s", name, got, want)
	}
}

func wantChanged(t testing.TB, err error) {
	t.Helper()
	var changed *IdentityChangedError
	if !errors.As(err, &changed) {
		t.Fatalf("got %v, want a change of identity", err)
	}
}

func TestPinsFollowAHandOverOnceTheNameMoves(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.join(t, "a", InviteOptions{}), n.join(t, "b", InviteOptions{}), n.join(t, "c", InviteOptions{})
	must(t, n.owner.ClaimService(a.id, "nas", t0))
	k := newKnown(t)
	must(t, k.Pin("nas", a.id, n.roster()))
	n.handOver(t, a, b.id)
	must(t, k.Follow(n.roster()))
	must(t, k.Pin("nas", a.id, n.roster())) // the old one serves it still
	wantErr(t, n.owner.ClaimService(c.id, "nas", t0), ErrNameTaken)
	must(t, n.owner.ClaimService(b.id, "nas", t0))
	must(t, k.Follow(n.roster()))
	wantPin(t, k, "nas", b.id)
	must(t, k.Follow(n.roster()))
	k, err := OpenKnown(k.path)
	must(t, err)
	wantPin(t, k, "nas", b.id)
	wantErr(t, n.owner.ClaimService(a.id, "nas", t0), ErrNameTaken) // not back by its own word

	// By another's word, or no word, it does not move.
	wantChanged(t, k.Pin("nas", c.id, n.give(t, c.id)))
	must(t, k.Follow(n.roster()))
	wantPin(t, k, "nas", b.id)
}

func TestAReplacedMachineThatHandedOverIsFollowed(t *testing.T) {
	n := newNetwork(t)
	a, b := n.join(t, "nas-box", InviteOptions{}), newMachine(t, "new box")
	must(t, n.owner.ClaimService(a.id, "nas", t0))
	guest := n.join(t, "phone", InviteOptions{Only: []Grant{{"nas", a.id}}})
	other := n.join(t, "tablet", InviteOptions{Only: []Grant{{"web", n.id}}})
	k, gk := newKnown(t), newKnown(t)
	must(t, k.Pin("nas.nas-box", a.id, n.roster()))
	must(t, gk.Pin("nas", a.id, guest.book.Current().Roster))
	n.handOver(t, a, b.id) // before it has joined
	n.joinAs(t, b, "x", InviteOptions{Replace: a.id})
	must(t, k.Pin("nas.nas-box", b.id, n.roster()))
	n.tell(t, guest)
	slice := guest.book.Current()
	must(t, gk.Follow(slice.Roster))
	wantPin(t, gk, "nas", b.id)
	n.tell(t, other)
	if len(slice.HandOvers) != 1 || len(other.book.Current().HandOvers) != 0 {
		t.Fatal("a guest gets the words that concern its services, and no others")
	}
}

func TestAReplacedMachineThatNamedAnotherIsNotFollowed(t *testing.T) {
	n := newNetwork(t)
	a, thief := n.join(t, "nas-box", InviteOptions{}), n.join(t, "thief", InviteOptions{})
	n.handOver(t, a, thief.id)
	n.join(t, "new box", InviteOptions{Replace: a.id})
	if n.roster().HandOvers.by(a.id) {
		t.Fatal("the word of a machine that was replaced by another stays")
	}
}

func TestTheWordOfOneRevokedIsVoidAndOfOneThatLeftIsNot(t *testing.T) {
	n := newNetwork(t)
	a, b := n.join(t, "a", InviteOptions{}), n.join(t, "b", InviteOptions{})
	c := n.join(t, "c", InviteOptions{})
	n.handOver(t, a, c.id)
	n.handOver(t, b, c.id)
	must(t, n.owner.Leave(a.id, t0))
	must(t, n.revoke(b.id))
	if hs := n.roster().HandOvers; !hs.by(a.id) || hs.by(b.id) {
		t.Fatalf("got %d words", len(hs))
	}
	n.restart(t)
	if len(n.roster().HandOvers) != 1 {
		t.Fatal("not on disk")
	}
}

func TestAHandOverIsRefusedUnlessItsSignerSaysItNow(t *testing.T) {
	n := newNetwork(t)
	a, b := n.join(t, "a", InviteOptions{}), n.join(t, "b", InviteOptions{})
	user := n.join(t, "user", InviteOptions{Caps: Relay})
	for _, m := range []*machine{a, b, user} {
		n.tell(t, m)
	}
	word := a.say(t, b.id)
	wantErr(t, n.owner.HandOver(b.id, word, t0), ErrNotAllowed) // brought by another
	wantErr(t, n.owner.HandOver(user.id, user.say(t, b.id), t0), ErrNotAllowed)
	ahead := n.roster().clone()
	ahead.Epoch++
	h, err := NewHandOver(a.key, b.id, ahead)
	must(t, err)
	wantErr(t, n.owner.HandOver(a.id, h.Envelope, t0), ErrNotAllowed)
	for i := range word {
		bad := bytes.Clone(word)
		bad[i] ^= 1 << (i % 8)
		if n.owner.HandOver(a.id, bad, t0) == nil {
			t.Fatalf("byte %d of %d flipped, and still taken", i, len(word))
		}
	}
	if _, err := NewHandOver(a.key, a.id, n.roster()); err == nil {
		t.Fatal("to oneself")
	}
	must(t, n.owner.HandOver(a.id, word, t0))
	epoch := n.roster().Epoch
	must(t, n.owner.HandOver(a.id, word, t0)) // the answer was lost
	if n.roster().Epoch != epoch {
		t.Fatal("the same word twice is two epochs")
	}
	wantErr(t, n.owner.HandOver(a.id, a.say(t, user.id), t0), ErrOlder) // by the roster of before
	n.tell(t, a)
	must(t, n.owner.HandOver(a.id, a.say(t, user.id), t0)) // it changed its mind
	if hs := n.roster().HandOvers; len(hs) != 1 || hs[0].To != user.id {
		t.Fatalf("got %+v", hs)
	}
	must(t, n.revoke(a.id))
	wantErr(t, n.owner.HandOver(a.id, word, t0), ErrNotAllowed)
}

// Whoever holds the network key writes the roster as it likes, and still moves no pin.
func TestNoRosterMovesAPinWithoutTheOldKey(t *testing.T) {
	n := newNetwork(t)
	a, b := n.join(t, "a", InviteOptions{}), n.join(t, "b", InviteOptions{})
	k := newKnown(t)
	must(t, k.Pin("nas", a.id, n.roster()))
	other := *n.roster()
	_, otherID := testKey(t, "another network")
	other.Network = NetworkID(otherID.String())
	elsewhere, err := NewHandOver(a.key, b.id, &other)
	must(t, err)
	payload := func(text string) []byte {
		e, err := sealBytes(handoverDomain, []byte(text), a.key)
		must(t, err)
		return e
	}
	domain, err := sealBytes(heartbeatDomain, fmt.Appendf(nil, `{"v":1,"network":"%s","to":"%s","term":1,"epoch":1}`, n.roster().Network, b.id), a.key)
	must(t, err)
	for name, envelope := range map[string][]byte{
		"another network": elsewhere.Envelope,
		"the owner":       n.say(t, b.id),
		"the new machine": b.say(t, a.id),
		"another domain":  domain,
		"as it once was":  payload(b.id.String()),
		"a newer version": payload(fmt.Sprintf(`{"v":2,"network":"%s","to":"%s","term":1,"epoch":1}`, n.roster().Network, b.id)),
		"a field more":    payload(fmt.Sprintf(`{"v":1,"network":"%s","to":"%s","term":1,"epoch":1,"until":9}`, n.roster().Network, b.id)),
		"no number":       payload(fmt.Sprintf(`{"v":1,"network":"%s","to":"%s"}`, n.roster().Network, b.id)),
		"too long":        payload(fmt.Sprintf(`{"v":1,"network":"%s","to":"%s","term":1,"epoch":1}%1000s`, n.roster().Network, b.id, "")),
		"noise":           []byte("noise"),
	} {
		r := n.give(t, b.id)
		payload, err := formatRoster(r)
		must(t, err)
		var text rosterText
		must(t, json.Unmarshal(payload, &text))
		text.HandOvers = [][]byte{envelope}
		payload, err = json.Marshal(text)
		must(t, err)
		r, err = parseRoster(payload)
		if err != nil {
			t.Fatalf("%s keeps the roster from everybody: %v", name, err)
		}
		must(t, k.Follow(r))
		wantChanged(t, k.Pin("nas", b.id, r))
	}
}

func TestHandOversChainAndNeverGoBackByAnOldWord(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.join(t, "a", InviteOptions{}), n.join(t, "b", InviteOptions{}), n.join(t, "c", InviteOptions{})
	away, late := newKnown(t), newKnown(t)
	must(t, away.Pin("nas", a.id, n.roster()))
	n.handOver(t, a, b.id)
	toB := n.roster().HandOvers
	n.handOver(t, b, a.id) // and back again
	must(t, late.Pin("nas", a.id, n.roster()))
	must(t, away.Pin("nas", b.id, n.give(t, b.id)))
	must(t, away.Pin("nas", a.id, n.give(t, a.id)))
	for _, words := range []HandOvers{n.roster().HandOvers, toB} {
		r := n.give(t, b.id) // the first word a second time
		r = r.clone()
		r.HandOvers = words
		wantChanged(t, away.Pin("nas", b.id, r))
		wantChanged(t, late.Pin("nas", b.id, r))
	}
	n.handOver(t, a, b.id)
	n.handOver(t, b, c.id)
	r := n.give(t, c.id)
	must(t, away.Follow(r))
	wantPin(t, away, "nas", c.id)
	must(t, late.Pin("nas", c.id, r))

	// What a person trusts, no older word changes.
	must(t, late.Trust("nas", a.id, r))
	must(t, late.Follow(r))
	wantPin(t, late, "nas", a.id)
	late, err := OpenKnown(late.path)
	must(t, err)
	wantChanged(t, late.Pin("nas", c.id, r))
	n.handOver(t, a, c.id)
	must(t, late.Pin("nas", c.id, n.roster()))
}

func TestHandOversInACircleEnd(t *testing.T) {
	r, _ := sampleRoster(t)
	ring := make([]peer.ID, 5)
	keys := make([]crypto.PrivKey, 5)
	for i := range ring {
		keys[i], ring[i] = testKey(t, fmt.Sprint("ring", i))
	}
	var hs HandOvers
	for i := range ring {
		h, err := NewHandOver(keys[i], ring[(i+1)%len(ring)], r) // all by one roster
		must(t, err)
		hs = hs.with(h)
	}
	_, stranger := testKey(t, "stranger")
	for i, p := range ring {
		if _, ok := hs.lead(p, edition{}, stranger); ok {
			t.Fatal("led out of the circle")
		}
		if _, ok := hs.lead(p, edition{}, ring[(i+2)%len(ring)]); ok {
			t.Fatal("two steps at one time")
		}
	}
	if got := hs.concerning(map[peer.ID]bool{ring[0]: true}); len(got) != len(ring) {
		t.Fatalf("%d words concern it, want %d", len(got), len(ring))
	}
}

func TestHandOversAreBoundedAndTheOldestMakesRoom(t *testing.T) {
	r, network := sampleRoster(t)
	nas := r.Services["nas"]
	for i := range maxHandOvers + 2 {
		key, _ := testKey(t, fmt.Sprint("box", i))
		r.Epoch++
		h, err := NewHandOver(key, nas, r)
		must(t, err)
		r.HandOvers = r.HandOvers.with(h).latest(maxHandOvers)
	}
	if len(r.HandOvers) != maxHandOvers || r.HandOvers[0].at.epoch != 10 {
		t.Fatalf("%d words, the first of roster %s", len(r.HandOvers), r.HandOvers[0].at)
	}
	slices, err := sealSlices(r, network)
	must(t, err)
	for _, s := range slices {
		if len(s.HandOvers) != maxSliceHandOvers {
			t.Fatalf("a slice has %d words", len(s.HandOvers))
		}
	}
	must(t, func() error { _, err := Seal(r, network); return err }())
	_, err = openHandOvers(make([][]byte, maxHandOvers+1), r.Network)
	wantErr(t, err, ErrTooLarge)
}

func TestAMergedRosterKeepsTheWordsOfBothSides(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.join(t, "a", InviteOptions{}), n.join(t, "b", InviteOptions{}), n.join(t, "c", InviteOptions{})
	for _, m := range []*machine{a, b, c} {
		n.tell(t, m)
	}
	base := n.roster().clone()
	with := func(r *Roster, m *machine) *Roster {
		h, err := openHandOver(m.say(t, n.id), r.Network)
		must(t, err)
		r.HandOvers = r.HandOvers.with(h)
		return r
	}
	cur, late := with(base.clone(), a), with(with(base.clone(), b), c)
	must(t, cur.remove(c.id)) // revoked there
	got := merge(base, cur, late).HandOvers
	if len(got) != 2 || !got.by(a.id) || !got.by(b.id) {
		t.Fatalf("got %d words", len(got))
	}
}

// An fwd of before knows nothing of hand-overs and reads the rest.
func TestAnOlderFwdReadsARosterWithHandOvers(t *testing.T) {
	r, _ := sampleRoster(t)
	key, _ := testKey(t, "nas-box")
	h, err := NewHandOver(key, r.Owner, r)
	must(t, err)
	r.HandOvers = HandOvers{h}
	payload, err := formatRoster(r)
	must(t, err)
	var older struct {
		V     int         `json:"v"`
		Peers []entryText `json:"peers"`
	}
	must(t, json.Unmarshal(payload, &older))
	if older.V != 1 || len(older.Peers) != len(r.Entries) {
		t.Fatalf("got %+v", older)
	}
	r.HandOvers = nil
	plain, err := formatRoster(r)
	must(t, err)
	if bytes.Contains(plain, []byte("hand_overs")) || slices.Equal(plain, payload) {
		t.Fatal("a roster without hand-overs is not as it was")
	}
}
