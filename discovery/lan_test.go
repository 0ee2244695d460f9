package discovery

import (
	"context"
	"fmt"
	"testing"

	"github.com/libp2p/go-libp2p/core/peer"
	ma "github.com/multiformats/go-multiaddr"
)

func TestNetworksHaveDifferentLANServices(t *testing.T) {
	a, b := lanTag("one"), lanTag("two")
	if a == b || a != lanTag("one") || len(a) != len("_fwd-12345678901._udp") {
		t.Errorf("%s, %s", a, b)
	}
}

func TestLANHearsOnlyMembersAndOnlyLANAddresses(t *testing.T) {
	h := newHost(t)
	friend, _ := peer.IDFromPrivateKey(newKey(t))
	stranger, _ := peer.IDFromPrivateKey(newKey(t))
	l := newLAN(h, func() string { return "net" }, func(p peer.ID) bool { return p != stranger }, discard())
	good := "/ip4/192.168.1.7/udp/4001/quic-v1"
	l.HandlePeerFound(peer.AddrInfo{ID: stranger, Addrs: []ma.Multiaddr{ma.StringCast(good)}})
	l.HandlePeerFound(peer.AddrInfo{ID: friend, Addrs: []ma.Multiaddr{
		ma.StringCast("/ip4/127.0.0.1/tcp/1"),
		ma.StringCast("/ip6/::1/tcp/1"),
		ma.StringCast("/dns4/example.org/tcp/1"),
		ma.StringCast("/ip4/192.168.1.1/tcp/1/p2p/" + stranger.String() + "/p2p-circuit"),
		ma.StringCast(good),
	}})
	if got := l.addrs(stranger).Addrs; len(got) != 0 {
		t.Errorf("of the stranger: %v", got)
	}
	if got := l.addrs(friend).Addrs; len(got) != 1 || got[0].String() != good {
		t.Errorf("of the friend: %v", got)
	}
}

func TestFloodOfLANAnnouncementsIsBoundedAndTheNewestComesFirst(t *testing.T) {
	h := newHost(t)
	friend, _ := peer.IDFromPrivateKey(newKey(t))
	l := newLAN(h, func() string { return "net" }, everyone, discard())
	addr := func(i int) ma.Multiaddr { return ma.StringCast(fmt.Sprintf("/ip4/192.168.1.1/tcp/%d", i)) }
	for i := 1; i <= 1000; i++ {
		l.HandlePeerFound(peer.AddrInfo{ID: friend, Addrs: []ma.Multiaddr{addr(i)}})
	}
	if got := l.addrs(friend).Addrs; len(got) != MaxAddrs || !got[0].Equal(addr(1000)) {
		t.Errorf("%d addresses, first %v", len(got), got[0])
	}
}

func TestFindTellsOfALANAnnouncementThatComesLater(t *testing.T) {
	h := newHost(t)
	friend, _ := peer.IDFromPrivateKey(newKey(t))
	l := newLAN(h, func() string { return "net" }, everyone, discard())
	ctx, cancel := context.WithCancel(testCtx(t))
	defer cancel()
	heard := make(chan peer.AddrInfo)
	done := make(chan struct{})
	go func() {
		defer close(done)
		l.find(ctx, friend, func(info peer.AddrInfo) bool { return send(ctx, heard, info) })
	}()
	eventually(t, "it listens", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.watch) == 1
	})
	go l.HandlePeerFound(peer.AddrInfo{ID: friend, Addrs: []ma.Multiaddr{ma.StringCast("/ip4/192.168.1.7/tcp/1")}})
	if info := <-heard; info.ID != friend || len(info.Addrs) != 1 {
		t.Errorf("heard %v", info)
	}
	cancel()
	<-done
	if len(l.watch) != 0 {
		t.Error("it still listens")
	}
}
