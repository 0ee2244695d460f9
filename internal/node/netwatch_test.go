package node

import (
	"slices"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/p2p/protocol/circuitv2/proto"
)

func TestSleepShowsByTheClocks(t *testing.T) {
	start := time.Now()
	if d := slept(start, start.Add(tickEvery+sleptFor/2)); d != 0 {
		t.Errorf("a tick that is a little late: slept %v", d)
	}
	if d := slept(start, start.Add(time.Minute)); d != time.Minute {
		t.Errorf("stopped for a minute: slept %v", d)
	}
	// The monotonic clock stood still: only the wall clock has moved.
	monotonic := start.Add(tickEvery)
	if d := slept(start.Round(0), monotonic.Add(time.Hour).Round(0)); d < time.Hour {
		t.Errorf("asleep for an hour: slept %v", d)
	}
}

func TestDialsEndWithTheNetworkTheyBeganIn(t *testing.T) {
	var v networkView
	v.begin(t.Context())
	old := v.ctx()
	v.next(t.Context())
	if old.Err() == nil || v.ctx().Err() != nil {
		t.Errorf("old %v, new %v", old.Err(), v.ctx().Err())
	}
}

func TestNetworkChangeIsFollowedByReservationsAtOnce(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{})
	a := m.join(Config{})
	eventually(t, "reserved", reserved(a, 1))
	eventually(t, "both transports", func() bool { return len(a.paths.links(relay.self)) == 2 })
	before := a.paths.links(relay.self)
	a.NetworkChanged()
	eventually(t, "the connection to the relay by QUIC is new", func() bool {
		now := a.paths.links(relay.self)
		for _, l := range before {
			if l.quic && contains(now, l) {
				return false
			}
		}
		return len(now) == 2 && reserved(a, 1)()
	})
}

// A reservation renewed at once may be on its way over a connection of yesterday.
func TestConnectionOfYesterdayEndsWhenItCarriesNothingMore(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{})
	a := m.join(Config{})
	eventually(t, "both transports", func() bool { return len(a.paths.links(relay.self)) == 2 && reserved(a, 1)() })
	old := a.paths.links(relay.self)[0]
	busy, err := old.conn.NewStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := busy.SetProtocol(proto.ProtoIDv2Hop); err != nil {
		t.Fatal(err)
	}
	a.NetworkChanged()
	eventually(t, "two new connections", func() bool { return len(a.paths.links(relay.self)) == 3 })
	if old.conn.IsClosed() {
		t.Error("closed while it carried something")
	}
	busy.Reset()
	eventually(t, "the old one ends", old.conn.IsClosed)
}

// The trial after losses is what keeps paths from flapping.
func TestDirectPathThatWasLostHasToLastBeforeItIsUsedAgain(t *testing.T) {
	m := newMesh(t)
	m.relay(Config{})
	a, b := m.join(Config{}), m.join(Config{})
	eventually(t, "reserved", func() bool { return reserved(a, 1)() && reserved(b, 1)() })
	defer a.Hold(b.self, Auto)()
	isDirect := func() bool { p, _ := a.Path(b.self); return p.Kind == "direct" }
	eventually(t, "direct", isDirect)
	eventually(t, "and a relayed way back that has answered", func() bool {
		return slices.ContainsFunc(a.paths.links(b.self), func(l *link) bool { return !l.direct() && a.paths.rtt(l) > 0 })
	})
	var waits []time.Duration
	for range 2 {
		start := time.Now()
		a.paths.mu.Lock()
		c := a.paths.peers[b.self].best.conn
		a.paths.mu.Unlock()
		a.Suspect(b.self, c) // it answers at once, and is trusted again a little later
		if isDirect() {
			t.Fatal("still in use")
		}
		eventually(t, "direct again", isDirect)
		waits = append(waits, time.Since(start))
	}
	if waits[0] < trialEach || waits[1] < 2*trialEach {
		t.Errorf("used again after %v", waits)
	}
	if trial(0) != 0 || trial(3) != 3*trialEach || trial(100) != trialLast {
		t.Error(trial(0), trial(3), trial(100))
	}
}
