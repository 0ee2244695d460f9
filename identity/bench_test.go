package identity

import (
	"fmt"
	"testing"
)

// A roster of 4000 peers fits, and its cost is known.
func bigRoster(t testing.TB) (*Sealed, *machine) {
	r, key := sampleRoster(t)
	var last *machine
	for i := len(r.Entries); i < 4000; i++ {
		k, id := testKey(t, fmt.Sprint("peer ", i))
		r.Entries = append(r.Entries, Entry{Peer: id, Name: fmt.Sprint("machine-", i), Caps: Member, Tags: []string{"ops"}})
		last = &machine{key: k, id: id}
	}
	s, err := Seal(r, key)
	must(t, err)
	return s, last
}

func TestRosterOfFourThousandPeersFits(t *testing.T) {
	s, _ := bigRoster(t)
	t.Logf("%d bytes", len(s.Envelope))
}

func BenchmarkOpenRosterOf4000(b *testing.B) {
	s, _ := bigRoster(b)
	for b.Loop() {
		if _, err := Open(s.Envelope, s.Network); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAuthorizeAmong4000(b *testing.B) {
	s, m := bigRoster(b)
	for b.Loop() {
		if err := Authorize(s, t0, m.id, s.Owner, "nas", Allow{Members: true}); err != nil {
			b.Fatal(err)
		}
	}
}
