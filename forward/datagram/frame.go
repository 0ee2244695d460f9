package datagram

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"
)

// The frames and messages of docs/udp.md.

// MaxSize is the largest datagram that is carried, 65 507 bytes: what UDP over IPv4 has room for.
const MaxSize = 65507

const (
	maxService = 255
	magic      = "FWU1"
	helloSize  = 16
	// maxHead is what a frame takes besides its service and its datagram: a type, and three uvarints.
	maxHead = 1 + 3*binary.MaxVarintLen64
)

type frameType byte

const (
	frameData frameType = iota
	frameOpen
	frameOpened
	frameClose
	framePing
	framePong
)

// A frame is one message on a carrier's stream. Which fields count depends on the type.
type frame struct {
	typ     frameType
	number  uint64 // of the flow, or of the PING
	service string
	code    Code
	data    []byte // valid until the next frame is read
}

func (f frame) append(b []byte) []byte {
	b = binary.AppendUvarint(append(b, byte(f.typ)), f.number)
	switch f.typ {
	case frameOpen:
		b = binary.AppendUvarint(b, uint64(len(f.service)))
		b = append(b, f.service...)
		fallthrough
	case frameData:
		b = binary.AppendUvarint(b, uint64(len(f.data)))
		b = append(b, f.data...)
	case frameClose:
		b = append(b, byte(f.code))
	}
	return b
}

var errFrame = errors.New("datagram: the peer broke the protocol")

// readFrame reads the next frame; a datagram in it is read into room, which has MaxSize bytes.
func readFrame(r *bufio.Reader, room []byte) (f frame, err error) {
	typ, err := r.ReadByte()
	if err != nil {
		return f, err
	}
	f.typ = frameType(typ)
	if f.typ > framePong {
		return f, fmt.Errorf("%w: frame of type %d", errFrame, typ)
	}
	if f.number, err = readUvarint(r); err != nil {
		return f, err
	}
	switch f.typ {
	case frameOpen:
		name, err := readBytes(r, room, maxService)
		if err != nil {
			return f, err
		}
		if f.service = string(name); !validService(f.service) {
			return f, fmt.Errorf("%w: a service named %q", errFrame, f.service)
		}
		f.data, err = readBytes(r, room, MaxSize)
		return f, err
	case frameData:
		f.data, err = readBytes(r, room, MaxSize)
	case frameClose:
		var code byte
		code, err = r.ReadByte()
		f.code = Code(code)
	}
	return f, whole(err)
}

// validService says the same as package session of a service's name: not empty, UTF-8, nothing that would spoil a log line.
func validService(s string) bool {
	return len(s) > 0 && len(s) <= maxService && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// readBytes reads a length of at most max and so many bytes into room.
func readBytes(r *bufio.Reader, room []byte, max uint64) ([]byte, error) {
	n, err := readUvarint(r)
	if err != nil {
		return nil, err
	}
	if n > max {
		return nil, fmt.Errorf("%w: %d bytes where at most %d may be", errFrame, n, max)
	}
	_, err = io.ReadFull(r, room[:n])
	return room[:n], whole(err)
}

// readUvarint refuses what is not the shortest form: what parses also prints.
func readUvarint(r *bufio.Reader) (v uint64, err error) {
	for shift := 0; ; shift += 7 {
		c, err := r.ReadByte()
		if err != nil {
			return 0, whole(err)
		}
		if shift == 63 && c > 1 || shift > 0 && c == 0 {
			return 0, fmt.Errorf("%w: a number that is too long", errFrame)
		}
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return v, nil
		}
	}
}

// whole: the stream's end in the middle of something is no clean one.
func whole(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// A hello is C's first message.
type hello struct {
	packets bool
	boot    uint64
}

func (h hello) append(b []byte) []byte {
	return binary.BigEndian.AppendUint64(append(b, magic[0], magic[1], magic[2], magic[3], flagsOf(h.packets), 0, 0, 0), h.boot)
}

func readHello(r io.Reader) (h hello, err error) {
	var b [helloSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return h, err
	}
	if string(b[:4]) != magic {
		return h, fmt.Errorf("%w: magic %q", errFrame, b[:4])
	}
	return hello{packets: b[4]&flagPackets != 0, boot: binary.BigEndian.Uint64(b[8:])}, nil
}

const (
	flagPackets       = 1
	statusOK          = 0
	statusDenied      = 4 // as in the session's attach
	toExit       byte = 1 // a QUIC datagram's direction
	toEntry      byte = 2
)

func flagsOf(packets bool) byte {
	if packets {
		return flagPackets
	}
	return 0
}

// appendPacket makes a QUIC datagram.
func appendPacket(b []byte, direction byte, flow uint64, data []byte) []byte {
	return append(binary.AppendUvarint(append(b, direction), flow), data...)
}

// parsePacket reads one; ok is false for what is not ours.
func parsePacket(b []byte) (direction byte, flow uint64, data []byte, ok bool) {
	if len(b) < 2 || b[0] != toExit && b[0] != toEntry {
		return 0, 0, nil, false
	}
	flow, n := binary.Uvarint(b[1:])
	if n <= 0 || n > 1 && b[n] == 0 || len(b)-1-n > MaxSize {
		return 0, 0, nil, false
	}
	return b[0], flow, b[1+n:], true
}
