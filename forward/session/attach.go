package session

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	magic       = "FWL1"
	attachSize  = 68
	replySize   = 36
	maxExt      = 256 // bytes of attach extensions
	maxLanes    = 4   // per link
	flagNew     = 1
	flagCheck   = 2
	attachFlags = flagNew | flagCheck
)

// status is E's answer to an attach.
type status byte

const (
	statusOK          status = 0
	statusUnknownLink status = 1
	statusBootChanged status = 2
	statusStaleEpoch  status = 3
	statusDenied      status = 4
	statusBusy        status = 5
	statusDesync      status = 6
	statusVersion     status = 7
)

func (s status) String() string {
	names := [...]string{"ok", "unknown link", "peer restarted", "stale epoch", "denied", "busy", "out of step", "other version"}
	if int(s) < len(names) {
		return names[s]
	}
	return fmt.Sprintf("status %d", byte(s))
}

type (
	bootID [16]byte
	// linkID is a serial number, then random bytes.
	linkID [16]byte
)

func (l linkID) serial() uint64 { return binary.BigEndian.Uint64(l[:8]) }

// attach is C's message, docs/session.md "Attach".
type attach struct {
	flags  byte
	lane   uint8
	epoch  uint32
	link   linkID
	boot   bootID
	offset uint64
	crc    uint32
	window uint32
	known  [8]byte // first half of E's boot ID
	ext    []byte
}

var (
	errMagic  = errors.New("not a lane of this version")
	errAttach = errors.New("attach out of range")
)

func (a *attach) append(b []byte) []byte {
	b = append(b, magic...)
	b = append(b, a.flags, a.lane)
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.ext)))
	b = binary.BigEndian.AppendUint32(b, a.epoch)
	b = append(b, a.link[:]...)
	b = append(b, a.boot[:]...)
	b = binary.BigEndian.AppendUint64(b, a.offset)
	b = binary.BigEndian.AppendUint32(b, a.crc)
	b = binary.BigEndian.AppendUint32(b, a.window)
	b = append(b, a.known[:]...)
	return append(b, a.ext...)
}

// readAttach takes exactly one attach from r: errMagic, errAttach, or r's error.
func readAttach(r io.Reader) (*attach, error) {
	var b [attachSize]byte
	if _, err := io.ReadFull(r, b[:4]); err != nil {
		return nil, err
	}
	if string(b[:4]) != magic {
		return nil, errMagic
	}
	if _, err := io.ReadFull(r, b[4:]); err != nil {
		return nil, err
	}
	a := &attach{
		flags:  b[4] & attachFlags,
		lane:   b[5],
		epoch:  binary.BigEndian.Uint32(b[8:]),
		link:   linkID(b[12:28]),
		boot:   bootID(b[28:44]),
		offset: binary.BigEndian.Uint64(b[44:]),
		crc:    binary.BigEndian.Uint32(b[52:]),
		window: binary.BigEndian.Uint32(b[56:]),
		known:  [8]byte(b[60:68]),
	}
	ext := binary.BigEndian.Uint16(b[6:])
	if a.lane >= maxLanes || ext > maxExt || a.epoch == 0 {
		return nil, errAttach
	}
	if ext > 0 {
		a.ext = make([]byte, ext)
		if _, err := io.ReadFull(r, a.ext); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// reply is E's answer.
type reply struct {
	status status
	boot   bootID
	offset uint64
	crc    uint32
	window uint32
}

func (r *reply) append(b []byte) []byte {
	b = append(b, byte(r.status), 0, 0, 0)
	b = append(b, r.boot[:]...)
	b = binary.BigEndian.AppendUint64(b, r.offset)
	b = binary.BigEndian.AppendUint32(b, r.crc)
	return binary.BigEndian.AppendUint32(b, r.window)
}

func readReply(r io.Reader) (*reply, error) {
	var b [replySize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return nil, err
	}
	return &reply{
		status: status(b[0]),
		boot:   bootID(b[4:20]),
		offset: binary.BigEndian.Uint64(b[20:]),
		crc:    binary.BigEndian.Uint32(b[28:]),
		window: binary.BigEndian.Uint32(b[32:]),
	}, nil
}
