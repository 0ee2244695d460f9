package session

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Frame kinds, docs/session.md "Frames".
const (
	frameData  = 0
	frameAck   = 1
	framePing  = 2
	framePong  = 3
	frameEnd   = 4
	frameRenew = 5
)

// Why a lane ends, as END tells it.
const (
	endIdle     = 0
	endFailed   = 1
	endCut      = 2
	endShutdown = 3
	endDesync   = 4
)

const (
	maxData  = 64 << 10 // bytes in one DATA frame, by the wire
	maxFrame = 1 + binary.MaxVarintLen64
)

// frame is one frame without the bytes of DATA, which follow it.
type frame struct {
	kind  byte
	value uint64 // DATA: number of bytes; ACK: offset; PING, PONG: payload; END: reason
}

// errShort: the frame is not complete yet.
var errShort = errors.New("short frame")

// protocolError is a violation of the wire by the other side; it costs that side the stream.
type protocolError string

func (e protocolError) Error() string { return "protocol error: " + string(e) }

// parseFrame reads one frame's head and says how long it was. errShort asks for more bytes, never more than maxFrame.
func parseFrame(b []byte) (frame, int, error) {
	if len(b) == 0 {
		return frame{}, 0, errShort
	}
	f := frame{kind: b[0]}
	switch f.kind {
	case frameData, frameAck:
		v, n, err := shortestUvarint(b[1:])
		if err != nil {
			return frame{}, 0, err
		}
		f.value = v
		if f.kind == frameData && (v == 0 || v > maxData) {
			return frame{}, 0, protocolError(fmt.Sprintf("DATA of %d bytes", v))
		}
		return f, 1 + n, nil
	case framePing, framePong:
		if len(b) < 9 {
			return frame{}, 0, errShort
		}
		f.value = binary.BigEndian.Uint64(b[1:])
		return f, 9, nil
	case frameEnd:
		if len(b) < 2 {
			return frame{}, 0, errShort
		}
		f.value = uint64(b[1])
		return f, 2, nil
	case frameRenew:
		return f, 1, nil
	}
	return frame{}, 0, protocolError(fmt.Sprintf("frame type %d", f.kind))
}

// appendFrame prints what parseFrame reads.
func appendFrame(b []byte, f frame) []byte {
	b = append(b, f.kind)
	switch f.kind {
	case frameData, frameAck:
		return binary.AppendUvarint(b, f.value)
	case framePing, framePong:
		return binary.BigEndian.AppendUint64(b, f.value)
	case frameEnd:
		return append(b, byte(f.value))
	}
	return b
}

// shortestUvarint reads a uvarint and refuses one that is longer than it must be.
func shortestUvarint(b []byte) (uint64, int, error) {
	v, n := binary.Uvarint(b)
	switch {
	case n == 0 && len(b) < binary.MaxVarintLen64:
		return 0, 0, errShort
	case n <= 0 || n > 1 && b[n-1] == 0:
		return 0, 0, protocolError("uvarint too long")
	}
	return v, n, nil
}
