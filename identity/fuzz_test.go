package identity

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/libp2p/go-libp2p/core/crypto"
)

// One property for everything that is parsed from outside: what was read prints, and
// what was printed reads back the same. Panics and hangs show by themselves.

func FuzzInvite(f *testing.F) {
	f.Add(sampleInvite(f).String())
	f.Add("fwd1")
	f.Add("fwd2aaaa")
	f.Fuzz(func(t *testing.T, s string) {
		i, err := ParseInvite(s)
		if err != nil {
			return
		}
		again, err := ParseInvite(i.String())
		if err != nil || again.String() != i.String() {
			t.Fatalf("%q printed as %q: %v", s, i.String(), err)
		}
	})
}

// FuzzInviteBody goes past the checksum, which the fuzzer could not guess.
func FuzzInviteBody(f *testing.F) {
	b, _ := inviteBase32.DecodeString(sampleInvite(f).String()[4:])
	f.Add(b[:len(b)-checksumSize])
	waits := sampleInvite(f)
	waits.contact = ""
	b, _ = inviteBase32.DecodeString(waits.String()[4:])
	f.Add(b[:len(b)-checksumSize])
	f.Fuzz(func(t *testing.T, b []byte) {
		s := "fwd1" + inviteBase32.EncodeToString(append(bytes.Clone(b), checksum('1', b)...))
		if len(s) > maxInviteText {
			return
		}
		i, err := ParseInvite(s)
		if err == nil && i.String() != s {
			t.Fatalf("got %s, want %s", i.String(), s)
		}
	})
}

func FuzzRosterEnvelope(f *testing.F) {
	r, key := sampleRoster(f)
	s, err := Seal(r, key)
	must(f, err)
	f.Add(s.Envelope)
	h, err := sealHeartbeat(r, t0, key)
	must(f, err)
	f.Add(h.envelope)
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := Open(b, "")
		if err == nil && !bytes.Equal(s.Envelope, b) {
			t.Fatal("not handed on byte for byte")
		}
		openHeartbeat(b, "")
	})
}

func FuzzRosterPayload(f *testing.F) {
	r, _ := sampleRoster(f)
	payload, err := formatRoster(r)
	must(f, err)
	f.Add(payload)
	f.Add([]byte(`{"v":1}`))
	key, _ := testKey(f, "nas-box")
	h, err := NewHandOver(key, r.Owner, r)
	must(f, err)
	r.HandOvers = HandOvers{h}
	payload, err = formatRoster(r)
	must(f, err)
	f.Add(payload)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRoster(b)
		if err != nil {
			return
		}
		once, err := formatRoster(r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseRoster(once)
		if err != nil {
			t.Fatal(err)
		}
		twice, err := formatRoster(again)
		if err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s\n%s\n%v", once, twice, err)
		}
	})
}

func FuzzHandOver(f *testing.F) {
	r, network := sampleRoster(f)
	key, _ := testKey(f, "nas-box")
	h, err := NewHandOver(key, r.Owner, r)
	must(f, err)
	f.Add(h.Envelope)
	beat, err := sealHeartbeat(r, t0, network)
	must(f, err)
	f.Add(beat.envelope)
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := openHandOver(b, r.Network)
		if err == nil && (!bytes.Equal(h.Envelope, b) || h.From == h.To) {
			t.Fatalf("got %+v", h)
		}
	})
}

