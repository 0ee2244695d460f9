package identity

import (
	"fmt"
	"testing"
)

// bigRoster is one of n peers, 4000 of which fit.
func bigRoster(t testing.TB, n int) (*Sealed, *machine) {
	r, key := sampleRoster(t)
	var last *machine
	for i := len(r.Entries); i < n; i++ {
		k, id := testKey(t, fmt.Sprint("peer ", i))
		r.Entries = append(r.Entries, Entry{Peer: id, Name: fmt.Sprint("machine-", i), Caps: Member, Tags: []string{"ops"}})
		last = &machine{key: k, id: id}
	}
	s, err := Seal(r, key)
	must(t, err)
	return s, last
}

func TestRosterOfFourThousandPeersFits(t *testing.T) {
	s, _ := bigRoster(t, 4000)
	t.Logf("%d bytes", len(s.Envelope))
}

// BenchmarkRoster shows what grows with the number of peers: reading a new roster does, what is asked for each session and
// each name does not, or by nanoseconds a peer.
func BenchmarkRoster(b *testing.B) {
	for _, n := range []int{10, 200, 2000} {
		s, m := bigRoster(b, n)
		for name, f := range map[string]func() error{
			"open":      func() error { _, err := Open(s.Envelope, s.Network); return err },
			"authorize": func() error { return Authorize(s, t0, m.id, s.Owner, "nas", Allow{Members: true}) },
			"short":     func() error { _, _, err := s.Resolve("nas"); return err },
			"long":      func() error { _, _, err := s.Resolve(fmt.Sprint("ssh.machine-", n-1)); return err },
		} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				for b.Loop() {
					if err := f(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}
