package discovery

import (
	"context"
	"fmt"
	"net"
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

func TestLANIsNotToldOfTunnelsAndContainers(t *testing.T) {
	const lan, tunnel = net.FlagUp | net.FlagBroadcast | net.FlagMulticast, net.FlagUp | net.FlagPointToPoint
	on := func(name string, flags net.Flags, addrs ...string) iface {
		i := iface{name: name, flags: flags}
		for _, a := range addrs {
			ip, n, err := net.ParseCIDR(a)
			if err != nil {
				t.Fatal(err)
			}
			i.addrs = append(i.addrs, &net.IPNet{IP: ip, Mask: n.Mask})
		}
		return i
	}
	loopback := on("lo", net.FlagUp|net.FlagLoopback|net.FlagMulticast, "127.0.0.1/8", "::1/128")
	wifi := on("wlan0", lan, "192.168.1.7/24", "2a00::7/64", "fe80::7/64")
	unplugged := on("eth0", net.FlagBroadcast|net.FlagMulticast, "10.1.0.7/16")
	vpn, carrier := on("wg0", tunnel, "10.8.0.7/24"), on("tailscale0", tunnel|net.FlagMulticast, "100.64.0.7/32")
	docker, project := on("docker0", lan, "172.17.0.1/16"), on("br-0123456789ab", lan, "172.18.0.1/16")
	all := []iface{loopback, wifi, unplugged, vpn, carrier, docker, project}
	for _, c := range []struct {
		name   string
		listen []string
		ifaces []iface
		want   []string
	}{
		{"on Wi-Fi", []string{"/ip4/0.0.0.0/tcp/1", "/ip6/::/udp/1/quic-v1"}, all, []string{"/ip4/192.168.1.7/tcp/1", "/ip6/2a00::7/udp/1/quic-v1"}},
		{"listening at the tunnel alone", []string{"/ip4/10.8.0.7/tcp/1"}, all, nil},
		{"listening at one address", []string{"/ip4/192.168.1.7/tcp/1"}, all, []string{"/ip4/192.168.1.7/tcp/1"}},
		{"a router's own bridge is its LAN", []string{"/ip4/0.0.0.0/tcp/1"}, []iface{on("br-lan", lan, "192.168.1.1/24"), docker}, []string{"/ip4/192.168.1.1/tcp/1"}},
		{"no LAN but containers", []string{"/ip4/0.0.0.0/tcp/1"}, []iface{loopback, vpn, docker}, []string{"/ip4/172.17.0.1/tcp/1"}},
		{"no network", []string{"/ip4/0.0.0.0/tcp/1"}, []iface{loopback}, nil},
	} {
		var listen, want []ma.Multiaddr
		for _, a := range c.listen {
			listen = append(listen, ma.StringCast(a))
		}
		for _, a := range c.want {
			want = append(want, ma.StringCast(a))
		}
		if got := announcedAt(listen, c.ifaces); !sameAddrs(got, want) {
			t.Errorf("%s: %v, want %v", c.name, got, want)
		}
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
