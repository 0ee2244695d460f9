package identity

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/libp2p/go-libp2p/core/crypto"
	"github.com/libp2p/go-libp2p/core/peer"
)

const (
	handoverDomain = "fwd/handover/1"

	maxHandOver  = 1 << 10 // 1 KiB: an envelope of about 350 bytes
	maxHandOvers = 128     // in a roster; the oldest makes room

	// maxSliceHandOvers is 32: about 15 KiB of a slice's 128.
	maxSliceHandOvers = 32
)

// A HandOver is the word of a key's holder that another peer takes its place. Pins
// follow it (Known.Pin) once the roster gives the pinned name to that peer. The roster
// carries it, but only the old key can say it: the network's owner cannot.
//
// It is bound to its network, and numbered by the roster that its signer held, so that
// of two words the later one counts and an old one cannot be used twice.
type HandOver struct {
	From, To peer.ID
	Envelope []byte

	at edition
}

// edition is a roster's (term, epoch). The zero edition is before all of them.
type edition struct{ term, epoch uint64 }

func (r *Roster) edition() edition { return edition{r.Term, r.Epoch} }

func (e edition) after(o edition) bool {
	return compareVersion(e.term, e.epoch, o.term, o.epoch) > 0
}

func (e edition) String() string { return fmt.Sprintf("%d.%d", e.term, e.epoch) }

// parseEdition reads what String prints, and nothing else.
func parseEdition(s string) (e edition, err error) {
	if _, err := fmt.Sscanf(s, "%d.%d", &e.term, &e.epoch); err != nil || e.String() != s {
		return edition{}, fmt.Errorf("edition %.40q: want TERM.EPOCH", s)
	}
	return e, nil
}

type handoverText struct {
	V       int       `json:"v"`
	Network NetworkID `json:"network"`
	To      string    `json:"to"`
	Term    uint64    `json:"term"`
	Epoch   uint64    `json:"epoch"`
}

// NewHandOver is said by the holder of a key who has r for the current roster.
func NewHandOver(old crypto.PrivKey, to peer.ID, r *Roster) (HandOver, error) {
	payload, err := json.Marshal(handoverText{V: 1, Network: r.Network, To: to.String(), Term: r.Term, Epoch: r.Epoch})
	if err != nil {
		return HandOver{}, fmt.Errorf("hand over: %w", err)
	}
	envelope, err := sealBytes(handoverDomain, payload, old)
	if err != nil {
		return HandOver{}, fmt.Errorf("hand over: %w", err)
	}
	return openHandOver(envelope, r.Network)
}

// openHandOver reads one strictly: what a newer fwd may add could restrict it.
func openHandOver(envelope []byte, network NetworkID) (HandOver, error) {
	payload, signer, err := openBytes(handoverDomain, envelope, maxHandOver, "")
	if err != nil {
		return HandOver{}, fmt.Errorf("hand over: %w", err)
	}
	var t handoverText
	if err := parseStrict(payload, &t); err != nil {
		return HandOver{}, fmt.Errorf("hand over: %w", err)
	}
	switch {
	case t.V != 1:
		return HandOver{}, fmt.Errorf("hand over: version %d: %w", t.V, ErrNewer)
	case t.Network != network:
		return HandOver{}, fmt.Errorf("hand over: %w", ErrOtherNetwork)
	}
	h := HandOver{Envelope: bytes.Clone(envelope), at: edition{t.Term, t.Epoch}}
	if h.From, err = parsePeer(string(signer)); err != nil {
		return HandOver{}, fmt.Errorf("hand over: %w", err)
	}
	if h.To, err = parsePeer(t.To); err != nil {
		return HandOver{}, fmt.Errorf("hand over: %w", err)
	}
	if h.From == h.To || !h.at.after(edition{}) {
		return HandOver{}, fmt.Errorf("hand over: to oneself, or without a roster's number: %w", ErrSeal)
	}
	return h, nil
}

// HandOvers are the words that count: of each signer the latest.
type HandOvers []HandOver

// with is hs with h for its signer's word, if that is later than the one there.
func (hs HandOvers) with(h HandOver) HandOvers {
	i := slices.IndexFunc(hs, func(o HandOver) bool { return o.From == h.From })
	switch {
	case i < 0:
		hs = append(slices.Clone(hs), h)
	case h.at.after(hs[i].at):
		hs = slices.Clone(hs)
		hs[i] = h
	}
	return hs
}

// latest keeps the n latest.
func (hs HandOvers) latest(n int) HandOvers {
	for len(hs) > n {
		oldest := 0
		for i, h := range hs {
			if hs[oldest].at.after(h.at) {
				oldest = i
			}
		}
		hs = slices.Delete(slices.Clone(hs), oldest, oldest+1)
	}
	return hs
}

// without drops what a peer has said and what was said for it.
func (hs HandOvers) without(p peer.ID) HandOvers {
	return slices.DeleteFunc(slices.Clone(hs), func(h HandOver) bool { return h.From == p || h.To == p })
}

func (hs HandOvers) by(p peer.ID) bool {
	return slices.ContainsFunc(hs, func(h HandOver) bool { return h.From == p })
}

// naming is when p was last given a place: what it said before that does not count,
// for it has been in that place since.
func (hs HandOvers) naming(p peer.ID) (at edition) {
	for _, h := range hs {
		if h.To == p && h.at.after(at) {
			at = h.at
		}
	}
	return at
}

// lead tells whether the words lead from one peer to another, directly or by others,
// each said after the one before it and after since; at is when the last was said. Since
// each step is later, there is no going in circles.
func (hs HandOvers) lead(from peer.ID, since edition, to peer.ID) (at edition, ok bool) {
	for p := from; ; {
		i := slices.IndexFunc(hs, func(h HandOver) bool { return h.From == p && h.at.after(since) })
		if i < 0 {
			return edition{}, false
		}
		if p, since = hs[i].To, hs[i].at; p == to {
			return since, true
		}
	}
}

// concerning are the words that lead to one of the peers that are shown.
func (hs HandOvers) concerning(shown map[peer.ID]bool) (list HandOvers) {
	reached := map[peer.ID]bool{}
	for more := true; more; {
		more = false
		for _, h := range hs {
			if !reached[h.From] && (shown[h.To] || reached[h.To]) {
				reached[h.From], more = true, true
				list = append(list, h)
			}
		}
	}
	return list
}

// envelopes is how a roster carries them.
func (hs HandOvers) envelopes() (list [][]byte) {
	for _, h := range hs {
		list = append(list, h.Envelope)
	}
	return list
}

// openHandOvers reads what a roster carries. A word that cannot be read is none: it must
// not keep the roster from anybody.
func openHandOvers(envelopes [][]byte, network NetworkID) (hs HandOvers, err error) {
	if len(envelopes) > maxHandOvers {
		return nil, fmt.Errorf("%d hand-overs: %w", len(envelopes), ErrTooLarge)
	}
	for _, envelope := range envelopes {
		if h, err := openHandOver(envelope, network); err == nil {
			hs = hs.with(h)
		}
	}
	return hs, nil
}