// FuzzHandOverPayload goes past the signature.
func FuzzHandOverPayload(f *testing.F) {
	r, _ := sampleRoster(f)
	key, from := testKey(f, "nas-box")
	f.Add(fmt.Appendf(nil, `{"v":1,"network":"%s","to":"%s","term":1,"epoch":7}`, r.Network, r.Owner))
	f.Add([]byte(`{"v":1}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		envelope, err := sealBytes(handoverDomain, payload, key)
		must(t, err)
		h, err := openHandOver(envelope, r.Network)
		if err != nil {
			return
		}
		if h.From != from || h.To == from || len(envelope) > maxHandOver {
			t.Fatalf("got %+v", h)
		}
		hs := HandOvers{h}
		if at, ok := hs.lead(from, edition{}, h.To); !ok || at != h.at {
			t.Fatal("leads nowhere")
		}
	})
}

func FuzzJoinRequest(f *testing.F) {
	_, joiner := testKey(f, "joiner")
	_, owner := testKey(f, "owner")
	f.Add(joinRequest{joiner, owner, "laptop", make([]byte, signatureSize)}.format())
	f.Fuzz(func(t *testing.T, b []byte) {
		if j, err := parseJoinRequest(b); err == nil && !bytes.Equal(j.format(), b) {
			t.Fatalf("got %x, want %x", j.format(), b)
		}
		if id, err := requestID(b); err == nil {
			_ = id
			if _, err := openRequest(make([]byte, 32), owner, b); err == nil {
				t.Fatal("opened")
			}
		}
	})
}

func FuzzJoinReply(f *testing.F) {
	f.Add(joinReply{joinOK, "laptop", []byte("envelope")}.format())
	f.Add([]byte{byte(joinUsed), 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := parseJoinReply(b); err == nil && !bytes.Equal(a.format(), b) {
			t.Fatalf("got %x, want %x", a.format(), b)
		}
		if _, err := openReply(make([]byte, 32), b, b); err == nil {
			t.Fatal("opened")
		}
	})
}

func FuzzKnown(f *testing.F) {
	_, p := testKey(f, "p")
	f.Add("pin nas " + p.String() + "\naddr " + p.String() + " /ip4/192.0.2.1/tcp/1\n")
	f.Add("# comment\n\n")
	f.Add("pin nas " + p.String() + " 1.12\n")
	f.Fuzz(func(t *testing.T, s string) {
		known, err := parseKnown([]byte(s))
		if err != nil {
			return
		}
		once := known.format()
		again, err := parseKnown(once)
		if err != nil || !bytes.Equal(again.format(), once) {
			t.Fatalf("%q printed as %q: %v", s, once, err)
		}
	})
}

func FuzzReadMsg(f *testing.F) {
	var wire bytes.Buffer
	must(f, WriteMsg(&wire, RosterMsg{Term: 1, Epoch: 2, Roster: []byte("x")}))
	f.Add(wire.Bytes())
	f.Add([]byte("\x00\x00\x00\x02{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m RosterMsg
		r := bytes.NewReader(b)
		if ReadMsg(r, 1<<10, &m) != nil {
			return
		}
		if rest, _ := io.ReadAll(r); len(b)-len(rest) > 1<<10+4 {
			t.Fatal("read beyond the limit")
		}
		var once, twice bytes.Buffer
		must(t, WriteMsg(&once, m))
		must(t, ReadMsg(bytes.NewReader(once.Bytes()), maxMsg, &m))
		must(t, WriteMsg(&twice, m))
		if !bytes.Equal(once.Bytes(), twice.Bytes()) {
			t.Fatalf("%q, %q", once.Bytes(), twice.Bytes())
		}
	})
}

func FuzzAllow(f *testing.F) {
	r, _ := sampleRoster(f)
	f.Add("members nas-box tag:ops !phone")
	f.Add(r.Owner.String() + " !" + r.Owner.String())
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAllow(strings.Fields(s), r)
		if err != nil {
			return
		}
		again, err := ParseAllow(a.Words(), nil) // no names are left to look up
		if err != nil || again.String() != a.String() {
			t.Fatalf("%q printed as %q, then %q: %v", s, a, again, err)
		}
	})
}

func FuzzLedger(f *testing.F) {
	_, owner := testKey(f, "owner")
	l := ledger{invites: []invitation{{key: make([]byte, 32), owner: owner, uses: 2, expires: t0, used: []usage{{owner, true}}, caps: Guest, only: []Grant{{"nas", owner}}}}}
	data, err := l.format()
	must(f, err)
	f.Add(data)
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseLedger(b)
		if err != nil {
			return
		}
		once, err := l.format()
		must(t, err)
		again, err := parseLedger(once)
		must(t, err)
		if twice, err := again.format(); err != nil || !bytes.Equal(once, twice) {
			t.Fatalf("%s\n%s\n%v", once, twice, err)
		}
	})
}

func FuzzKeyFile(f *testing.F) {
	key, _ := testKey(f, "p")
	text, err := formatKey(key)
	must(f, err)
	f.Add(text)
	f.Fuzz(func(t *testing.T, b []byte) {
		key, err := parseKey(b)
		if err != nil {
			return
		}
		text, err := formatKey(key)
		must(t, err)
		again, err := parseKey(text)
		if err != nil || !again.Equals(key) {
			t.Fatalf("%q printed as %q: %v", b, text, err)
		}
	})
}

func FuzzPage(f *testing.F) {
	n := newNetwork(f)
	n.join(f, "guest", InviteOptions{Only: []Grant{{"nas", n.id}}})
	_, err := n.owner.Heartbeat(t0)
	must(f, err)
	whole, err := n.book.now.Load().format()
	must(f, err)
	f.Add(whole)
	f.Add([]byte(`{"v":1}`))
	f.Add([]byte(`{"v":1,"slices":["AA=="]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := parsePage(data)
		if err != nil {
			return
		}
		again, err := g.format()
		must(t, err)
		if _, err := parsePage(again); err != nil {
			t.Fatalf("%q does not read back: %v", again, err)
		}
	})
}

func FuzzHeartbeat(f *testing.F) {
	n := newNetwork(f)
	beat, err := n.owner.Heartbeat(t0)
	must(f, err)
	f.Add(beat)
	f.Fuzz(func(t *testing.T, envelope []byte) {
		if h, err := openHeartbeat(envelope, n.owner.Network()); err == nil && !bytes.Equal(h.envelope, beat) {
			t.Fatalf("a heartbeat that nobody signed: %+v", h)
		}
	})
}

func FuzzBackup(f *testing.F) {
	n := newNetwork(f)
	key, err := crypto.MarshalPrivateKey(n.owner.key)
	must(f, err)
	plain, err := json.Marshal(backupText{Key: key, Roster: n.book.Current().Envelope, Invites: n.owner.ledger.text()})
	must(f, err)
	f.Add(plain)
	f.Fuzz(func(t *testing.T, plain []byte) {
		if key, s, _, err := parseBackup(plain); err == nil && (key == nil || s == nil) {
			t.Fatal("half a backup was taken")
		}
	})
}

func FuzzNames(f *testing.F) {
	r, _ := sampleRoster(f)
	for _, s := range []string{"nas", "nas.nas-box", "nas.nas-box.fwd", "", ".", "a..b", "NAS.fwd", "12D3KooWPPmbPEjhA4q1TmgWZjPjNJY6i32tdsSvdpS29ZWQRjDP"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if service, p, err := r.Resolve(s); err == nil && (CheckName(service) != nil || r.index(p) < 0) {
			t.Fatalf("%q is %q at %s", s, service, p)
		}
		if p, err := r.ResolveAny(s); err == nil && r.index(p) < 0 {
			t.Fatalf("%q is %s, who is not on the roster", s, p)
		}
	})
}
