package daemon

import (
	"net"
	"testing"
)

func TestVisitorsLeaveTheMachineItsDescriptors(t *testing.T) {
	for _, descriptors := range []int{0, 1, 64, 1024, 20_000, 65_536, 1 << 20} {
		programs, visitors, address := roomSizes(descriptors)
		if programs < 1 || visitors < 1 || address < 1 {
			t.Errorf("with %d descriptors there is no room: %d, %d, %d", descriptors, programs, visitors, address)
		}
		if address > visitors || programs > roomMost || visitors > roomMost {
			t.Errorf("with %d descriptors there is too much room: %d, %d, %d", descriptors, programs, visitors, address)
		}
		if descriptors >= 64 && visitors > descriptors/8 {
			t.Errorf("visitors have %d of %d descriptors", visitors, descriptors)
		}
		if descriptors >= 20_000 && programs < 10_000 {
			t.Errorf("of 10 000 connections %d have room with %d descriptors", programs, descriptors)
		}
	}
}

func TestOnlyWhoIsOnTheMachineHasTheProgramsRoom(t *testing.T) {
	r := newLocalRoom(1024)
	for _, own := range []net.Addr{
		&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}, &net.TCPAddr{IP: net.IPv6loopback}, &net.UnixAddr{Name: "/run/x", Net: "unix"},
	} {
		if r.of(own) != r.programs {
			t.Errorf("%v is taken for a public port", own)
		}
	}
	for _, public := range []net.IP{net.IPv4zero, net.IPv6unspecified, net.IPv4(192, 0, 2, 1), nil} {
		if r.of(&net.TCPAddr{IP: public}) != r.visitors {
			t.Errorf("%v is taken for loopback", public)
		}
	}
}
