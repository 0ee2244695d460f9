package session

import (
	"math/rand/v2"
	"testing"
)

// Inboxes that share a memory give each its own bytes in order, whatever is put in, read and thrown away meanwhile.
func TestInboxesGiveWhatTheyWereGiven(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		mem := &memory{budget: DefaultBudget}
		type state struct {
			inbox
			in, out int64  // bytes put in and read
			place   []byte // handed out and not filled yet
			left    int    // of its message
		}
		var boxes [4]state
		for i := range boxes {
			boxes[i].mem = mem
			boxes[i].in, boxes[i].out = int64(i)*1001, int64(i)*1001
		}
		used := func() {
			owner := map[*segment]int{}
			for i := range boxes {
				for s := boxes[i].first; s != nil; s = s.next {
					if who, twice := owner[s]; twice {
						t.Fatalf("seed %d: inboxes %d and %d have the same segment", seed, who, i)
					}
					owner[s] = i
				}
			}
		}
		size := func() int { return 1 + r.IntN(1<<r.IntN(18)) }
		for range 400 {
			b := &boxes[r.IntN(len(boxes))]
			switch op := r.IntN(10); {
			case op < 5: // the lane's reader: a part of a message
				if b.left == 0 {
					b.left = size()
				}
				if b.place == nil {
					b.place = b.space(b.left)
					break
				}
				n := 1 + r.IntN(len(b.place))
				for i := range n {
					b.place[i] = pattern(b.in)
					b.in++
				}
				b.left -= n
				b.filled(n, b.left == 0)
				b.place = nil
			case op < 9:
				p := make([]byte, size())
				n := b.read(p)
				if want := min(int64(len(p)), b.in-b.out); int64(n) != want {
					t.Fatalf("seed %d: %d bytes, want %d", seed, n, want)
				}
				for i, v := range p[:n] {
					if v != pattern(b.out+int64(i)) {
						t.Fatalf("seed %d: byte %d is wrong", seed, b.out+int64(i))
					}
				}
				b.out += int64(n)
			case r.IntN(5) == 0:
				b.drop()
				b.out = b.in
			}
			used()
			all := int64(0)
			for i := range boxes {
				all += boxes[i].in - boxes[i].out
			}
			if n := mem.unread.Load(); n != all {
				t.Fatalf("seed %d: %d bytes count as unread, want %d", seed, n, all)
			}
		}
		for i := range boxes {
			b := &boxes[i]
			b.drop()
			if b.place == nil && b.left == 0 && b.first != nil {
				t.Fatalf("seed %d: an empty inbox has a segment", seed)
			}
		}
		if n := mem.unread.Load(); n != 0 {
			t.Fatalf("seed %d: %d bytes seem to be unread", seed, n)
		}
	}
}

// What many sessions have waiting, a few bytes each, takes little more than that.
func TestAnInboxOfAFewBytesIsSmall(t *testing.T) {
	b := inbox{mem: &memory{}}
	for range 100 {
		b.space(5)
		b.filled(5, true)
	}
	held := 0
	for s := b.first; s != nil; s = s.next {
		held += len(s.buf)
	}
	if held > 1<<10 {
		t.Errorf("%d bytes for 500", held)
	}
	if b.drop(); b.first != nil {
		t.Error("an empty inbox has a segment")
	}
}
