package node

import (
	"testing"
	"time"

	ma "github.com/multiformats/go-multiaddr"
)

// directPair is a pair with a direct connection that has answered, and a's connections to the relay, by QUIC and TCP, as
// the relay has said how it sees them.
func directPair(t *testing.T) (relay, a, b *Node, l *link) {
	t.Helper()
	_, relay, a, b = pair(t)
	t.Cleanup(a.Hold(b.self, Auto))
	eventually(t, "a direct connection that has answered", func() bool {
		for _, k := range a.paths.links(b.self) {
			if k.direct() && !a.paths.answered(k).IsZero() {
				l = k
				return true
			}
		}
		return false
	})
	eventually(t, "seen by the relay", func() bool { return len(a.nat.sights()) == 2 })
	return relay, a, b, l
}

// heard takes what a loop is woken for.
func heard(t *testing.T, wake <-chan news, what news) {
	t.Helper()
	for all := news(0); all&what == 0; {
		select {
		case n := <-wake:
			all |= n
		case <-time.After(patience):
			t.Fatal("nobody is told")
		}
	}
}

// A peer that goes silent may mean that our address changed. The relays are asked, and if they see us where they did,
// nobody else has to do anything: else any member could have us examine and punch as often as it likes.
func TestASilentPeerIsNoChangeOfNetworkUnlessRelaysSeeUsElsewhere(t *testing.T) {
	for name, moved := range map[string]bool{"seen at the same address": false, "seen elsewhere": true} {
		t.Run(name, func(t *testing.T) {
			relay, a, b, l := directPair(t)
			if moved {
				a.nat.mu.Lock()
				for l, o := range a.nat.seen {
					o.addr = ma.StringCast("/ip4/7.0.0.1/udp/4001/quic-v1")
					a.nat.seen[l] = o
				}
				a.nat.mu.Unlock()
			}
			wake, stop := a.wake.listen()
			defer stop()
			quic := func() *link {
				for _, l := range a.paths.links(relay.self) {
					if l.quic && !l.retiring.Load() {
						return l
					}
				}
				return nil
			}
			before := quic()
			a.paths.giveUp(b.self, l)
			eventually(t, "the relay is dialled anew and has answered", func() bool {
				a.dials.mu.Lock()
				defer a.dials.mu.Unlock()
				return !a.dials.doubting && quic() != nil && quic() != before
			})
			if moved {
				heard(t, wake, addressChanged)
				return
			}
			for {
				select {
				case what := <-wake:
					if what&(addressChanged|networkChanged) != 0 {
						t.Error("all are told of a change")
					}
					continue
				default:
				}
				break
			}
		})
	}
}

// What is found dead after a change of network is found dead because of it: the relays have been asked since.
func TestAConnectionThatDiedWithTheOldNetworkIsNoDoubt(t *testing.T) {
	_, a, b, l := directPair(t)
	a.NetworkChanged()
	a.paths.mu.Lock()
	l.answered = time.Now().Add(-time.Minute)
	a.paths.mu.Unlock()
	doubting := func() bool { a.dials.mu.Lock(); defer a.dials.mu.Unlock(); return a.dials.doubting }
	a.paths.giveUp(b.self, l)
	if doubting() {
		t.Error("one that was silent before")
	}
	a.paths.giveUp(b.self, &link{conn: l.conn, since: time.Now()})
	if doubting() {
		t.Error("one that has never answered")
	}
	a.paths.mu.Lock()
	l.answered = time.Now()
	a.paths.mu.Unlock()
	a.paths.giveUp(b.self, l)
	if !doubting() {
		t.Error("one that has answered in this network, and does no more, is no doubt")
	}
}

func TestDoubtsBecomeRareWhileTheAnswersAreTheSame(t *testing.T) {
	var d relayDials
	d.networkChanged()
	step := func(moved bool) time.Duration { // a doubt comes as the last one has been answered
		wait, first := d.doubtIn()
		if _, second := d.doubtIn(); !first || second {
			t.Error("two do it at once")
		}
		d.ask(time.Now())
		d.told(moved)
		return wait.Round(time.Second)
	}
	const s = time.Second
	for i, want := range []time.Duration{5 * s, 10 * s, 20 * s, 40 * s, 60 * s, 60 * s} {
		if got := step(false); got != want {
			t.Errorf("doubt %d: after %v, want %v", i, got, want)
		}
	}
	step(true)
	if got := step(false); got != 5*s {
		t.Errorf("after they saw us elsewhere: %v", got)
	}
	d.asked = time.Now().Add(-2 * doubtLast)
	if got := step(false); got > 0 {
		t.Errorf("the first for long waits %v", got)
	}
	doubted := time.Now()
	d.doubtIn()
	d.networkChanged()
	if d.ask(doubted) {
		t.Error("a doubt of before a change of network is followed after it")
	}
}
