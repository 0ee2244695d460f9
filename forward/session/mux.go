package session

import (
	"encoding/binary"
	"fmt"
)

// Inside a lane runs yamux, each session a stream of it (docs/session.md, "Inside a lane"). It is spoken here and not by
// the library, which would put a queue and two goroutines of its own between a session and its lane: each costs a copy
// and a change of goroutine, and the ring and the lane's reader are there already. So
//
//	Conn.Write  waits for the peer's credit and for room, and puts one message at a time into the ring (send.go)
//	Conn.Read   takes from the session's inbox, and gives the peer new credit (receive.go)
//	receive     reads messages off the lane, their bytes straight into the inbox of the session they are for (inbox.go)
//
// Messages without data (credit, FIN, RST) go into the ring at once, room or not: a session has only a few.

const (
	maxSessions = 16384     // a lane's incoming streams
	backlog     = 4096      // of them not yet accepted; an entry has no more of them unanswered
	yamuxWindow = 256 << 10 // bytes of a session on their way before its exit has accepted it: what yamux begins with
	firstWindow = 2 << 20   // the same then: 100 Mbit/s at 150 ms; with less BBR takes the window for the line
	maxWindow   = 32 << 20  // the same at most; like maxRing, 1.3 Gbit/s at 200 ms
	creditParts = 8         // of a window: the peer gets credit for each
	muxHeader   = 12        // bytes before a message's data
	muxMessage  = 60 << 10  // bytes of a whole message; with all heads it fits one frame of a libp2p muxer (64 KiB) or Noise (65 519)
	muxPayload  = muxMessage - muxHeader

	// mostControl: bytes of messages without data since the peer last acknowledged something; 16 384 sessions may all come
	// and go. Who makes us answer more and acknowledges nothing keeps no protocol.
	mostControl = 1 << 20
)

// What a message is: yamux spec, "Framing".
const (
	muxData   = 0
	muxWindow = 1
	muxPing   = 2
	muxGoAway = 3

	muxSYN = 1
	muxACK = 2
	muxFIN = 4
	muxRST = 8
)

// message is a message without its data.
type message struct {
	kind   byte
	flags  uint16
	stream uint32
	length uint32 // bytes of data behind it; of credit; the code of a reset
}

// put prints what parseMessage reads.
func (m message) put(b []byte) {
	b[0], b[1] = 0, m.kind
	binary.BigEndian.PutUint16(b[2:], m.flags)
	binary.BigEndian.PutUint32(b[4:], m.stream)
	binary.BigEndian.PutUint32(b[8:], m.length)
}

func parseMessage(b *[muxHeader]byte) (message, error) {
	m := message{kind: b[1], flags: binary.BigEndian.Uint16(b[2:]), stream: binary.BigEndian.Uint32(b[4:]), length: binary.BigEndian.Uint32(b[8:])}
	if b[0] != 0 || m.kind > muxGoAway {
		return m, fmt.Errorf("%w: version %d, type %d", errMux, b[0], m.kind)
	}
	return m, nil
}

// controlLocked sends a message without data: at once, or with what goes next, 20 ms later at the latest.
func (l *lane) controlLocked(m message, soon bool) {
	if l.err != nil {
		return
	}
	m.put(l.ring.room(muxHeader, true))
	l.addedLocked(muxHeader, soon)
	if l.unheard += muxHeader; l.unheard > mostControl || l.ring.end-l.ring.acked > maxRing+mostControl {
		l.link.failSoon(errMux)
	}
}
