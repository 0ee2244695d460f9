package daemon

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	ma "github.com/multiformats/go-multiaddr"

	"fwd/identity"
)

func TestOfManyAddressesThoseAreToldThatOthersReach(t *testing.T) {
	var all []ma.Multiaddr
	add := func(ip string) {
		all = append(all, bothTransports(ip, "4001")...)
	}
	for i := range 6 {
		add(fmt.Sprintf("/ip4/172.17.0.%d", i+1)) // bridges
	}
	for i := range 4 {
		add(fmt.Sprintf("/ip6/2a00::%x", i+1))
	}
	add("/ip4/192.168.1.5")
	add("/ip4/7.0.0.1")
	routed := []netip.Addr{netip.MustParseAddr("192.168.1.5"), netip.MustParseAddr("2a00::3")}

	got := words(bestAddrs(inviteAddrs, all, nil, routed))
	var want []string
	for _, ip := range []string{"/ip6/2a00::3", "/ip4/192.168.1.5", "/ip4/7.0.0.1", "/ip6/2a00::1"} {
		want = append(want, words(bothTransports(ip, "4001"))...)
	}
	if !slices.Equal(got, want) {
		t.Errorf("of %d:\n got %v\nwant %v", len(all), got, want)
	}

	announced := []ma.Multiaddr{ma.StringCast("/dns/vps.example.org/tcp/4001"), ma.StringCast("/ip4/172.17.0.6/tcp/4001")}
	if got := bestAddrs(identity.MaxAddrs, append(all, announced[0]), announced, routed); len(got) != identity.MaxAddrs ||
		!ma.Contains(got[:2], announced[0]) || !ma.Contains(got[:2], announced[1]) {
		t.Errorf("of announced ones: %v", got)
	}
}

func TestARelayWithManyAddressesRunsAndInvites(t *testing.T) {
	m := &machine{t, Home{State: shortTemp(t)}}
	port := freePort(t)
	request := RelayRequest{Listen: []string{"127.0.0.1:" + port}}
	for i := range 12 {
		request.Announce = append(request.Announce, fmt.Sprintf("7.0.0.%d:%s", i+1, port))
	}
	events := make(chan Event, 64)
	m.run(func(ctx context.Context) error {
		err := Run(ctx, m.home, request, func(e Event) { events <- e })
		events <- Event{Event: "ended", Message: fmt.Sprint(err)}
		return err
	})
	for {
		switch e := await(t, events, "the relay's invite"); e.Event {
		case "relay":
			if len(e.Addrs) != identity.MaxAddrs {
				t.Errorf("it is at %v", e.Addrs)
			}
		case "invite":
			return
		case "ended":
			t.Fatal(e.Message)
		}
	}
}
