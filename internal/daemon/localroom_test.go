package daemon

import (
	"net"
	"testing"
)

func TestVisitorsAndPeersLeaveTheMachineItsDescriptors(t *testing.T) {
	for _, descriptors := range []int{0, 1, 64, 1024, 20_000, 65_536, 1 << 20} {
		s := roomSizes(descriptors)
		if min(s.programs, s.visitors, s.address, s.targets, s.peer) < 1 {
			t.Errorf("with %d descriptors there is no room: %+v", descriptors, s)
		}
		if s.address > s.visitors || s.peer > s.targets || max(s.programs, s.visitors, s.targets) > roomMost {
			t.Errorf("with %d descriptors there is too much room: %+v", descriptors, s)
		}
		if descriptors >= 64 && s.visitors > descriptors/8 {
			t.Errorf("visitors have %d of %d descriptors", s.visitors, descriptors)
		}
		if descriptors >= 64 && s.visitors+s.targets > descriptors-descriptors/8 {
			t.Errorf("visitors and peers leave less than an eighth of %d descriptors: %+v", descriptors, s)
		}
		if descriptors >= 64 && s.peer > s.targets-s.targets/8 {
			t.Errorf("with %d descriptors one peer leaves nothing to others: %+v", descriptors, s)
		}
		if descriptors >= 20_000 && min(s.programs, s.peer) < 10_000 {
			t.Errorf("10 000 connections have no room with %d descriptors: %+v", descriptors, s)
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
