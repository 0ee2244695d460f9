package daemon

import (
	"net"

	"fwd/forward"
)

// The connections of local ports are bounded, for each is a descriptor: without one there is
// no control socket, no new member, and nothing is written. Visitors, who come by a port that
// more than this machine reaches, have a room of their own, so that they cannot take that of
// the machine's programs.
const (
	// roomMost is for the memory: at an idle session's 32 KiB it is half a GiB.
	roomMost = 16384
	// What they may have of the process's descriptors, one in so many. With 20 000 the machine's
	// programs have the 10 000 connections that are promised (docs/load.md); libp2p leaves
	// visitors theirs in any case, and an eighth to the rest (node.Descriptors).
	roomOfPrograms = 2
	roomOfVisitors = 8
	// roomOfAddress is what one address may have of the visitors' room, one in so many: a large
	// site behind one NAT.
	roomOfAddress = 4
)

type localRoom struct{ programs, visitors *forward.Room }

// newLocalRoom divides the descriptors of the process; 0: nobody knows how many there are.
func newLocalRoom(descriptors int) localRoom {
	programs, visitors, address := roomSizes(descriptors)
	return localRoom{forward.NewRoom(programs, 0), forward.NewRoom(visitors, address)}
}

func roomSizes(descriptors int) (programs, visitors, address int) {
	programs, visitors = roomMost, roomMost
	if descriptors > 0 {
		programs = max(1, min(programs, descriptors/roomOfPrograms))
		visitors = max(1, min(visitors, descriptors/roomOfVisitors))
	}
	return programs, visitors, max(1, visitors/roomOfAddress)
}

// of is the room for those who connect to a listener's address.
func (r localRoom) of(addr net.Addr) *forward.Room {
	if tcp, ok := addr.(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
		return r.visitors
	}
	return r.programs
}
