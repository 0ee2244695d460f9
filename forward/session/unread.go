package session

import (
	"fmt"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Each session may hold its window of what its application has not read, for a slow reader stops nobody but its own
// writer. But thousands of them could hold more than a machine has, and then those of the peer that holds most are reset.

const (
	// unreadShare is how much all sessions together may hold, in Config.Budget: 1 GiB by default, 512 first windows.
	unreadShare = 4
	// unreadLeast is the same in bytes, however small the budget is: 8 first windows.
	unreadLeast = 8 * firstWindow
)

// tooMuchUnread says whether sessions hold more than they may.
func (m *memory) tooMuchUnread() bool { return m.unread.Load() > m.unreadMost() }

func (m *memory) unreadMost() int64 { return max(unreadLeast, m.budget*unreadShare) }

// pressed has the endpoint shed if there is too much.
func (e *Endpoint) pressed() {
	if e.mem.tooMuchUnread() {
		select {
		case e.full <- struct{}{}:
		default:
		}
	}
}

// shed resets sessions until all together hold what they may: each time the largest of the peer that holds most, so that
// many small hoards of one cost no other peer its only session.
func (e *Endpoint) shed() {
	for e.mem.tooMuchUnread() {
		most, bytes := e.hoarder()
		if most == nil {
			return // what is left belongs to streams that are not sessions yet
		}
		e.log.Warn("a session is reset for want of memory: its application does not read", "peer", most.lane.link.peer,
			"service", most.name, "id", most.id.String(), "unread", bytes)
		most.cut(fmt.Errorf("%d bytes were not read, and all such together are more than %d", bytes, e.mem.unreadMost()))
	}
}

// hoarder is the session that holds most of those of the peer that does; nil: none holds anything.
func (e *Endpoint) hoarder() (most *Conn, bytes int) {
	type hoard struct {
		all, most int
		of        *Conn // that has most
	}
	by := map[peer.ID]hoard{}
	var largest hoard
	for _, k := range e.links() {
		h := by[k.peer]
		for _, c := range k.sessions() {
			n := c.unread()
			if h.all += n; n > h.most {
				h.most, h.of = n, c
			}
		}
		by[k.peer] = h
		if h.all > largest.all {
			largest = h
		}
	}
	return largest.of, largest.most
}
