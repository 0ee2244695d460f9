package node

import (
	"errors"
	"testing"

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
