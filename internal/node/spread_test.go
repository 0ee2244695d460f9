package node

import (
	"errors"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/protocol"
)

func TestWhereOnlyQUICIsDirectEachLaneOfBulkGetsAConnectionForItself(t *testing.T) {
	const proto protocol.ID = "/test/lane/1"
	m := newMesh(t)
	m.relay(Config{})
	a, b := m.join(Config{Listen: loopback()[:1]}), m.join(Config{Listen: loopback()[:1]})
	b.Host().SetStreamHandler(proto, func(s network.Stream) { s.Write([]byte{1}) })
	eventually(t, "both reserve", func() bool { return reserved(a, 1)() && reserved(b, 1)() })
	defer a.Hold(b.self, Auto)()
	eventually(t, "direct", func() bool { p, _ := a.Path(b.self); return p.Kind == "direct" })

	lanes := make([]network.Stream, maxSpread-1)
	open := func(i int, w Wish) {
		if lanes[i] != nil {
			w.Now = lanes[i].Conn()
		}
		s, err := a.OpenFor(t.Context(), b.self, proto, w)
		if errors.Is(err, ErrStay) {
			return
		}
		if err == nil {
			_, err = s.Write([]byte{1})
		}
		if err != nil {
			t.Fatal(err)
		}
		if lanes[i] != nil {
			lanes[i].Reset()
		}
		lanes[i] = s
	}
	used := func() map[network.Conn]bool {
		conns := map[network.Conn]bool{}
		for _, s := range lanes {
			conns[s.Conn()] = true
		}
		return conns
	}
	changes, stop := a.Watch()
	defer stop()
	for i := range lanes {
		open(i, Wish{Bulk: true})
	}
	eventually(t, "each by another connection", func() bool {
		select {
		case <-changes: // as the daemon does
			for i := range lanes {
				open(i, Wish{Bulk: true})
			}
		default:
		}
		return len(used()) == len(lanes)
	})
	if p, _ := a.Path(b.self); p.Spread < len(lanes) || p.Kind != "direct" {
		t.Errorf("the path says %+v", p)
	}
	for i := range lanes {
		open(i, Wish{}) // no longer bulk
	}
	if c := used(); len(c) != 1 || !c[a.paths.best(b.self, nil, Auto)] {
		t.Errorf("what is not bulk goes by %d connections", len(c))
	}
}

// To a service on a relay's machine they are as many as to any other.
func TestConnectionsForBulkToARelayEndWhenTheyAreSpare(t *testing.T) {
	m := newMesh(t)
	relay, _ := m.relay(Config{})
	a := m.join(Config{})
	eventually(t, "both transports", func() bool { return len(a.paths.links(relay.self)) == 2 && reserved(a, 1)() })
	var quic *link
	for _, l := range a.paths.links(relay.self) {
		if l.quic {
			quic = l
		}
	}
	dial := func() *link {
		t.Helper()
		c, err := a.door.dial(t.Context(), relay.self, quic.conn.RemoteMultiaddr())
		if err != nil {
			t.Fatal(err)
		}
		return a.paths.find(relay.self, c)
	}
	further, other := dial(), dial()
	a.paths.mu.Lock()
	further.further = true
	for _, l := range []*link{quic, further, other} {
		l.since = time.Now().Add(-2 * spareLife)
	}
	a.paths.peers[relay.self].best = quic
	a.paths.mu.Unlock()
	eventually(t, "closed when nothing goes by it", func() bool { a.tidyFurther(relay.self); return further.conn.IsClosed() })
	if quic.conn.IsClosed() || other.conn.IsClosed() {
		t.Error("closed what was not dialled for bulk")
	}
}
