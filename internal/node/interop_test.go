package node

import (
	"context"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"fwd/discovery"
)

// The rendezvous client and server know of each other only what docs/rendezvous.md says; here they meet,
// through both guards.
func TestDiscoveryFindsAPeerThroughTheRelaysRendezvousPoint(t *testing.T) {
	m := newMesh(t)
	m.relay(Config{})
	points := func() (ids []peer.ID) {
		for _, r := range m.listed() {
			ids = append(ids, r.ID)
		}
		return ids
	}
	finder := func(n *Node) *discovery.Finder {
		f, err := discovery.New(discovery.Config{
			Host: n.Host(), Network: func() string { return "net" }, Keys: func() [][]byte { return [][]byte{[]byte("key")} },
			Points: points, Member: m.isMember, Addrs: n.AnnounceAddrs,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); f.Serve(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
		return f
	}
	a, b := m.join(Config{}), m.join(Config{})
	eventually(t, "both reserve", func() bool { return reserved(a, 1)() && reserved(b, 1)() })
	fa, fb := finder(a), finder(b)
	fb.Announce()
	eventually(t, "a finds b", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for info := range fa.Find(ctx, b.self) {
			if info.ID == b.self && len(info.Addrs) > 0 {
				return true
			}
		}
		return false
	})
}
