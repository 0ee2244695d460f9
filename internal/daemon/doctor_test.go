package daemon

import (
	"net/netip"
	"testing"

	ma "github.com/multiformats/go-multiaddr"
)

func TestAnAddressByNameIsDialledAtOneOfItsAddresses(t *testing.T) {
	for ip, want := range map[string]string{
		"7.0.0.10": "/ip4/7.0.0.10/udp/4001/quic-v1", "2a00::10": "/ip6/2a00::10/udp/4001/quic-v1", "": "/dns/vps.example.org/udp/4001/quic-v1",
	} {
		at, _ := netip.ParseAddr(ip)
		if got := atIP(ma.StringCast("/dns/vps.example.org/udp/4001/quic-v1"), at); got.String() != want {
			t.Errorf("at %q: %s, want %s", ip, got, want)
		}
	}
}
