package daemon

import (
	"cmp"
	"net"

	"fwd/forward"
)

// The connections of local ports and to targets are bounded, for each is a descriptor: without one
// there is no control socket, no new member, and nothing is written. Visitors, who come by a port
// that more than this machine reaches, have a room of their own, so that they cannot take that of
// the machine's programs; so have the peers, a guest among them, that use what is exposed here.
const (
	// roomMost is for the memory: at an idle session's 32 KiB it is half a GiB.
	roomMost = 16384
	// What they may have of the process's descriptors, one in so many. With 20 000 the machine's
	// programs have the 10 000 connections that are promised (docs/load.md).
	roomOfPrograms = 2
	roomOfVisitors = 8
	// spareOfPeers is what peers leave: visitors theirs, and an eighth to the rest.
	spareOfPeers = 4
	// roomOfAddress is what one address may have of the visitors' room, one in so many: a large
	// site behind one NAT.
	roomOfAddress = 4
	// spareOfPeer is what one peer leaves to others, one in so many: of 20 000 descriptors it has the
	// 10 000 connections, and room for as many as end while others begin.
	spareOfPeer = 6
)

type localRoom struct{ programs, visitors, targets *forward.Room }

// newLocalRoom divides the descriptors of the process; 0: nobody knows how many there are.
func newLocalRoom(descriptors int) localRoom {
	s := roomSizes(descriptors)
	return localRoom{
		programs: forward.NewRoom(s.programs, 0),
		visitors: forward.NewRoom(s.visitors, s.address),
		targets:  forward.NewRoom(s.targets, s.peer),
	}
}

// sizes are how many connections there may be: of programs, of visitors and of one address among
// them, to targets and of one peer among them.
type sizes struct{ programs, visitors, address, targets, peer int }

func roomSizes(descriptors int) sizes {
	n := cmp.Or(descriptors, 1<<30)
	bounded := func(n int) int { return max(1, min(roomMost, n)) }
	s := sizes{
		programs: bounded(n / roomOfPrograms),
		visitors: bounded(n / roomOfVisitors),
		targets:  bounded(n - n/spareOfPeers),
	}
	s.address = max(1, s.visitors/roomOfAddress)
	s.peer = max(1, s.targets-max(1, s.targets/spareOfPeer))
	return s
}

// of is the room for those who connect to a listener's address.
func (r localRoom) of(addr net.Addr) *forward.Room {
	if tcp, ok := addr.(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		return r.visitors
	}
	return r.programs
}
